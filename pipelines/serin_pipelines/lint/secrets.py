"""House rule: secrets are references to Kubernetes Secrets, never values in a file that everyone can read."""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from serin_pipelines.lint.document import Document, Task
from serin_pipelines.lint.findings import Rule

Found = Iterator[tuple[str, str]]
SECRET_WORDS = frozenset({"secret", "password", "passwd", "passphrase", "token", "apikey", "credential", "credentials"})
SECRET_PAIRS = (("api", "key"), ("access", "key"), ("private", "key"))
REFERENCE_WORDS = frozenset({"name", "ref", "reference", "file", "path", "url", "uri", "mode", "budget", "limit", "id"})
"""Last words of names that point at a secret, or count tokens, and hold none."""
SECRET_VALUE = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS access key ids
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\bgh[pousr]_[A-Za-z0-9]{36}"  # GitHub tokens
    r"|\b(?:hf|sk)[_-][A-Za-z0-9_-]{24,}"  # Hugging Face and OpenAI tokens
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."  # JSON web tokens
    r"|://[^/\s:@'\"{}$]+:[^/\s@'\"{}$]+@"  # user and password in a URL
)
SECRET_ASSIGNMENT = re.compile(r"\b[A-Z_]*(?:SECRET|PASSWORD|TOKEN)[A-Z_]*=(?:\"[^\"$]+\"|'[^'$]+'|[^\s\"'$={(]+)")
ADVICE = "mount it with kubernetes.use_secret_as_env and replace the value, which is known now"


def environment_holds_no_secret(document: Document) -> Found:
    for task in document.container_tasks:
        for variable in task.container.get("env", []):
            name, value = variable.get("name", ""), variable.get("value", "")
            if _is_secret(name, value):
                yield task.where, f"task {task.name!r} has a secret in its variable {name!r}: {ADVICE}"


def commands_hold_no_secret(document: Document) -> Found:
    for task in document.container_tasks:
        text = "\n".join([*task.container.get("command", []), *task.container.get("args", [])])
        if SECRET_VALUE.search(text) or SECRET_ASSIGNMENT.search(text):
            yield task.where, f"task {task.name!r} has a secret in its command: {ADVICE}"


def arguments_hold_no_secret(document: Document) -> Found:
    for task in document.tasks:
        for name in sorted(set(_secret_constants(task))):
            yield task.where, f"task {task.name!r} is given a secret as {name!r}: {ADVICE}"


def defaults_hold_no_secret(document: Document) -> Found:
    for component, spec in {"root": document.root, **document.components}.items():
        for name, parameter in spec.get("inputDefinitions", {}).get("parameters", {}).items():
            if any(_is_secret(key, value) for key, value in _leaves(name, parameter.get("defaultValue"))):
                yield component, f"parameter {name!r} has a secret as its default: {ADVICE}"


def _secret_constants(task: Task) -> Iterator[str]:
    for name, argument in task.arguments("parameters").items():
        for key, value in _leaves(name, argument.get("runtimeValue", {}).get("constant")):
            if _is_secret(key, value):
                yield name


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of all texts in a value, by the nearest key above each."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(name, inner)


def _is_secret(name: str, value: str) -> bool:
    if not value or "{{" in value or value.startswith("$"):
        return False  # a placeholder, or a variable that is filled in elsewhere
    return bool(SECRET_VALUE.search(value)) or (_names_a_secret(name) and not _is_harmless(value))


def _names_a_secret(name: str) -> bool:
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().replace("-", "_").split("_")
    if parts[-1] in REFERENCE_WORDS:
        return False
    return bool(SECRET_WORDS & set(parts)) or any(pair in pairwise(parts) for pair in SECRET_PAIRS)


def _is_harmless(value: str) -> bool:
    """Whether a value is too plain to be a secret: a number, a switch, or the name of a Kubernetes Secret."""
    names_one = "secret" in value and bool(re.fullmatch(r"[a-z0-9]+(?:[-.][a-z0-9]+)*", value))
    return names_one or value.lower() in ("true", "false", "none", "null") or value.replace(".", "", 1).isdigit()


SECRETS = (
    Rule("secret-env", "No variable of a container holds a secret.", environment_holds_no_secret),
    Rule("secret-command", "No command holds a secret.", commands_hold_no_secret),
    Rule("secret-argument", "No argument of a task is a secret.", arguments_hold_no_secret),
    Rule("secret-default", "No default of a parameter is a secret.", defaults_hold_no_secret),
)
