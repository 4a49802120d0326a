"""What the releases were made from, as a picture and as digests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from serin.core.artifacts import Manifest
from serin.core.decision import Decision
from serin.core.flow import Node, flow
from serin.core.origins import NAMES, PARTS, RELEASE, origins
from serin.core.page import Section, badge, digest, fold, table
from serin.core.palette import Tone
from serin.core.release import Release
from serin.core.verification import manifests_behind
from serin.evaluate.report_words import ORDER


@dataclass(frozen=True)
class Behind:
    """The releases that were compared, and the artefacts behind the candidate."""

    releases: Mapping[str, Release] = field(default_factory=dict)
    """Role to release."""
    manifests: Mapping[str, Manifest | None] = field(default_factory=dict)
    """URI to manifest; None where it is gone."""

    @classmethod
    def of(cls, releases: Mapping[str, Release]) -> "Behind":
        """Read what is behind the candidate from its store."""
        candidate = releases["candidate"]
        uris = [getattr(candidate, part).uri for part in PARTS]
        return cls(releases, dict(manifests_behind(uris)))


def lineage_section(behind: Behind, decision: Decision) -> Section:
    """Documents to dataset to model to release to decision; what the releases share; every artefact."""
    if "candidate" not in behind.releases:
        return Section("Lineage", "")
    picture = flow("What the candidate was made from", lineage_nodes(behind, decision))
    gone = [uri for uri, manifest in behind.manifests.items() if manifest is None]
    missing = "".join(f"<p>{badge(Tone.BAD, 'missing')} {escape(uri)}</p>" for uri in gone)
    note = "Each box is named by the first digits of its content's digest; what has one digest is one thing."
    html = picture + missing + _shared(behind) + fold("All artefacts behind the candidate", _artifacts(behind))
    return Section("Lineage", html, note)


def lineage_nodes(behind: Behind, decision: Decision) -> list[Node]:
    """The boxes of the picture, sources first."""
    tone = Tone.GOOD if decision.outcome == "pass" else Tone.BAD
    gate = f"{decision.outcome}, policy {decision.policy_version[:8]}"
    made = origins(behind.releases["candidate"], behind.manifests)
    return [*made, Node("gate", "Gate", gate, tone, (RELEASE,))]


def _shared(behind: Behind) -> str:
    """A table of the parts of every release; what another shares with the candidate says so."""
    roles = [role for role in ORDER if role in behind.releases]
    described = {role: _parts(behind.releases[role]) for role in roles}
    rows = []
    for part, own in described["candidate"].items():
        cells = [
            digest(own) if role == "candidate" else '<span class="note">the same</span>' if described[role][part] == own
            else digest(described[role][part])
            for role in roles
        ]  # fmt: skip
        rows.append([escape(part), *cells])
    head = ["Part", *(f"{role.capitalize()} {behind.releases[role].short_id}" for role in roles)]
    return f"<h3>What the releases consist of</h3>{table(head, rows)}"


def _parts(release: Release) -> dict[str, str]:
    from serin.core.digests import digest_of

    return {
        "data": release.data.digest,
        "model": release.model.digest,
        "index": release.index.digest,
        "prompt": release.prompt.version,
        "guardrails": release.guardrails_digest,
        "serving": digest_of(release.serving),
        "code": release.code_version,
    }


def _artifacts(behind: Behind) -> str:
    rows = [
        [
            escape(NAMES.get(one.kind, one.kind)),
            digest(one.digest, whole=True),
            escape(one.lineage_id),
            escape(one.code_version),
            escape(one.created_at[:19].replace("T", " ")),
        ]
        for one in behind.manifests.values()
        if one is not None
    ]
    return table(
        ["Kind", "Digest", "Made by run", "Code", "Made (UTC)"], rows, widths=["14%", "38%", "20%", "14%", "14%"]
    )
