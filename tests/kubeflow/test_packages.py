"""Compiled pipelines: their parameters read as their types, refused before anything is sent."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from serin.core.errors import ConfigError
from serin_pipelines.kubeflow.follow import RunView, TaskView
from serin_pipelines.kubeflow.packages import Package, read_package
from serin_pipelines.kubeflow.progress import Progress


def test_texts_become_what_the_parameters_are(package: Package) -> None:
    texts = ["source_uri=a=b", "epochs=3", "margin=1", "quick=true", "names=[a, b]", "tuning={lr: 0.1}"]
    assert package.arguments(texts) == {
        "source_uri": "a=b",
        "epochs": 3,
        "margin": 1.0,
        "quick": True,
        "names": ["a", "b"],
        "tuning": {"lr": 0.1},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epocs=3", "has no parameter 'epocs': did you mean 'epochs'?"),
        ("zzz=3", "has no parameter 'zzz': it has"),
        ("epochs", "is not of the form name=value"),
        ("epochs=2.5", "'epochs' of 'serin-small' is '2.5', and must be a whole number"),
        ("quick=yes please", "must be true or false"),
        ("tuning=[1]", "must be a mapping in YAML"),
        ("names={a", "must be a list in YAML"),
    ],
)
def test_what_does_not_fit_is_named(package: Package, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        package.arguments([text, "source_uri=x"])
    assert message in str(caught.value)


def test_a_required_parameter_must_be_given(package: Package) -> None:
    with pytest.raises(ConfigError, match="needs source_uri: give --param source_uri=VALUE"):
        package.arguments([])


def test_tasks_come_in_the_order_in_which_they_run(package: Package) -> None:
    assert package.tasks == ("echo", "echo-2", "echo-3")


def test_formatting_does_not_make_another_version(package: Package, tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text("# a comment\n" + package.path.read_text())
    assert read_package(copy).version_name == package.version_name
    copy.write_text(package.path.read_text().replace("second", "zweite"))
    assert read_package(copy).version_name != package.version_name


@pytest.mark.parametrize("text", ["", "just text", "a: [", "root: {}"])
def test_a_file_that_is_no_ir_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(ConfigError, match="is no compiled pipeline"):
        read_package(tmp_path / "file.yaml")


def test_progress_is_a_line_per_change_outside_a_terminal_and_a_table_inside() -> None:
    views = [
        RunView("1", "a run", "RUNNING", "url", (TaskView("first", "RUNNING"),)),
        RunView("1", "a run", "RUNNING", "url", (TaskView("first", "RUNNING"),)),
        RunView("1", "a run", "FAILED", "url", (TaskView("first", "FAILED", "no [disk]"),)),
    ]
    for terminal, expected in ((False, "▶ first running\n✗ first failed: no [disk]\n"), (True, "✗ first")):
        stream = StringIO()
        progress = Progress(Console(file=stream, force_terminal=terminal, width=80))
        with progress.following():
            for view in views:
                progress.show(view)
        assert stream.getvalue() == expected if not terminal else expected in stream.getvalue()
