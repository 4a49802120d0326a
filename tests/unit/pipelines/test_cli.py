"""Every command as documented: help with an example, exit codes, JSON on standard output."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from serin_pipelines.cli import app


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            found[" ".join(path)] = command
            return
        for name, child in children.items():
            walk(child, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


EXPECTED = {
    "run", "compile", "data prep", "data samples", "finetune plan", "finetune pairs", "finetune sweep", "index",
    "evaluate run", "evaluate compare", "evaluate review", "evaluate verdicts",
    "release create", "release list",
    "release show", "release verify", "release diff", "release sign", "release key", "release rollback",
    "guard check", "guard grounding", "guard init", "canary judge", "canary simulate", "canary status", "canary pause",
    "canary resume", "canary promote", "canary abort", "canary run",
    "deploy", "serve key", "serve keys", "serve revoke", "serve bench",
    "monitor", "lineage", "runs", "doctor", "lint", "submit",
    "promote", "rollback", "schedule create", "schedule update", "schedule list", "schedule remove", "schedule apply",
}  # fmt: skip


def test_the_commands_are_the_documented_ones() -> None:
    assert set(commands()) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_command_has_help_with_an_example_of_itself(name: str) -> None:
    command = commands()[name]
    assert f"Example: serin {name}" in (command.help or "")
    for parameter in command.params:
        assert getattr(parameter, "help", "") or parameter.name == "help", f"{name} {parameter.name} has no help"


def serin(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serin_pipelines.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_an_error_is_one_sentence_on_standard_error_and_a_code() -> None:
    done = serin("runs", "--last")
    assert done.returncode == 3
    assert done.stderr.startswith("serin: There is no run in")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("run", "--source", "x", "--set", "finetune.nonsense=1"), 2, "not a setting"),
        (("lineage", "not-an-id"), 3, "is no trace"),
        (("lineage", "deadbeef"), 3, "is no trace"),
        (("release", "show", "deadbeef"), 3, "is no release"),
        (("compile", "nothing"), 2, "choose from training"),
        (("serve",), 3, "has no champion yet"),
    ],
)
def test_mistakes_have_their_own_exit_code_and_no_traceback(
    arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    done = serin(*arguments)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_rollback_without_a_previous_release_says_so() -> None:
    done = serin("release", "rollback", "--approved-by", "ada", "--reason", "test")
    assert done.returncode == 3
    assert "no release before its champion" in done.stderr


def test_lists_are_json_when_asked(own_home: Path) -> None:
    runner = CliRunner()
    assert json.loads(runner.invoke(app, ["runs", "--json"]).stdout) == []
    listed = json.loads(runner.invoke(app, ["release", "list", "--json"]).stdout)
    assert listed == {"releases": [], "champion": None, "previous": None, "about": []}


def test_doctor_reports_each_check_as_json() -> None:
    done = serin("doctor", "--json")
    report = json.loads(done.stdout)
    assert {"python", "libraries", "disk", "memory", "store", "telemetry"} <= {c["name"] for c in report["checks"]}
    assert all(check["fix"] for check in report["checks"] if check["status"] != "ok")
    assert done.returncode == (0 if report["ok"] else 7)


def test_a_tracking_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to be taken for one" * 50)
    done = serin("data", "prep", "--source", str(tmp_path), "--tracking", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert done.returncode == 7
    assert "name another with --tracking" in done.stderr
    assert "Traceback" not in done.stderr
