"""A Docker engine for tests: the one that answers, else one of our own for as long as the tests take."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

START_TIMEOUT_S = 60
BASE_VARIABLE = "SERIN_TEST_BASE_IMAGE"
"""A base image to use instead of making one."""
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
SURPLUS = ("var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/locale", "usr/share/man")


class NoEngine(Exception):
    """Images cannot be built here; the message is the reason."""


@dataclass(frozen=True)
class Engine:
    """A Docker command with BuildKit, and the daemon that it talks to."""

    docker: str
    host: str = ""
    """``unix://...``; empty for the default."""

    def call(self, *arguments: str, timeout_s: float, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``docker ...``; its output is captured.

        Raises:
            AssertionError: it failed and ``check`` is set; the message holds the end of what it said.
        """
        environment = {**os.environ, "DOCKER_BUILDKIT": "1", **({"DOCKER_HOST": self.host} if self.host else {})}
        done = subprocess.run(
            [self.docker, *arguments], env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, f"docker {arguments[0]}: {(done.stdout + done.stderr)[-6000:]}"
        return done


@contextmanager
def engine() -> Iterator[Engine]:
    """An engine that can build.

    Raises:
        NoEngine: there is none, and none can be started.
    """
    docker = _command()
    if Engine(docker).call("info", timeout_s=30, check=False).returncode == 0:
        yield Engine(docker)
        return
    daemon = shutil.which("dockerd", path=_path())
    if daemon is None:
        raise NoEngine("no Docker engine answers, and dockerd is not installed (Debian: apt-get install docker.io)")
    if os.geteuid() != 0:
        raise NoEngine("no Docker engine answers, and only root can start one")
    folder = Path(tempfile.mkdtemp(prefix="serin-engine-"))  # short: a socket's path has at most 107 bytes
    try:
        with _daemon(daemon, folder) as host:
            yield Engine(docker, host)
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=False)  # 20 GB of small files: minutes on a slow disk


def _command() -> str:
    """A docker command that can use BuildKit: before 23 it is built in, since then it is the buildx plugin."""
    found = dict.fromkeys(filter(None, (shutil.which("docker"), shutil.which("docker", path="/usr/bin"))))
    for docker in found:
        version = _output(docker, "version", "--format", "{{.Client.Version}}")
        if version.partition(".")[0].isdigit() and int(version.partition(".")[0]) < 23:
            return docker
        if _output(docker, "buildx", "version"):
            return docker
    reason = "no docker command is installed" if not found else "the docker command has no BuildKit (buildx)"
    raise NoEngine(f"{reason} (Debian: apt-get install docker.io)")


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if "unknown command" not in done.stderr else ""


@contextmanager
def _daemon(daemon: str, folder: Path) -> Iterator[str]:
    """dockerd with everything below one folder; it makes no bridge and writes no firewall rules."""
    host = f"unix://{folder}/docker.sock"
    places = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", f"--host={host}"]
    quiet = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--log-level=error"]
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [daemon, *places, *quiet], stdout=stream, stderr=stream, env={**os.environ, "PATH": _path()}
        )
    try:
        _wait(process, folder / "docker.sock", log)
        yield host
    finally:
        process.terminate()  # it ends its containerd, and unmounts what it mounted
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = " ".join(log.read_text(errors="replace").split())[-600:]
            raise NoEngine(f"dockerd does not start here: {said}")
        time.sleep(0.2)


def base_image(docker: Engine, folder: Path) -> str:
    """The reference of a Debian with Python 3.11: the given one, else one made by debootstrap.

    Raises:
        NoEngine: neither is possible.
    """
    if given := os.environ.get(BASE_VARIABLE):
        return given
    debootstrap = shutil.which("debootstrap", path=_path())
    if debootstrap is None or os.geteuid() != 0:
        raise NoEngine(f"a base image needs debootstrap and root, or a reference in {BASE_VARIABLE}")
    root, archive = folder / "root", folder / "root.tar"
    command = [debootstrap, "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PATH": _path()}
    )
    if done.returncode != 0:
        shutil.rmtree(root, ignore_errors=True)
        raise NoEngine(f"debootstrap made no base image: {' '.join(done.stdout.split())[-400:]}")
    excluded = [f"--exclude=./{name}/*" for name in (*SURPLUS, "dev", "proc", "sys")]
    subprocess.run(["tar", "-C", str(root), *excluded, "-cf", str(archive), "."], check=True, timeout=120)
    shutil.rmtree(root)
    name = "serin-test/base:bookworm"
    docker.call("import", str(archive), name, timeout_s=120)
    archive.unlink()
    return name


def wheelhouse(requirements: list[Path], constraints: Path, folder: Path) -> Path:
    """What the images install, fetched with this machine's own pip configuration, which so stays out of the build."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    lists = [argument for path in requirements for argument in ("--requirement", str(path))]
    done = subprocess.run(
        [*pip, "--constraint", str(constraints), "--wheel-dir", str(folder), *lists, "pip", "setuptools"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The files of a folder over HTTP on loopback; yields the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    """Says nothing about requests."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin"
