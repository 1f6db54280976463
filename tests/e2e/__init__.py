"""The balancer as its users run it: a process of its own, in front of real mail servers."""
