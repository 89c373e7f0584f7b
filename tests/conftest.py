"""Real services as fixtures for every test."""

pytest_plugins = ["databases", "services", "doors", "sshd", "ssh_cloud", "stranger", "weather"]
