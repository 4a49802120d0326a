"""In the cluster: run the stage as it is, leave its outcome in the store, and end with the launcher.

Run as ``python -m serin.finetune.cluster.driver REQUEST_URI``; exit code 0 is success, any other that of the error.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from serin.core.artifacts import Artifact
from serin.core.context import StageContext, stage_context
from serin.core.errors import ConfigError, IntegrityError, InterruptedRunError, SerinError
from serin.core.prompts import Prompt
from serin.core.tracking import RUN_ID_VARIABLE
from serin.finetune.cluster.lease import LeaseWatch, lease_watched
from serin.finetune.cluster.progress import LineReporter
from serin.finetune.cluster.request import OUTCOME, Attempt, Order, Outcome, read_order
from serin.finetune.config import FinetuneConfig
from serin.finetune.train import Finetuned, finetune

logger = logging.getLogger(__name__)

EXIT_GRACE_S = 60.0
"""A process that cannot end by itself (it may be inside of a kernel) is ended after this long."""
STAGE = "finetune"


def main(arguments: Sequence[str]) -> int:
    """Run the order behind a URI; returns the exit code."""
    if len(arguments) != 1:
        raise ConfigError("The driver takes one argument: the URI of its request.")
    order, attempt = read_order(arguments[0])
    if order.mlflow_run_id:
        os.environ[RUN_ID_VARIABLE] = order.mlflow_run_id
    end = _End()
    try:
        watch = LeaseWatch(attempt.storage, order.lease_expiry_s)
        with end.on_signal(), lease_watched(watch, min(order.lease_expiry_s / 10, 30.0), end.for_want_of_a_launcher):
            made = _run(order)
    except SerinError as error:
        logger.error("%s", error)
        _leave(attempt, error)
        return error.exit_code
    except BaseException as error:
        _leave(attempt, error)
        raise
    _leave(attempt, made)
    return 0


def _run(order: Order) -> Finetuned:
    request = order.request
    with stage_context(
        STAGE,
        store_uri=request.store_uri,
        tracking_uri=request.tracking_uri,
        lineage_id=request.lineage_id,
        endpoint=request.endpoint,
        compiled_for=request.code_version,
    ) as context:
        context = replace(context, report=LineReporter())
        dataset = _open(context, request.dataset_uri, request.dataset_digest)
        documents = _open(context, request.documents_uri, request.documents_digest)
        prompt = Prompt.load(request.prompt)
        return finetune(_config(order), request.base_model, prompt, dataset, documents, context)


def _config(order: Order) -> FinetuneConfig:
    if not order.attach:
        return FinetuneConfig.load(order.request.config)
    if "ray_address" not in FinetuneConfig.model_fields:
        raise ConfigError("This version cannot train on the cluster's workers: set driver_on to worker, with 1 worker.")
    return FinetuneConfig.load({**order.request.config, "ray_address": "auto"})


def _open(context: StageContext, uri: str, digest: str) -> Artifact:
    artifact = context.open(uri)
    if artifact.digest != digest:
        raise IntegrityError(
            f"{uri} has the digest {artifact.digest[:12]}, and {digest[:12]} was asked for: it was made anew "
            "meanwhile; run the pipeline again."
        )
    return artifact


def _leave(attempt: Attempt, result: Finetuned | BaseException) -> None:
    if isinstance(result, Finetuned):
        outcome = Outcome(digest=attempt.digest, base_uri=result.base.uri, model_uri=result.model.uri)
    else:
        text = " ".join(str(result).split())
        outcome = Outcome(digest=attempt.digest, error=type(result).__name__, text=text[:2000])
    attempt.storage.write(OUTCOME, outcome.model_dump_json(indent=1).encode())


class _End:
    """Ends this process from within: by an error in its main thread, so that the outcome is left and Ray is ended."""

    def __init__(self) -> None:
        self._reason = "The driver was stopped from outside (its job was deleted or stopped, or a node was drained)."

    def for_want_of_a_launcher(self) -> None:
        """The lease has expired."""
        self._reason = (
            "The launcher did not renew its lease, so the driver ended itself: run the pipeline again, it continues "
            "from the last checkpoint."
        )
        logger.error("%s", self._reason)
        killer = threading.Timer(EXIT_GRACE_S, os._exit, [InterruptedRunError.exit_code])
        killer.daemon = True
        killer.start()
        os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def on_signal(self) -> Iterator[None]:
        """SIGTERM becomes an error within the block."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one shall not break the clean-up of the first
            raise InterruptedRunError(self._reason)

        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
