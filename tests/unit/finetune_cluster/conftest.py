"""What the launcher's tests are given: inputs in a store that a cluster could share, and a fake KubeRay."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cluster_worlds import World, make_world
from fake_kuberay import FakeKubeRay, Script


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A dataset and documents in a folder that counts as the shared volume."""
    return make_world(tmp_path)


@pytest.fixture
def kuberay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Script], FakeKubeRay]]:
    """Start a fake KubeRay with what shall happen to each job; KUBECONFIG leads there."""
    with ExitStack() as stack:

        def start(script: Script) -> FakeKubeRay:
            api = stack.enter_context(FakeKubeRay(script))
            monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
            return api

        yield start
