"""The commands as a person or a CI job calls them; progress on standard error, one JSON object on standard output."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from serin.core.errors import ConfigError, InterruptedRunError
from serin.core.journal import Journal
from serin.core.release import save_release
from serin.core.storage import storage_for
from serin_pipelines import cli_kubeflow
from serin_pipelines.environments import Environment, load_environment

from .fake_kfp import FakeKubeflow
from .fake_scripts import Script, canceled, failing, succeeding
from .test_promotion import release, rollout

TASKS = ("echo", "echo-2", "echo-3")
QUICK_POLL = ("--poll-s", "0.01")

Serin = Callable[..., Result]


@pytest.fixture
def env_file(environment: Environment, small_file: Path, tmp_path: Path) -> Path:
    """The environment as a file of one's own, with a schedule."""
    schedule = {"pipeline": str(small_file), "cron": "0 0 2 * * *", "arguments": {"source_uri": "s3://bucket/source"}}
    values = {
        name: getattr(environment, name)
        for name in ("namespace", "kfp_host", "experiment", "service_account", "store_uri")
    }
    path = tmp_path / "berlin.yaml"
    path.write_text(yaml.safe_dump({**values, "schedules": {"nightly": schedule}}))
    return path


@pytest.fixture
def serin(env_file: Path) -> Serin:
    """Runs a command; raises the error that ``main`` would turn into a sentence and an exit code."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli_kubeflow.submit)
    app.command()(cli_kubeflow.promote)
    app.command()(cli_kubeflow.rollback)
    app.add_typer(cli_kubeflow.schedule_app, name="schedule")

    def run(*arguments: Any, env: str = "--env") -> Result:
        options = [env, str(env_file)] if env else []
        result = CliRunner().invoke(app, [*(str(one) for one in arguments), *options])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def answer(result: Result) -> dict[str, Any]:
    """The one JSON object on standard output."""
    return dict(json.loads(result.stdout))


def test_submit_follows_a_run_to_its_end(fake: FakeKubeflow, serin: Serin, small_file: Path) -> None:
    fake.scripts.append(succeeding(*TASKS))
    result = serin("submit", small_file, "--param", "source_uri=s3://b/s", *QUICK_POLL)
    (run_id,) = fake.runs
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("serin-small version ")
    assert f"run {run_id}: {fake.host}/#/runs/details/{run_id}" in lines
    assert next(line for line in lines if line.startswith("✓")).startswith("✓ echo succeeded")
    assert lines[-1] == f"Run {run_id} succeeded."


def test_submit_says_in_json_what_failed(fake: FakeKubeflow, serin: Serin, small_file: Path) -> None:
    fake.scripts.append(failing(*TASKS, message="no space left"))
    result = serin("submit", small_file, "--param", "source_uri=s3://b/s", "--json", *QUICK_POLL)
    assert result.exit_code == 23
    found = answer(result)
    assert (found["state"], found["failed_task"], found["error"]) == ("FAILED", "echo-3", "no space left")
    assert "✗ echo-3 failed: no space left" in result.stderr


def test_submit_of_a_run_that_is_canceled_exits_with_24(fake: FakeKubeflow, serin: Serin, small_file: Path) -> None:
    fake.scripts.append(canceled(*TASKS))
    assert serin("submit", small_file, "--param", "source_uri=s3://b/s", *QUICK_POLL).exit_code == 24


def test_submit_can_let_go_and_attach_again(fake: FakeKubeflow, serin: Serin, small_file: Path) -> None:
    fake.scripts.append(succeeding(*TASKS))
    started = answer(serin("submit", small_file, "--param", "source_uri=s3://b/s", "--no-wait", "--json"))
    assert (started["state"], list(fake.runs)) == ("PENDING", [started["run_id"]])
    result = serin("submit", "--attach", started["run_id"], "--json", *QUICK_POLL)
    assert answer(result)["tasks"] == dict.fromkeys(TASKS, "SUCCEEDED")
    assert len(fake.runs) == 1


def test_submit_at_its_time_limit_says_how_to_attach(
    fake: FakeKubeflow, serin: Serin, small_file: Path, env_file: Path
) -> None:
    fake.scripts.append(Script([{"RUN": "RUNNING"}]))
    with pytest.raises(InterruptedRunError, match=f"'serin submit --env {env_file} --attach 0"):
        serin("submit", small_file, "--param", "source_uri=s3://b/s", "--timeout-s", "0.1", *QUICK_POLL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--param", "sorce_uri=x"], "did you mean 'source_uri'"),
        (["--image", "cpu"], "not of the form target=reference"),
        (["--image", "gpu=registry.example/serin"], "'gpu' is not a setting of Images"),
        (["--set", "finetune.epochs=2"], "takes no 'finetune_config'"),
        (["--plugin", "mlflow.name=x", "--param", "source_uri=x"], "has no setting 'name'"),
    ],
)
def test_submit_refuses_what_is_wrong_before_anything_is_sent(
    fake: FakeKubeflow, serin: Serin, small_file: Path, options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        serin("submit", small_file, *options)
    assert fake.requests == []


def test_submit_without_anything_to_submit_says_so(serin: Serin) -> None:
    with pytest.raises(ConfigError, match="Name a pipeline or an IR file, or give --attach RUN_ID"):
        serin("submit")


def test_schedules_are_applied_listed_and_removed(fake: FakeKubeflow, serin: Serin) -> None:
    first = serin("schedule", "apply")
    assert "nightly: created" in first.stdout
    assert "in UTC, next: 20" in first.stdout
    again = answer(serin("schedule", "apply", "--json"))
    assert (again["changes"][0]["action"], again["time_zone"]) == ("unchanged", "UTC")
    assert len(again["changes"][0]["next"]) == 3
    changed = answer(serin("schedule", "update", "nightly", "--cron", "0 30 2 * * *", "--json", *QUICK_POLL))
    assert changed["changes"][0]["action"] == "updated"
    (listed,) = answer(serin("schedule", "list", "--json"))["schedules"]
    assert (listed["name"], listed["state"], listed["cron"]) == ("nightly", "enabled", "0 30 2 * * *")
    assert "cron (UTC)" in serin("schedule", "list").stdout
    assert "nightly: removed" in serin("schedule", "remove", "nightly").stdout
    assert fake.recurring == {}


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_the_environments_that_we_ship_have_schedules_that_the_server_takes(fake: FakeKubeflow, name: str) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.add_typer(cli_kubeflow.schedule_app, name="schedule")
    app.command()(cli_kubeflow.rollback)
    arguments = ["schedule", "apply", "--env", name, "--host", fake.host, "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    changes = {change["name"]: change["action"] for change in answer(result)["changes"]}
    assert changes == dict.fromkeys(load_environment(name).schedules, "created")
    assert {job["service_account"] for job in fake.recurring.values()} == {"serin-pipeline"}


def test_schedule_create_takes_one_of_the_environments_or_one_of_its_own(
    fake: FakeKubeflow, serin: Serin, small_file: Path
) -> None:
    serin("schedule", "create", "nightly", "--param", "epochs=2")
    serin("schedule", "create", "mine", "--pipeline", small_file, "--cron", "0 0 5 * * *", "--param", "source_uri=x")
    assert {job["display_name"] for job in fake.recurring.values()} == {"nightly", "mine"}
    with pytest.raises(ConfigError, match=r"has no schedule 'other': give --pipeline and --cron"):
        serin("schedule", "create", "other")
    with pytest.raises(ConfigError, match="wants six, in UTC"):
        serin("schedule", "create", "third", "--pipeline", small_file, "--cron", "0 5 * * *")


@pytest.mark.parametrize(("decision", "code"), [("promote", 0), ("rollback", 21)])
def test_promote_prints_a_verdict_and_writes_a_summary(
    fake: FakeKubeflow,
    serin: Serin,
    environment: Environment,
    promotion_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    decision: str,
    code: int,
) -> None:
    storage = storage_for(environment.store_uri)
    save_release(storage, release(1))
    journal = Journal(storage, environment.endpoint)
    journal.append("promotion", release_id=release(2).id, decision="promoted")
    fake.scripts.append(succeeding("echo", "echo-2", at={3: rollout(journal, decision)}))
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("GITHUB_ACTOR", "ada")
    summary = tmp_path / "summary.md"
    result = serin(
        "promote", release(1).id[:12], "--package", promotion_file, "--summary", summary, "--json", *QUICK_POLL,
        env="--to",
    )  # fmt: skip
    assert result.exit_code == code
    found = answer(result)
    assert set(found) == {
        "release", "environment", "endpoint", "verdict", "run_id", "url", "reasons", "approved_by", "evidence",
    }  # fmt: skip
    assert found["approved_by"] == "ada"
    assert f"| run | [{found['run_id']}]({found['url']}) |" in summary.read_text()


def test_promote_asks_who_approves(serin: Serin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTOR", "left over on a laptop")
    with pytest.raises(ConfigError, match="Nobody is named who approves this"):
        serin("promote", "12345678", env="--to")


def test_rollback_prints_what_serves_now(serin: Serin, environment: Environment) -> None:
    journal = Journal(storage_for(environment.store_uri), environment.endpoint)
    for number in (1, 2):
        journal.append("promotion", release_id=release(number).id, decision="promoted")
    result = serin("rollback", "--reason", "wrong answers", "--approved-by", "ada", "--json")
    found = answer(result)
    assert (found["verdict"], found["champion"]) == ("rolled_back", release(1).id)
    again = answer(serin("rollback", "--reason", "x", "--approved-by", "ada", "--from", release(2).id, "--json"))
    assert again["verdict"] == "already_rolled_back"


def test_the_command_itself_runs_one_of_our_pipelines_and_fails_in_one_sentence_without_its_token(
    fake: FakeKubeflow, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.tokens = {"the-secret"}
    fake.scripts.append(Script([{"RUN": "SUCCEEDED"}]))
    monkeypatch.setenv("KFP_TOKEN", "the-secret")
    command = [sys.executable, "-m", "serin_pipelines.cli", "submit", "index_refresh", "--env", str(env_file), "--json"]
    command += ["--param", "source_uri=s3://bucket/source", "--poll-s", "0.01"]
    good = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (good.returncode, json.loads(good.stdout)["state"]) == (0, "SUCCEEDED"), good.stderr
    fake.tokens = {"another"}
    bad = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (bad.returncode, bad.stdout) == (7, "")
    assert bad.stderr.startswith("serin: Kubeflow Pipelines refuses to find the pipeline 'serin-index-refresh' (401)")
    assert len(bad.stderr.splitlines()) == 1
    assert "the-secret" not in good.stdout + good.stderr + bad.stderr


def test_every_command_has_help_with_an_example_and_says_utc_where_times_are() -> None:
    for command in (cli_kubeflow.submit, cli_kubeflow.promote, cli_kubeflow.rollback):
        assert "Example: serin " in str(command.__doc__)
    for info in cli_kubeflow.schedule_app.registered_commands:
        assert "Example: serin schedule " in str(info.callback.__doc__ if info.callback else "")
    assert "UTC" in str(cli_kubeflow.schedule_app.info.help)
