"""``serin lint``: check compiled pipelines before a cluster does."""

import json
from pathlib import Path
from typing import Annotated

import typer

from serin.core.errors import InputError
from serin_pipelines.options import AsJson, console

FINDINGS = InputError.exit_code
"""Exit code: at least one file has a finding."""


def lint(
    files: Annotated[list[Path] | None, typer.Argument(help="IR files, as 'serin compile' writes them.")] = None,
    off: Annotated[
        list[str] | None, typer.Option("--off", help="A house rule to leave out, by name; can be repeated.")
    ] = None,
    list_rules: Annotated[bool, typer.Option("--rules", help="List the rules and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check compiled pipelines for dangling references and against the house rules; one line for each finding.

    The exit code is 3 when there is a finding.

    Example: serin lint manifests/compiled/training.yaml --off timeout
    """
    from serin_pipelines.lint import lint_file

    if list_rules:
        _show_rules(as_json)
        return
    if not files:
        raise typer.BadParameter("name at least one IR file, as 'serin compile' writes them.")
    found = {str(path): lint_file(path, off=off or []) for path in files}
    bad = any(found.values())
    if as_json:
        dumped = {name: [finding.model_dump() for finding in findings] for name, findings in found.items()}
        typer.echo(json.dumps({"ok": not bad, "files": dumped}))
    else:
        for name, findings in found.items():
            for finding in findings:
                typer.echo(f"{name}: {finding.where}: {finding.message} [{finding.rule}]")
        if not bad:
            console.print(f"{len(found)} {'file' if len(found) == 1 else 'files'} without a finding.")
    if bad:
        raise typer.Exit(FINDINGS)


def _show_rules(as_json: bool) -> None:
    from serin_pipelines.lint import RULES, rule_names

    rules = {"error": rule_names("error"), "house": rule_names("house")}
    if as_json:
        typer.echo(json.dumps({kind: {name: RULES[name] for name in names} for kind, names in rules.items()}))
        return
    width = max(map(len, RULES))
    for kind, title in (("error", "Rules of Kubeflow"), ("house", "House rules (--off NAME)")):
        typer.echo(title)
        for name in rules[kind]:
            typer.echo(f"  {name.ljust(width)}  {RULES[name]}")
