"""Follows tasks and their attempts from assignment to a recorded outcome. Pure."""
