"""A lineage as a page: the answer, the picture of what is behind its release, and every decision about it."""

from collections.abc import Mapping
from html import escape
from typing import Any

from serin.core.artifacts import ArtifactStore
from serin.core.flow import Node, flow
from serin.core.origins import NAMES, PARTS, RELEASE, origins
from serin.core.page import Section, badge, digest, fold, page, table
from serin.core.palette import Tone
from serin.core.pictures import Step, timeline
from serin.core.release import load_release
from serin.core.verification import manifests_behind

MOST_RELEASES, QUERY_CHARS = 50, 40
TONES = {
    **dict.fromkeys(("pass", "promote", "completed", "created", "advance"), Tone.GOOD),
    **dict.fromkeys(("fail", "rollback", "aborted"), Tone.BAD),
}


def lineage_page(found: Mapping[str, Any], store: ArtifactStore) -> str:
    """The page of what ``serin_pipelines.lineage.lineage`` found."""
    query = found["query"] if len(found["query"]) <= QUERY_CHARS else f"{found['query'][:QUERY_CHARS]}…"
    return page(
        f"What is behind {found['kind']} {query}",
        kind="Lineage",
        sections=[
            Section("Answer", _answer(found["event"])),
            Section("Made from", _picture(found, store)),
            Section("Releases", _releases(found["releases"]) if len(found["releases"]) > 1 else ""),
            Section("Decisions", timeline([_step(one) for one in found["decisions"]]) if found["decisions"] else ""),
            Section("Artefacts", _artifacts(found["artifacts"])),
        ],
        facts={name: digest(one["digest"], whole=True) for name, one in found["parts"].items()},
    )


def _answer(event: Mapping[str, Any] | None) -> str:
    if event is None:
        return ""
    rows = [
        ["Question", f'<p class="said">{escape(event["question"])}</p>'],
        ["Answer", f'<p class="said">{escape(event["answer"])}</p>'],
        ["Passages", escape(", ".join(event["retrieval_ids"]) or "none")],
        ["Asked", escape(f"{event['time']}, session {event['session_id']}, track {event['track']}")],
    ]
    return table(["What", "Value"], rows, widths=["16%", "84%"])


def _picture(found: Mapping[str, Any], store: ArtifactStore) -> str:
    release = load_release(store.storage, found["release"])
    nodes = origins(release, dict(manifests_behind([getattr(release, part).uri for part in PARTS])))
    if found["event"]:
        nodes.append(Node("answer", "Answer", found["event"]["trace_id"][:12], Tone.GOOD, (RELEASE,)))
    elif found["decisions"]:
        last = found["decisions"][-1]
        tone = TONES.get(last["decision"], Tone.PLAIN)
        nodes.append(Node("decision", "Last decision", f"{last['kind']}: {last['decision']}", tone, (RELEASE,)))
    missing = "".join(f"<p>{badge(Tone.BAD, 'missing')} {escape(uri)}</p>" for uri in found["missing"])
    return flow("What the release was made from", nodes) + missing


def _releases(releases: list[dict[str, Any]]) -> str:
    rows = [
        [digest(one["release"], whole=True), escape(", ".join(one["how"])), escape(", ".join(one["serving"]))]
        for one in list(reversed(releases))[:MOST_RELEASES]
    ]
    left = len(releases) - len(rows)
    caption = f"{len(releases)} in all, newest first" + (f"; {left} older ones are left out." if left else ".")
    return table(["Release", "How", "Serves"], rows, caption=caption)


def _step(entry: Mapping[str, Any]) -> Step:
    approved = f'<p class="note">approved by {escape(entry["approved_by"])}</p>' if entry["approved_by"] else ""
    first = "".join(f"<p>{escape(reason)}</p>" for reason in entry["reasons"][:1])
    rest = "".join(f"<li>{escape(reason)}</li>" for reason in entry["reasons"][1:])
    more = fold(f"{len(entry['reasons']) - 1} more", f"<ul>{rest}</ul>") if rest else ""
    tone = TONES.get(entry["decision"], Tone.PLAIN)
    when = entry["time"][:19].replace("T", " ")
    return Step(f"{entry['kind']}: {entry['decision']}", when, first + more + approved, tone)


def _artifacts(artifacts: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            escape(NAMES.get(one["kind"], one["kind"])) + f'<span class="note">{escape(one["created_at"][:19])}</span>',
            f"{digest(one['digest'], whole=True)}<br>{escape(uri)}",
            escape(one["lineage_id"]),
            escape(one["code_version"]),
        ]
        for uri, one in artifacts.items()
    ]
    return table(["Kind", "Digest and place", "Made by run", "Code"], rows, widths=["16%", "50%", "18%", "16%"])
