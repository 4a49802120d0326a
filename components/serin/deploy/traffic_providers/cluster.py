"""What the providers that write Kubernetes objects have in common: reading, drift, fencing, conflicts and outages.

A provider says which objects split the traffic (``paths``), what they are to be (``wanted``, in the order of writing,
each a single replacement of an object), and whether the candidate can take traffic (``readiness``).
"""

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from serin.core.errors import ConfigError, ServingError
from serin.core.gateway_client import NotReadyError
from serin.core.kubernetes import NOT_FOUND, Clock, KubernetesApi, Patience, RefusedError
from serin.core.release import Release
from serin.deploy.traffic_providers.base import Live, Split
from serin.deploy.traffic_providers.config import TrafficConfig
from serin.deploy.traffic_providers.ledger import Ledger, Record, Specs, conflicts, contains, require_taken
from serin.deploy.traffic_providers.releases import short

logger = logging.getLogger(__name__)

ATTEMPTS = 20
"""Conflicts in a row: controllers write statuses all the time, and each counts as a change of the object."""
CHAMPION, CANDIDATE, SHARE = "serin.dev/champion", "serin.dev/candidate", "serin.dev/candidate-percent"
"""Labels of the Lease, for whoever looks at a cluster."""
Object = dict[str, Any]
Step = tuple[str, Object]
"""Name of an object, and what it is to be."""
T = TypeVar("T")


@dataclass(frozen=True)
class Readiness:
    """Whether the candidate can take traffic."""

    ready: bool = True
    reason: str = ""
    failed: bool = False
    restarts: int = 0


class ClusterProvider(ABC):
    """Splits traffic by writing Kubernetes objects.

    Args:
        config: which ones.
        api: of the cluster.
        release_of: a release by its id.
        clock: handed in by tests.
    """

    sticky = False
    kind = "object"
    """For people."""
    resolution_percent = 0.01
    """The smallest difference between two shares."""

    def __init__(
        self,
        config: TrafficConfig,
        api: KubernetesApi,
        release_of: Callable[[str], Release],
        *,
        clock: Clock | None = None,
    ) -> None:
        self.config, self.api, self.release_of = config, api, release_of
        self.namespace = config.namespace or api.namespace
        self._clock, self._patience = clock or Clock(), Patience(total_s=config.patience_s)
        self.ledger = Ledger(api, self.name, self.namespace)

    @property
    def name(self) -> str:
        """What the endpoint is called in the cluster."""
        return self.config.name

    @abstractmethod
    def paths(self) -> dict[str, str]:
        """Name to API path of the objects that split the traffic."""

    @abstractmethod
    def wanted(self, objects: Mapping[str, Object], split: Split, before: Split | None) -> list[Step]:
        """The objects as they are to be, in the order of writing; the same object may be written more than once."""

    @abstractmethod
    def readiness(self, objects: Mapping[str, Object], split: Split) -> Readiness:
        """Whether the candidate of a split can take traffic."""

    @abstractmethod
    def require_usable(self, objects: Mapping[str, Object]) -> None:
        """Raise ConfigError when these objects cannot split traffic."""

    def check(self, steps_percent: tuple[float, ...], *, mirror: bool) -> None:
        """See TrafficProvider."""
        if mirror:
            self.require_mirroring()
        for step in steps_percent:
            require_step(step, self.resolution_percent, self.kind)
        self._patiently(lambda: self.require_usable(self.read()))

    def require_mirroring(self) -> None:
        """Raise ConfigError when the target cannot mirror requests."""
        raise ConfigError(
            f"An {self.kind} cannot mirror requests: set deploy.shadow.min_answers to 0, or use kind gateway or "
            "httproute."
        )

    def live(self) -> Live:
        """See TrafficProvider."""

        def look() -> Live:
            record, objects = self.ledger.read(), self.read()
            record.require_unchanged(_specs(objects), self.ledger.lease)
            split = record.split
            found = self.readiness(objects, split) if split and split.candidate else Readiness()
            return Live(split, record.fence, found.ready, found.reason, found.failed, found.restarts)

        return self._patiently(look)

    def apply(self, split: Split, *, fence: int) -> None:
        """See TrafficProvider."""
        require_whole(split, self.resolution_percent, self.kind)
        if split.mirror_percent:
            self.require_mirroring()
        self._patiently(lambda: self._tell(split, fence))

    def read(self) -> dict[str, Object]:
        """The objects as they are now."""
        return {name: self.api.get(path) for name, path in self.paths().items()}

    def _tell(self, split: Split, fence: int) -> None:
        record = self.ledger.read()
        record.require_fence(fence)
        objects = self.read()
        record.require_unchanged(_specs(objects), self.ledger.lease)
        steps = self.wanted(objects, split, record.split)
        self._require_ready(record, objects, split, steps)
        open_steps = [step for step in steps if step[1]["spec"] != objects[step[0]]["spec"]]
        if not open_steps and record.split == split and not record.telling:
            if fence > record.fence:
                self.ledger.write(replace(record, fence=fence))
            return
        record = self._announce(record, objects, steps, fence)
        for name, body in steps:
            objects[name] = self._write(name, body, objects[name])
        self.ledger.write(replace(record, split=split, told=_specs(objects), telling=(), labels=_labels(split)))

    def _announce(self, record: Record, objects: Mapping[str, Object], steps: list[Step], fence: int) -> Record:
        """Write down what is about to be done, one state for each write."""
        changes, now = list(record.telling), _specs(objects)
        for name, body in steps:
            now = {**now, name: body["spec"]}
            if now not in changes:
                changes.append(now)
        if tuple(changes) == record.telling and fence == record.fence:
            return record
        told = record.told if record.told is not None else _specs(objects)
        return self.ledger.write(replace(record, fence=fence, told=told, telling=tuple(changes)))

    def _write(self, name: str, body: Object, current: Object) -> Object:
        """Replace an object in one step, if it is still the one that was read."""
        if body["spec"] == current["spec"]:
            return current
        taken = self.api.put(self.paths()[name], {key: value for key, value in body.items() if key != "status"})
        require_taken(taken["spec"], body["spec"], f"{name}.spec")
        return taken

    def _require_ready(self, record: Record, objects: Mapping[str, Object], split: Split, steps: list[Step]) -> None:
        """Raise NotReadyError for a first share, or everything, to a candidate that cannot take it (yet)."""
        if any(all(contains(body["spec"], change.get(name)) for name, body in steps) for change in record.telling):
            return  # it was asked when this change was begun
        before = record.split
        if split.candidate and split.percent and (before is None or before.candidate != split.candidate):
            raise NotReadyError(
                f"Release {short(split.candidate)} is not there yet: have it served with a share of 0, and wait until "
                "it is ready."
            )
        if before is not None and before.candidate == split.champion:
            self.require_ready(objects, before, "be promoted")
        elif before is not None and split.percent and not before.percent:
            self.require_ready(objects, before, "get traffic")

    def require_ready(self, objects: Mapping[str, Object], before: Split, what: str) -> None:
        """Raise NotReadyError, or ServingError, when the candidate of a split cannot take traffic."""
        assert before.candidate
        found = self.readiness(objects, before)
        if not found.ready:
            kind = ServingError if found.failed else NotReadyError
            raise kind(f"Release {short(before.candidate)} cannot {what}: {found.reason}")

    def _patiently(self, work: Callable[[], T]) -> T:
        for _ in range(ATTEMPTS):
            try:
                return self._patience.call(work, self._clock)
            except RefusedError as error:
                if not conflicts(error):
                    raise self._translated(error) from error
                logger.info("%s was written by somebody else in between: it is read again.", self.name)
        raise ServingError(f"The {self.kind} {self.name} is written by others without a pause: try again.")

    def _translated(self, error: RefusedError) -> ServingError:
        if error.status == NOT_FOUND:
            return ServingError(
                f"Namespace {self.namespace!r} lacks what 'traffic' names ({error.message}): create it, or mend the "
                "settings."
            )
        return ServingError(f"The Kubernetes API refuses a request for {self.name}: {error.message}.")


