"""What a person sees of a run on Kubeflow: a live table in a terminal, one line per change elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serin_pipelines.kubeflow.follow import RunView, TaskView

MARKS = {"PENDING": "·", "RUNNING": "▶", "SUCCEEDED": "✓", "FAILED": "✗", "SKIPPED": "–", "CANCELED": "■"}
STYLES = {"PENDING": "dim", "RUNNING": "cyan", "SUCCEEDED": "green", "FAILED": "red", "CANCELED": "yellow"}
NOTABLE = ("PAUSED", "CANCELING")
"""States of a run that are worth a line before it ends."""


class Progress:
    """Shows a run on a console; ``quiet`` shows nothing."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._live: Live | None = None
        self._said: dict[str, str] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """Show the run for as long as the block lasts."""
        if self._quiet or not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        if not self._quiet:
            self._console.print(sentence, markup=False, soft_wrap=True)

    def show(self, view: RunView) -> None:
        """Show the run as it is now."""
        if self._live is not None:
            self._live.update(_table(view))
        if self._changed("", view.state) and view.state in NOTABLE:
            self.say(f"run is {view.state.lower()}")
        for task in view.tasks:
            if self._changed(task.name, task.state) and self._live is None:
                self.say(f"{MARKS.get(task.state, ' ')} {task.name} {task.state.lower()}{_detail(task)}")

    def _changed(self, name: str, state: str) -> bool:
        before, self._said[name] = self._said.get(name), state
        return state != before


def _table(view: RunView) -> Table:
    table = Table.grid(padding=(0, 2))
    for task in view.tasks:
        seconds = "" if task.seconds is None else f"{task.seconds:.0f} s"
        label = Text(f"{MARKS.get(task.state, ' ')} {task.name}", style=STYLES.get(task.state, ""))
        table.add_row(label, Text(seconds, style="dim", justify="right"), Text(task.error, style="red"))
    return table


def _detail(task: TaskView) -> str:
    if task.error:
        return f": {task.error}"
    return "" if task.seconds is None else f" ({task.seconds:.0f} s)"
