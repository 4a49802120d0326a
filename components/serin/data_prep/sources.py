"""The source: files below a folder or an ``s3://`` prefix, named and digested the same wherever they lie."""

import fcntl
import fnmatch
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serin.core.artifacts import home
from serin.core.digests import digest_of, digest_of_file, digest_of_text
from serin.core.errors import InputError
from serin.core.storage import disk_errors, is_remote, local_path, storage_for

EXTENSIONS = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".text": "text",
    ".html": "html",
    ".htm": "html",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
"""Extension to format; each may be followed by '.gz'."""


@dataclass(frozen=True)
class SourceFile:
    """One file of the source."""

    name: str
    """Path below the source: what documents are named after."""
    path: Path
    """The file on this machine."""
    sha256: str
    size: int
    """Bytes."""

    @property
    def format(self) -> str:
        """'markdown', 'text', 'html', 'jsonl', 'csv', 'parquet'; empty for what is not read."""
        return EXTENSIONS.get(Path(self.plain_name).suffix.lower(), "")

    @property
    def compressed(self) -> bool:
        """Whether the file is gzipped."""
        return self.name.lower().endswith(".gz")

    @property
    def plain_name(self) -> str:
        """The name without '.gz'."""
        return self.name[:-3] if self.compressed else self.name


@dataclass(frozen=True)
class Source:
    """All files of a source, sorted by name."""

    uri: str
    files: tuple[SourceFile, ...]

    @property
    def digest(self) -> str:
        """Digest of names and contents, whatever the location."""
        return digest_of([[file.name, file.sha256] for file in self.files])

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)

    def check_unchanged(self) -> None:
        """Refuse to publish what was read from files that changed meanwhile.

        Raises:
            InputError: naming the file.
        """
        for file in self.files:
            if not file.path.is_file() or file.path.stat().st_size != file.size or _digest(file.path) != file.sha256:
                raise InputError(f"{file.name} changed while it was read: let its writer finish, then run again.")


@contextmanager
def open_source(uri: str, exclude: Sequence[str] = ()) -> Iterator[Source]:
    """The files of a source, on this machine while the context is open; hidden files are left out.

    Args:
        uri: a folder, one file, ``file://`` or ``s3://``.
        exclude: shell patterns of names to leave out.

    Raises:
        InputError: there is no such folder, or nothing in it.
        StorageError: S3 cannot be read.
    """
    with _fetched(uri) if is_remote(uri) else _local(uri) as found:
        files = tuple(
            SourceFile(name=name, path=path, sha256=_digest(path), size=path.stat().st_size)
            for name, path in sorted(found.items())
            if not _hidden(name) and not any(fnmatch.fnmatch(name, pattern) for pattern in exclude)
        )
        if not files:
            what = f"; all of its {len(found)} files are hidden or excluded" if found else ""
            raise InputError(f"The source {uri} is empty{what}: put Markdown, text, HTML, JSONL, CSV or Parquet there.")
        yield Source(uri=uri, files=files)


@contextmanager
def _local(uri: str) -> Iterator[dict[str, Path]]:
    root = local_path(uri)
    if root.is_file():
        yield {root.name: root}
        return
    if not root.is_dir():
        raise InputError(f"The source {root} does not exist: give a folder, a file or an s3:// prefix.")
    yield {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}


@contextmanager
def _fetched(uri: str) -> Iterator[dict[str, Path]]:
    """Copies of a remote source, removed afterwards; what a killed run left is removed by the next one."""
    storage = storage_for(uri)
    folder = home() / "cache" / "sources" / digest_of_text(uri)[:24]
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the same source waits
            shutil.rmtree(folder, ignore_errors=True)
            try:
                names = [name for name in storage.keys("") if name and not name.endswith("/")]
                for name in names:
                    storage.fetch(name, folder / name)
                yield {name: folder / name for name in names}
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "~$")) or part == "__MACOSX" for part in name.split("/"))


def _digest(path: Path) -> str:
    try:
        return digest_of_file(path)
    except PermissionError as error:
        raise InputError(f"{path} may not be read: give this user read access to it.") from error
