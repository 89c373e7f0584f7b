"""The simulation: the real cores under one clock, one heap of events and one seed."""
