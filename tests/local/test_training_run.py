"""The whole DAG on the embedded default: killed in three stages, completed, repeated, asked about."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from serin.core.artifacts import ArtifactStore
from serin.core.journal import Journal
from serin_pipelines.records import STAGES

from .conftest import Serin, small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def processes_of(home: Path) -> list[str]:
    """Command lines of living processes whose environment names this home: stages, Ray, gateways, engines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if f"SERIN_HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found += [line] if line else []
        except OSError:
            continue
    return found


def half_made(home: Path) -> list[Path]:
    """Directories that a reader could take for artefacts although they have no manifest."""
    store = home / "store"
    return [
        key
        for kind in ("dataset", "documents", "base", "model", "index", "evaluation")
        for key in (store / kind).glob("[!.]*")
        if not (key / "manifest.json").is_file()
    ]


@pytest.fixture(scope="module")
def source(serin: Serin) -> Path:
    from serin.samples.generate import write_samples

    write_samples(serin.folder / "samples", seed=7, num_conversations=600)
    return serin.folder / "samples"


@pytest.fixture(scope="module")
def killed_stages(serin: Serin, source: Path) -> list[str]:
    """Kill -9 the run while data_prep builds, while index builds, and in finetune after a checkpoint, as they come."""
    work = serin.home / "store" / ".work"
    building = {
        "data_prep": "dataset-*/output",
        "finetune": "*/scratch/**/checkpoints/[!.]*/state.json",  # a whole one: what is still written begins with a dot
        "index": "index-*/output",
    }
    killed = []
    while building:

        def reached() -> bool:
            return any(any(work.glob(pattern)) for pattern in building.values())

        child = serin.start("run", "--source", str(source), *small())
        serin.kill_when(child, reached)
        stage = next(name for name, pattern in building.items() if any(work.glob(pattern)))
        del building[stage]
        deadline = time.monotonic() + 20
        while processes_of(serin.home) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert processes_of(serin.home) == [], f"processes outlived a kill in {stage}"
        assert half_made(serin.home) == []
        assert serin.json("runs", "--last")["status"] == "interrupted"
        killed.append(stage)
    return killed


@pytest.fixture(scope="module")
def first(serin: Serin, source: Path, killed_stages: list[str]) -> dict[str, Any]:
    """The run that is started again after the kills and completes."""
    return serin.json("run", "--source", str(source), *small(), code=None)


def test_a_run_killed_in_three_stages_completes_when_started_again(
    serin: Serin, first: dict[str, Any], killed_stages: list[str]
) -> None:
    assert sorted(killed_stages) == ["data_prep", "finetune", "index"]
    assert first["status"] == "succeeded", first["error"]
    assert [stage["name"] for stage in first["stages"]] == list(STAGES)
    assert {stage["status"] for stage in first["stages"]} == {"succeeded"}
    reused = {kind for stage in first["stages"] for kind in stage["reused"]}
    assert {"dataset", "documents"} <= reused
    curves = [json.loads(path.read_text())["curve"] for path in (serin.home / "store").glob("*/[!.]*/training.json")]
    assert {curve["phase"] for curve in curves} == {"pretraining", "fine-tuning"}
    assert sum(curve["resumed"] for curve in curves) >= 1, "training began anew although there was a checkpoint"


def test_every_artifact_is_whole(serin: Serin, first: dict[str, Any]) -> None:
    store = ArtifactStore(first["store_uri"])
    manifests = [key for key in store.storage.keys("") if key.endswith("/manifest.json") and not key.startswith(".")]
    assert len(manifests) >= 6
    for key in manifests:
        store.open(f"{store.uri}/{key.removesuffix('/manifest.json')}")


def test_the_last_run_says_what_happened(serin: Serin, first: dict[str, Any]) -> None:
    last = serin.json("runs", "--last")
    assert {"status", "release", "decision", "wall_s", "stages"} <= set(last)
    assert last["run_id"] == first["run_id"]
    assert last["decision"] in ("promote", "hold", "rollback")
    listed = serin.json("release", "list")
    assert listed["champion"] == first["champion"]
    assert last["release"] in listed["releases"]


def test_a_second_run_reuses_everything_and_says_so(serin: Serin, source: Path, first: dict[str, Any]) -> None:
    second = serin.json("run", "--source", str(source), *small(), code=None)
    assert second["release"] == first["release"]
    reused = {stage["name"]: stage["reused"] for stage in second["stages"]}
    assert all(reused[name] for name in ("data_prep", "finetune", "index"))
    if first["decision"] == "promote":
        assert second["decision"] == "unchanged"
    slowest = {stage["name"]: stage["wall_s"] for stage in second["stages"]}
    assert slowest["finetune"] < 30


def test_lineage_leads_from_a_trace_to_data_code_and_decisions(serin: Serin, first: dict[str, Any]) -> None:
    deployed = next(stage for stage in first["stages"] if stage["name"] == "deploy")["summary"]
    found = serin.json("lineage", deployed["sample"]["trace_id"])
    assert found["kind"] == "trace"
    assert found["event"]["question"]
    assert {"model", "index", "data", "prompt", "guardrails", "code"} <= set(found["parts"])
    assert {manifest["kind"] for manifest in found["artifacts"].values()} >= {"dataset", "documents", "index"}
    assert {entry["kind"] for entry in found["decisions"]} >= {"release"}

    of_release = serin.json("lineage", first["release"][:12])
    assert of_release["release"] == first["release"]
    assert {"release", "gate", "rollout", "monitor"} <= {entry["kind"] for entry in of_release["decisions"]}
    assert {"dataset", "model", "index"} <= set(of_release["runs"])

    for run_id in (of_release["runs"]["model"], of_release["decisions"][0]["mlflow_run_id"]):
        of_run = serin.json("lineage", run_id)
        assert (of_run["kind"], of_run["release"]) == ("run", first["release"])


