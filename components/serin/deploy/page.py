"""A rollout as a page: what was decided, on which numbers, and how the traffic moved; redrawn at every look."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from serin.core.journal import Entry
from serin.core.page import Section, Tile, digest, facts_list, fold, page, side_by_side, tiles, verdict
from serin.core.palette import Tone
from serin.core.pictures import short
from serin.core.rollouts import RolloutRecord
from serin.deploy.config import DeployConfig
from serin.deploy.evidence import shadow_policy
from serin.deploy.history import Glance, History
from serin.deploy.page_charts import Curve, Level, Scale, Zone, duration, marked_chart, rough, time_scale
from serin.deploy.page_metrics import TITLES, card, e_scale, e_text, metrics_table, policy_table, power
from serin.deploy.page_timeline import NARROW, Seen, journal, marks_of, seen_of, traffic, traffic_note

REFRESH_S = 10
"""A page of a rollout that is under way loads itself again so often."""
TRIPS = {
    "recent_errors": "Failures among the candidate's last requests",
    "failing_sessions": "Sessions that they came from",
    "champion_fails_too": "Whether the champion failed too",
    "restarts": "Restarts of the candidate's engine",
    "leaks": "Answers of the candidate that leaked",
    "champion_leaks": "Answers of the champion that leaked",
    "burst_false_trip_bound": "Chance of a false burst, at most",
}


def canary_page(record: RolloutRecord, history: History, entries: Sequence[Entry], config: DeployConfig) -> str:
    """One self-contained HTML file; while the rollout is under way it asks to be loaded again every ten seconds.

    Args:
        record: the rollout now; it may be under way.
        history: its looks so far.
        entries: its journal entries, oldest first.
        config: its settings.
    """
    seen = seen_of(record, history, entries, config)
    sections = [
        Section("Verdict", _verdict(seen), listed=False),
        Section("Traffic", traffic(seen), traffic_note(seen)),
        Section("Evidence of harm", _harm(seen), _harm_note(seen)),
        Section("Metrics", _cards(seen), _cards_note(seen)),
        Section("Metrics now", _now(seen), _now_note(seen)),
        Section("Journal", journal(seen)),
        Section("Settings", _settings(seen)),
    ]
    html = page(_title(seen), kind="Canary", sections=sections, facts=_facts(seen))
    return html if record.over else _refreshed(html)


def _refreshed(html: str) -> str:
    return html.replace("<meta charset", f'<meta http-equiv="refresh" content="{REFRESH_S}"><meta charset', 1)


# verdict


def _title(seen: Seen) -> str:
    record = seen.record
    release = f"Release {record.candidate[:12]}"
    return {
        "pending": f"{release} is about to be rolled out",
        "warmup": f"{release} is starting",
        "shadow": f"{release} answers in the shadow",
        "step": f"{release} serves {seen.share:g}% of sessions",
        "promoting": f"{release} is being promoted",
        "promoted": f"{release} is promoted",
        "holding": f"{release} is being held",
        "held": f"{release} is held: the question is open",
        "rolling_back": f"{release} is being rolled back",
        "rolled_back": f"{release} is rolled back",
        "aborted": f"The rollout of release {record.candidate[:12]} was aborted",
    }[record.state]


def _verdict(seen: Seen) -> str:
    record = seen.record
    tone, word = {
        "promoting": (Tone.GOOD, "Promoting"),
        "promoted": (Tone.GOOD, "Promoted"),
        "holding": (Tone.WARN, "Held"),
        "held": (Tone.WARN, "Held: the champion serves alone until somebody decides"),
        "rolling_back": (Tone.BAD, "Rolling back"),
        "rolled_back": (Tone.BAD, "Rolled back: the champion serves alone"),
        "aborted": (Tone.BAD, "Aborted without a decision of its own"),
    }.get(record.state, (Tone.PLAIN, _under_way(seen)))
    if record.paused_by and not record.over:
        tone = Tone.WARN
    decided = record.verdict is not None and tone is not Tone.PLAIN and record.state not in ("shadow", "step")
    reasons = record.verdict.reasons if decided and record.verdict is not None else _awaited(seen)
    return verdict(tone, word, reasons) + _tiles(seen) + facts_list(_who(seen))


def _under_way(seen: Seen) -> str:
    record = seen.record
    paused = f", paused by {record.paused_by}" if record.paused_by else ""
    where = {
        "pending": "Under way: nothing is started yet",
        "warmup": "Under way: the candidate is starting, users do not see it",
        "shadow": "Under way: the candidate answers unseen by users",
        "step": f"Under way at {seen.share:g}%",
    }.get(record.state, "Under way")
    if record.state == "step" and len(seen.config.shares) > 1:
        where += f", step {record.step + 1} of {len(seen.config.shares)}"
    return where + paused


def _awaited(seen: Seen) -> list[str]:
    """What an open rollout waits for."""
    record, config = seen.record, seen.config
    if record.asked is not None:
        return [f"{record.asked.approved_by} asked to {record.asked.decision}; it is carried out at the next turn."]
    if record.paused_by:
        return ["Traffic stays as it is until somebody resumes the rollout; harm still rolls it back."]
    if record.state == "shadow":
        return [f"The first share follows once {config.shadow.min_answers} of its answers show no harm."]
    if record.state != "step":
        return []
    if record.step < len(config.shares) - 1:
        least = f"{config.min_sessions_per_step} sessions of the candidate at this share"
        return [f"Next: {config.shares[record.step + 1]:g}% of sessions, after {least} without harm."]
    return _open_questions(seen) or ["The next look decides."]


def _open_questions(seen: Seen) -> list[str]:
    """What a promotion still needs, as far as the last look tells."""
    if not seen.looks:
        return []
    glance, least, questions = seen.looks[-1][1], seen.config.judge.min_sessions, []
    fewest = min(glance.candidate_sessions, glance.champion_sessions)
    if fewest < least:
        questions.append(f"A promotion needs {least} sessions on each side; the smaller has {fewest}.")
    unproven = [one.title for one in seen.metrics if one.now.get("proven") is False]
    required = [TITLES.get(one.name, one.name) for one in seen.missing if one.required]
    if unproven:
        questions.append(f"Still to be proven to be within the limit: {', '.join(unproven)}.")
    if required:
        questions.append(f"Must be proven and has no values: {', '.join(required)}.")
    return questions


def _tiles(seen: Seen) -> str:
    record, last = seen.record, seen.looks[-1][1] if seen.looks else None
    share = "not known" if record.state == "aborted" else f"{seen.share:g}%"
    made = [Tile("Share at the end" if record.over else "Share of sessions", share)]
    if last is not None and last.e_value is not None and last.e_threshold is not None:
        tone = Tone.BAD if last.e_value >= last.e_threshold else Tone.INK
        made.append(Tile("Evidence of harm", e_text(last.e_value), f"rolls back at {short(last.e_threshold)}", tone))
    if last is not None:
        sides = f"{last.candidate_sessions} / {last.champion_sessions}"
        made.append(Tile("Sessions judged", sides, "candidate / champion"))
    failed = seen.history.failed_requests
    if seen.config.requests == "users" and not seen.history.requests:
        made.append(Tile("Requests", "users’ own", "the rollout sends none"))
    else:
        made.append(Tile("Requests sent", f"{seen.history.requests:,}", "by the rollout"))
        made.append(Tile("Failed for users", f"{failed:,}", "of those", Tone.BAD if failed else Tone.INK))
    made.append(Tile("Took" if record.over else "So far", rough(seen.end_s)))
    return tiles(made)


def _who(seen: Seen) -> Mapping[str, str]:
    record, verdict_ = seen.record, seen.record.verdict
    facts = {"Candidate": digest(record.candidate), "Champion at the start": digest(record.champion)}
    asked_by = str(record.plan.get("approved_by", ""))
    if asked_by:
        facts["Asked for by"] = escape(asked_by)
    if verdict_ is not None:
        facts["Decided by"] = escape(verdict_.approved_by or "canary judge")
    policy = (verdict_.policy_version if verdict_ is not None else "") or next(
        (entry.policy_version for entry in reversed(seen.entries) if entry.policy_version), ""
    )
    if policy:
        facts["Policy version"] = digest(policy, whole=True)
    return facts


# evidence


def _harm(seen: Seen) -> str:
    known = [(at, one, one.e_value) for at, one in seen.looks if one.e_value is not None]
    if not known:
        return ""
    parts: list[list[tuple[float, Glance, float]]] = []
    for look in known:
        if not parts or parts[-1][-1][1].state != look[1].state:
            parts.append([])
        parts[-1].append(look)
    x = _scale_of([at for at, _ in seen.looks])
    borders = [seen.at(seen.record.exposed)] if len(parts) > 1 else []
    curves = [Curve([(at, e_value) for at, _, e_value in part], Tone.CANDIDATE) for part in parts]
    levels = [
        Level(part[-1][1].e_threshold or 1 / seen.config.judge.alpha, begin=begin, end=end)
        for part, begin, end in zip(parts, (None, *borders), (*borders, None), strict=True)
    ]
    levels = [replace(one, name=f"rolls back at {short(one.value)}") for one in levels]
    y = e_scale([e_value for _, _, e_value in known], max(one.value for one in levels))
    zones = [Zone(low=one.value, begin=one.begin, end=one.end) for one in levels]
    now, marks = e_text(known[-1][2]), [one for one in marks_of(seen, x) if one.name.endswith("%")]
    number = f"{len(known)} look{'s' if len(known) > 1 else ''}"
    spoken = f"e-value of all metrics together after {number}: {now}; {levels[-1].name}"
    picture = marked_chart(
        spoken, curves, x, y, marks, height=190, width=NARROW, levels=levels, zones=zones, named=power
    )
    caption = f"e-value of all metrics together, log axis: {now} after {number}"
    return f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>"


def _harm_note(seen: Seen) -> str:
    alpha = seen.config.step_policy.alpha
    shadow = next((one.e_threshold for _, one in seen.looks if one.state == "shadow" and one.e_threshold), None)
    apart = "" if shadow is None else f" The shadow is a test of its own, which rolls back at {short(shadow)}."
    return (
        "An e-value is what a stake of 1 would have grown to by betting that the candidate is worse. Of a candidate "
        f"that is no worse than is tolerated it ever reaches the line with a chance of at most {alpha:g}, however "
        "often one looks. Below 0.001 "
        f"it is drawn at the lower edge.{apart}"
    )


def _scale_of(times: Sequence[float]) -> Scale:
    """From the first look to the last; of a single one, from the rollout's start."""
    return time_scale(min(times) if min(times) < max(times) else 0.0, max(times))


