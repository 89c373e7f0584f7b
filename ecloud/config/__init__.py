"""Settings, secrets, and the locations of a cluster's files on this machine."""
