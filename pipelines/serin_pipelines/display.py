"""What a person sees while a run is under way: one line a stage, live in a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from serin_pipelines.records import RunRecord, StageRecord

MARKS = {"waiting": "·", "running": "▶", "succeeded": "✓", "failed": "✗", "skipped": "–"}
STYLES = {"waiting": "dim", "running": "cyan", "succeeded": "green", "failed": "red", "skipped": "dim"}
PLAIN_INTERVAL_S = 15.0


class Display:
    """Follows a run's record on a console; ``quiet`` shows nothing."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._live: Live | None = None
        self._said: dict[str, str] = {}
        self._last = 0.0

    @contextmanager
    def following(self, record: RunRecord) -> Iterator[None]:
        """Show the record for as long as the block lasts."""
        if self._quiet:
            yield
        elif self._console.is_terminal:
            with Live(_table(record), console=self._console, refresh_per_second=4) as self._live:
                yield
            self._live = None
        else:
            self._console.print(f"run {record.run_id}: {record.source_uri}", soft_wrap=True)
            yield

    def update(self, record: RunRecord) -> None:
        """Show the record as it is now."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(_table(record))
            return
        for stage in record.stages:
            self._plain(stage)

    def _plain(self, stage: StageRecord) -> None:
        said = self._said.get(stage.name, "waiting")
        if stage.status != said:
            self._said[stage.name] = stage.status
            self._console.print(f"{MARKS[stage.status]} {stage.name} {stage.status}{_detail(stage)}", soft_wrap=True)
        elif stage.status == "running" and stage.message and time.monotonic() - self._last > PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            self._console.print(f"  {stage.name}: {stage.message}", soft_wrap=True)


def _table(record: RunRecord) -> Table:
    table = Table.grid(padding=(0, 2))
    for stage in record.stages:
        style = STYLES[stage.status]
        table.add_row(
            Text(f"{MARKS[stage.status]} {stage.name}", style=style),
            _bar(stage),
            Text(_seconds(stage), style="dim", justify="right"),
            Text(_detail(stage).lstrip(": ") or stage.message, style=style if stage.status == "failed" else ""),
        )
    return table


def _bar(stage: StageRecord) -> ProgressBar | Text:
    fraction = stage.summary.get("fraction") if stage.status == "running" else None
    return ProgressBar(total=1.0, completed=fraction, width=20) if fraction is not None else Text(" " * 20)


def _seconds(stage: StageRecord) -> str:
    if stage.status == "running" and "started" in stage.summary:
        return f"{time.time() - stage.summary['started']:.0f} s"
    return f"{stage.wall_s:.0f} s" if stage.wall_s else ""


def _detail(stage: StageRecord) -> str:
    if stage.status == "failed":
        return f": {stage.message}"
    if stage.status == "succeeded":
        reused = f", reused {', '.join(dict.fromkeys(stage.reused))}" if stage.reused else ""
        return f" in {stage.wall_s:.1f} s{reused}"
    return ""
