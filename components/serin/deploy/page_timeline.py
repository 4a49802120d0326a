"""What a rollout's page is drawn from, its traffic over time, and its journal."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from serin.core.journal import Entry
from serin.core.page import fold, table
from serin.core.palette import Tone
from serin.core.rollouts import STATES, RolloutRecord
from serin.deploy.config import DeployConfig, MetricPolicy
from serin.deploy.history import Glance, History
from serin.deploy.judge_metrics import metrics_of
from serin.deploy.page_charts import Curve, Mark, Scale, Zone, duration, marked_chart, time_scale
from serin.deploy.page_metrics import Measured, measured

WIDE, NARROW = 640, 300
"""The timeline's marks find room at these widths, pixels."""
NAMES = {
    "started": "started",
    "warmup": "warm-up",
    "shadow": "shadow",
    "promote": "promote",
    "promoted": "promoted",
    "hold": "hold",
    "held": "held",
    "rollback": "roll back",
    "rolled back": "rolled back",
    "aborted": "aborted",
    "resumed": "next controller",
}
TONES = {
    "advance": Tone.CANDIDATE,
    "promote": Tone.GOOD,
    "promoted": Tone.GOOD,
    "hold": Tone.WARN,
    "held": Tone.WARN,
    "pause": Tone.WARN,
    "abort": Tone.BAD,
    "rollback": Tone.BAD,
    "rolled back": Tone.BAD,
    "aborted": Tone.BAD,
}


@dataclass(frozen=True)
class Seen:
    """All that a page shows, with times in seconds since the rollout started."""

    record: RolloutRecord
    history: History
    entries: Sequence[Entry]
    config: DeployConfig
    looks: Sequence[tuple[float, Glance]]
    metrics: Sequence[Measured]
    missing: Sequence[MetricPolicy]
    """Declared metrics that no request has had a value of."""
    end_s: float
    """Of the last look or entry: pages read no clock."""

    def at(self, time: str) -> float:
        """Seconds since the start."""
        return _seconds(time) - _seconds(self.record.started)

    @property
    def share(self) -> float:
        """The candidate's share of sessions now, per cent."""
        points = self.shares()
        return points[-1][1] if points else 0.0

    def shares(self) -> list[tuple[float, float]]:
        """The candidate's share, from each moment on at which it changed."""
        points = [(0.0, 0.0)]
        for entry in self.entries:
            share = share_from(entry, self.config)
            if share is not None and share != points[-1][1]:
                points.append((self.at(entry.time), share))
        return points


def seen_of(record: RolloutRecord, history: History, entries: Sequence[Entry], config: DeployConfig) -> Seen:
    """Put together what a page shows; a history that is lost is made up for by what the journal kept."""
    began = _seconds(record.started)
    looks = [(_seconds(glance.time) - began, glance) for glance in history.glances]
    if not looks and record.verdict is not None and record.verdict.evidence.get("metrics"):
        looks = [(_seconds(record.verdict.time) - began, _glance_of(record.verdict, record))]
    phase = looks[-1][1].state if looks else ""
    reasons = record.verdict.reasons if record.verdict is not None and record.verdict.decision == "rollback" else ()
    declared = metrics_of(config.judge)
    metrics = measured([(at, one.metrics) for at, one in looks if one.state == phase], declared, reasons)
    missing = [one for one in declared if one.name not in {metric.name for metric in metrics}]
    times = [at for at, _ in looks] + [_seconds(entry.time) - began for entry in entries]
    return Seen(record, history, entries, config, looks, metrics, missing, max(times, default=0.0))


def _glance_of(entry: Entry, record: RolloutRecord) -> Glance:
    """What the journal kept of the look that decided, where the history is lost."""
    known = entry.evidence
    return Glance(
        time=entry.time,
        state="step" if record.exposed else "shadow",
        share_percent=0.0,
        outcome=entry.decision,
        e_value=known.get("e_value"),
        e_threshold=known.get("e_threshold"),
        candidate_sessions=known.get("candidate_sessions", 0),
        champion_sessions=known.get("champion_sessions", 0),
        metrics=known["metrics"],
    )


def share_from(entry: Entry, config: DeployConfig) -> float | None:
    """The candidate's share that begins with an entry; None where it stays as it is or nobody knows."""
    state = STATES.get(entry.decision) if entry.kind == "rollout" else None
    if state == "step":
        step = min(int(entry.evidence.get("step", 0)), len(config.shares) - 1)
        return float(entry.evidence.get("share_percent", config.shares[step]))
    if state in ("promoting", "promoted"):
        return 100.0
    return 0.0 if state in ("holding", "held", "rolling_back", "rolled_back") else None


