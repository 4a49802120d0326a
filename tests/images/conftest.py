"""The images, built for real once, and containers of them as Kubernetes would restrict them."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from .engine import Engine, NoEngine, base_image, engine, served, wheelhouse

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "manifests" / "images"
RESTRICTED = (
    "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--shm-size=512m",
    "--tmpfs=/tmp:rw,exec,mode=1777", "--tmpfs=/minio:rw,mode=1777",
)  # fmt: skip
"""What the pods of our pipelines are held to; Kubeflow mounts /minio for the artefacts of an S3 store."""
BUILD_TIMEOUT_S = 600


@dataclass(frozen=True)
class Image:
    """A built image."""

    engine: Engine
    reference: str
    index: str
    """URL that its packages came from."""

    def inspect(self, template: str) -> str:
        """A fact of ``docker image inspect``."""
        return self.engine.call("image", "inspect", "--format", template, self.reference, timeout_s=30).stdout.strip()


@dataclass(frozen=True)
class Container:
    """A running container."""

    engine: Engine
    name: str

    def run(self, *command: str, timeout_s: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self.engine.call("exec", self.name, *command, timeout_s=timeout_s, check=check)

    def python(self, code: str) -> str:
        """What a few lines of Python print in it."""
        return self.run("python3", "-c", code).stdout.strip()


Build = Callable[..., Image]


@pytest.fixture(scope="module")  # not the session's: it ends within the long time limit of the tests that use it
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Builds a target of the Dockerfile; all that was built is removed at the end."""
    folder = tmp_path_factory.mktemp("images")
    try:
        with engine() as docker:
            base = base_image(docker, folder)
            with served(_wheels(folder)) as index:
                (folder / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {index}\n")
                builder = _Builder(docker, base, index, folder / "pip.conf")
                yield builder
                if not docker.host:  # an engine of our own goes with all that it holds
                    builder.remove()
    except NoEngine as reason:
        pytest.skip(str(reason))


def _wheels(folder: Path) -> Path:
    lists = folder / "requirements"
    script = [sys.executable, "-B", str(FOLDER / "requirements.py"), str(ROOT / "pyproject.toml"), str(lists)]
    subprocess.run(script, check=True, timeout=30)
    return wheelhouse([lists / "cpu.txt", lists / "ray.txt"], ROOT / "constraints.txt", folder / "wheels")


class _Builder:
    def __init__(self, docker: Engine, base: str, index: str, secret: Path) -> None:
        self._docker, self._base, self._index, self._secret = docker, base, index, secret
        self._built: dict[str, Image] = {}

    def __call__(self, target: str, *arguments: str) -> Image:
        if target not in self._built:
            self._built[target] = self._build(target, [f"--build-arg={one}" for one in arguments])
        return self._built[target]

    def _build(self, target: str, arguments: list[str]) -> Image:
        reference = f"serin-test/{target}:{uuid4().hex[:12]}"
        given = [f"--build-arg=BASE_IMAGE={self._base}", "--build-arg=REVISION=tested", *arguments]
        where = ["--network=host", f"--secret=id=pip,src={self._secret}", f"--file={FOLDER / 'Dockerfile'}"]
        self._docker.call(
            "build", "--progress=plain", f"--target={target}", f"--tag={reference}", *where, *given, str(ROOT),
            timeout_s=BUILD_TIMEOUT_S,
        )  # fmt: skip
        return Image(self._docker, reference, self._index)

    def remove(self) -> None:
        """Remove the images from the engine, which may be the user's own."""
        for image in self._built.values():
            self._docker.call("image", "rm", "--force", image.reference, timeout_s=120, check=False)


@pytest.fixture
def start() -> Iterator[Callable[[Image], Container]]:
    """Starts a restricted container that waits for commands."""
    started: list[Container] = []

    def run(image: Image) -> Container:
        container = Container(image.engine, f"serin-test-{uuid4().hex[:12]}")
        image.engine.call(
            "run", "--detach", "--rm", "--init", f"--name={container.name}", *RESTRICTED, image.reference,
            "sleep", "900", timeout_s=60,
        )  # fmt: skip
        started.append(container)
        return container

    yield run
    for container in started:
        container.engine.call("rm", "--force", container.name, timeout_s=60, check=False)
