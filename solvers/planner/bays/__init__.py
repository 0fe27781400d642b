"""Where replicas may stand: bays of nodes, groups of those that are alike, what is taken of them."""
