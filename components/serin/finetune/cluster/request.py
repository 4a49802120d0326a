"""What is asked of the driver, and what it answers: two small objects in the store."""

import json
import logging
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from serin.core import errors
from serin.core.artifacts import ArtifactStore
from serin.core.config import Section
from serin.core.digests import digest_of
from serin.core.errors import ConfigError, IntegrityError, SerinError, StorageError
from serin.core.storage import Storage, join, storage_for
from serin.finetune.train import Finetuned

logger = logging.getLogger(__name__)

FOLDER = "jobs/finetune"
REQUEST, LEASE, OUTCOME = "request.json", "lease.json", "outcome.json"
DIGEST_LENGTH = 40


class JobRequest(Section):
    """One fine-tuning, as the driver reads it."""

    config: dict[str, Any]
    """FinetuneConfig."""
    base_model: str
    prompt: dict[str, Any]
    dataset_uri: str
    dataset_digest: str
    documents_uri: str
    documents_digest: str
    store_uri: str
    tracking_uri: str
    endpoint: str
    lineage_id: str
    code_version: str
    """Of the stage in the launcher; a driver of other code refuses."""

    @cached_property
    def digest(self) -> str:
        """Identity of the work: the same request of the same run has the same."""
        return digest_of(self.dump())[:DIGEST_LENGTH]


class Order(Section):
    """A request with what concerns one try of it only."""

    request: JobRequest
    attempt: int
    """From 1."""
    lease_expiry_s: float
    mlflow_run_id: str = ""
    """The run that Kubeflow's plugin made for the task; empty for none."""
    attach: bool = False
    """Train on the Ray cluster that the driver is in, instead of one of its own."""


class Outcome(Section):
    """How a try ended, in the driver's own words."""

    digest: str
    """The request's."""
    base_uri: str = ""
    model_uri: str = ""
    error: str = ""
    """Class of the error; empty is success."""
    text: str = ""
    """One sentence."""

    def failure(self) -> SerinError:
        """The error that the driver ended with: one of ours as it was, another named."""
        kind = getattr(errors, self.error, None)
        if isinstance(kind, type) and issubclass(kind, SerinError):
            return kind(self.text)
        return SerinError(f"Fine-tuning in the cluster failed with {self.error} ({self.text}): see the log above.")


@dataclass(frozen=True)
class Attempt:
    """One try of a request: its folder in the store."""

    digest: str
    number: int
    uri: str

    @property
    def storage(self) -> Storage:
        """The folder."""
        return storage_for(self.uri)

    @property
    def request_uri(self) -> str:
        """What the driver is given."""
        return join(self.uri, REQUEST)

    def outcome(self) -> Outcome | None:
        """What the driver left; None when it left nothing.

        Raises:
            IntegrityError: it is another request's, or no outcome.
        """
        storage = self.storage
        if not storage.exists(OUTCOME):
            return None
        try:
            outcome = Outcome.model_validate(json.loads(storage.read(OUTCOME)))
        except (ValueError, ValidationError) as error:
            raise IntegrityError(f"{join(self.uri, OUTCOME)} is not an outcome of this version: {error}") from error
        if outcome.digest != self.digest:
            raise IntegrityError(f"{join(self.uri, OUTCOME)} answers another request: remove that folder.")
        return outcome


class RequestBook:
    """The tries of one request, below ``jobs/finetune/RUN/DIGEST/``.

    Args:
        request: what is asked.
        lease_expiry_s: written into each order.
        mlflow_run_id: the run that the driver reports to.
        attach: see ``Order``.
    """

    def __init__(
        self, request: JobRequest, *, lease_expiry_s: float, mlflow_run_id: str = "", attach: bool = False
    ) -> None:
        parts = urlsplit(request.tracking_uri)
        if parts.password:
            raise ConfigError(
                "The tracking URI holds a password, which would be kept in the store: give MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD by Secret instead."
            )
        self.request = request
        self._lease_expiry_s, self._mlflow_run_id, self._attach = lease_expiry_s, mlflow_run_id, attach
        run = re.sub(r"[^A-Za-z0-9._-]", "-", request.lineage_id) or "alone"
        self._folder = f"{FOLDER}/{run}/{request.digest}"
        self._storage = storage_for(request.store_uri)

    def attempt(self, number: int) -> Attempt:
        """A try by its number."""
        return Attempt(self.request.digest, number, join(self.request.store_uri, self._folder, f"{number:03d}"))

    def numbers(self) -> list[int]:
        """Of the tries that there were."""
        names = {key[len(self._folder) + 1 :].split("/")[0] for key in self._storage.keys(f"{self._folder}/")}
        return sorted(int(name) for name in names if name.isdigit())

    def write(self, attempt: Attempt) -> None:
        """Write a try's order, once."""
        order = Order(
            request=self.request,
            attempt=attempt.number,
            lease_expiry_s=self._lease_expiry_s,
            mlflow_run_id=self._mlflow_run_id,
            attach=self._attach,
        )
        attempt.storage.write(REQUEST, order.model_dump_json(indent=1).encode())

    def finished(self, store: ArtifactStore) -> Finetuned | None:
        """What an earlier try of this very run has made, where it is whole.

        A run without an id has no earlier tries: nothing tells its requests from those of other days.
        """
        for number in reversed(self.numbers()) if self.request.lineage_id else ():
            try:
                outcome = self.attempt(number).outcome()
                if outcome and not outcome.error:
                    return opened(outcome, store)
            except (StorageError, IntegrityError) as error:
                logger.info("An earlier try cannot be used: %s", error)
        return None


def opened(outcome: Outcome, store: ArtifactStore) -> Finetuned:
    """The artefacts of a success, verified."""
    return Finetuned(store.open(outcome.base_uri), store.open(outcome.model_uri))


def read_order(uri: str) -> tuple[Order, Attempt]:
    """A driver's order, from the URI that it was started with.

    Raises:
        ConfigError: there is none, or of another version.
        StorageError: it cannot be read.
    """
    folder = uri.rpartition("/")[0]
    try:
        order = Order.model_validate(json.loads(storage_for(folder).read(REQUEST)))
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{uri} is not a request of this version: use one image for launcher and driver.") from error
    return order, Attempt(order.request.digest, order.attempt, folder)
