"""Serves what clients ask: pushes, requests on tasks and workers, progress for watchers, alerts. Pure."""
