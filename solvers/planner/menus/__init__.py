"""Small fleets: every size of every pool, combined into menus of whole ways by service."""
