"""Decides which worker runs which ready task, and moves queued attempts to idle workers. Pure."""
