"""Read files as they are: text whole, rows one at a time.  Every error names the file, and the line where it can."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from serin.core.errors import InputError
from serin.data_prep.sources import SourceFile

Row = dict[str, Any]
PEEK_BYTES = 8192
MAX_FIELD_CHARS = 50_000_000


def read_text(file: SourceFile, encoding: str) -> str:
    """The text of a Markdown, text or HTML file.

    Raises:
        InputError: the file is binary, or not in this encoding (with the byte where it goes wrong).
    """
    with _opened(file) as stream:
        data = stream.read()
    _refuse_binary(file, data[:PEEK_BYTES])
    return _decode(file, data, encoding, 0)


def read_rows(file: SourceFile, encoding: str) -> Iterator[tuple[int, Row]]:
    """Rows of a JSONL, CSV or Parquet file with their numbers (JSONL and CSV: the line, from 1).

    Raises:
        InputError: the file is not what its name says, or a line of it is broken.
    """
    readers = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}
    with _opened(file) as stream:
        yield from readers[file.format](file, stream, encoding)


@contextmanager
def _opened(file: SourceFile) -> Iterator[BinaryIO]:
    try:
        with gzip.open(file.path) if file.compressed else file.path.open("rb") as stream:
            yield cast(BinaryIO, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file.name} is not a whole gzip file ({error}): compress it again.") from error


def _jsonl(file: SourceFile, stream: BinaryIO, encoding: str) -> Iterator[tuple[int, Row]]:
    for number, line in _lines(file, stream, encoding):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{file.name}, line {number}, is not JSON ({error.msg} at column {error.colno}): each line must be one"
                " JSON object."
            ) from error
        if not isinstance(row, dict):
            raise InputError(f"{file.name}, line {number}, holds a JSON {type(row).__name__}, not an object.")
        yield number, row


def _csv(file: SourceFile, stream: BinaryIO, encoding: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(MAX_FIELD_CHARS)
    lines = (line for _, line in _lines(file, stream, encoding))
    header = next(lines, "")
    if not header.strip():
        return
    reader = csv.DictReader(_chain(header, lines), delimiter=_delimiter(header), strict=True)
    number = 0
    try:
        for row in reader:
            number = reader.line_num
            if None in row or None in row.values():
                found = sum(value is not None for value in row.values()) + len(row.get(None) or []) - (None in row)
                raise InputError(
                    f"{file.name}, line {number}, has {found} fields where the header has"
                    f" {len(reader.fieldnames or [])}: put quotes around fields that hold the delimiter."
                )
            yield number, dict(row)
    except csv.Error as error:
        raise InputError(f"{file.name}, near line {reader.line_num}, is not CSV: {error}.") from error


def _parquet(file: SourceFile, stream: BinaryIO, encoding: str) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Parquet is read from its end; a gzipped one has to be unpacked as a whole.
        table = pq.ParquetFile(io.BytesIO(stream.read()) if file.compressed else file.path)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file.name} is not readable Parquet: {str(error).splitlines()[0]}") from error


def _lines(file: SourceFile, stream: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    position = 0
    for number, line in enumerate(stream, start=1):
        if number == 1 or b"\x00" in line:
            _refuse_binary(file, line[:PEEK_BYTES] if number == 1 else line)
        yield number, _decode(file, line, encoding, position)
        position += len(line)


def _decode(file: SourceFile, data: bytes, encoding: str, position: int) -> str:
    if encoding == "utf-8" and position == 0:
        data_start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
        data, position = data[data_start:], data_start
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file.name} is not {encoding}: byte {position + error.start} is 0x{data[error.start]:02x}. Convert the"
            f" file to UTF-8, or set data_prep.encoding (Windows files: cp1252)."
        ) from error


def _refuse_binary(file: SourceFile, data: bytes) -> None:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{file.name} is UTF-16: convert it to UTF-8.")
    if b"\x00" in data:
        raise InputError(f"{file.name} is a binary file with the name of a {file.format} file: remove or rename it.")


def _delimiter(header: str) -> str:
    return max([",", ";", "\t"], key=header.count)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
