"""A sweep: trials of the stage with Ray Tune and ASHA, the best of which decides the settings of one more run.

Trials are drawn before any of them starts, from the sweep's seed, and each writes down its course, so a sweep that was
killed goes on where it was: a trial that ended is read, not run, and one in the middle continues from its checkpoint.
The result is an artefact of its own, named among the inputs of the model that is tuned with it.
"""

import json
import logging
import math
import os
import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serin.core.artifacts import Artifact, ArtifactStore, Built, home
from serin.core.context import StageContext
from serin.core.digests import digest_of
from serin.core.errors import ConfigError, InputError, UnavailableError
from serin.core.prompts import Prompt
from serin.core.tracking import Tracker
from serin.finetune.config import FinetuneConfig
from serin.finetune.publish import PublishConfig
from serin.finetune.ray_folder import RayFolder
from serin.finetune.ray_start import require_no_ray, start_local_ray
from serin.finetune.sweep_config import SweepConfig, Value
from serin.finetune.train import Finetuned, finetune

logger = logging.getLogger(__name__)

METRIC, TIME = "val_loss", "step"
RESULT, TRIALS, MODELS = "sweep.json", "trials", "models"
UNSWEPT = {"max_steps", "epochs", "early_stopping_patience", "validation_interval", "validation_samples"}
"""Settings that decide how long a trial goes on and what it is judged by: those are the sweep's own."""


@dataclass(frozen=True)
class Trial:
    """One setting, and what became of it."""

    number: int
    settings: dict[str, Value]
    digest: str
    """Of what decides the trial's course."""
    val_loss: float | None = None
    """The last one; None when it was not validated."""
    step: int = 0
    """How far it came."""
    state: str = "new"
    """done, stopped (by ASHA or the time budget) or failed."""

    def dump(self) -> dict[str, Any]:
        """The trial as JSON values."""
        return {
            "number": self.number,
            "settings": self.settings,
            "val_loss": self.val_loss,
            "step": self.step,
            "state": self.state,
        }


@dataclass(frozen=True)
class Swept:
    """What a sweep makes."""

    artifact: Artifact
    """Kind ``sweep``: ``sweep.json`` with every trial."""
    config: FinetuneConfig
    """The stage's settings with the best trial's in them."""
    tuned: Finetuned
    """The candidate, tuned with them."""


@dataclass(frozen=True)
class SweptContext(StageContext):
    """A context whose models name the sweep among their inputs."""

    sweep: Artifact | None = None

    def produce(self, kind: str, build: Any, *, inputs: Mapping[str, Artifact | str], config: Any) -> Artifact:
        """See ``StageContext.produce``."""
        if kind == "model" and self.sweep:
            inputs = {**inputs, "sweep": self.sweep}
        return super().produce(kind, build, inputs=inputs, config=config)


@dataclass(frozen=True)
class TrialContext(StageContext):
    """A trial's context: its model goes to a store of the sweep's own, which ends with it; its base is everybody's."""

    shared: ArtifactStore | None = None

    def produce(self, kind: str, build: Any, *, inputs: Mapping[str, Artifact | str], config: Any) -> Artifact:
        """See ``StageContext.produce``."""
        if kind == "model" or self.shared is None:
            return super().produce(kind, build, inputs=inputs, config=config)
        common = StageContext(self.stage, self.shared, self.endpoint, self.lineage_id, self.tracker, self.report)
        return common.produce(kind, build, inputs=inputs, config=config)


