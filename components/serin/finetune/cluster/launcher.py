"""Fine-tuning where the settings say: in this process, as a RayJob, or on a standing Ray cluster.

``launch`` takes what ``serin.finetune.train.finetune`` takes, and gives the same artefacts.  Whatever becomes of this
process, the job ends: it is deleted in ``finally`` and by the handler of SIGTERM, it is owned by the Workflow, its
driver watches a lease, and it has a time limit.
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from serin.core.artifacts import Artifact
from serin.core.context import StageContext
from serin.core.digests import code_version
from serin.core.errors import ConfigError, IntegrityError
from serin.core.kubernetes import Clock, connect
from serin.core.prompts import Prompt
from serin.core.storage import is_remote, local_path
from serin.core.tracking import RUN_ID_VARIABLE
from serin.finetune.base import TINY
from serin.finetune.cluster.cleanup import ended_on_sigterm
from serin.finetune.cluster.config import ClusterConfig
from serin.finetune.cluster.jobs import Jobs
from serin.finetune.cluster.lease import lease_renewed
from serin.finetune.cluster.progress import LineReader
from serin.finetune.cluster.rayjob import RayJobs
from serin.finetune.cluster.request import Attempt, JobRequest, RequestBook, opened
from serin.finetune.cluster.submission import SubmittedJobs
from serin.finetune.cluster.verdict import Verdict
from serin.finetune.config import FinetuneConfig
from serin.finetune.train import Finetuned, finetune

STAGE = "finetune"


def launch(
    config: FinetuneConfig,
    base_model: str,
    prompt: Prompt,
    dataset: Artifact,
    documents: Artifact,
    context: StageContext,
    cluster: ClusterConfig,
    clock: Clock = Clock(),  # noqa: B008 - frozen
) -> Finetuned:
    """Make, or find, the base and the model, wherever the settings say.

    Args:
        config: settings of the stage.
        base_model: what is tuned; a folder must lie on the volume that the cluster shares.
        prompt: the release's prompt.
        dataset: conversations, split.
        documents: what ``serin://tiny`` reads.
        context: store, tracking and progress.
        cluster: where it runs.
        clock: for pauses and time limits.

    Raises:
        ConfigError: a setting is wrong, or the cluster could not reach what it names.
        UnavailableError: the cluster, its quota or its image is missing.
        InterruptedRunError: the job was stopped, deleted, or ended by its time limit.
        SerinError: what the stage itself raised in the cluster.
    """
    if cluster.kind == "here":
        return finetune(config, base_model, prompt, dataset, documents, context)
    _require_reach(cluster, base_model, [context.store.uri, dataset.uri, documents.uri])
    if cluster.kind == "rayjob" and cluster.driver_on == "head":
        require_places(cluster, config, context.store.uri)
    request = JobRequest(
        config=config.dump(),
        base_model=base_model,
        prompt=prompt.dump(),
        dataset_uri=dataset.uri,
        dataset_digest=dataset.digest,
        documents_uri=documents.uri,
        documents_digest=documents.digest,
        store_uri=context.store.uri,
        tracking_uri=context.tracker.uri,
        endpoint=context.endpoint,
        lineage_id=context.lineage_id,
        code_version=code_version(STAGE),
    )
    run = os.environ.get(RUN_ID_VARIABLE, "")
    attach = cluster.driver_on == "head"
    book = RequestBook(request, lease_expiry_s=cluster.lease_expiry_s, mlflow_run_id=run, attach=attach)
    if found := book.finished(context.store):
        context.progress("an earlier try of this run had finished", 1.0)
        return found
    with _jobs(cluster, clock) as jobs:
        return _run(jobs, book, cluster, context)


def _run(jobs: Jobs, book: RequestBook, cluster: ClusterConfig, context: StageContext) -> Finetuned:
    with ended_on_sigterm(jobs.end_at_once):
        try:
            attempt = jobs.start(book)
            with lease_renewed(attempt.storage, cluster.lease_interval_s):
                end = jobs.follow(lambda text: context.progress(text), LineReader(context.report))
            return _result(end, attempt, context)
        finally:
            jobs.end()


def _result(end: Verdict, attempt: Attempt, context: StageContext) -> Finetuned:
    """The artefacts, or the error: the driver's own words where it left any."""
    outcome = attempt.outcome()
    if end.state != "succeeded":
        assert end.error is not None
        raise outcome.failure() if end.driver_ran and outcome and outcome.error else end.error
    if outcome is None:
        raise IntegrityError(
            f"The driver succeeded and left no outcome in {attempt.uri}: does the image hold this version of Serin, "
            "and is its store this one?"
        )
    if outcome.error:
        raise outcome.failure()
    return opened(outcome, context.store)


