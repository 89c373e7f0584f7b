"""Definitions that boss, workers and clients share: messages, tasks, topics, states. Pure."""
