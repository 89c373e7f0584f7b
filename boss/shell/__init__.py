"""Runs the core: the loop, threads for calls, the broker, the hook."""
