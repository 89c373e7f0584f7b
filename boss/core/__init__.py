"""The deciding part of the boss: events in, effects out. No clock, no I/O, no randomness, no threads."""
