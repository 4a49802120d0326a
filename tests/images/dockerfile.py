"""A Dockerfile as stages of instructions: enough of its grammar for ours."""

from dataclasses import dataclass, field
from pathlib import Path

Instruction = tuple[str, str]
"""Keyword in upper case, and the rest as one line."""


@dataclass
class Stage:
    """From one FROM to the next."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, *keywords: str) -> list[str]:
        """The arguments of every instruction of these kinds, in order."""
        return [rest for keyword, rest in self.instructions if keyword in keywords]


@dataclass
class Dockerfile:
    """The arguments before the first stage, and the stages by name."""

    arguments: dict[str, str]
    stages: dict[str, Stage]

    def chain(self, name: str) -> list[Stage]:
        """A stage after those that it is built upon, outermost base first."""
        stage = self.stages.get(name)
        return [] if stage is None else [*self.chain(stage.base), stage]


def parse(path: Path) -> Dockerfile:
    """Read a Dockerfile whose stages all have names."""
    found = Dockerfile({}, {})
    current: Stage | None = None
    for keyword, rest in _instructions(path.read_text(encoding="utf-8")):
        if keyword == "FROM":
            base, _, name = rest.split()
            current = found.stages[name] = Stage(name, base)
        elif current is None:
            name, _, value = rest.partition("=")
            found.arguments[name] = value
        else:
            current.instructions.append((keyword, rest))
    return found


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1].strip()) for line in joined.splitlines()]
