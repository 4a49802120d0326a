"""Read every file of a source into raw records, and note what was skipped."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from serin.data_prep.config import DataPrepConfig
from serin.data_prep.pages import read_document
from serin.data_prep.readers import Row, read_rows, read_text
from serin.data_prep.rows import Raw, UnusableRow, recognise
from serin.data_prep.sources import Source, SourceFile

PAGES = ("markdown", "text", "html")
ROWS_SHARE = 0.6
"""Share of the stage's time that reading takes, for the progress display."""

Rejection = dict[str, str | int]


@dataclass
class Loaded:
    """What the files hold, in the order of their names."""

    records: list[Raw] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """File to the reason."""
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    """File to the number of records of each kind, before cleaning."""


def load(source: Source, config: DataPrepConfig, progress: Callable[[str, float | None], None]) -> Loaded:
    """Read all files.

    Raises:
        InputError: a file is broken; the message names it, and the line or byte.
    """
    loaded, done = Loaded(), 0
    for file in source.files:
        if file.format:
            _read_file(file, config, loaded)
        else:
            loaded.skipped[file.name] = "unknown extension"
        done += file.size
        what = loaded.files.get(file.name)
        said = ", ".join(f"{kind} {count}" for kind, count in what.items()) if what else loaded.skipped[file.name]
        progress(f"{file.name}: {said}", ROWS_SHARE * done / max(1, source.size))
    return loaded


def rejection(raw: Raw, reason: str, detail: str = "") -> Rejection:
    """A line of rejected.jsonl: where the record stood and why it is not used, without its text."""
    row: Rejection = {"source": raw.source, "row": raw.row, "kind": raw.kind, "reason": reason}
    if raw.id:
        row["id"] = raw.id
    if detail:
        row["detail"] = detail
    return row


def _read_file(file: SourceFile, config: DataPrepConfig, loaded: Loaded) -> None:
    if file.format in PAGES:
        loaded.records.append(read_document(file, read_text(file, config.encoding)))
        loaded.files[file.name] = {"document": 1}
        return
    counts: Counter[str] = Counter()
    refused: list[Rejection] = []
    columns: list[str] = []
    for number, row in read_rows(file, config.encoding):
        columns = columns or list(row)
        raw = _recognised(row, file, number, config, refused)
        if raw:
            loaded.records.append(raw)
            counts[raw.kind] += 1
    if not counts and all(row["reason"] == "no known columns" for row in refused):
        loaded.skipped[file.name] = f"no known columns among {', '.join(columns[:8])}" if columns else "no rows"
        return  # one line for the file, not one for each of its rows
    loaded.rejected += refused
    loaded.files[file.name] = dict(counts)


def _recognised(
    row: Row, file: SourceFile, number: int, config: DataPrepConfig, refused: list[Rejection]
) -> Raw | None:
    where: Rejection = {"source": file.name, "row": number, "kind": "row"}
    try:
        raw = recognise(row, file.name, number, config)
    except UnusableRow as error:
        refused.append({**where, "reason": "unusable row", "detail": str(error)})
        return None
    if raw is None:
        refused.append({**where, "reason": "no known columns"})
    return raw
