"""A rollout without processes: a store in memory, an endpoint that keeps what it is told, a judge with a script."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from serin.core.decision import Decision
from serin.core.errors import AlreadyExistsError, FencedError, ServingError, StorageError
from serin.core.events import EndpointEvent
from serin.core.gateway_client import NotReadyError
from serin.core.journal import Journal
from serin.core.kubernetes import Clock
from serin.core.rollouts import RolloutRecord, last_rollout
from serin.deploy import controller, lease, states
from serin.deploy.config import DeployConfig, ShadowConfig
from serin.deploy.controller import Controller, Desk, begin
from serin.deploy.evidence import Evidence
from serin.deploy.lease import LEASE_S, Lease
from serin.deploy.traffic import Outcome
from serin.deploy.traffic_providers.base import DriftError, Live, Split

CHAMPION, CANDIDATE, OTHER = "a" * 64, "b" * 64, "c" * 64
CONFIG = DeployConfig(
    steps_percent=(10.0, 50.0), min_sessions_per_step=1, max_sessions=40, shadow=ShadowConfig(min_answers=4)
)
TRACED = tuple(str(Path(module.__file__ or "")) for module in (controller, lease, states))


class MemoryStorage:
    """Keys in a dictionary, with the conditions of the real ones."""

    uri = "memory://"

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.changes = 0

    def read(self, key: str) -> bytes:
        if key not in self.content:
            raise StorageError(f"{key} does not exist.")
        return self.content[key]

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if if_absent and key in self.content:
            raise AlreadyExistsError(f"{key} exists.")
        self.content[key] = data
        self.changes += 1

    def exists(self, key: str) -> bool:
        return key in self.content

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self.content if key.startswith(prefix))

    def delete(self, prefix: str) -> None:
        self.changes += 1
        self.content = {k: v for k, v in self.content.items() if k != prefix and not k.startswith(f"{prefix}/")}

    def fetch(self, key: str, target: Path) -> None:
        target.write_bytes(self.read(key))

    def upload(self, source: Path, key: str) -> None:
        self.write(key, source.read_bytes())


@dataclass
class Told:
    """One split that the endpoint was told, and what the journal said at that moment."""

    split: Split
    fence: int
    record: RolloutRecord | None
    serving: str | None


@dataclass
class Endpoint:
    """A traffic provider whose endpoint is this object."""

    journal: Journal
    split: Split | None = None
    fence: int = 0
    told: list[Told] = field(default_factory=list)
    down_for: int = 0
    """Calls that find nobody."""
    edited: bool = False
    ready: bool = True
    failed: bool = False
    refuses: str = ""
    """Why it does not serve the candidate beside the champion; empty: it does."""
    refuses_alone: bool = False
    """Whether it does not serve it alone either."""
    sticky = True

    def check(self, steps_percent: tuple[float, ...], *, mirror: bool) -> None:
        """Everything can be done."""

    def live(self) -> Live:
        self._reached()
        if self.edited:
            raise DriftError("The weight is 77, it was told 10: somebody edited it.")
        has = self.split is not None and self.split.candidate is not None
        return Live(self.split, self.fence, self.ready or not has, "", self.failed and has)

    def apply(self, split: Split, *, fence: int) -> None:
        self._reached()
        if self.edited:
            raise DriftError("The weight is 77, it was told 10: somebody edited it.")
        if fence < self.fence:
            raise FencedError("A later lease has told this endpoint something.")
        if self.refuses and CANDIDATE in (split.candidate, split.champion if self.refuses_alone else None):
            raise ServingError(self.refuses)
        self.told.append(Told(split, fence, last_rollout(self.journal), self.journal.champion()))
        self.split, self.fence = split, fence

    def restart(self) -> None:
        """As a gateway that was killed and follows the journal: it serves the champion and knows of no lease."""
        self.split, self.fence = Split(self.journal.champion() or CHAMPION), 0

    def _reached(self) -> None:
        if self.down_for:
            self.down_for -= 1
            raise NotReadyError("The gateway does not answer: start it again.")


@dataclass
class World:
    """Everything that outlives a controller, and a script for its judge."""

    config: DeployConfig = CONFIG
    outcomes: list[str] = field(default_factory=list)
    """What the judge says at the last share, look by look; then ``promote``."""
    offset_s: float = 0.0
    rounds: int = 0
    on_round: Callable[["World"], None] | None = None
    storage: Any = field(default_factory=MemoryStorage)

    def __post_init__(self) -> None:
        self.journal = Journal(self.storage, "assistant")
        self.journal.append("promotion", release_id=CHAMPION, decision="promoted")
        self.endpoint = Endpoint(self.journal)
        self.clock = Clock(now=self.now, sleep=self.sleep)

    def now(self) -> float:
        return time.time() + self.offset_s

    def sleep(self, seconds: float) -> None:
        self.offset_s += seconds

    def lease(self, host: str = "one") -> Lease:
        """A lease of some machine, taken once the one before has run out."""
        self.offset_s += LEASE_S + 1
        taken = Lease(self.storage, "assistant", host=host, clock=self.now, renew=False)
        taken.take()
        return taken

    def start(self) -> tuple[str, Lease]:
        """Begin a rollout; its id, and the lease."""
        held = self.lease()
        plan = {"config": self.config.dump()}
        return begin(self.journal, held, candidate=CANDIDATE, champion=CHAMPION, plan=plan), held

    def controller(self, rollout_id: str, held: Lease) -> Controller:
        """A controller that has just been started."""
        desk = Desk(
            journal=Journal(self.storage, "assistant"), lease=held, provider=self.endpoint, source=self, events=self,
            clock=self.clock, judge=self.judge,
        )  # fmt: skip
        return Controller(self.config, rollout_id, desk)

    def drive(self, **kwargs: Any) -> RolloutRecord:
        """A whole rollout by one controller."""
        return self.controller(*self.start(), **kwargs).drive()

    def judge(self, record: RolloutRecord, events: list[EndpointEvent], config: Any, **_: Any) -> Evidence:
        """Says ``advance`` until the last share, then what the script holds."""
        assert events == []
        if record.state == "shadow":
            return Evidence(Decision(outcome="advance", reasons=()), pairs=4)
        if record.step < len(config.shares) - 1:
            return Evidence(Decision(outcome="advance", reasons=("No harm.",)), 5, 10)
        said = self.outcomes.pop(0) if self.outcomes else "promote"
        return Evidence(Decision(outcome=said, reasons=(f"The script says {said}.",)), 5, 10 * (record.step + 1))

    def events(self) -> list[EndpointEvent]:
        return []

    def round(self, *, golden: int = 0) -> list[Outcome]:
        self.rounds += 1
        if self.on_round:
            self.on_round(self)
        return []

    def wait(self, seconds: float) -> None:
        self.sleep(seconds)

    def decisions(self) -> list[str]:
        """Kind and decision of every entry."""
        return [f"{entry.kind}: {entry.decision}" for entry in self.journal.entries()]

    def check(self) -> RolloutRecord:
        """What must be true of every rollout that is over, however it got there; returns it."""
        record = last_rollout(self.journal)
        assert record is not None
        assert record.over, record.state
        serving, split = self.journal.champion(), self.endpoint.split
        assert split is not None
        assert (split.champion, split.candidate, split.percent) == (serving, None, 0.0), "traffic is not the champion's"
        assert serving == (CANDIDATE if record.state == "promoted" else CHAMPION)
        promotions = [e for e in self.journal.entries() if e.kind == "promotion" and e.release_id == CANDIDATE]
        assert len(promotions) == (record.state == "promoted"), "promoted twice, or without a word"
        self.check_splits()
        return record

    def check_splits(self) -> None:
        """Every split that was ever served had been written down before, and shares only grew until the end."""
        fences = [told.fence for told in self.endpoint.told]
        assert fences == sorted(fences), "an old lease moved traffic"
        written = [int(e.evidence["fence"]) for e in self.journal.entries() if e.kind == "rollout"]
        assert written == sorted(written), "an old lease wrote"
        shares = [told.split.percent for told in self.endpoint.told if told.split.percent]
        assert shares == sorted(shares), "a share went down and up again"
        for told in self.endpoint.told:
            assert told.record is not None
            if told.split.champion == CANDIDATE:
                assert told.serving == CANDIDATE, "users got a release that the journal does not name"
            if told.split.percent:
                assert told.record.state == "step" or told.record.over is False
                assert told.split.percent <= self.config.shares[told.record.step]


class Killed(BaseException):
    """As kill -9: nobody expects it."""


@contextmanager
def killed_at(line: int, world: World) -> Iterator[list[int]]:
    """End whatever runs in the traced modules at its ``line``-th line.

    Gives, for each line that ran, how much had been written or told before it: lines between two changes leave the
    same behind them, since a controller's own memory is lost.
    """
    ran: list[int] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            ran.append(world.storage.changes + len(world.endpoint.told))
            if len(ran) == line:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield ran
    finally:
        sys.settrace(before)


def without_shadow(config: DeployConfig = CONFIG) -> DeployConfig:
    """The same, with no shadow."""
    return config.model_copy(update={"shadow": ShadowConfig(min_answers=0)})
