"""Typed configuration: frozen sections that refuse what they do not know."""

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from serin.core.errors import ConfigError

SECRET_NAMES = re.compile(
    r"password|passwd|secret|token(?![a-z])|access_?key|api_?key|private_?key|credential", re.IGNORECASE
)
USER_INFO = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
HIDDEN = "***"


class Section(BaseModel):
    """One stage's settings.

    Sections are frozen, refuse unknown fields, and restore the ints that KFP hands back as floats inside dicts.
    Each field is written once, with its meaning in a docstring below it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @classmethod
    def load(cls, values: dict[str, Any] | None) -> Self:
        """Validate a plain dict (as KFP or a YAML file gives it).

        Raises:
            ConfigError: naming the field, what was found and what is expected.
        """
        try:
            return cls.model_validate(values or {})
        except ValidationError as error:
            raise ConfigError(describe(error, cls.__name__)) from error

    def dump(self) -> dict[str, Any]:
        """The section as plain JSON values."""
        return self.model_dump(mode="json")

    def parameters(self) -> dict[str, Any]:
        """The section as a KFP parameter, which cannot hold None: fields that are None are left out.

        Raises:
            ConfigError: a field is None that would come back as its default.
        """
        values: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        if type(self).load(values) != self:
            raise ConfigError(f"{type(self).__name__} sets to null what is not null by default: give it a value.")
        return values


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A setting that is a regular expression."""


def describe(error: ValidationError, name: str) -> str:
    """One sentence for a validation error, naming each field; values of what is named like a secret are not shown."""
    problems = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"]) or name
        if problem["type"] == "extra_forbidden":
            problems.append(f"{field!r} is not a setting of {name}")
        else:
            problems.append(f"{field!r} is {_shown(problem['input'], field)!r}: {problem['msg'].lower()}")
    return f"{name} cannot be used: {'; '.join(problems)}."


def _shown(value: Any, name: str = "") -> Any:
    """A value without the secrets in it: texts that are named like one, and users and passwords of URLs."""
    if isinstance(value, dict):
        return {key: _shown(each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(each, name) for each in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if SECRET_NAMES.search(name) else USER_INFO.sub(HIDDEN, value)
