"""lm-evaluation-harness tasks: run on a release's model where that package is, or read from the samples it wrote.

The package (https://github.com/EleutherAI/lm-evaluation-harness) is no dependency of Serin's; tried with 0.4.13.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from serin.core.artifacts import Built
from serin.core.context import StageContext
from serin.core.digests import digest_of
from serin.core.errors import InputError
from serin.core.records import read_jsonl, write_jsonl
from serin.core.release import Release, open_part
from serin.core.storage import local_path
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.results import Outcome
from serin.evaluate.suite_config import HarnessSuite

logger = logging.getLogger(__name__)

PACKAGE = "lm_eval"
SAMPLES = "samples.jsonl"
MAX_SHOWN_CHARS = 500
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
"""Tasks' data must be on the machine; an operator who wants them fetched sets these to 0."""


def outcomes(
    suite: HarnessSuite, release: Release, role: str, model_folder: Path, config: EvaluateConfig, context: StageContext
) -> list[Outcome] | str:
    """The outcomes of a suite's tasks, or in one sentence why there are none.

    Raises:
        InputError: the folder of samples has no such task, or a file is not what the harness writes.
    """
    if suite.source == PACKAGE:
        return _run(suite, release, role, model_folder, config, context)
    folder = local_path(suite.source.replace("{release}", release.id).replace("{role}", role))
    found = [_outcome(suite, task, row) for task in suite.tasks for row in _written(folder, task)]
    return sorted(found, key=lambda one: one.id)


def _run(
    suite: HarnessSuite, release: Release, role: str, model_folder: Path, config: EvaluateConfig, context: StageContext
) -> list[Outcome] | str:
    try:
        package = version(PACKAGE)
    except PackageNotFoundError:
        return "lm-evaluation-harness is not installed: 'pip install lm_eval', or name the folder of its samples."

    def build(output: Path, scratch: Path) -> Built:
        context.progress(f"{role}: lm-evaluation-harness, {', '.join(suite.tasks)}")
        rows = _samples(suite, model_folder, config)
        write_jsonl(output / SAMPLES, [_outcome(suite, task, row) for task, of_task in rows.items() for row in of_task])
        return Built()

    settings = {"suite": suite.dump(), "seed": config.seed, "package": package}
    try:
        model = open_part(release.model, context.store)
        artifact = context.produce("harness", build, inputs={"model": model}, config=settings)
    except _FailedError as error:
        return str(error)
    return read_jsonl(artifact.path / SAMPLES, Outcome)


class _FailedError(Exception):
    """The harness did not run; the text says why."""


def _samples(suite: HarnessSuite, model_folder: Path, config: EvaluateConfig) -> dict[str, list[dict[str, Any]]]:
    import torch

    for variable in OFFLINE:
        os.environ.setdefault(variable, "1")  # read when the package is imported: nothing is downloaded
    try:
        package, tasks = import_module(PACKAGE), import_module(f"{PACKAGE}.tasks")
        results = package.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model_folder), "dtype": "float32", "trust_remote_code": False},
            device="cuda" if torch.cuda.is_available() else "cpu",
            tasks=list(suite.tasks),
            task_manager=tasks.TaskManager(include_path=suite.include_path or None),
            limit=suite.num_items,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
        )
    except Exception as error:  # its tasks run code of many hands; whatever they raise, the suite is what lacks
        logger.exception("lm-evaluation-harness failed.")
        why = " ".join(str(error).split())[:200]
        raise _FailedError(
            f"lm-evaluation-harness could not run {', '.join(suite.tasks)} ({type(error).__name__}: {why}): is their "
            "data on this machine?"
        ) from error
    return {str(task): list(rows) for task, rows in (results or {}).get("samples", {}).items()}


def _written(folder: Path, task: str) -> Iterable[dict[str, Any]]:
    """The rows of the latest file of a task; its name ends with a date."""
    files = sorted(folder.rglob(f"samples_{task}_*.jsonl"), key=lambda path: path.name)
    if not files:
        raise InputError(
            f"{folder} holds no samples of {task}: run lm_eval with --log_samples and --output_path, or mend "
            "the source."
        )
    for number, line in enumerate(files[-1].read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            yield {**row, "source": f"{files[-1]}#{number}", "metrics": list(row["metrics"]), "doc_id": row["doc_id"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{files[-1]}, line {number}, is no sample of lm-evaluation-harness: {error}.") from error


def _outcome(suite: HarnessSuite, task: str, row: Mapping[str, Any]) -> Outcome:
    filtered = str(row.get("filter", "none"))
    suffix = "" if filtered == "none" else f"_{filtered}"
    values = {}
    for name in row["metrics"]:
        value = _value(str(name), row.get(name))
        if value is not None:
            values[f"{task}.{name}{suffix}"] = value
    known = row.get("doc_hash") or digest_of(json.loads(json.dumps(row.get("doc"), default=str)))
    return Outcome(
        suite=suite.name,
        id=f"{task}/{row['doc_id']}{suffix}",
        source=str(row.get("source", f"lm_eval:{task}#{row['doc_id']}")),
        digest=digest_of([known, row.get("prompt_hash", ""), str(row.get("target"))]),
        labels={"task": task} if len(suite.tasks) > 1 else {},
        question=json.dumps(row.get("doc"), default=str, ensure_ascii=False)[:MAX_SHOWN_CHARS],
        expected=str(row.get("target"))[:MAX_SHOWN_CHARS],
        answer=json.dumps(row.get("filtered_resps"), default=str, ensure_ascii=False)[:MAX_SHOWN_CHARS],
        values=values,
    )


def _value(name: str, value: Any) -> float | None:
    """A sample's value; of perplexities, which the harness keeps as (log likelihood, length), bits per byte only."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    if name == "bits_per_byte" and isinstance(value, list | tuple) and len(value) == 2 and value[1]:
        return -float(value[0]) / float(value[1]) / math.log(2)
    return None
