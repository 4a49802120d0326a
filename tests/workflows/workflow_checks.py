"""What the workflows must keep to: one short function per rule, each returning what it found wrong."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".github" / "workflows"
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
LOCAL = re.compile(r"uses: \./\.github/workflows/[\w-]+\.yaml$")
WRITES = {
    ("images.yaml", "build"): {"packages", "id-token"},
    ("promote.yaml", "promote"): {"id-token"},
    ("promote.yaml", "comment"): {"pull-requests"},
    ("promote.yaml", "rollback"): {"id-token"},
    ("drift.yaml", "monitoring"): {"id-token"},
}
"""Every write permission that a job of ours has; one more is a decision to be made here."""
ENDPOINT_COMMANDS = {"promote", "rollback"}
REDIRECTIONS = re.compile(r"\s*(?:\|\||&&|\||>>?|<|;).*$")


@dataclass(frozen=True)
class Workflow:
    """A workflow's file name, text and content."""

    name: str
    text: str

    @property
    def content(self) -> dict[str, Any]:
        """Parsed; ``on`` is the string, not YAML 1.1's true."""
        content = yaml.safe_load(self.text)
        return {("on" if key is True else key): value for key, value in content.items()}

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        return dict(self.content["jobs"])

    @property
    def triggers(self) -> set[str]:
        on = self.content["on"]
        return {on} if isinstance(on, str) else set(on)

    def steps(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Job name and step."""
        for name, job in self.jobs.items():
            yield from ((name, step) for step in job.get("steps", []))

    def scripts(self) -> Iterator[tuple[str, str]]:
        """Job name and shell script."""
        yield from ((job, step["run"]) for job, step in self.steps() if "run" in step)


def load_workflows(folder: Path = FOLDER) -> list[Workflow]:
    return [Workflow(path.name, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.y*ml"))]


def grants_nothing_by_default(workflow: Workflow) -> list[str]:
    """Empty permissions at the top, and each job's own."""
    found = [] if workflow.content.get("permissions") == {} else ["the top-level permissions are not {}"]
    return found + [
        f"{name} has no permissions of its own" for name, job in workflow.jobs.items() if "permissions" not in job
    ]


def writes_only_what_is_listed(workflow: Workflow) -> list[str]:
    found = []
    for name, job in workflow.jobs.items():
        granted = job.get("permissions", {})
        if not isinstance(granted, Mapping):
            found.append(f"{name} has {granted}")
            continue
        writes = {scope for scope, level in granted.items() if level == "write"}
        found += [f"{name} writes {scope}" for scope in writes - WRITES.get((workflow.name, name), set())]
    return found


def pins_every_action(workflow: Workflow) -> list[str]:
    """A full commit, its version as a comment; or a workflow of this repository."""
    lines = [line.strip().removeprefix("- ") for line in workflow.text.splitlines()]
    used = [line for line in lines if line.startswith("uses:")]
    return [line for line in used if not (PINNED.match(line) or LOCAL.match(line))]


def never_checks_out_a_strangers_code(workflow: Workflow) -> list[str]:
    """Under pull_request_target (and its kin) only the default branch's code runs."""
    if not workflow.triggers & {"pull_request_target", "workflow_run", "issue_comment"}:
        return []
    found = [
        f"{job} checks out {step['with']}"
        for job, step in _checkouts(workflow)
        if {"ref", "repository"} & set(step["with"])
    ]
    heads = ("pull_request.head", "github.head_ref", "workflow_run.head", "gh pr checkout", "git fetch", "git checkout")
    return found + [f"it mentions {head}" for head in heads if head in workflow.text]


def leaves_no_credentials_in_the_clone(workflow: Workflow) -> list[str]:
    return [job for job, step in _checkouts(workflow) if step["with"].get("persist-credentials") is not False]


def expands_nothing_in_scripts(workflow: Workflow) -> list[str]:
    """What comes from outside reaches a script through its environment, never as part of its text."""
    return [f"{job}: {script}" for job, script in workflow.scripts() if "${{" in script]


def shows_no_secret(workflow: Workflow) -> list[str]:
    """There is none but the job's own token, which no script prints."""
    found = ["it reads a secret"] if re.search(r"\$\{\{[^}]*\bsecrets\b", workflow.text) else []
    shown = re.compile(r"set -\w*x|printenv|^\s*env\b|TOKEN\b", re.MULTILINE)
    return found + [f"{job}: {script}" for job, script in workflow.scripts() if shown.search(script)]


def ends_in_time(workflow: Workflow) -> list[str]:
    return [name for name, job in workflow.jobs.items() if "uses" not in job and "timeout-minutes" not in job]


def uses_a_strict_shell(workflow: Workflow) -> list[str]:
    """``shell: bash`` said plainly has pipefail, the default has not."""
    shell = workflow.content.get("defaults", {}).get("run", {}).get("shell")
    return [] if shell == "bash" or not list(workflow.scripts()) else [f"the default shell is {shell}"]


def changes_an_endpoint_only_with_approval(workflow: Workflow) -> list[str]:
    """A job that promotes or rolls back is approved, one at a time, and not cut off."""
    found = []
    for name, job in workflow.jobs.items():
        scripts = [step["run"] for step in job.get("steps", []) if "run" in step]
        if not any(
            command.words[:1] and command.words[0] in ENDPOINT_COMMANDS for s in scripts for command in commands(s)
        ):
            continue
        concurrency = job.get("concurrency", {})
        if job.get("environment") != "production":
            found.append(f"{name} needs no approval")
        if not concurrency.get("group") or concurrency.get("cancel-in-progress") is not False:
            found.append(f"{name} can be cut off or run twice at once")
    return found


def cancels_nothing_but_pull_requests(workflow: Workflow) -> list[str]:
    """A run that pushes or acts is never cut off by a newer one."""
    asked = [workflow.content.get("concurrency"), *(job.get("concurrency") for job in workflow.jobs.values())]
    allowed = (None, False, "${{ github.event_name == 'pull_request' }}")
    return [str(one) for one in asked if one and one.get("cancel-in-progress") not in allowed]


def installs_nothing_unlocked(workflow: Workflow) -> list[str]:
    installs = re.compile(r"^.*\b(?:pip install|npm (?:i|install)|curl|wget)\b.*$", re.MULTILINE)
    lines = [line for _, script in workflow.scripts() for line in installs.findall(script)]
    return [line for line in lines if "--require-hashes" not in line]


CHECKS = (
    grants_nothing_by_default,
    writes_only_what_is_listed,
    pins_every_action,
    never_checks_out_a_strangers_code,
    leaves_no_credentials_in_the_clone,
    expands_nothing_in_scripts,
    shows_no_secret,
    ends_in_time,
    uses_a_strict_shell,
    changes_an_endpoint_only_with_approval,
    cancels_nothing_but_pull_requests,
    installs_nothing_unlocked,
)


@dataclass(frozen=True)
class Command:
    """A call of ``serin``: what follows the name, without redirections."""

    words: tuple[str, ...]


def commands(script: str) -> list[Command]:
    """The calls of ``serin`` in a script, with the bash arrays that they expand put in."""
    arrays: dict[str, list[str]] = {}
    for name, words in re.findall(r"(\w+)\+=\(([^)]*)\)", script):
        arrays.setdefault(name, []).extend(shlex.split(words))
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        match = re.match(r"\s*(?:\.venv/bin/)?serin (.*)$", line)
        if match:
            words = shlex.split(REDIRECTIONS.sub("", match[1]))
            expanded = [arrays.get(w[2:-4], []) if w.endswith("[@]}") else [w] for w in words]
            found.append(Command(tuple(word for one in expanded for word in one)))
    return found


def misuse(command: Command, root: Any) -> str:
    """Why the command line (a click command, typer's own copy of it) would not take these words; empty if it would."""
    node, words = root, list(command.words)
    while hasattr(node, "commands"):
        name = words.pop(0) if words else ""
        if name not in node.commands:
            return f"There is no command {name!r}."
        node = node.commands[name]
    options = {flag: option for option in node.params for flag in (*option.opts, *option.secondary_opts)}
    given, positional = set(), 0
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            positional += 1
            continue
        flag, _, value = word.partition("=")
        if flag not in options:
            return f"{node.name} has no option {flag}."
        given.add(options[flag].name)
        if not getattr(options[flag], "is_flag", False) and not value and not (words and words.pop(0)):
            return f"{node.name} {flag} needs a value."
    return _arity(node, given, positional)


def _arity(node: Any, given: set[str | None], positional: int) -> str:
    arguments = [one for one in node.params if one.param_type_name == "argument"]
    least = sum(one.required for one in arguments)
    most = positional if any(one.nargs == -1 for one in arguments) else len(arguments)
    if not least <= positional <= most:
        return f"{node.name} takes {least} to {most} arguments, not {positional}."
    required = [one for one in node.params if one.required and one.param_type_name == "option"]
    missing = [one.opts[0] for one in required if one.name not in given]
    return f"{node.name} needs {', '.join(missing)}." if missing else ""


def _checkouts(workflow: Workflow) -> list[tuple[str, dict[str, Any]]]:
    used = [(job, step) for job, step in workflow.steps() if step.get("uses", "").startswith("actions/checkout@")]
    return [(job, {**step, "with": step.get("with", {})}) for job, step in used]
