"""A compiled pipeline: what it is called, what it asks for, and which version of it this is."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serin.core.digests import code_version, digest_of
from serin.core.errors import ConfigError

VERSION_DIGITS = 12
SKIPPED_TYPES = {"TASK_FINAL_STATUS"}
READERS = {
    "STRING": "text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "LIST": "a list in YAML",
    "STRUCT": "a mapping in YAML",
}


@dataclass(frozen=True)
class Package:
    """An IR file and what it says."""

    path: Path
    name: str
    display_name: str
    description: str
    digest: str
    """SHA-256 of the parsed documents, so formatting does not count."""
    parameters: Mapping[str, Mapping[str, Any]]
    """By name: parameterType, defaultValue, isOptional, description."""
    tasks: tuple[str, ...]
    """Names of the tasks that run something, those inside conditions and loops too, in the order of their running."""

    @property
    def version_name(self) -> str:
        """Code version and digest: the same pipeline again has the same name."""
        return f"{code_version()[:VERSION_DIGITS]}-{self.digest[:VERSION_DIGITS]}"

    def arguments(self, texts: list[str], values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The arguments of a run.

        Args:
            texts: ``name=value`` as a person writes them; each is read as the parameter's type.
            values: arguments that have their type already, which the texts go over.

        Raises:
            ConfigError: a parameter is unknown, of another type, or required and not given.
        """
        given = dict(values or {})
        for name in given:
            self._require_known(name)
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals:
                raise ConfigError(f"--param {text!r} is not of the form name=value.")
            self._require_known(name)
            given[name] = self._read(name, value)
        missing = [name for name, found in self.parameters.items() if name not in given and _required(found)]
        if missing:
            raise ConfigError(f"Pipeline {self.name!r} needs {', '.join(missing)}: give --param {missing[0]}=VALUE.")
        return given

    def _require_known(self, name: str) -> None:
        if name in self.parameters:
            return
        near = difflib.get_close_matches(name, self.parameters, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self.parameters) or 'none'}."
        raise ConfigError(f"Pipeline {self.name!r} has no parameter {name!r}: {hint}")

    def _read(self, name: str, text: str) -> Any:
        kind = str(self.parameters[name].get("parameterType", "STRING"))
        try:
            return _parse(kind, text)
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigError(
                f"Parameter {name!r} of {self.name!r} is {text!r}, and must be {READERS.get(kind, kind)}."
            ) from error


def read_package(path: Path) -> Package:
    """Read a compiled pipeline.

    Raises:
        ConfigError: the file is no IR.
    """
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]
        spec = documents[0]
        info, root = spec["pipelineInfo"], spec["root"]
        inputs = (root.get("inputDefinitions") or {}).get("parameters") or {}
    except OSError as error:
        raise ConfigError(f"Pipeline file {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no compiled pipeline: make one with 'serin compile'.") from error
    return Package(
        path=path,
        name=str(info["name"]),
        display_name=str(info.get("displayName") or info["name"]),
        description=str(info.get("description") or ""),
        digest=digest_of(documents),
        parameters={name: found for name, found in inputs.items() if found.get("parameterType") not in SKIPPED_TYPES},
        tasks=task_names(spec),
    )


def task_names(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of an IR's tasks, each after what it depends on; conditions and loops give way to what is in them."""
    components = spec.get("components") or {}

    def walk(dag: Mapping[str, Any]) -> list[str]:
        names: list[str] = []
        for name in _ordered(dag.get("tasks") or {}):
            inner = components.get(dag["tasks"][name].get("componentRef", {}).get("name", ""), {}).get("dag")
            names += walk(inner) if inner else [name]
        return names

    return tuple(dict.fromkeys(walk(spec["root"].get("dag") or {})))


def _ordered(tasks: Mapping[str, Any]) -> list[str]:
    done: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...] = ()) -> None:
        if name in done or name in path or name not in tasks:
            return
        for before in sorted(tasks[name].get("dependentTasks") or ()):
            visit(before, (*path, name))
        done[name] = None

    for name in sorted(tasks):
        visit(name)
    return list(done)


def _required(found: Mapping[str, Any]) -> bool:
    return not found.get("isOptional") and "defaultValue" not in found


def _parse(kind: str, text: str) -> Any:
    if kind == "STRING":
        return text
    if kind == "NUMBER_INTEGER":
        return int(text)
    if kind == "NUMBER_DOUBLE":
        return float(text)
    value = yaml.safe_load(text)
    wanted = {"BOOLEAN": bool, "LIST": list, "STRUCT": dict}.get(kind, object)
    if not isinstance(value, wanted):
        raise ValueError(kind)  # noqa: TRY004 - the caller's one way to hear that a text is no such value
    return value
