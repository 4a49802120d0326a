"""What people read about a training: its course as HTML with inline SVG."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGE, SMALL = (640, 250), (312, 150)
"""Width and height of a chart."""
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 30
"""What is left around a chart's axes for their labels."""
SMOOTHING = 0.9
MOST_POINTS = 400

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td { padding: .15rem 1rem .15rem 0; vertical-align: top }
td:first-child { color: #5b6b7b } svg { width: 100%; height: auto } .key, figcaption { color: #5b6b7b }
figure { margin: 1rem 0 } .small { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.5rem }
@media (max-width: 34rem) { .small { grid-template-columns: 1fr } }
"""
TRAIN_COLOUR, VALIDATION_COLOUR, RESUME_COLOUR = "#0f766e", "#c2410c", "#64748b"
Points = Sequence[tuple[int, float]]


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
    lr: dict[int, float] = field(default_factory=dict)
    """Step to learning rate."""
    grad_norm: dict[int, float] = field(default_factory=dict)
    """Step to the gradient's norm before it was clipped."""
    speed: dict[int, float] = field(default_factory=dict)
    """Step to tokens per second in it."""
    resumed_at: list[int] = field(default_factory=list)
    """Steps from which it went on after a kill."""
    best_val_loss: float | None = None
    """With early stopping: validation loss of the weights that were kept."""
    best_step: int | None = None
    """With early stopping: the step that they are of."""

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
            "resumed_at": self.resumed_at,
            "best_val_loss": self.best_val_loss,
            "best_step": self.best_step,
            **{name: _thinned(sorted(getattr(self, name).items())) for name in ("lr", "grad_norm", "speed")},
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
            resumed_at=list(values.get("resumed_at", ())),  # older bases were written without it and what follows
            best_val_loss=values.get("best_val_loss"),
            best_step=values.get("best_step"),
            **{name: dict(values.get(name, ())) for name in ("lr", "grad_norm", "speed")},
        )

    def metrics(self) -> dict[str, float]:
        """The curve in a few numbers."""
        values: dict[str, float] = {"steps": self.num_steps, "tokens": self.tokens}
        if self.loss:
            values["loss"] = _smoothed(sorted(self.loss.items()))[-1][1]
        if self.val_loss:
            steps = sorted(self.val_loss)
            values |= {"val_loss_before": self.val_loss[steps[0]], "val_loss": self.val_loss[steps[-1]]}
        if self.best_val_loss is not None and self.best_step is not None:
            values |= {"best_val_loss": self.best_val_loss, "best_step": self.best_step}
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
        if record.get("lr") is not None:
            curve.lr[step] = record["lr"]
        if record.get("grad_norm") is not None:
            curve.grad_norm[step] = record["grad_norm"]
        if record.get("tokens") and record.get("seconds"):
            curve.speed[step] = record["tokens"] / record["seconds"]
        if record.get("resumed"):
            curve.resumed_at.append(step)
        if record.get("best_val_loss") is not None:
            curve.best_val_loss, curve.best_step = record["best_val_loss"], record["best_step"]
        curve.tokens += record.get("tokens", 0)
        curve.seconds += record.get("seconds", 0.0)
        curve.num_resumed += bool(record.get("resumed"))
    return curve


def page(title: str, facts: Mapping[str, Any], curves: Iterable[Curve]) -> str:
    """A page with a table of facts and a chart for each phase; needs no script and no other file."""
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in facts.items())
    charts = "".join(f"<h2>{_text(curve.phase.capitalize())}</h2>{_charts(curve)}" for curve in curves)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{_text(title)}</h1><table>{rows}</table>{charts}</body></html>\n"
    )


def _charts(curve: Curve) -> str:
    """The loss, large; learning rate, gradient norm and speed, where they are known, small below it."""
    train = _thinned(_smoothed(sorted(curve.loss.items())))
    validation = sorted(curve.val_loss.items())
    if not train and not validation:
        return "<p>No step was run.</p>"
    small = (
        ("Learning rate", sorted(curve.lr.items())),
        ("Gradient norm before clipping (smoothed)", _smoothed(sorted(curve.grad_norm.items()))),
        ("Tokens per second (smoothed)", _smoothed(sorted(curve.speed.items()))),
    )
    charts = "".join(
        f"<figure>{_chart(name, _thinned(points), (), curve, SMALL)}<figcaption>{name}</figcaption></figure>"
        for name, points in small
        if points
    )
    resumed = f" Dashed grey: went on after a kill ({curve.num_resumed})." if curve.num_resumed else ""
    return (
        _chart(f"Loss of {curve.phase}", train, validation, curve, LARGE)
        + '<p class="key">Loss per learned token: green while training (smoothed), orange on validation samples.'
        + f'{resumed}</p><div class="small">{charts}</div>'
    )


def _chart(name: str, line: Points, dotted: Points, curve: Curve, size: tuple[int, int]) -> str:
    """One chart over the steps: a line, a dotted line, and a mark where training went on after a kill."""
    values = [value for _, value in [*line, *dotted]]
    low, high = min(values), max(values)
    frame = _Frame(low, high if high > low else low + max(abs(low), 1e-6), max(1, curve.num_steps), *size)
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3" fill="{VALIDATION_COLOUR}"/>' for x, y in frame.places(dotted))
    marks = "".join(
        f'<path class="resumed" d="M{x} {TOP}V{frame.foot}" stroke="{RESUME_COLOUR}" stroke-dasharray="3 3"/>'
        for x, _ in frame.places([(step, low) for step in curve.resumed_at])
    )
    lines = frame.polyline(line, TRAIN_COLOUR) + (frame.polyline(dotted, VALIDATION_COLOUR) if dotted else "")
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{_text(name)}" font-size="11" '
        f'fill="#5b6b7b">{frame.drawn()}{marks}{lines}{dots}</svg>'
    )


@dataclass(frozen=True)
class _Frame:
    """Where values lie in a chart."""

    low: float
    high: float
    num_steps: int
    width: int
    height: int

    @property
    def foot(self) -> int:
        """Where the lower axis is."""
        return self.height - BOTTOM

    def places(self, points: Points) -> list[tuple[str, str]]:
        across, down = self.width - LEFT - RIGHT, self.foot - TOP
        return [
            (
                f"{LEFT + across * step / self.num_steps:.1f}",
                f"{TOP + down * (self.high - value) / (self.high - self.low):.1f}",
            )
            for step, value in points
        ]

    def polyline(self, points: Points, colour: str) -> str:
        places = " ".join(f"{x},{y}" for x, y in self.places(points))
        return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>'

    def drawn(self) -> str:
        """Axes with their ends named."""
        right = self.width - RIGHT
        return (
            f'<path d="M{LEFT} {TOP}V{self.foot}H{right}" fill="none" stroke="#9aa7b4"/>'
            f'<text x="{LEFT - 6}" y="{TOP + 4}" text-anchor="end">{_short(self.high)}</text>'
            f'<text x="{LEFT - 6}" y="{self.foot + 4}" text-anchor="end">{_short(self.low)}</text>'
            f'<text x="{LEFT}" y="{self.foot + 18}">0</text>'
            f'<text x="{right}" y="{self.foot + 18}" text-anchor="end">{self.num_steps} steps</text>'
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
    if not points:
        return []
    stride = max(1, len(points) // MOST_POINTS)
    return [*points[::stride], *points[-1:]]


def _short(value: float) -> str:
    """A number for an axis."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _text(value: Any) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