def _cards(seen: Seen) -> str:
    if not seen.metrics:
        return ""
    of_phase = [at for one in seen.metrics for at, _ in (one.course[0], one.course[-1])]
    x = _scale_of(of_phase)
    first = [card(one, x, over=seen.record.over) for one in seen.metrics if one.matters]
    others = [card(one, x, over=seen.record.over) for one in seen.metrics if not one.matters]
    watched = f"{len(others)} more, without a limit and without a sign of harm"
    missing = [TITLES.get(one.name, one.name) for one in seen.missing]
    rest = f'<p class="note">Without values so far: {escape(", ".join(missing))}.</p>' if missing else ""
    return side_by_side(*first) + (fold(watched, side_by_side(*others), is_open=not first) if others else "") + rest


def _cards_note(seen: Seen) -> str:
    in_shadow = bool(seen.looks) and seen.looks[-1][1].state == "shadow"
    where = "in the shadow, which leaves timings out" if in_shadow else "of users’ sessions"
    policy = shadow_policy(seen.config) if in_shadow else seen.config.step_policy
    return (
        f"What each look said {where}; the metrics that decided come first. Each band holds the true change at all "
        f"looks together with a chance of {100 * (1 - 2 * policy.alpha):g}% (of ratios: nearly), and is cut off at the "
        "edge. "
        "A promotion needs every metric with a limit to be proven inside it (shaded: beyond the limit, or else beyond "
        "what is tolerated). A rollback rests on the e-values, which are weighed together; one alone can be enough."
    )


