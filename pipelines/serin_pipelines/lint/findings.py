"""What a rule is and what it finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from serin_pipelines.lint.document import Document

Kind = Literal["error", "house"]


class Finding(BaseModel):
    """One thing that is wrong with a file."""

    model_config = ConfigDict(frozen=True)

    rule: str
    kind: Kind
    """error: Kubeflow refuses or misruns such a file; house: it breaks a rule of our own."""
    where: str
    """DAG and task, as ``root/deploy``; ``file`` for the whole."""
    message: str
    """What was found and what mends it."""


Check = Callable[[Document], Iterator[tuple[str, str]]]
"""A rule's function: (where, message) for each thing it finds."""


@dataclass(frozen=True)
class Rule:
    """A named check."""

    name: str
    line: str
    """What it asks for, in one line."""
    check: Check