def sweep(
    sweep_config: SweepConfig,
    config: FinetuneConfig,
    base_model: str,
    prompt: Prompt,
    dataset: Artifact,
    documents: Artifact,
    context: StageContext,
) -> Swept:
    """Try settings, and tune the candidate with the best ones.

    Args:
        sweep_config: what to try, and how long.
        config: the stage's settings, which the trials start from.
        base_model: see ``finetune``.
        prompt: see ``finetune``.
        dataset: see ``finetune``; needs validation samples.
        documents: see ``finetune``.
        context: of the stage ``finetune``; each trial becomes a run nested below its run.

    Raises:
        ConfigError: a parameter is no setting of the stage, or a value is out of its range.
        InputError: no trial ended with a validation loss.
        UnavailableError: Ray cannot be started.
    """
    trials = draw_trials(sweep_config, config)
    given = _Given(
        store_uri=context.store.uri,
        models="",
        base_model=base_model,
        prompt=prompt.dump(),
        dataset_uri=dataset.uri,
        documents_uri=documents.uri,
        lineage_id=context.lineage_id,
        home=str(home()),
    )

    def build(output: Path, scratch: Path) -> Built:
        ended = _run_trials(trials, sweep_config, config, given, scratch, context)
        best = _best(ended)
        result = {
            "best": best.dump(),
            "trials": [trial.dump() for trial in ended],
            "config": sweep_config.dump(),
            "metric": METRIC,
        }
        (output / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return Built(metadata={"best": best.dump(), "trials": len(ended)})

    artifact = context.produce(
        "sweep",
        build,
        inputs={"dataset": dataset, "documents": documents, "prompt": prompt.version},
        config={
            "sweep": sweep_config.identity(),
            "finetune": config.identity(),
            "validation_samples": config.validation_samples,
            "base_model": base_model,
        },
    )
    best_config = with_settings(config, artifact.metadata["best"]["settings"])
    context.tracker.tags({"serin.sweep.best_trial": str(artifact.metadata["best"]["number"])})
    final = SweptContext(**{**vars(context), "sweep": artifact})
    return Swept(artifact, best_config, finetune(best_config, base_model, prompt, dataset, documents, final))


def draw_trials(sweep_config: SweepConfig, config: FinetuneConfig) -> list[Trial]:
    """The trials of a sweep; the same for the same seed.

    Raises:
        ConfigError: a parameter is no setting of the stage that can be swept, or a value is out of its range.
    """
    random_ = random.Random(sweep_config.seed)  # noqa: S311 (no secret)
    trials = []
    for number in range(sweep_config.num_trials):
        settings = {name: range_.draw(random_) for name, range_ in sorted(sweep_config.space.items())}
        tried = trial_config(with_settings(config, settings), sweep_config)
        decisive = [number, tried.identity(), tried.validation_interval, tried.validation_samples]
        trials.append(Trial(number, settings, digest_of(decisive)))
    return trials


def with_settings(config: FinetuneConfig, settings: Mapping[str, Value]) -> FinetuneConfig:
    """The stage's settings with some of them replaced.

    Raises:
        ConfigError: one is unknown, cannot be swept, or is out of its range.
    """
    for name in settings:
        if name not in config.identity() or name in UNSWEPT:
            raise ConfigError(
                f"{name!r} is no setting of finetune that a sweep can change: take one of "
                f"{', '.join(sorted(config.identity().keys() - UNSWEPT))}."
            )
    return FinetuneConfig.load({**config.dump(), **settings})


def trial_config(config: FinetuneConfig, sweep_config: SweepConfig) -> FinetuneConfig:
    """The settings of a trial: the plain loop, so many steps, validated when ASHA decides, and pushed nowhere."""
    return config.model_copy(
        update={
            "num_workers": 0,
            "min_workers": None,
            "checkpoint_uri": "",
            "publish": PublishConfig(),
            "early_stopping_patience": None,
            "max_steps": sweep_config.trial_steps,
            "validation_interval": sweep_config.grace_steps,
        }
    )


@dataclass(frozen=True)
class _Given:
    """What a trial is given besides its settings, as plain values that go to another process."""

    store_uri: str
    models: str
    """Folder of the trials' own store."""
    base_model: str
    prompt: dict[str, Any]
    dataset_uri: str
    documents_uri: str
    lineage_id: str
    home: str
    """SERIN_HOME: a trial's working folder is another one."""


def run_trial(trial: Mapping[str, Any]) -> None:
    """Ray Tune's train function: the stage with a trial's settings, its validation losses reported.

    Args:
        trial: ``config``, ``given`` and ``course`` (path of the file with its course).
    """
    from ray import tune

    course = Path(trial["course"])
    known = _read_course(course)
    for step, loss in known:
        tune.report({TIME: step, METRIC: loss})
    config = FinetuneConfig.load(trial["config"])
    if known and known[-1][0] >= (config.max_steps or 0):
        return

    def report(step: int, loss: float) -> None:
        if all(step > done for done, _ in known):
            with course.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([step, loss]) + "\n")
            tune.report({TIME: step, METRIC: loss})

    given = _Given(**trial["given"])
    os.environ["SERIN_HOME"] = given.home
    tracker = _Reporting(report)
    models, shared = ArtifactStore(Path(given.models).as_uri()), ArtifactStore(given.store_uri)
    context = TrialContext("finetune", models, "sweep", given.lineage_id, tracker, _say_nothing, shared)
    dataset, documents = context.open(given.dataset_uri), context.open(given.documents_uri)
    finetune(config, given.base_model, Prompt.load(given.prompt), dataset, documents, context)


class _Reporting(Tracker):
    """Hands validation losses of fine-tuning to Ray Tune, and the rest to nobody: the driver tells MLflow."""

    def __init__(self, report: Any) -> None:
        super().__init__("", "", "", "finetune")
        self._report = report

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        loss = values.get(f"finetune.{METRIC}")
        if loss is not None and step:
            self._report(step, float(loss))


