"""Real services as fixtures for every test; the longest test begins first, so that none runs alone at the end."""

import signal

import pytest

pytest_plugins = [
    "databases",
    "services",
    "doors",
    "images",
    "sshd",
    "net_hosts",
    "slurm",
    "ssh_cloud",
    "stranger",
    "weather",
]


def pytest_configure() -> None:
    """Under nohup SIGHUP is ignored, also by all processes that tests start; some tests are about it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of several processes begins with its part of this list."""
    items.sort(key=lambda item: "chaos" not in item.path.parts)
