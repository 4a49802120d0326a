"""What people read about a training: its course as HTML with inline SVG."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serin.core import page as shell
from serin.core.page import Section, side_by_side, table
from serin.core.palette import Tone
from serin.core.pictures import Guide, Line, line_chart

SMOOTHING = 0.9
MOST_POINTS = 400

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

    def evaluation(self) -> dict[str, float]:
        """What is known of the weights that were kept, beside the base's: losses per learned token or pair."""
        if not self.val_loss:
            return {}
        steps = sorted(self.val_loss)
        kept = self.val_loss[steps[-1]] if self.best_val_loss is None else self.best_val_loss
        return {"validation_loss": kept, "validation_loss_of_the_base": self.val_loss[steps[0]]}


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
    """A page with a table of facts and charts for each phase; needs no script and no other file."""
    rows = [[html.escape(name), _text(value)] for name, value in facts.items() if value != ""]
    phases = [Section(curve.phase.capitalize(), _charts(curve)) for curve in curves]
    trained = Section("What was trained", table(["What", "Value"], rows, widths=["30%", "70%"]) if rows else "")
    return shell.page(title, kind="Fine-tuning", sections=[trained, *phases])


def _charts(curve: Curve) -> str:
    """The loss, large; learning rate, gradient norm and speed, where they are known, small below it."""
    train = _thinned(_smoothed(sorted(curve.loss.items())))
    validation = sorted(curve.val_loss.items())
    if not train and not validation:
        return "<p>No step was run.</p>"
    losses = [Line("training (smoothed)", train, Tone.CANDIDATE)] if train else []
    losses += [Line("validation", validation, Tone.CHAMPION, dotted=True)] if validation else []
    small = (
        ("Learning rate", sorted(curve.lr.items())),
        ("Gradient norm before clipping (smoothed)", _smoothed(sorted(curve.grad_norm.items()))),
        ("Tokens per second (smoothed)", _smoothed(sorted(curve.speed.items()))),
    )
    charts = [
        _chart(name, [Line(name, _thinned(points), Tone.CANDIDATE)], curve, height=110)
        for name, points in small
        if points
    ]
    resumed = f'<p class="note">Dashed: went on after a kill ({curve.num_resumed}).</p>' if curve.num_resumed else ""
    return _chart("Loss per learned token", losses, curve, height=240) + resumed + side_by_side(*charts)


def _chart(name: str, lines: Sequence[Line], curve: Curve, *, height: int) -> str:
    """One chart over the steps, marked where training went on after a kill."""
    resumes = [Guide(step, "", across=False) for step in curve.resumed_at]
    ends = (0.0, float(max(1, curve.num_steps)))
    return line_chart(name, lines, guides=resumes, x_axis=ends, x_name="steps", height=height)


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


def _text(value: Any) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
