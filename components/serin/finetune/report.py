"""What people read about a training: the loss curve as HTML with inline SVG, and the model card."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 640, 260, 44
SMOOTHING = 0.9
MOST_POINTS = 400

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td { padding: .15rem 1rem .15rem 0; vertical-align: top }
td:first-child { color: #5b6b7b } svg { width: 100%; height: auto } .key { color: #5b6b7b }
"""


@dataclass
class Curve:
    """The course of one phase; a step that was run again after a kill counts once."""

    phase: str
    num_steps: int = 0
    loss: dict[int, float] = field(default_factory=dict)
    """Step to training loss."""
    val_loss: dict[int, float] = field(default_factory=dict)
    """Step to validation loss."""
    tokens: int = 0
    seconds: float = 0.0
    """Spent in optimizer steps, repeated ones included."""
    num_resumed: int = 0

    def dump(self) -> dict[str, Any]:
        """The curve as JSON values."""
        return {
            "phase": self.phase,
            "steps": self.num_steps,
            "loss": [[step, round(value, 5)] for step, value in sorted(self.loss.items())],
            "val_loss": [[step, round(value, 5)] for step, value in sorted(self.val_loss.items())],
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "resumed": self.num_resumed,
        }

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Curve":
        """The curve that ``dump`` wrote."""
        return cls(
            phase=values["phase"],
            num_steps=values["steps"],
            loss=dict(values["loss"]),
            val_loss=dict(values["val_loss"]),
            tokens=values["tokens"],
            seconds=values["seconds"],
            num_resumed=values["resumed"],
        )

    def metrics(self) -> dict[str, float]:
        """The curve in a few numbers."""
        values: dict[str, float] = {"steps": self.num_steps, "tokens": self.tokens}
        if self.loss:
            values["loss"] = _smoothed(sorted(self.loss.items()))[-1][1]
        if self.val_loss:
            steps = sorted(self.val_loss)
            values |= {"val_loss_before": self.val_loss[steps[0]], "val_loss": self.val_loss[steps[-1]]}
        if self.seconds:
            values["tokens_per_s"] = self.tokens / self.seconds
        return values


def curve_of(phase: str, progress: Path) -> Curve:
    """The curve in a job's progress file; of a step that is there twice the last counts."""
    curve = Curve(phase)
    for line in progress.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the line that a killed writer left unfinished
            continue
        step, curve.num_steps = record["step"], record["steps"]
        if record.get("loss") is not None:
            curve.loss[step] = record["loss"]
        if record.get("val_loss") is not None:
            curve.val_loss[step] = record["val_loss"]
        curve.tokens += record.get("tokens", 0)
        curve.seconds += record.get("seconds", 0.0)
        curve.num_resumed += bool(record.get("resumed"))
    return curve


def page(title: str, facts: Mapping[str, Any], curves: Iterable[Curve]) -> str:
    """A page with a table of facts and a chart for each phase; needs no script and no other file."""
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in facts.items())
    charts = "".join(f"<h2>{_text(curve.phase.capitalize())}</h2>{_chart(curve)}" for curve in curves)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{_text(title)}</h1><table>{rows}</table>{charts}</body></html>\n"
    )


def card(title: str, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """A model card in Markdown."""
    lines = [
        f"# {title}",
        "",
        "Answers questions from the passages that it is given, in the style of the conversations that it was tuned "
        "on. Without passages it knows little, and it was not tested outside the domain of its data: serve it as part "
        "of a release, behind retrieval and guardrails, after evaluation.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
        "",
        "## Settings",
        "",
        "```json",
        json.dumps(settings, indent=2, sort_keys=True),
        "```",
        "",
    ]
    return "\n".join(lines)


def _chart(curve: Curve) -> str:
    train = _thinned(_smoothed(sorted(curve.loss.items())))
    validation = sorted(curve.val_loss.items())
    values = [value for _, value in [*train, *validation]]
    if not values:
        return "<p>No step was run.</p>"
    low, high = min(values), max(max(values), min(values) + 1e-6)
    last = max(1, curve.num_steps)

    def place(points: Sequence[tuple[int, float]]) -> str:
        across, down = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
        return " ".join(
            f"{MARGIN + across * step / last:.1f},{MARGIN + down * (high - value) / (high - low):.1f}"
            for step, value in points
        )

    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="3" fill="#c2410c"/>'
        for x, y in (point.split(",") for point in place(validation).split())
    )
    labels = (
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{high:.2f}</text>'
        f'<text x="{MARGIN - 6}" y="{HEIGHT - MARGIN + 4}" text-anchor="end">{low:.2f}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - MARGIN + 20}">0</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - MARGIN + 20}" text-anchor="end">{last} steps</text>'
    )
    box = f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#9aa7b4"/>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss of {_text(curve.phase)}" font-size="11" '
        f'fill="#5b6b7b">{box}{labels}'
        f'<polyline points="{place(train)}" fill="none" stroke="#0f766e" stroke-width="1.5"/>'
        f'<polyline points="{place(validation)}" fill="none" stroke="#c2410c" stroke-width="1.5"/>{dots}</svg>'
        '<p class="key">Loss per learned token: green while training (smoothed), orange on validation samples.</p>'
    )


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A running mean with exponential weights, without the bias of its start."""
    smooth, mean, weight = [], 0.0, 0.0
    for step, value in points:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append((step, mean / weight))
    return smooth


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = max(1, len(points) // MOST_POINTS)
    return [*points[::stride], *points[-1:]]


def _text(value: Any) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _cell(value: Any) -> str:
    return _text(value).replace("|", "\\|").replace("\n", " ")