def _now(seen: Seen) -> str:
    trips = seen.record.verdict.evidence.get("trips") if seen.record.verdict is not None else None
    shown = facts_list({TRIPS.get(name, name): escape(_plain(value)) for name, value in trips.items()}) if trips else ""
    below = fold("What the trips saw, which act at once", shown) if shown else ""
    return metrics_table(seen.metrics, over=seen.record.over) + below


def _now_note(seen: Seen) -> str:
    return (
        "Times and counts are geometric means over sessions and compared as ratios; rates are shares of requests, of a "
        "session’s on average, and compared in points of a hundred. Tolerated is what harm must surely exceed; the "
        "limit is what a promotion must prove."
    )


def _settings(seen: Seen) -> str:
    config, judge = seen.config, seen.config.judge
    limits = {
        "Steps": ", ".join(f"{share:g}%" for share in config.shares),
        "Judged requests": "held-out conversations, sent by the rollout"
        if config.requests == "replayed"
        else "users’ own",
        "Alpha": f"{judge.alpha:g}, of which the shadow has {judge.alpha * config.shadow.alpha_fraction:g}"
        if config.shadow.min_answers
        else f"{judge.alpha:g}",
        "Sessions before a promotion": f"{judge.min_sessions} on each side",
        "Sessions before a larger share": f"{config.min_sessions_per_step} of the candidate at each share",
        "Shortest time at a share": duration(config.min_step_s),
        "Ends undecided": _ends(config),
        "Sessions left out as warm-up": f"first {judge.warm_up_sessions} of each side",
        "Shadow": f"{config.shadow.min_answers} answers, {config.shadow.questions} questions asked, "
        f"{config.shadow.mirror_percent:g}% of requests mirrored"
        if config.shadow.min_answers
        else "none",
        "Burst trip": f"{judge.trip_errors} of the last {judge.trip_window} requests failed",
        "Crash loop trip": f"{judge.trip_restarts} restarts",
        "Leak trip": ", ".join(judge.trip_rails) or "none",
    }
    return fold(
        "Steps, level, limits of each metric",
        facts_list({name: escape(value) for name, value in limits.items()}) + policy_table(judge),
    )


def _ends(config: DeployConfig) -> str:
    limits = [f"{config.max_sessions} sessions"] if config.max_sessions else []
    limits += [duration(config.deadline_s)] if config.deadline_s else []
    return f"after {' or '.join(limits)}: {config.on_inconclusive}" if limits else "never"


def _facts(seen: Seen) -> Mapping[str, str]:
    record = seen.record
    last = max([seen.record.started, *(e.time for e in seen.entries), *(g.time for _, g in seen.looks)])
    facts = {
        "Rollout": f"<code>{escape(record.rollout_id)}</code>",
        "As of": escape(f"{last[:10]} {last[11:19]} UTC" + ("" if record.over else "; this page loads itself again")),
        "Candidate": digest(record.candidate, whole=True),
        "Champion at the start": digest(record.champion, whole=True),
    }
    if record.lineage_id:
        facts["Lineage"] = f"<code>{escape(record.lineage_id)}</code>"
    if seen.entries:
        facts["Journal entries"] = f"{seen.entries[0].number} to {seen.entries[-1].number}"
    return facts


def _plain(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
