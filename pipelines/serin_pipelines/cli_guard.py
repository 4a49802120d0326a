"""``serin guard``: a guardrail policy on files of texts, and how well answers rest on their passages."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serin.core.errors import InputError, StorageError
from serin.core.policy import GuardrailPolicy, default_policy, read_policy, written_policy
from serin_pipelines.options import AsJson, console, show

if TYPE_CHECKING:
    from serin.serve.guardrails import Guardrails, Verdict

app = typer.Typer(name="guard", help="Try a guardrail policy on texts, and score answers.", no_args_is_help=True)

STRONGEST = ("block", "rewrite", "mask", "flag")
ALLOWED = "allow"
"""Action of a text on which no rail acts."""

Lines = Annotated[Path, typer.Option("--input", help="JSON lines.")]
Output = Annotated[Path, typer.Option("--output", help="Where the lines go, with what was found added.")]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="YAML or JSON file (default: the default policy).")]


class Stages(StrEnum):
    """Where a text stands."""

    input = "input"
    retrieval = "retrieval"
    output = "output"


@app.command()
def check(
    stage: Annotated[Stages, typer.Option("--stage", help="Where the texts stand.")],
    lines: Lines,
    output: Output,
    policy: PolicyFile = None,
    prompt: Annotated[
        Path | None, typer.Option("--prompt", help="File with the instruction that must not leak.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a policy's rails over texts: adds action, rails, scores and latency_ms to each line.

    A line carries text and, at the stage output, context (a list of passages).  Where a rail masks or rewrites,
    checked_text is what would go on.

    Example: serin guard check --policy policy.yaml --stage input --input in.jsonl --output out.jsonl
    """
    from serin.serve.guardrails import Guardrails

    chosen = read_policy(policy) if policy else default_policy()
    guardrails = Guardrails(chosen, _text_of(prompt) if prompt else "")
    guardrails.warm_up()
    actions: Counter[str] = Counter()

    def judged(line: dict[str, Any], where: str) -> dict[str, Any]:
        text = _field(line, "text", where)
        verdicts = _verdicts(guardrails, stage.value, text, _passages(line, where, needed=False), line)
        added = _added(verdicts, text)
        actions[added["action"]] += 1
        return added

    count = _write(lines, output, judged)
    show({"output": str(output), "lines": count, "policy": chosen.digest[:12], "actions": dict(actions)}, as_json)


@app.command()
def grounding(lines: Lines, output: Output, as_json: AsJson = False) -> None:
    """Score how far answers rest on their passages: adds support_score and flags to each line.

    A line carries answer and context (a list of passages).

    Example: serin guard grounding --input answers.jsonl --output scored.jsonl
    """
    from serin.core.grounding import ground

    flags: Counter[str] = Counter()

    def scored(line: dict[str, Any], where: str) -> dict[str, Any]:
        found = ground(_field(line, "answer", where), _passages(line, where, needed=True))
        flags.update(found.flags)
        return {"support_score": found.support_score, "flags": list(found.flags)}

    count = _write(lines, output, scored)
    show({"output": str(output), "lines": count, "flags": dict(flags)}, as_json)


@app.command()
def init(
    output: Annotated[Path, typer.Option("--output", help="File to write.")] = Path("policy.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write the default policy as a file in which every setting is explained.

    Example: serin guard init --output policy.yaml
    """
    if output.exists() and not force:
        raise InputError(f"{output} exists: name another file, or overwrite it with --force.")
    policy = default_policy()
    try:
        output.write_text(written_policy(policy), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error.strerror}.") from error
    console.print(f"{output}: version {policy.version}, digest {policy.digest[:12]}", markup=False, soft_wrap=True)


def _verdicts(
    guardrails: "Guardrails", stage: Any, text: str, context: list[str], line: dict[str, Any]
) -> list["Verdict"]:
    found = [guardrails.check(stage, text, context)]
    if stage == "output" and not (found[0].blocked or found[0].rewritten):
        found.append(guardrails.finish_answer(found[0].text, context))
        if guardrails.policy.judge.url and not (found[-1].blocked or found[-1].rewritten):
            found.append(_judged(guardrails.policy, str(line.get("question", "")), found[-1].text, context))
    return found


def _judged(policy: GuardrailPolicy, question: str, answer: str, context: list[str]) -> "Verdict":
    from serin.serve.guard_judge import judge_once

    return asyncio.run(judge_once(policy, question, answer, context))


def _added(verdicts: list["Verdict"], text: str) -> dict[str, Any]:
    named = [action.split(":") for verdict in verdicts for action in verdict.actions]
    did = {action for _, _, action in named}
    added: dict[str, Any] = {
        "action": next((action for action in STRONGEST if action in did), ALLOWED),
        "rails": list(dict.fromkeys(rail for _, rail, _ in named)),
        "scores": {name: value for verdict in verdicts for name, value in verdict.scores.items()},
        "latency_ms": round(sum(verdict.latency_ms for verdict in verdicts), 3),
    }
    last = verdicts[-1]
    return added if last.blocked or last.text == text else added | {"checked_text": last.text}


def _write(lines: Path, output: Path, added: Callable[[dict[str, Any], str], dict[str, Any]]) -> int:
    """Write each line with what is added; the file appears whole, or not at all."""
    count = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = NamedTemporaryFile(  # noqa: SIM115 - renamed below
            "w", encoding="utf-8", dir=output.parent, prefix=f".{output.name}.", delete=False
        )
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error.strerror}.") from error
    try:
        with partial:
            for line, where in _read(lines):
                partial.write(json.dumps(line | added(line, where), ensure_ascii=False) + "\n")
                count += 1
        os.chmod(partial.name, 0o644)
        os.replace(partial.name, output)
    except BaseException:
        Path(partial.name).unlink(missing_ok=True)
        raise
    return count


def _read(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each line with where it stands; blank lines are left out."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, text in enumerate(stream, start=1):
                where = f"{path}, line {number},"
                if not text.strip():
                    continue
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{where} is no JSON: {error}.") from error
                if not isinstance(line, dict):
                    raise InputError(f"{where} is a {type(line).__name__}: write one JSON object a line.")
                yield line, where
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _field(line: dict[str, Any], name: str, where: str) -> str:
    value = line.get(name)
    if not isinstance(value, str):
        problem = f"has no {name!r}" if name not in line else f"has a {name!r} that is no text"
        raise InputError(f"{where} {problem}: give it as a string.")
    return value


def _passages(line: dict[str, Any], where: str, *, needed: bool) -> list[str]:
    value = line.get("context")
    if value is None and not needed:
        return []
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(passage, str) for passage in found):
        raise InputError(f"{where} has no 'context' that is a list of passages: give it as a list of strings.")
    return found


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
