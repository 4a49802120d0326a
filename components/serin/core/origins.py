"""What a release was made from, as the boxes of a picture."""

from collections.abc import Mapping

from serin.core.artifacts import Manifest
from serin.core.flow import Node
from serin.core.page import DIGEST_CHARS
from serin.core.palette import Tone
from serin.core.release import Release

PARTS = ("data", "model", "index")
NAMES = {"documents": "Documents", "dataset": "Dataset", "base": "Base model", "model": "Model", "index": "Index"}
RELEASE = "release"
"""Key of the release's box."""


def origins(release: Release, manifests: Mapping[str, Manifest | None]) -> list[Node]:
    """Sources, artefacts and the release that they end in, sources first.

    Args:
        release: the last box.
        manifests: URI to manifest of all that is behind it, itself first; None where one is gone, which is drawn too.
    """
    nodes: dict[str, Node] = {}
    for uri, manifest in reversed(list(manifests.items())):
        if manifest is None:
            nodes[uri] = Node(uri, "Missing", uri[-20:], Tone.BAD)
            continue
        sources = list(manifest.sources.values())
        if "source" in manifest.inputs and "source" not in manifest.sources:
            key = manifest.inputs["source"]
            nodes.setdefault(key, Node(key, "Source", key[:DIGEST_CHARS]))
            sources.append(key)
        name = NAMES.get(manifest.kind, manifest.kind.capitalize())
        nodes[uri] = Node(uri, name, manifest.digest[:DIGEST_CHARS], sources=tuple(sources))
    parts = tuple(getattr(release, part).uri for part in PARTS)
    nodes[RELEASE] = Node(RELEASE, "Release", release.short_id, Tone.CANDIDATE, parts)
    return list(nodes.values())
