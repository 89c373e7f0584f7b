"""What the core knows: rows, the task graph, the fleet, configuration, events in, effects out. Pure."""