@contextmanager
def _jobs(cluster: ClusterConfig, clock: Clock) -> Iterator[Jobs]:
    if cluster.kind == "ray_cluster":
        with closing(SubmittedJobs(cluster, clock)) as submitted:
            yield submitted
        return
    with closing(connect(cluster.namespace)) as api, closing(RayJobs(cluster, api, clock)) as jobs:
        yield jobs


def require_places(cluster: ClusterConfig, config: FinetuneConfig, store_uri: str) -> None:
    """Refuse what a driver beside Ray's head could not do, before pods are asked for.

    Args:
        cluster: with ``driver_on`` head.
        config: settings of the stage, whose workers share the cluster's.
        store_uri: where artefacts are; working folders lie beside them, or below SERIN_HOME when that is remote.

    Raises:
        ConfigError: the workers have no place, would not use their GPUs, or would not see what the driver writes.
    """
    if not config.num_workers:
        raise ConfigError(
            "finetune.num_workers is 0, which trains in the driver, and with driver_on head that has no room for it: "
            "set num_workers to 1 or more, or driver_on to worker."
        )
    if cluster.gpus_per_worker and config.device == "auto":
        raise ConfigError(
            "With driver_on head the driver sees no GPU, so that finetune.device auto would train on CPUs: set it to "
            "cuda."
        )
    uses_gpus = config.device == "cuda"
    places = cluster.cpus // config.cpus_per_worker
    places = cluster.num_workers * (min(places, cluster.gpus_per_worker) if uses_gpus else places)
    needed = config.min_workers or config.num_workers
    if places < needed:
        each = f"{cluster.cpus} CPUs" + (f" and {cluster.gpus_per_worker} GPUs" if uses_gpus else "")
        raise ConfigError(
            f"finetune needs {needed} workers of {config.cpus_per_worker} CPUs{' and a GPU' if uses_gpus else ''}, and "
            f"{cluster.num_workers} pods of {each} hold {places}: ask for more pods or larger ones, or fewer workers."
        )
    home_of_driver = cluster.variables.get("SERIN_HOME", "")
    is_below = Path(home_of_driver).is_relative_to(cluster.volume_path) if home_of_driver else False
    if is_remote(store_uri) and not (cluster.volume_claim and is_below):
        raise ConfigError(
            "With driver_on head the workers read samples that the driver writes: name a shared volume in volume_claim "
            "and set SERIN_HOME, in variables, to a folder below its volume_path, or set driver_on to worker."
        )


def _require_reach(cluster: ClusterConfig, base_model: str, uris: list[str]) -> None:
    """Refuse what only this machine can read."""
    shared = Path(cluster.volume_path) if cluster.volume_claim else None
    local = [local_path(uri) for uri in uris if not is_remote(uri)]
    if (
        base_model != TINY
        and not is_remote(base_model)
        and (Path(base_model).exists() or base_model.startswith(("/", ".")))
    ):
        local.append(local_path(base_model))
    for path in local:
        if shared is None or not path.resolve().is_relative_to(shared.resolve()):
            raise ConfigError(
                f"The cluster cannot read {path}: keep it in an object store (s3://), or on a shared volume below "
                "volume_path, with its claim named in volume_claim."
            )
