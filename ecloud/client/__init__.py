"""Talks to the boss over the broker."""
