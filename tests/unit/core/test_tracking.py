"""Tracking against a real MLflow server: slow, broken, killed and started again."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracking_servers import Connections, MlflowServer, Proxy, free_port

from serin.core.errors import UnavailableError
from serin.core.tracking import (
    LINEAGE_TAG,
    PARENT_TAG,
    RUN_ID_VARIABLE,
    STAGE_TAG,
    SystemMetrics,
    Tracker,
    log_model,
    prepare_database,
    send_leftovers,
)
from serin.core.tracking.delivery import Delivery
from serin.core.tracking.spool import folder_of

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own use of SQLAlchemy

CONNECTIONS = Connections()
LOG_AND_DIE = """
import os, sys
from serin.core.tracking import Tracker
tracker = Tracker(sys.argv[1], "assistant", "killed-run", "finetune")
tracker.params({"seed": 1})
for step in range(300):
    tracker.metrics({"loss": 1 / (step + 1)}, step=step)
print("logged", flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    proxy.open()
    yield proxy
    proxy.close()


def run_of(server: MlflowServer, lineage_id: str, stage: str = "finetune"):
    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name("assistant")
    query = f"tags.`{LINEAGE_TAG}` = '{lineage_id}' and tags.`{STAGE_TAG}` = '{stage}'"
    found = client.search_runs([experiment.experiment_id], query) if experiment else []
    assert len(found) <= 1
    return found[0] if found else None


def history(server: MlflowServer, lineage_id: str, name: str = "loss", stage: str = "finetune") -> list[int]:
    run = run_of(server, lineage_id, stage)
    return [point.step for point in MlflowClient(server.url).get_metric_history(run.info.run_id, name)] if run else []


def until(check: Callable[[], bool], timeout_s: float = 40.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def waiting(uri: str) -> list[Path]:
    return sorted(folder_of(uri).glob("*.jsonl"))


def test_everything_that_a_stage_logs_arrives(server: MlflowServer, tmp_path: Path) -> None:
    tracker = Tracker(server.url, "assistant", "plain-run", "finetune")
    tracker.params({"seed": 1, "method": "lora"})
    tracker.params({"seed": 2})
    tracker.tags({"serin.model.digest": "abc"})
    for step in range(20):
        tracker.metrics({"loss": 2.0 - step, "lr": 0.1}, step=step)
    (tmp_path / "report.html").write_text("<p>done</p>")
    tracker.artifact(tmp_path / "report.html")
    (tmp_path / "report.html").unlink()
    tracker.dataset("orders", "d" * 64, "file:///orders", profile={"rows": 3})
    tracker.finish("FINISHED")
    run = run_of(server, "plain-run")
    assert run.info.status == "FINISHED"
    assert (run.data.params["seed"], run.data.params["method"]) == ("1", "lora"), "a parameter was changed"
    assert run.data.tags["serin.model.digest"] == "abc"
    assert history(server, "plain-run") == list(range(20))
    parent = run_of(server, "plain-run", "pipeline")
    assert run.data.tags[PARENT_TAG] == parent.info.run_id
    client = MlflowClient(server.url)
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("orders", "d" * 36)
    assert "d" * 64 in dataset.dataset.source
    assert not waiting(server.url)


def test_a_thousand_metrics_wait_for_nobody_while_mlflow_is_away(proxy: Proxy, server: MlflowServer) -> None:
    proxy.close()
    tracker = Tracker(proxy.url, "assistant", "away-run", "finetune", finish_wait_s=2)
    with CONNECTIONS.of_this_thread():
        tracker.params({"seed": 1})
        for step in range(1000):
            tracker.metrics({"loss": 1.0 / (step + 1)}, step=step)
    assert CONNECTIONS.count == 0
    assert tracker.run_id == "", "a run's id was made up"
    tracker.finish("FINISHED")
    assert waiting(proxy.url)
    proxy.open()
    later = Tracker(proxy.url, "assistant", "away-run", "evaluate")
    later.tags({"serin.gate": "pass"})
    later.finish("FINISHED")
    assert history(server, "away-run") == list(range(1000))
    assert run_of(server, "away-run").info.status == "FINISHED"
    assert not waiting(proxy.url)


def test_a_slow_server_slows_nobody(proxy: Proxy, server: MlflowServer) -> None:
    proxy.delay_s = 0.5
    tracker = Tracker(proxy.url, "assistant", "slow-run", "finetune", finish_wait_s=30)
    with CONNECTIONS.of_this_thread():
        for step in range(1000):
            tracker.metrics({"loss": float(step)}, step=step)
    assert CONNECTIONS.count == 0
    tracker.finish("FINISHED")
    assert history(server, "slow-run") == list(range(1000))


def test_a_server_that_answers_500_loses_nothing(
    proxy: Proxy, server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.broken = True
    tracker = Tracker(proxy.url, "assistant", "broken-run", "finetune", finish_wait_s=1)
    assert tracker.run_id == ""
    for step in range(50):
        tracker.metrics({"loss": float(step)}, step=step)
    tracker.finish("FAILED")
    told = [record.message for record in caplog.records if "wait" in record.message]
    assert len(told) == 2, told
    assert "it answers with status 500" in told[0]
    proxy.broken = False
    assert send_leftovers(proxy.url) == 1
    assert history(server, "broken-run") == list(range(50))
    assert run_of(server, "broken-run").info.status == "FAILED"


@pytest.mark.slow
def test_a_server_killed_in_the_middle_gets_each_metric_once(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path)
    server.start()
    try:
        tracker = Tracker(server.url, "assistant", "lossy-run", "finetune", finish_wait_s=40)
        for step in range(600):
            tracker.metrics({"loss": float(step), "lr": 0.1}, step=step)
            if step == 300:
                assert until(lambda: len(history(server, "lossy-run")) > 0)
                server.kill()
            time.sleep(0.002)
        server.start()
        tracker.finish("FINISHED")
        assert history(server, "lossy-run") == list(range(600))
        assert history(server, "lossy-run", "lr") == list(range(600))
    finally:
        server.kill()


def test_what_a_killed_process_logged_is_sent_by_the_next_one(proxy: Proxy, server: MlflowServer) -> None:
    proxy.close()
    done = subprocess.run([sys.executable, "-c", LOG_AND_DIE, proxy.url], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "logged\n"), done.stderr
    (left,) = waiting(proxy.url)
    with left.open("ab") as stream:
        stream.write(b'{"metrics":{"loss":')
    proxy.open()
    tracker = Tracker(proxy.url, "assistant", "another-run", "index")
    tracker.metrics({"chunks": 3})
    tracker.finish("FINISHED")
    assert history(server, "killed-run") == list(range(300))
    assert run_of(server, "killed-run").info.status == "KILLED"
    assert run_of(server, "another-run", "index").info.status == "FINISHED"
    assert not waiting(proxy.url)


def test_sending_the_same_records_twice_changes_nothing(server: MlflowServer) -> None:
    tracker = Tracker(server.url, "assistant", "twice-run", "finetune")
    for step in range(30):
        tracker.metrics({"loss": 1.0, "grad": float("nan")}, step=step)
    tracker.params({"seed": 1})
    assert tracker._delivery.wait(20)
    file = tracker._delivery._file
    records = []
    with file.path.open("rb") as stream:
        stream.readline()
        file.acknowledge(len(file.path.read_bytes().splitlines(keepends=True)[0]))
    records, _ = file.waiting(100)
    assert len(records) == 31
    tracker.finish("FINISHED")
    assert history(server, "twice-run") == list(range(30))
    assert history(server, "twice-run", "grad") == list(range(30))


def test_a_record_that_mlflow_refuses_does_not_hold_up_the_others(server: MlflowServer) -> None:
    tracker = Tracker(server.url, "assistant", "refused-run", "finetune")
    tracker.metrics({"loss": 1.0}, step=1)
    tracker.metrics({"what? is <this>": 1.0}, step=2)
    tracker.metrics({"loss": 1.0}, step=3)
    tracker.finish("FINISHED")
    assert history(server, "refused-run") == [1, 3]
    (aside,) = folder_of(server.url).glob("*.refused")
    assert "what? is <this>" in aside.read_text()


def test_the_registry_answers_at_once_in_one_sentence(proxy: Proxy) -> None:
    proxy.close()
    tracker = Tracker(proxy.url, "assistant", "run", "release")
    for ask in (
        lambda: tracker.register("assistant", "r" * 64, "file:///r"),
        lambda: tracker.alias("assistant", "champion", "r" * 64),
    ):
        with pytest.raises(UnavailableError, match=r"^MLflow at http://127.0.0.1:\d+ cannot be used \(nothing listens"):
            ask()
    assert tracker.conclude("FINISHED") == 0
    proxy.broken = True
    proxy.open()
    with pytest.raises(UnavailableError, match="it answers with status 500"):
        tracker.alias("assistant", "champion", "r" * 64)


def test_a_conclusion_that_mlflow_missed_is_drawn_later(proxy: Proxy, server: MlflowServer) -> None:
    killed = Tracker(server.url, "assistant", "concluded-run", "finetune")
    assert killed.run_id
    proxy.close()
    conclude = Tracker(proxy.url, "assistant", "concluded-run", "conclude", finish_wait_s=1)
    assert conclude.conclude("FAILED") == 0
    conclude.finish("FINISHED")
    proxy.open()
    assert send_leftovers(proxy.url) == 1
    assert run_of(server, "concluded-run").info.status == "KILLED"
    assert run_of(server, "concluded-run", "pipeline").info.status == "FAILED"


def test_a_model_is_shown_once_with_its_signature_and_example(server: MlflowServer, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "card.md").write_text("# A model")
    (model / "model.safetensors").write_bytes(b"0" * 100)
    for _ in range(2):
        tracker = Tracker(server.url, "assistant", "model-run", "finetune")
        log_model(tracker, model, name="assistant", digest="e" * 64, uri="file:///model", params={"rank": 8}, step=6)
        tracker.finish("FINISHED")
    client = MlflowClient(server.url)
    run = run_of(server, "model-run")
    (shown,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert (shown.name, str(shown.status), shown.params) == ("assistant", "READY", {"rank": "8"})
    assert shown.tags["serin.uri"] == "file:///model"
    assert [output.model_id for output in run.outputs.model_outputs] == [shown.model_id]
    kept = {file.path for file in client.list_logged_model_artifacts(shown.model_id)}
    assert kept == {"MLmodel", "input_example.json", "files"}


def test_trials_are_nested_below_the_stage(server: MlflowServer) -> None:
    stage = Tracker(server.url, "assistant", "swept-run", "finetune")
    stage.tags({"serin.sweep": "x"})
    trial = stage.nested("trial-0")
    trial.metrics({"val_loss": 1.0}, step=5)
    trial.finish("FINISHED")
    stage.finish("FINISHED")
    parent = run_of(server, "swept-run")
    nested = run_of(server, "swept-run", "finetune/trial-0")
    assert nested.data.tags[PARENT_TAG] == parent.info.run_id
    assert nested.info.run_name == "trial-0"


def test_the_machine_is_sampled_while_a_stage_works(server: MlflowServer) -> None:
    tracker = Tracker(server.url, "assistant", "sampled-run", "finetune")
    with SystemMetrics(tracker, interval_s=0.3):
        time.sleep(0.8)
    tracker.finish("FINISHED")
    metrics = run_of(server, "sampled-run").data.metrics
    assert metrics["system/process_memory_megabytes"] > 10
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100


def test_gpus_are_sampled_where_nvidias_tool_is(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, 1234, 56'\necho '1, 78, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    tracker = Tracker(server.url, "assistant", "gpu-run", "finetune")
    with SystemMetrics(tracker, interval_s=0.1):
        pass
    tracker.finish("FINISHED")
    metrics = run_of(server, "gpu-run").data.metrics
    gpus = {name: value for name, value in metrics.items() if "gpu" in name}
    assert gpus == {
        "system/gpu_0_memory_usage_megabytes": 1234,
        "system/gpu_0_utilization_percentage": 56,
        "system/gpu_1_memory_usage_megabytes": 78,
    }


def test_a_file_that_never_arrives_does_not_hold_up_the_metrics(server: MlflowServer) -> None:
    given = MlflowClient(server.url)
    experiment = given.create_experiment("elsewhere", artifact_location="file:///dev/null/nowhere")
    run = given.create_run(experiment).info.run_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUN_ID_VARIABLE, run)
        tracker = Tracker(server.url, "assistant", "files-run", "index", finish_wait_s=40)
        tracker.artifact(Path(__file__))
        tracker.metrics({"loss": 1.0}, step=1)
        tracker.finish("FINISHED")
    assert given.get_run(run).data.metrics == {"loss": 1.0}
    assert given.get_run(run).info.status == "FINISHED"


def test_passwords_in_the_uri_are_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    uri = f"http://serin:hunter2@127.0.0.1:{free_port()}"
    tracker = Tracker(uri, "assistant", "secret-run", "finetune", finish_wait_s=1)
    tracker.metrics({"loss": 1.0})
    with pytest.raises(UnavailableError) as caught:
        tracker.alias("assistant", "champion", "r" * 64)
    tracker.finish("FINISHED")
    (left,) = waiting(uri)
    assert "hunter2" not in caplog.text + str(caught.value) + left.read_text()


def test_a_wrong_tracking_uri_is_said_at_once() -> None:
    with pytest.raises(UnavailableError, match="cannot be used"):
        Tracker("htp://nowhere", "assistant", "run", "finetune").run_id  # noqa: B018


def test_a_database_file_takes_records_from_several_processes_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    prepare_database(uri)
    code = LOG_AND_DIE.replace("os.kill(os.getpid(), 9)", 'tracker.finish("FINISHED")').replace("killed-run", "run")
    started = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", code.replace('"finetune"', f'"stage{n}"'), uri])
        for n in range(3)
    ]
    assert [process.wait(90) for process in started] == [0, 0, 0]
    send_leftovers(uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("assistant")
    for number in range(3):
        (run,) = client.search_runs([experiment.experiment_id], f"tags.`{STAGE_TAG}` = 'stage{number}'")
        assert len(client.get_metric_history(run.info.run_id, "loss")) == 300


def test_a_full_spool_drops_metrics_and_keeps_the_rest(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    proxy.close()
    tracker = Tracker(proxy.url, "assistant", "full-run", "finetune", finish_wait_s=1)
    tracker.tags({"a": "b"})
    tracker._delivery._file.limit(2000)
    for step in range(200):
        tracker.metrics({"loss": 1.0}, step=step)
    tracker.tags({"c": "d"})
    tracker.finish("FINISHED")
    (left,) = waiting(proxy.url)
    assert left.stat().st_size < 3000
    assert '"c":"d"' in left.read_text()
    assert sum("Metrics are dropped" in record.message for record in caplog.records) == 1


def test_without_a_tracking_uri_nothing_is_written(own_home: Path) -> None:
    tracker = Tracker("", "assistant", "run", "finetune")
    tracker.metrics({"loss": 1.0})
    tracker.finish("FINISHED")
    assert tracker.run_id == ""
    assert not own_home.exists()
    assert isinstance(tracker._delivery, Delivery)
