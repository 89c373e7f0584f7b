"""What boss, workers and clients share: messages, tasks, topics, states. Pure."""
