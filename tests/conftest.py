"""Fixtures of all tests: a home of one's own, a store on files or S3, where the shared data lies; and who runs what."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
RAY = (
    "tests/local/",
    "tests/unit/finetune/test_finetune_ray.py",
    "tests/unit/finetune/test_finetune_sweep.py",
    "tests/unit/finetune/test_ray_workers.py",
    "tests/unit/serve/test_ray_app.py",
)
"""What starts a Ray on this machine: one process runs it all, so that there are never two at once."""
TOGETHER = (
    RAY,
    ("tests/unit/serve/test_api_", "tests/unit/serve/test_openai_client"),
    ("tests/unit/evaluate/",),
)
"""Files that share what is dear to start; any other file is one of its own."""
FIRST = (*RAY, "tests/unit/serve/test_gateway.py")
"""What takes longest is begun first, so that no process is left with it alone."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where processes share the tests (``pytest -n 2``): which tests stay together, in their order."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((names[0] for names in TOGETHER if file.startswith(names)), file)

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, where processes share the tests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SERIN_HOME below the test's own folder."""
    home = tmp_path / "home"
    monkeypatch.setenv("SERIN_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real S3 API server on loopback; yields its URL."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A fresh bucket; boto3's environment points at it."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"bucket-{abs(hash(tmp_path)):x}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def shared_data() -> Path:
    """The folder of public data; the test is skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the public data sets in ../shared/data, which are not here")
    return folder
