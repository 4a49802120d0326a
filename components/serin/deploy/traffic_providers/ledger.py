"""What an endpoint was told last, kept in a Lease beside the objects that split its traffic.

Not in an annotation on an InferenceService: KServe copies those to the pods' template (``buildObjectMeta`` of its
predictor), so that every change of a share would start all pods anew, or make a Knative revision.

A change is written down before it is made (``telling``) and settled afterwards (``told``).  Whoever finds a change that
is not settled can tell it from an edit by somebody else, and end it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from serin.core.digests import digest_of
from serin.core.errors import FencedError, ServingError
from serin.core.kubernetes import CONFLICT, NOT_FOUND, KubernetesApi, RefusedError
from serin.deploy.traffic_providers.base import DriftError, Split

SPLIT, FENCE, DIGEST = "serin.dev/split", "serin.dev/fence", "serin.dev/digest"
TOLD, TELLING = "serin.dev/told", "serin.dev/telling"
Specs = dict[str, Any]
"""Name of an object to the part of it that we own."""


@dataclass(frozen=True)
class Record:
    """What was told."""

    split: Split | None = None
    """Last and completely; None before anything was."""
    fence: int = 0
    told: Specs | None = None
    """The objects as the API server returned them then."""
    telling: tuple[Specs, ...] = ()
    """Changes that were begun and perhaps made, the latest last."""
    version: str = ""
    """The Lease's resource version; empty where there is none yet."""
    labels: dict[str, str] = field(default_factory=dict)

    def require_fence(self, fence: int) -> None:
        """Raise FencedError when a later lease has told something."""
        if fence < self.fence:
            raise FencedError(
                f"A controller with lease {self.fence} drives this endpoint, and this one has lease {fence}: stop it."
            )

    def require_unchanged(self, specs: Specs, lease: str) -> None:
        """Raise DriftError, naming the field, when an object is neither as it was told nor as it is being told."""
        if self.told is None:
            return
        for name, spec in specs.items():
            expected = self.told.get(name)
            if spec == expected or any(contains(spec, change.get(name)) for change in self.telling):
                continue
            path, was, now = difference(expected, spec, name)
            raise DriftError(
                f"Somebody changed {path}: expected {_shown(was)}, found {_shown(now)}.  Put it back, or delete the "
                f"Lease {lease} to take what is there for told."
            )


class Ledger:
    """The record of one endpoint, in a Lease.

    Args:
        api: of the cluster.
        name: of what splits the traffic.
        namespace: where it is.
    """

    def __init__(self, api: KubernetesApi, name: str, namespace: str) -> None:
        self._api, self.lease = api, f"serin-split-{name}"
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    def read(self) -> Record:
        """What was told; an empty record where nothing was."""
        try:
            lease = self._api.get(f"{self._path}/{self.lease}")
        except RefusedError as error:
            if error.status == NOT_FOUND:
                return Record()
            raise
        return self._record(lease)

    def write(self, record: Record) -> Record:
        """Replace the record that was read.

        Raises:
            RefusedError: with status 409 when another one was written since.
        """
        annotations = {
            FENCE: str(record.fence),
            TELLING: json.dumps(record.telling, sort_keys=True),
            SPLIT: json.dumps(record.split and asdict(record.split)),
            TOLD: json.dumps(record.told, sort_keys=True),
            DIGEST: digest_of(record.told),
        }
        lease: dict[str, Any] = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.lease, "labels": record.labels, "annotations": annotations},
            "spec": {"holderIdentity": f"serin-rollout-{record.fence}"},
        }
        if not record.version:
            return self._with_version(record, self._api.post(self._path, lease))
        lease["metadata"]["resourceVersion"] = record.version
        return self._with_version(record, self._api.put(f"{self._path}/{self.lease}", lease))

    def _record(self, lease: Mapping[str, Any]) -> Record:
        metadata = lease["metadata"]
        annotations = metadata.get("annotations", {})
        try:
            told, split = json.loads(annotations[TOLD]), json.loads(annotations[SPLIT])
            record = Record(
                split=None if split is None else Split(**split),
                fence=int(annotations[FENCE]),
                told=told,
                telling=tuple(json.loads(annotations[TELLING])),
                labels=dict(metadata.get("labels") or {}),
            )
            if digest_of(told) != annotations[DIGEST]:
                raise ValueError("its digest does not fit what it says was told")
        except (KeyError, TypeError, ValueError) as error:
            raise DriftError(
                f"The Lease {self.lease} was edited ({error}): delete it to take what the endpoint serves for told."
            ) from error
        return self._with_version(record, lease)

    def _with_version(self, record: Record, lease: Mapping[str, Any]) -> Record:
        return replace(record, version=str(lease["metadata"]["resourceVersion"]))


def contains(found: Any, wanted: Any) -> bool:
    """Whether a value is as wanted, but for fields of mappings that the API server added."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(key in found and contains(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return False
        return all(contains(each, want) for each, want in zip(found, wanted, strict=True))
    return bool(found == wanted)


def difference(expected: Any, found: Any, path: str) -> tuple[str, Any, Any]:
    """The first field in which two values differ: its path, and both values (None where it is absent)."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted({*expected, *found}):
            if expected.get(key) != found.get(key) or (key in expected) != (key in found):
                return difference(expected.get(key), found.get(key), f"{path}.{key}")
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (was, now) in enumerate(zip(expected, found, strict=True)):
            if was != now:
                return difference(was, now, f"{path}[{index}]")
    return path, expected, found


def require_taken(found: Any, wanted: Any, path: str) -> None:
    """Raise ServingError, naming the field, when the API server left out or changed what it was sent."""
    if contains(found, wanted):
        return
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            require_taken(found.get(key), value, f"{path}.{key}")
    raise ServingError(
        f"The cluster did not take {path}: its definition of this kind is older than what is needed, or a webhook "
        "changes it."
    )


def conflicts(error: RefusedError) -> bool:
    """Whether somebody wrote the object in between."""
    return error.status == CONFLICT


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else f"{text[:117]}..."
