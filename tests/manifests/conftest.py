"""The objects of every build."""

from pathlib import Path

import pytest

from tests.manifests.building import BUILDS, Object, build, build_command


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where overlays with a component are put together; skips where nothing can build them."""
    if build_command() is None:
        pytest.skip("needs kubectl (1.27 or later) or kustomize (5 or later) to build the manifests")
    return tmp_path_factory.mktemp("manifests")


@pytest.fixture(params=BUILDS)
def built(request: pytest.FixtureRequest, scratch: Path) -> list[Object]:
    """The objects of each build in turn."""
    return build(request.param, scratch)


@pytest.fixture
def prod(scratch: Path) -> list[Object]:
    """The objects of the production overlay."""
    return build("prod", scratch)
