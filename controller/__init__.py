"""The imperative shell of Penstock: observes, obeys, reports; decides nothing."""
