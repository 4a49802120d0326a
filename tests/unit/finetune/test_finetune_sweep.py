"""Sweeps: what is drawn, what is refused, and a whole one with Ray Tune."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lamps import SMALL, Inputs

from serin.core.errors import ConfigError, InputError
from serin.core.tracking import PARENT_TAG, STAGE_TAG
from serin.finetune.config import FinetuneConfig
from serin.finetune.publish import PublishConfig
from serin.finetune.sweep import RESULT, Trial, _best, draw_trials, sweep, trial_config, with_settings
from serin.finetune.sweep_config import Choice, IntRange, LogUniform, SweepConfig, Uniform

SPACE = {
    "learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
    "lora_rank": {"type": "choice", "values": [4, 8]},
    "warmup_fraction": {"type": "uniform", "low": 0.0, "high": 0.3},
    "lora_alpha": {"type": "int", "low": 8, "high": 16},
}


def test_trials_are_the_same_for_the_same_seed_and_lie_in_their_ranges() -> None:
    config = SweepConfig.load({"space": SPACE, "num_trials": 40, "seed": 3})
    trials = draw_trials(config, SMALL)
    assert trials == draw_trials(config, SMALL)
    assert trials != draw_trials(config.model_copy(update={"seed": 4}), SMALL)
    assert {trial.settings["lora_rank"] for trial in trials} == {4, 8}
    rates = [trial.settings["learning_rate"] for trial in trials]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 5 < sum(rate < 1e-3 for rate in rates) < 35, "a decade should get about half"
    assert {trial.settings["lora_alpha"] for trial in trials} <= set(range(8, 17))
    assert len({trial.digest for trial in trials}) == 40


def test_a_trial_is_known_by_what_decides_it_and_not_by_how_it_is_run() -> None:
    config = SweepConfig.load({"space": SPACE, "num_trials": 2})
    digests = [trial.digest for trial in draw_trials(config, SMALL)]

    def again(**changes: object) -> list[str]:
        return [trial.digest for trial in draw_trials(config, SMALL.model_copy(update=changes))]

    assert again(cpus_per_worker=7, ray_address="auto", checkpoint_interval_s=1.0, max_failures=0) == digests
    assert not set(again(lora_rank=5, max_length=100)) & set(digests)
    assert not set(again(validation_samples=3)) & set(digests)
    assert config.identity() == config.model_copy(update={"max_concurrent": 2}).identity()
    assert config.identity() != config.model_copy(update={"grace_steps": 2}).identity()


def test_no_trial_is_pushed_or_copied_anywhere() -> None:
    config = FinetuneConfig.load({"checkpoint_uri": "s3://bucket/checkpoints", "min_workers": 1})
    config = config.model_copy(update={"publish": PublishConfig(target="hub", repository="org/model")})
    tried = trial_config(config, SweepConfig.load({"space": SPACE}))
    assert (tried.publish, tried.checkpoint_uri, tried.num_workers) == (PublishConfig(), "", 0)
    assert FinetuneConfig.load(tried.dump()) == tried


def test_more_trials_keep_those_that_were_drawn_before() -> None:
    few, more = (draw_trials(SweepConfig.load({"space": SPACE, "num_trials": n}), SMALL) for n in (3, 6))
    assert more[:3] == few


@pytest.mark.parametrize("name", ["num_workers", "tiny", "rank", "prices", "finetune.seed", "max_steps", "epochs"])
def test_a_setting_that_no_trial_can_change_is_refused_by_name(name: str) -> None:
    space = {"space": {name: {"type": "choice", "values": [1, 2]}}}
    with pytest.raises(ConfigError, match=rf"'{name}' is no setting of finetune that a sweep can change"):
        draw_trials(SweepConfig.load(space), SMALL)


def test_a_value_out_of_its_range_is_refused_before_anything_runs() -> None:
    space = {"space": {"lora_rank": {"type": "choice", "values": [0]}}}
    with pytest.raises(ConfigError, match="'lora_rank' is 0"):
        draw_trials(SweepConfig.load(space), SMALL)


@pytest.mark.parametrize(
    "values",
    [
        {"space": {}},
        {"space": {"learning_rate": {"type": "loguniform", "low": 0, "high": 1}}},
        {"space": {"learning_rate": {"type": "uniform", "low": 2, "high": 1}}},
        {"space": {"learning_rate": {"type": "normal", "mean": 1}}},
        {"trial_steps": 10, "grace_steps": 20},
        {"num_trials": 0},
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(values: dict) -> None:
    with pytest.raises(ConfigError):
        SweepConfig.load(values)


def test_every_kind_of_range_survives_yaml_and_kubeflow() -> None:
    config = SweepConfig(
        space={
            "a": Choice(values=(1, "x")),
            "b": Uniform(low=0, high=1),
            "c": LogUniform(low=1, high=2),
            "d": IntRange(low=1, high=3),
        }
    )
    assert SweepConfig.load(config.dump()) == config


def test_the_best_trial_is_the_lowest_of_those_that_came_farthest() -> None:
    def trial(number: int, loss: float | None, step: int, state: str = "done") -> Trial:
        return Trial(number, {}, str(number), loss, step, state)

    early = trial(0, 0.5, 10, "stopped")
    assert _best([early, trial(1, 2.0, 30), trial(2, 1.0, 30), trial(3, math.nan, 30)]).number == 2
    assert _best([early, trial(1, None, 0, "failed")]).number == 0
    with pytest.raises(InputError, match="No trial ended with a validation loss"):
        _best([trial(1, None, 0, "failed")])


def test_settings_go_into_the_stages_configuration() -> None:
    assert with_settings(FinetuneConfig(), {"lora_rank": 4}).lora_rank == 4


RUN_SWEEP = """
import json, sys
from serin.core.context import stage_context
from serin.core.prompts import Prompt
from serin.finetune.config import FinetuneConfig
from serin.finetune.sweep import sweep
from serin.finetune.sweep_config import SweepConfig
given = json.loads(sys.argv[1])
with stage_context("finetune", store_uri=given["store"], lineage_id="lineage-1") as context:
    opened = [context.open(given[name]) for name in ("dataset", "documents")]
    sweep(SweepConfig.load(given["sweep"]), FinetuneConfig.load(given["config"]), given["base"], Prompt(), *opened,
          context)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray Tune's own