def test_stages_that_failed_leave_one_sentence_and_a_log(serin: Serin, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = serin("run", "--source", str(tmp_path / "empty"), *small(), code=None)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("serin: data_prep: ")
    log = Path(done.stderr.rsplit("Log: ", 1)[1].strip())
    assert log.is_file()
    assert serin.json("runs", "--last")["status"] == "failed"


def test_two_runs_of_one_home_do_not_mix(serin: Serin, source: Path) -> None:
    import fcntl

    with (serin.home / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = serin("run", "--source", str(source), code=8)
    assert "Another run is under way" in done.stderr


def test_the_time_limit_ends_a_run(serin: Serin, source: Path) -> None:
    done = serin("run", "--source", str(source), "--timeout-s", "0.5", *small(), code=8)
    assert "--timeout-s" in done.stderr
    assert processes_of(serin.home) == []
    assert json.loads(json.dumps(serin.json("runs", "--last")))["status"] == "interrupted"


def test_rollback_goes_back_to_the_release_before(serin: Serin, first: dict[str, Any]) -> None:
    if first["decision"] != "promote":
        pytest.skip(f"the small run's canary said {first['decision']}")
    back = serin.json("release", "rollback", "--approved-by", "ada", "--reason", "a drill")
    assert back["champion"] != first["release"]
    assert serin.json("release", "list")["champion"] == back["champion"]
    entries = serin.json("lineage", back["champion"][:12])["decisions"]
    assert entries[-1]["kind"] == "rollback"
    assert entries[-1]["approved_by"] == "ada"


GATE = json.dumps(
    {
        "num_conversations": 40, "num_retrieved": 10, "num_golden": 40, "resamples": 1000, "suites": [],
        "gate": {"rules": [
            {"metric": "bits_per_byte", "kind": "non_inferiority", "against": "baseline", "margin": 0.5},
        ]},
    }
)  # fmt: skip
CANARY = json.dumps(
    {"judge": {"max_ttft_ratio": 3, "max_error_increase": 0.3, "max_support_drop": 0.9, "min_sessions": 10}}
)


def outcomes(run: dict[str, Any]) -> dict[str, Any]:
    return {stage["name"]: stage["summary"] for stage in run["stages"]}


def test_a_changed_document_reaches_the_endpoint_by_index_refresh(
    serin: Serin, source: Path, first: dict[str, Any]
) -> None:
    champion = serin.json("release", "list")["champion"]
    page = next(source.rglob("*.md"))
    page.write_text(page.read_text() + "\nWe are also open on Sundays from ten to four.\n")
    arguments = ("--source", str(source), "--param", f"evaluate_config={GATE}", "--param", f"deploy_config={CANARY}")
    run = serin.json("run", "index_refresh", *arguments, code=None)
    assert run["status"] == "succeeded", run["error"] + serin.logs()
    assert run["release"] != champion
    made, before = (serin.json("release", "show", release) for release in (run["release"], champion))
    assert made["index"]["digest"] != before["index"]["digest"]
    assert made["model"] == before["model"]
    assert outcomes(run)["release"]["baseline"] == champion


def test_a_release_is_promoted_into_another_store_under_its_own_id(serin: Serin, first: dict[str, Any]) -> None:
    target = str(serin.folder / "prod")
    arguments = (
        "--param", f"release_id={first['release'][:12]}", "--param", f"source_store_uri={first['store_uri']}",
        "--param", "approved_by=auditor", "--param", f"evaluate_config={GATE}", "--param", f"deploy_config={CANARY}",
    )  # fmt: skip
    run = serin.json("run", "promotion", *arguments, "--store", target, code=None)
    assert run["status"] == "succeeded", run["error"] + serin.logs()
    assert run["release"] == first["release"]
    assert outcomes(run)["release"]["imported"] is True
    journal = Journal(ArtifactStore(target).storage, "assistant")
    (approval,) = journal.find(kind="approval")
    assert approval.approved_by == "auditor"
    assert [entry.decision for entry in journal.find(kind="gate", release_id=run["release"])] == ["pass"]
    if run["decision"] == "promote":
        assert journal.champion() == run["release"]
        assert journal.find(kind="promotion")[-1].approved_by == "auditor, canary judge"


def test_monitoring_looks_at_the_champion_and_concludes(serin: Serin, first: dict[str, Any]) -> None:
    run = serin.json("run", "monitoring")
    assert run["status"] == "succeeded"
    assert run["decision"] in ("none", "alert", "reindex", "retrain")
    assert run["release"] == run["champion"] == serin.json("release", "list")["champion"]
    assert outcomes(run)["conclude"]["state"] == "SUCCEEDED"


def test_a_retraining_on_a_window_without_data_fails_in_one_sentence_and_is_concluded(
    serin: Serin, source: Path, first: dict[str, Any]
) -> None:
    arguments = ("--param", "trigger_id=test-1", "--param", "window_start=2031-01-01")
    run = serin("run", "retraining", "--source", str(source), *arguments, *small(), code=None)
    assert run.returncode != 0
    assert "data_prep: " in run.stderr
    assert "Traceback" not in run.stderr
    last = serin.json("runs", "--last")
    assert (last["status"], outcomes(last)["conclude"]["state"]) == ("failed", "FAILED")
    (trigger,) = Journal(ArtifactStore(first["store_uri"]).storage, "assistant").find(kind="trigger")
    assert trigger.evidence["trigger_id"] == "test-1"
