"""Runs the worker's core: processes, files, the broker, what is kept on disk."""