def traffic(seen: Seen) -> str:
    """The candidate's share as steps, with a mark for each entry of the journal."""
    x = time_scale(0.0, seen.end_s * 1.04 if seen.record.over else seen.end_s)
    points, until = seen.shares(), _known_until(seen)
    highest = max([share for _, share in points], default=0.0)
    following = [share for share in seen.config.shares if share > highest] if not seen.record.over else []
    y = Scale(0.0, max([highest, *following[:1], 1.0]) * 1.02)
    curve = Curve([*points, (x.high if until is None else until, points[-1][1])], Tone.CANDIDATE, stepped=True)
    zones = [Zone(tone=Tone.WARN, begin=begin, end=end) for begin, end in _pauses(seen)]
    marks = marks_of(seen, x)
    spoken = "The candidate's share of sessions: " + "; ".join(
        f"{share:g}% from {duration(at)}" if at else f"{share:g}% at the start" for at, share in points
    )
    pictures = [
        marked_chart(spoken, [curve], x, y, marks, height=150, width=width, zones=zones, named=lambda v: f"{v:g}%")
        for width in (WIDE, NARROW)
    ]
    wide, narrow = pictures
    return (
        f"<figure><figcaption>Candidate’s share of sessions</figcaption>"
        f'<div class="only-wide">{wide}</div><div class="only-narrow">{narrow}</div></figure>'
    )


def traffic_note(seen: Seen) -> str:
    """How to read the times, here and in all charts."""
    began = f"Times count from the start at {seen.record.started[11:19]} UTC on {seen.record.started[:10]}."
    return began + (" Shaded: paused." if _pauses(seen) else "")


def _known_until(seen: Seen) -> float | None:
    """When a rollout that was aborted lost sight of the traffic."""
    ends = [seen.at(entry.time) for entry in seen.entries if entry.kind == "rollout" and entry.decision == "aborted"]
    return ends[-1] if seen.record.state == "aborted" and ends else None


def _pauses(seen: Seen) -> list[tuple[float, float]]:
    pauses, began = [], None
    for entry in seen.entries:
        over = entry.kind == "rollout" and entry.decision in ("promote", "hold", "rollback", "aborted")
        if entry.kind == "command" and entry.decision == "pause" and began is None:
            began = seen.at(entry.time)
        elif began is not None and (over or (entry.kind == "command" and entry.decision == "resume")):
            pauses.append((began, seen.at(entry.time)))
            began = None
    return pauses if began is None else [*pauses, (began, seen.end_s)]


def marks_of(seen: Seen, x: Scale) -> list[Mark]:
    """The journal's entries; one that only says that the one just before it is carried out takes its place."""
    marks: list[Mark] = []
    for entry in seen.entries:
        if entry.kind not in ("rollout", "command"):
            continue
        at, name = seen.at(entry.time), _name(entry, seen.config)
        name += f" by {entry.approved_by}" if entry.kind == "command" else ""
        carried_out = {"promoted": "promote", "held": "hold", "rolled back": "roll back"}.get(name)
        if marks and marks[-1].name == carried_out and x.place(at) - x.place(marks[-1].at_s) < 0.05:
            marks.pop()
        marks.append(Mark(at, name, TONES.get(entry.decision, Tone.PLAIN)))
    return marks


def _name(entry: Entry, config: DeployConfig) -> str:
    if entry.kind == "command":
        return {"pause": "paused", "resume": "resumed"}.get(entry.decision, f"{entry.decision} asked")
    if entry.kind != "rollout":
        return f"{entry.kind}: {entry.decision}"
    if entry.decision == "advance":
        return f"{share_from(entry, config):g}%"
    return NAMES.get(entry.decision, entry.decision)


def journal(seen: Seen) -> str:
    """The entries as a table."""
    rows, share, days = [], 0.0, len({entry.time[:10] for entry in seen.entries})
    for entry in seen.entries:
        begins = share_from(entry, seen.config)
        share = share if begins is None else begins
        time = entry.time[0 if days > 1 else 11 : 19].replace("T", " ")
        since = f'<span class="note">+{duration(max(0.0, seen.at(entry.time)))}</span>'
        rows.append(
            [
                escape(_name(entry, seen.config)),
                f"{escape(time)}<br>{since}",
                f"{share:g}%",
                _reasons(entry.reasons),
                escape(entry.approved_by),
            ]
        )
    return table(["Entry", "Time (UTC)", "Share", "Why", "By"], rows, numbers=(2,)) if rows else ""


def _reasons(reasons: Sequence[str]) -> str:
    if len(reasons) < 2:
        return escape("".join(reasons))
    rest = "".join(f"<li>{escape(reason)}</li>" for reason in reasons[1:])
    return escape(reasons[0]) + fold(f"{len(reasons) - 1} more", f"<ul>{rest}</ul>")


def _seconds(time: str) -> float:
    """Since 1970; a time without a zone is UTC."""
    parsed = datetime.fromisoformat(time)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
