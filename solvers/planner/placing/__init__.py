"""From numbers to places: whole replicas in bays, short fleets tier by tier, what is left over."""
