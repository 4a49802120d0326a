"""The command 'serin finetune sweep': what it says when its file cannot be used."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serin.core.errors import ConfigError
from serin_pipelines.cli_sweep import sweep

URIS = ["--dataset", "file:///nowhere", "--documents", "file:///nowhere"]


def run(*arguments: str) -> BaseException | None:
    app = typer.Typer()
    app.command()(sweep)
    return CliRunner().invoke(app, [*URIS, *arguments]).exception


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "holds no settings"),
        ("num_trials: [", "cannot be read"),
        ("num_trails: 3", "'num_trails' is not a setting of SweepConfig"),
        ("space: {learning_rate: {type: normal}}", "space.learning_rate"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_before_anything_starts(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    error = run("--sweep", str(path))
    assert isinstance(error, ConfigError)
    assert message in str(error)


def test_an_absent_file_is_said() -> None:
    error = run("--sweep", "/nowhere.yaml")
    assert isinstance(error, ConfigError)
    assert "/nowhere.yaml cannot be read" in str(error)


def test_the_number_of_trials_on_the_command_line_counts_more_than_the_files(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("num_trials: 4")
    error = run("--sweep", str(tmp_path / "sweep.yaml"), "--num-trials", "0")
    assert isinstance(error, ConfigError)
    assert "'num_trials' is 0" in str(error)
