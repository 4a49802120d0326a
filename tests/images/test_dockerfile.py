"""What can be said of the images without building them."""

import fnmatch
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from serin.core.telemetry import NO_TELEMETRY
from serin_pipelines.environments import Images
from serin_pipelines.placement import RUN_AS_USER

from .dockerfile import Dockerfile, parse

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "manifests" / "images"
TARGETS = ("cpu", "ray", "serve")
INSTALLS = re.compile(r"\b(pip3?|apt|apt-get|apk|conda|uv|npm)\b[^|;&]*\b(install|add)\b")


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return parse(FOLDER / "Dockerfile")


def test_every_image_of_an_environment_is_a_target(dockerfile: Dockerfile) -> None:
    assert set(Images.model_fields) == set(TARGETS) <= set(dockerfile.stages)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_the_user_that_pods_are_given(dockerfile: Dockerfile, target: str) -> None:
    last = [rest for stage in dockerfile.chain(target) for rest in stage.all("USER")][-1]
    assert last == f"{RUN_AS_USER}:{RUN_AS_USER}"
    keywords = [keyword for keyword, _ in dockerfile.stages[target].instructions]
    assert "USER" in keywords
    assert not {"RUN", "COPY", "ADD"} & set(keywords[keywords.index("USER") :]), "nothing is written as that user"


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_installs_nothing_and_copies_only_what_stages_made(dockerfile: Dockerfile, target: str) -> None:
    for stage in dockerfile.chain(target):
        assert not [line for line in stage.all("RUN") if INSTALLS.search(line)]
        for line in stage.all("COPY"):
            assert line.startswith("--from="), line
            assert "--chown" not in line, "code belongs to root, and is read-only to those who run it"


@pytest.mark.parametrize("target", TARGETS)
def test_code_is_the_last_layer_of_a_target(dockerfile: Dockerfile, target: str) -> None:
    assert [line.split()[0] for line in dockerfile.stages[target].all("COPY")][-1] == "--from=code"


def test_a_change_of_code_reaches_no_stage_that_installs_dependencies(dockerfile: Dockerfile) -> None:
    for name, stage in dockerfile.stages.items():
        copied = " ".join(line for line in stage.all("COPY") if "--from" not in line)
        assert ("components" in copied) == (name == "code")


def test_dependencies_are_locked_and_indexes_stay_out_of_the_targets(dockerfile: Dockerfile) -> None:
    settings = " ".join(dockerfile.stages["builder"].all("ENV"))
    assert "PIP_CONSTRAINT=/requirements/constraints.txt" in settings
    for target in TARGETS:
        chain = dockerfile.chain(target)
        assert not [rest for stage in chain for rest in stage.all("ARG", "ENV") if "INDEX" in rest or "PIP" in rest]


def test_nothing_comes_from_an_unnamed_place(dockerfile: Dockerfile) -> None:
    assert not [rest for stage in dockerfile.stages.values() for rest in stage.all("ADD")]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", dockerfile.arguments["BASE_IMAGE"])
    bases = {stage.base for stage in dockerfile.stages.values()}
    assert bases <= {"${BASE_IMAGE}", *dockerfile.stages}
    assert "://" not in (FOLDER / "Dockerfile").read_text().replace("http://127.0.0.1:8080", "")


@pytest.mark.parametrize("target", TARGETS)
def test_dependencies_report_nothing_home(dockerfile: Dockerfile, target: str) -> None:
    pairs = [word for stage in dockerfile.chain(target) for rest in stage.all("ENV") for word in shlex.split(rest)]
    assert NO_TELEMETRY.items() <= dict(word.split("=", 1) for word in pairs).items()


@pytest.mark.parametrize("target", TARGETS)
def test_kubeflow_finds_no_entrypoint_in_its_way(dockerfile: Dockerfile, target: str) -> None:
    assert not [rest for stage in dockerfile.chain(target) for rest in stage.all("ENTRYPOINT")]


def test_only_the_endpoint_answers_health_checks(dockerfile: Dockerfile) -> None:
    asked = {name for name, stage in dockerfile.stages.items() if stage.all("HEALTHCHECK")}
    assert asked == {"serve"}


@pytest.mark.parametrize("path", [".git", ".venv", ".serin", "tests", "notebooks", "dist", "build", ".env"])
def test_the_build_is_not_given(path: str) -> None:
    assert not sent(path), path


@pytest.mark.parametrize(
    "path", ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", "components", "pipelines", "manifests/images"]
)
def test_the_build_is_given_what_it_copies(path: str) -> None:
    assert sent(path), path


def sent(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last rule that matches it decides."""
    decision = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if rule and not rule.startswith("#") and fnmatch.fnmatch(path, rule.removeprefix("!").removeprefix("**/")):
            decision = rule.startswith("!")
    return decision


def test_lists_of_requirements_come_from_the_project_file(tmp_path: Path) -> None:
    script = [sys.executable, "-B", str(FOLDER / "requirements.py"), str(ROOT / "pyproject.toml"), str(tmp_path)]
    subprocess.run(script, check=True, timeout=30)
    lists = {path.stem: path.read_text().split() for path in tmp_path.iterdir()}
    assert set(lists) == set(TARGETS)
    assert set(lists["serve"]) < set(lists["cpu"])
    assert any(line.startswith("kfp==") for line in lists["serve"]), "the rollout is a Kubeflow task in this image"
    assert not any(line.startswith("ray") for line in lists["serve"])
    assert any(line.startswith("ray[default,serve,train]>=") for line in lists["ray"])