def require_step(percent: float, resolution: float, kind: str) -> None:
    """Raise ConfigError for a share that a target cannot have."""
    steps = percent / resolution
    if not 0 <= percent <= 100 or abs(steps - round(steps)) > 1e-6:
        raise ConfigError(
            f"A share of {percent:g}% cannot be set with an {kind}: use multiples of {resolution:g} from 0 to 100."
        )


def require_whole(split: Split, resolution: float, kind: str) -> None:
    """Raise ConfigError for a split that contradicts itself or cannot be set."""
    require_step(split.percent, resolution, kind)
    if not 0 <= split.mirror_percent <= 100:
        raise ConfigError(f"'mirror_percent' is {split.mirror_percent:g}: give a number from 0 to 100.")
    if split.candidate is None and (split.percent or split.mirror_percent):
        raise ConfigError("A share needs a candidate: name one, or set it to 0.")
    if split.candidate == split.champion:
        raise ConfigError("Champion and candidate are the same release: give another candidate.")


def edited(item: Object, spec: Object, labels: Mapping[str, str] | None = None) -> Object:
    """An object with another spec, and more labels of its own."""
    made = copy.deepcopy(item)
    made["spec"] = spec
    if labels:
        made["metadata"]["labels"] = {**made["metadata"].get("labels", {}), **labels}
    return made


def condition(item: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """One of an object's conditions; empty where it has none of the kind."""
    found = [one for one in item.get("status", {}).get("conditions", []) if one["type"] == kind]
    return found[0] if found else {}


def unseen(item: Mapping[str, Any]) -> bool:
    """Whether its controller has not yet looked at what was written last, where it says so."""
    observed = item.get("status", {}).get("observedGeneration")
    return observed is not None and observed < item["metadata"].get("generation", 0)


def _specs(objects: Mapping[str, Object]) -> Specs:
    return {name: item["spec"] for name, item in objects.items()}


def _labels(split: Split) -> dict[str, str]:
    labels = {"app.kubernetes.io/part-of": "serin", CHAMPION: short(split.champion)}
    return labels | ({CANDIDATE: short(split.candidate), SHARE: f"{split.percent:g}"} if split.candidate else {})
