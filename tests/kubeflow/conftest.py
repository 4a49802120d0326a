"""A fake server, a connection to it with short delays, and small compiled pipelines."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp import compiler, dsl

from serin_pipelines.environments import Environment
from serin_pipelines.kubeflow.client import Kubeflow
from serin_pipelines.kubeflow.follow import Watch
from serin_pipelines.kubeflow.packages import Package, read_package
from serin_pipelines.kubeflow.transport import Patience

from .fake_kfp import FakeKubeflow

AUTH_VARIABLES = (
    "KFP_TOKEN",
    "KFP_TOKEN_FILE",
    "KFP_ALLOW_HTTP",
    "KFP_OIDC_AUDIENCE",
    "KF_PIPELINES_SA_TOKEN_PATH",
    "ACTIONS_ID_TOKEN_REQUEST_URL",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "CI",
    "GITHUB_ACTOR",
    "GITHUB_STEP_SUMMARY",
    "SERIN_ADMIN_TOKEN",
    "SSL_CERT_FILE",
)
QUICK = Patience(tries=4, first_delay_s=0.01, max_delay_s=0.05, max_retry_after_s=2.0, connect_s=2.0, read_s=5.0)
WATCH = Watch(poll_s=0.01, timeout_s=20.0, lost_s=5.0)


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine that runs the tests gives a token or a name."""
    for name in AUTH_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Iterator[FakeKubeflow]:
    """A running fake."""
    with FakeKubeflow() as server:
        yield server


@pytest.fixture
def environment(fake: FakeKubeflow, tmp_path: Path) -> Environment:
    """An environment whose server is the fake, with a store on files and no MLflow."""
    return Environment(
        name="test",
        namespace="serin-test",
        endpoint="assistant",
        kfp_host=fake.host,
        experiment="serin-test",
        service_account="serin-pipeline",
        store_uri=(tmp_path / "store").as_uri(),
    )


@pytest.fixture
def kubeflow(environment: Environment) -> Iterator[Kubeflow]:
    """A connection with the real client."""
    with Kubeflow.connect(environment, patience=QUICK) as connection:
        yield connection


@dsl.container_component
def echo(text: str) -> dsl.ContainerSpec:
    """A task."""
    return dsl.ContainerSpec(image="registry.example/echo@sha256:" + "0" * 64, command=["echo"], args=[text])


@dsl.pipeline(name="serin-small")
def small(
    source_uri: str,
    epochs: int = 1,
    margin: float = 0.5,
    quick: bool = False,
    names: list = [],  # noqa: B006 - KFP reads defaults, it never shares them
    tuning: dict = {},  # noqa: B006
) -> None:
    """Three tasks in a row, and a parameter of each type."""
    first = echo(text=source_uri).set_display_name("First")
    second = echo(text="second").after(first)
    with dsl.If(epochs == 1):
        echo(text="third").after(second)


@dsl.pipeline(name="serin-promotion")
def small_promotion(
    release_id: str,
    store_uri: str,
    source_store_uri: str = "",
    approved_by: str = "",
    tracking_uri: str = "",
    endpoint: str = "assistant",
) -> None:
    """The parameters of our promotion pipeline, and two tasks."""
    first = echo(text=release_id)
    echo(text=store_uri).after(first)


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IR of ``small``."""
    path = tmp_path_factory.mktemp("ir") / "small.yaml"
    compiler.Compiler().compile(small, str(path))
    return path


@pytest.fixture(scope="session")
def promotion_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IR of ``small_promotion``."""
    path = tmp_path_factory.mktemp("ir") / "promotion.yaml"
    compiler.Compiler().compile(small_promotion, str(path))
    return path


@pytest.fixture
def package(small_file: Path) -> Package:
    """``small``, read."""
    return read_package(small_file)
