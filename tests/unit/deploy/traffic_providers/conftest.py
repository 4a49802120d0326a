"""A fake cluster with each kind of target in turn."""

from collections.abc import Iterator

import pytest
from fake_cluster import FakeCluster
from traffic_worlds import WORLDS, World


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    """A Kubernetes API."""
    with FakeCluster() as started:
        yield started


@pytest.fixture(params=WORLDS, ids=lambda kind: kind.kind)
def target(request: pytest.FixtureRequest, cluster: FakeCluster) -> World:
    """Each kind of target, with release A in all of its traffic."""
    made: World = request.param(cluster)
    return made
