"""The optimisation as it is stated: columns, limits, and the relaxation of both."""
