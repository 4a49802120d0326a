"""How a release is written into Kubernetes objects: a template's texts filled in, and laid over a spec."""

import copy
import re
from typing import Any

from serin.core.errors import ConfigError
from serin.core.release import Release

RELEASE_LABEL = "serin.dev/release"
"""On pods, revisions and objects: the short id of the release that answers there."""


def short(release_id: str) -> str:
    """A release id as a label, and for people."""
    return release_id[:12]


def filled(template: Any, release: Release) -> Any:
    """A template with the release's values in its texts.

    Raises:
        ConfigError: a text names a value that releases do not have.
    """
    if isinstance(template, dict):
        return {key: filled(value, release) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [filled(value, release) for value in template]
    if not isinstance(template, str):
        return template
    values = _values(release)

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ConfigError(f"'{{{match[1]}}}' is no value of a release: use one of {', '.join(values)}.")
        return values[match[1]]

    return re.sub(r"{(\w+)}", value, template)


def laid_over(under: Any, over: Any) -> Any:
    """Mappings merged, the upper one's values first; everything else is replaced.  Neither is changed."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    merged = {key: copy.deepcopy(value) for key, value in under.items() if key not in over}
    return merged | {key: laid_over(under.get(key), value) for key, value in over.items()}


def labelled(spec: dict[str, Any], release_id: str) -> dict[str, Any]:
    """A predictor, or an LLMInferenceService's spec, whose pods say which release they are."""
    return laid_over(spec, {"labels": {RELEASE_LABEL: short(release_id)}})


def _values(release: Release) -> dict[str, str]:
    return {
        "id": release.id,
        "short_id": release.short_id,
        "model_uri": release.model.uri,
        "model_digest": release.model.digest,
        "index_uri": release.index.uri,
        "index_digest": release.index.digest,
        "guardrails_digest": release.guardrails_digest,
        "code_version": release.code_version,
    }
