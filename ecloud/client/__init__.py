"""Speaks with the boss over the broker."""
