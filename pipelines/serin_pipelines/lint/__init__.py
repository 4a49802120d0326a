"""A linter for Kubeflow's compiled pipelines (IR): dangling references, and Serin's house rules."""

from collections.abc import Collection
from pathlib import Path

from serin.core.errors import ConfigError
from serin_pipelines.lint.document import Document, UnreadableError, read_document
from serin_pipelines.lint.findings import Finding, Kind, Rule
from serin_pipelines.lint.flow import FLOW
from serin_pipelines.lint.house import HOUSE
from serin_pipelines.lint.references import REFERENCES
from serin_pipelines.lint.secrets import SECRETS

__all__ = ["RULES", "Finding", "lint_file", "rule_names"]

READABLE = "readable"
_STRUCTURAL: tuple[Rule, ...] = (*FLOW, *REFERENCES)
_HOUSE: tuple[Rule, ...] = (*HOUSE, *SECRETS)
RULES: dict[str, str] = {
    READABLE: "The file is YAML and parses into KFP's own protobufs.",
    **{rule.name: rule.line for rule in (*_STRUCTURAL, *_HOUSE)},
}
"""Every rule's name, and what it asks for."""


def lint_file(path: Path, *, off: Collection[str] = ()) -> list[Finding]:
    """All findings of an IR file (a pipeline, with its platform settings or without), errors first, sorted.

    Args:
        path: the file; a manifest with a PipelineVersion is understood too.
        off: names of house rules to leave out.

    Raises:
        ConfigError: there is no such file, or ``off`` names no house rule.
    """
    _check_names(off)
    try:
        document = read_document(path)
    except UnreadableError as error:
        return [Finding(rule=READABLE, kind="error", where="file", message=str(error))]
    house = [rule for rule in _HOUSE if rule.name not in off]
    found = {*_apply(_STRUCTURAL, "error", document), *_apply(house, "house", document)}
    return sorted(found, key=lambda one: (one.kind, one.where, one.rule, one.message))


def rule_names(kind: Kind | None = None) -> list[str]:
    """Names of all rules, or of one kind's; those of the house rules can be given as ``off``."""
    structural = [READABLE, *(rule.name for rule in _STRUCTURAL)]
    house = [rule.name for rule in _HOUSE]
    return {"error": structural, "house": house, None: structural + house}[kind]


def _check_names(off: Collection[str]) -> None:
    for name in off:
        if name not in RULES:
            raise ConfigError(f"There is no rule {name!r}: choose from {', '.join(rule_names('house'))}.")
        if name not in rule_names("house"):
            raise ConfigError(f"Rule {name!r} cannot be switched off: a file that breaks it does not run.")


def _apply(rules: Collection[Rule], kind: Kind, document: Document) -> list[Finding]:
    return [
        Finding(rule=rule.name, kind=kind, where=where, message=message)
        for rule in rules
        for where, message in rule.check(document)
    ]
