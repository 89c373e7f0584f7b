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
    """nohup lets its command ignore SIGHUP, and a shell what it starts in the background SIGINT and SIGQUIT. All
    processes that tests start would ignore them, too, and some tests are about them."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of several processes begins with its part of this list."""
    items.sort(key=lambda item: "chaos" not in item.path.parts)
