"""What tests of Python calls share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ecloud.python.cluster import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A private cluster of two workers, for all tests of a file."""
    cluster = Cluster(None, workers=2)
    yield cluster
    cluster.close()
