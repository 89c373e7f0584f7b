"""Settings, secrets, and where a cluster keeps its files on this machine."""
