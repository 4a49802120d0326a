"""What every worker of a Ray session runs: the orders of its folder, one after the other, with the plain loop."""

import json
import logging
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from serin.core.errors import SerinError
from serin.finetune.job import Job
from serin.finetune.loop import train
from serin.finetune.ranks import DistributedRanks, Ranks

logger = logging.getLogger(__name__)

POLL_S = 0.2
FIRST_RANK_S = 5.0
STOP = "stop"


def follow_orders(settings: dict[str, str]) -> None:
    """Ray Train's train function: run every order of a session's folder, then end.

    Args:
        settings: ``folder`` is the session's.

    Raises:
        RuntimeError: another worker died; Ray starts all of them again.
    """
    folder = Path(settings["folder"])
    ranks = _ranks()
    for order in _orders(folder):
        outcome = outcome_of(order)
        try:
            train(Job.model_validate_json(order.read_bytes()), ranks)
        except Exception as error:
            if ranks.rank:
                _wait_for(outcome, folder, FIRST_RANK_S)  # its error is the cause, ours may be that it is gone
            if outcome.exists():
                return
            if ranks.size > 1 and isinstance(error, RuntimeError) and not isinstance(error, SerinError):
                raise  # what torch.distributed raises when another worker died
            # Ray would try again, in vain.
            logger.exception("Order %s failed.", order.name)
            details = traceback.format_exc()
            write_aside(outcome, json.dumps({"error": type(error).__name__, "text": str(error), "trace": details}))
            return
        if ranks.rank == 0:
            write_aside(outcome, "{}")
        else:
            _wait_for(outcome, folder)


def outcome_of(order: Path) -> Path:
    """Where an order's outcome is written: empty, or what went wrong."""
    return order.with_name(order.name.replace("order", "outcome"))


def write_aside(path: Path, text: str) -> None:
    """Write a file in one visible step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


def _ranks() -> Ranks:
    import ray.train
    import torch

    context = ray.train.get_context()
    size = context.get_world_size()
    ranks = DistributedRanks(context.get_world_rank(), size) if size > 1 else Ranks()
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        ranks.device = str(get_device())
        torch.cuda.set_device(ranks.device)
    return ranks


def _orders(folder: Path) -> Iterator[Path]:
    """Orders in the order of their numbers, each once it is there, until there is a word to stop."""
    number = 1
    while True:
        order = folder / f"order-{number:04d}.json"
        if order.exists():
            if not outcome_of(order).exists():
                yield order
            number += 1
        elif (folder / STOP).exists() or not folder.exists():
            return
        else:
            time.sleep(POLL_S)


def _wait_for(outcome: Path, folder: Path, timeout_s: float = float("inf")) -> None:
    deadline = time.monotonic() + timeout_s
    while not outcome.exists() and folder.exists() and not (folder / STOP).exists() and time.monotonic() < deadline:
        time.sleep(POLL_S)
