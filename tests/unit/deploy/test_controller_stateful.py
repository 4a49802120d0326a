"""Any order of turns, kills, rival controllers, outages and commands leads to one consistent end."""

from contextlib import suppress

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rollout_worlds import CANDIDATE, Killed, World, killed_at

from serin.core.errors import FencedError, UnavailableError
from serin.core.rollouts import command, last_rollout
from serin.deploy.controller import Controller
from serin.deploy.lease import Lease

HOSTS = ("one", "two", "three")
APPROVER = "ada"


class Rollouts(RuleBasedStateMachine):
    """One rollout, up to three controllers that each believe in their lease, and an endpoint with troubles."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.rollout_id, held = self.world.start()
        self.controllers: dict[str, Controller] = {"one": self.world.controller(self.rollout_id, held)}
        self.promotable = False

    @property
    def over(self) -> bool:
        record = last_rollout(self.world.journal)
        assert record is not None
        return record.over

    @rule(host=st.sampled_from(HOSTS), outcome=st.sampled_from(["advance", "hold", "rollback", "promote"]))
    def turn(self, host: str, outcome: str) -> None:
        """A controller takes one turn; one that was overtaken finds out and stops."""
        if host in self.controllers and not self.over:
            self.promotable |= outcome == "promote"
            self.world.outcomes = [outcome]
            self._turn(host)

    @rule(host=st.sampled_from(HOSTS), line=st.integers(1, 120))
    def turn_that_is_killed(self, host: str, line: int) -> None:
        """It ends somewhere in a turn, and its memory is gone."""
        if host in self.controllers and not self.over:
            self.world.outcomes = ["hold"]
            with killed_at(line, self.world), suppress(Killed):
                self._turn(host)
            self.controllers.pop(host, None)

    @rule(host=st.sampled_from(HOSTS))
    def controller_that_starts_in_time(self, host: str) -> None:
        """It gets no lease while another holds one."""
        lease = Lease(self.world.storage, "assistant", host=host, clock=self.world.now, renew=False)
        holder = lease.holder()
        if holder is None or holder.host == host:
            return
        with suppress(UnavailableError):
            lease.take()
            raise AssertionError("two hold the lease")

    @rule(host=st.sampled_from(HOSTS))
    def controller_after_the_lease_ran_out(self, host: str) -> None:
        """Whoever had it before may still be there, and believe in it."""
        if not self.over:
            self.controllers[host] = self.world.controller(self.rollout_id, self.world.lease(host))

    @precondition(lambda self: not self.over)
    @rule(what=st.sampled_from(["pause", "resume", "promote", "abort"]))
    def somebody_asks(self, what: str) -> None:
        """A person's command, at any moment."""
        self.promotable |= what == "promote"
        command(self.world.journal, what, approved_by=APPROVER, reason="")  # type: ignore[arg-type]

    @rule(calls=st.integers(1, 5))
    def endpoint_goes_away(self, calls: int) -> None:
        """For some calls."""
        self.world.endpoint.down_for = calls

    @rule()
    def endpoint_starts_again(self) -> None:
        """With the journal's champion, and without memory."""
        self.world.endpoint.restart()

    @rule(failed=st.booleans())
    def candidate_fails(self, failed: bool) -> None:
        """Or recovers."""
        self.world.endpoint.failed = failed

    @invariant()
    def what_was_served_was_written_down(self) -> None:
        """At any moment."""
        self.world.check_splits()
        self.world.journal.entries()
        if self.world.journal.champion() == CANDIDATE:
            assert self.promotable, "promoted without a judge or a person"

    def teardown(self) -> None:
        """Whatever happened, the next controller brings it to an end."""
        self.world.endpoint.down_for, self.world.endpoint.failed, self.world.outcomes = 0, False, ["rollback"]
        command_pending = last_rollout(self.world.journal)
        if command_pending is not None and command_pending.paused_by and not self.over:
            command(self.world.journal, "resume", approved_by=APPROVER, reason="")
        self.world.controller(self.rollout_id, self.world.lease("last")).drive()
        if self.world.endpoint.split is None or self.world.endpoint.fence == 0:
            return  # its endpoint restarted after the end: it follows the journal by itself
        self.world.check()

    def _turn(self, host: str) -> None:
        try:
            self.controllers[host]._turn()
        except FencedError:
            del self.controllers[host]


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
