"""The agent on a machine: a pure core for the conversation, and a shell of processes, files and a connection."""
