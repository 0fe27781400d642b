"""The pure core of Penstock: no clock, network, disk, environment, logging or Kubernetes."""
