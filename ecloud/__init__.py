"""The shared language of boss, workers and doors: tasks, messages, formats, tables, questions."""

VERSION = "0.1.0"
"""Of the package; pyproject.toml reads it here."""
