"""One home for all tests of the endpoint: gateways of the session keep their logs there."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def serin_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERIN_HOME", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder
