"""The shared language of boss, workers and doors: tasks, messages, formats, tables, questions."""
