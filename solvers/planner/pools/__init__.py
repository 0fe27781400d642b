"""What may run: pools at their caps, sized; cells of them in bays; what failing a service costs."""
