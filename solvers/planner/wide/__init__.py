"""Large fleets: ways of running each service at prices of what they share, and the choice among them."""
