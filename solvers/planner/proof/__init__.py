"""What a plan shows of its bound."""