def _run_trials(
    trials: list[Trial],
    sweep_config: SweepConfig,
    config: FinetuneConfig,
    given: _Given,
    scratch: Path,
    context: StageContext,
) -> list[Trial]:
    folder = scratch / TRIALS
    folder.mkdir(exist_ok=True)
    given = replace(given, models=str(scratch / MODELS))
    space: dict[int, dict[str, Any]] = {
        trial.number: {
            "config": trial_config(with_settings(config, trial.settings), sweep_config).dump(),
            "given": vars(given),
            "course": str(folder / f"{trial.digest[:16]}.jsonl"),
        }
        for trial in trials
    }
    session = RayFolder()
    try:
        with _local_ray(session, sweep_config.max_concurrent * config.cpus_per_worker):
            states = _tune(trials, space, sweep_config, config, session.path, context)
    finally:
        session.close()
    ended = []
    for trial in trials:
        course = _read_course(Path(space[trial.number]["course"]))
        step, loss = course[-1] if course else (0, None)
        state = "done" if step >= sweep_config.trial_steps else states.get(trial.number, "stopped")
        ended.append(Trial(trial.number, trial.settings, trial.digest, loss, step, state))
    shutil.rmtree(scratch / MODELS, ignore_errors=True)  # the candidate is tuned anew, with all its steps
    return ended


def _tune(
    trials: list[Trial],
    space: Mapping[int, Mapping[str, Any]],
    sweep_config: SweepConfig,
    config: FinetuneConfig,
    folder: Path,
    context: StageContext,
) -> dict[int, str]:
    """Run the trials under Ray Tune; returns the states of those that failed or were stopped."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler(
        time_attr=TIME,
        max_t=sweep_config.trial_steps,
        grace_period=sweep_config.grace_steps,
        reduction_factor=sweep_config.reduction_factor,
    )
    follower = _follower(trials, context)
    tuner = tune.Tuner(
        tune.with_resources(_trial_function(space), {"cpu": config.cpus_per_worker}),
        param_space={"number": tune.grid_search([trial.number for trial in trials])},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            scheduler=scheduler,
            max_concurrent_trials=sweep_config.max_concurrent,
            time_budget_s=sweep_config.time_budget_s,
            reuse_actors=True,  # the next trial finds torch and the rest imported
        ),
        run_config=tune.RunConfig(name="sweep", storage_path=str(folder / "results"), verbose=0, callbacks=[follower]),
    )
    with redirect_stdout(sys.stderr):  # Tune prints tables, and standard output may be a command's JSON
        results = tuner.fit()
    for error in results.errors:
        logger.error("A trial failed: %s", error)
    return dict(follower.states)


def _trial_function(space: Mapping[int, Mapping[str, Any]]) -> Any:
    def tried(config: dict[str, Any]) -> None:
        run_trial(space[config["number"]])

    return tried


def _follower(trials: list[Trial], context: StageContext) -> Any:
    """Ray Tune's callback that tells MLflow, from the driver, what the trials report."""
    from ray import tune

    class Follower(tune.Callback):
        """A nested run per trial."""

        def __init__(self) -> None:
            self.states: dict[int, str] = {}
            self._trackers = {trial.number: context.tracker.nested(f"trial-{trial.number:03d}") for trial in trials}

        def __reduce__(self) -> tuple[Any, ...]:
            return object, ()  # Tune keeps its callbacks for a restore of its own kind, which is never made here

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            number = trial.config["number"]
            self._trackers[number].params(by_number[number].settings)

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            number, step = trial.config["number"], result[TIME]
            self._trackers[number].metrics({METRIC: result[METRIC]}, step=step)
            context.progress(f"trial {number}: step {step}, {METRIC} {result[METRIC]:.4f}")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.states.setdefault(trial.config["number"], "stopped")
            self._trackers[trial.config["number"]].finish("FINISHED")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.states[trial.config["number"]] = "failed"
            self._trackers[trial.config["number"]].finish("FAILED")

    by_number = {trial.number: trial for trial in trials}
    return Follower()


def _best(trials: list[Trial]) -> Trial:
    """The lowest last validation loss among the trials that came farthest.

    Raises:
        InputError: there is none.
    """
    judged = [
        trial
        for trial in trials
        if trial.val_loss is not None and math.isfinite(trial.val_loss) and trial.state != "failed"
    ]
    if not judged:
        raise InputError(
            "No trial ended with a validation loss: see the log, give the dataset a validation split, or lower "
            "grace_steps."
        )
    farthest = max(trial.step for trial in judged)
    return min(
        (trial for trial in judged if trial.step == farthest), key=lambda trial: (trial.val_loss or 0.0, trial.number)
    )


def _read_course(path: Path) -> list[tuple[int, float]]:
    """Steps and validation losses of a trial so far."""
    points = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            step, loss = json.loads(line)
        except ValueError:  # half a line of a killed writer
            continue
        points.append((int(step), float(loss)))
    return points


def _say_nothing(event: str, **fields: Any) -> None:
    """A trial's own progress is the sweep's to tell."""


@contextmanager
def _local_ray(folder: RayFolder, num_cpus: int) -> Iterator[None]:
    """A local Ray for as long as the block runs."""
    import ray

    require_no_ray()
    try:
        folder.guard()
        start_local_ray(folder.path, num_cpus)
        yield
    except (RuntimeError, ConnectionError, TimeoutError) as error:
        raise UnavailableError(
            f"Ray on this machine could not be started or gave up ({error}): see the log."
        ) from error
    finally:
        ray.shutdown()
