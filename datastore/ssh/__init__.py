"""A datastore on another machine, over SSH."""
