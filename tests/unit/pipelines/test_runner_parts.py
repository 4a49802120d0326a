import io
import json
import os
from pathlib import Path

import pytest

from serin.core.errors import ConfigError, InputError
from serin_pipelines.configs import RunConfig, load_config
from serin_pipelines.records import RunRecord, StageRecord, last_run, load_runs, new_run_id
from serin_pipelines.runner import EventTail, TaskLogs


def record(**fields: object) -> RunRecord:
    values = {
        "run_id": new_run_id(),
        "pipeline": "training",
        "pid": os.getpid(),
        "started_at": "2026-01-01T00:00:00+00:00",
        "source_uri": "/data",
        "store_uri": "file:///store",
        "tracking_uri": "",
        "endpoint": "assistant",
    }
    return RunRecord(**{**values, **fields})


def test_output_is_split_by_task_without_colours(tmp_path: Path) -> None:
    logs = TaskLogs(tmp_path / "logs")
    logs.read(io.StringIO("start\nExecuting task \x1b[96m'data-prep'\x1b[0m\nhello\nExecuting task 'index'\nbye\n"))
    assert logs.path("pipeline").read_text() == "start\n"
    assert logs.path("data_prep").read_text() == "Executing task 'data-prep'\nhello\n"
    assert logs.path("index").read_text() == "Executing task 'index'\nbye\n"
    assert not logs.unresolved


def test_a_condition_that_kfp_cannot_resolve_is_noticed(tmp_path: Path) -> None:
    logs = TaskLogs(tmp_path)
    logs.read(io.StringIO("WARNING:root:Could not resolve CEL parameter: pipelinechannel--x\n"))
    assert logs.unresolved


def test_only_whole_event_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.new() == []
    path.write_text('{"n": 1}\n{"n": ')
    assert tail.new() == [{"n": 1}]
    with path.open("a") as stream:
        stream.write("2}\n")
    assert tail.new() == [{"n": 2}]


def test_the_newest_run_is_first_and_a_dead_one_is_interrupted() -> None:
    record(run_id="20260101-000000-aaaa", status="succeeded").save()
    record(run_id="20260102-000000-bbbb", pid=2**22 - 3).save()
    assert [run.status for run in load_runs()] == ["interrupted", "succeeded"]
    assert last_run().run_id == "20260102-000000-bbbb"


def test_without_runs_the_sentence_says_how_to_start_one() -> None:
    with pytest.raises(InputError, match="serin run"):
        last_run()


def test_a_run_record_reads_back(own_home: Path) -> None:
    made = record(stages=[StageRecord(name="index", reused=["index"], summary={"a": 1})])
    made.save()
    assert RunRecord.model_validate(json.loads((made.folder / "run.json").read_text())) == made


def test_a_config_file_and_overrides_meet(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("endpoint: shop\ndeploy: {max_sessions: 50}\n")
    config = load_config(path, ["deploy.steps_percent=[10, 50]", "base_model=serin://tiny"])
    assert (config.endpoint, config.deploy.max_sessions, config.deploy.steps_percent) == ("shop", 50, (10.0, 50.0))


def test_what_differs_from_the_defaults_becomes_pipeline_arguments_and_back() -> None:
    assert RunConfig().arguments() == {"endpoint": "assistant"}
    config = RunConfig.load({"base_model": "org/model", "deploy": {"max_sessions": 50}})
    arguments = config.arguments()
    assert json.loads(json.dumps(arguments)) == arguments
    assert set(arguments) == {"endpoint", "base_model", "deploy_config"}
    assert RunConfig.load({"base_model": "org/model", "deploy": arguments["deploy_config"]}) == config


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("deploy", "not of the form"),
        ("deploy.max_sessions=many", "max_sessions"),
        ("deploy.nothing=1", "'deploy.nothing' is not a setting"),
        ("endpoint.name=x", "endpoint"),
    ],
)
def test_a_bad_override_is_named(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(None, [override])


def test_a_config_that_is_not_yaml_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: [1")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path, [])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml", [])


def test_a_policy_file_is_read_into_the_release_and_a_missing_one_named(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text('version: "7"\nmax_input_chars: 99\n', encoding="utf-8")
    (tmp_path / "run.yaml").write_text("release: {guardrails: policy.yaml}\n", encoding="utf-8")
    policy = load_config(tmp_path / "run.yaml", []).release.policy()
    assert (policy.version, policy.max_input_chars) == ("7", 99)
    assert load_config(None, [f"release.guardrails={tmp_path / 'policy.yaml'}"]).release.policy() == policy
    with pytest.raises(InputError, match="cannot be read"):
        load_config(None, ["release.guardrails=none.yaml"])
