"""Services whose router splits by size: where to cut them."""