def test_a_killed_sweep_goes_on_where_it_was(inputs: Inputs, tiny_folder: Path) -> None:
    space = {"learning_rate": {"type": "uniform", "low": 1e-3, "high": 3e-3}}
    tried = SweepConfig.load({"space": space, "num_trials": 2, "trial_steps": 4, "grace_steps": 2})
    given = {
        "store": inputs.store.uri,
        "dataset": inputs.dataset.uri,
        "documents": inputs.documents.uri,
        "config": SMALL.dump(),
        "sweep": tried.dump(),
        "base": str(tiny_folder),
    }
    started = subprocess.Popen([sys.executable, "-W", "ignore", "-c", RUN_SWEEP, json.dumps(given)])
    try:
        deadline = time.monotonic() + 120
        courses = inputs.folder / ".work"
        while not (ended := [path for path in courses.glob("sweep-*/scratch/trials/*") if "[4, " in path.read_text()]):
            assert started.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        started.kill()
        started.wait(30)
    step, loss = json.loads(ended[0].read_text().splitlines()[-1])
    ended[0].write_text(f"[2, {loss + 1}]\n[{step}, {loss + 1}]\n")  # so that running it again would show
    context = inputs.context()
    swept = sweep(tried, SMALL, str(tiny_folder), inputs.prompt, inputs.dataset, inputs.documents, context)
    losses = {trial["val_loss"] for trial in json.loads((swept.artifact.path / RESULT).read_text())["trials"]}
    assert loss + 1 in losses, "a trial that had ended was run again"
    assert len(losses) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray Tune's own
def test_a_sweep_tunes_the_candidate_with_its_best_trial(inputs: Inputs, tmp_path: Path, tiny_folder: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    space = {"learning_rate": {"type": "choice", "values": [1e-8, 3e-3]}}
    tried = SweepConfig.load(
        {"space": space, "num_trials": 3, "trial_steps": 6, "grace_steps": 2, "reduction_factor": 2, "seed": 1}
    )
    context = inputs.context(uri)
    arguments = (tried, SMALL, str(tiny_folder), inputs.prompt, inputs.dataset, inputs.documents)
    swept = sweep(*arguments, context)
    context.tracker.finish("FINISHED")
    result = json.loads((swept.artifact.path / RESULT).read_text())
    assert [trial["number"] for trial in result["trials"]] == [0, 1, 2]
    assert swept.config.learning_rate == result["best"]["settings"]["learning_rate"] == 3e-3
    assert {trial["state"] for trial in result["trials"]} <= {"done", "stopped"}
    assert swept.tuned.model.manifest.inputs["sweep"] == swept.artifact.digest
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("assistant").experiment_id
    runs = {run.data.tags[STAGE_TAG]: run for run in client.search_runs([experiment])}
    trials = [run for stage, run in runs.items() if stage.startswith("finetune/trial-")]
    assert len(trials) == 3
    assert {run.data.tags[PARENT_TAG] for run in trials} == {runs["finetune"].info.run_id}
    assert all(run.info.status == "FINISHED" and "val_loss" in run.data.metrics for run in trials)
    models = inputs.store.storage.keys("model")
    assert {key.split("/")[1] for key in models} == {Path(swept.tuned.model.path).name}, "a loser's model is left"
    assert not [path for path in inputs.folder.glob(".work/*") if path.is_dir()], "a trial's folder is left"
    again = sweep(*arguments, inputs.context(uri, "lineage-2"))
    assert again.artifact.digest == swept.artifact.digest, "a finished sweep was run again"
