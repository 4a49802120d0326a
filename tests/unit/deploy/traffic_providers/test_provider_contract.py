"""What every provider that writes Kubernetes objects keeps to, against a stateful API over HTTP."""

from typing import Any

import pytest
from fake_cluster import NAMESPACE
from tests.manifests import schemas
from traffic_worlds import A, B, C, Ticking, World

from serin.core.errors import ConfigError, FencedError, ServingError, UnavailableError
from serin.core.gateway_client import NotReadyError
from serin.core.kubernetes import KubernetesApi
from serin.deploy.traffic_providers.base import DriftError, Live, Split


class Killed(BaseException):
    """The controller's process ends."""


def dying(after: int, *, done: bool) -> type[KubernetesApi]:
    """A client whose process is killed at a write: just before it, or once it is done and before it knows."""
    left = [after]

    class Dying(KubernetesApi):
        def post(self, *arguments: Any) -> dict[str, Any]:
            return self._counted(super().post, *arguments)

        def put(self, *arguments: Any, **query: Any) -> dict[str, Any]:
            return self._counted(super().put, *arguments, **query)

        def _counted(self, write: Any, *arguments: Any, **query: Any) -> dict[str, Any]:
            left[0] -= 1
            if left[0] == 0 and not done:
                raise Killed
            answer = write(*arguments, **query)
            if left[0] == 0:
                raise Killed
            return dict(answer)

    return Dying


def test_a_rollout_from_the_first_share_to_the_promotion(target: World) -> None:
    provider = target.provider()
    assert provider.live() == Live(None, 0, True)
    provider.apply(Split(A), fence=1)
    assert provider.live() == Live(Split(A), 1, True)
    provider.apply(Split(A, B, 0.0, salt="r1"), fence=1)
    waiting = provider.live()
    assert (waiting.split, waiting.candidate_ready, waiting.failed) == (Split(A, B, 0.0, salt="r1"), False, False)
    assert waiting.reason.endswith(".")
    target.comes_up(B)
    assert provider.live().candidate_ready
    for percent in (1.0, target.step, 50.0):
        provider.apply(Split(A, B, percent, salt="r1"), fence=1)
        assert target.shares() == pytest.approx({A: 100 - percent, B: percent}, abs=0.006)
        assert provider.live().split == Split(A, B, percent, salt="r1")
    provider.apply(Split(B), fence=1)
    assert {release: share for release, share in target.shares().items() if share} == {B: 100.0}
    assert provider.live() == Live(Split(B), 1, True)


def test_the_way_back_restores_the_whole_release_and_keeps_the_candidate_out(target: World) -> None:
    provider = target.provider()
    provider.apply(Split(A), fence=1)
    before = {name: item["spec"] for name, item in target.objects().items()}
    target.introduced(provider, percent=50.0)
    provider.apply(Split(A), fence=1)
    assert {release: share for release, share in target.shares().items() if share} == {A: 100.0}
    target.reconcile()
    assert {release: share for release, share in target.shares().items() if share} == {A: 100.0}
    assert provider.live() == Live(Split(A), 1, True)
    champion = [spec for spec in before.values() if "s3://store/index/A" in str(spec) or target.kind == "httproute"]
    after = str([item["spec"] for item in target.objects().values()])
    assert champion
    for spec in champion:
        for part in (spec.get("predictor", {}).get("model"), spec.get("model"), spec.get("rules")):
            assert part is None or str(part) in after


def test_another_rollout_follows_a_promotion_and_a_way_back(target: World) -> None:
    provider = target.provider()
    target.introduced(provider, percent=50.0)
    provider.apply(Split(B), fence=1)
    target.reconcile()
    provider.apply(Split(B, C, 0.0, salt="r2"), fence=2)
    target.comes_up(C)
    provider.apply(Split(B, C, 25.0, salt="r2"), fence=2)
    assert {release: share for release, share in target.shares().items() if share} == pytest.approx(
        {B: 75.0, C: 25.0}, abs=0.006
    )
    provider.apply(Split(B), fence=2)
    assert {release: share for release, share in target.shares().items() if share} == {B: 100.0}
    provider.apply(Split(B, A, 0.0, salt="r3"), fence=3)
    provider.apply(Split(B, A, 50.0, salt="r3"), fence=3)
    assert {release: share for release, share in target.shares().items() if share} == pytest.approx({A: 50.0, B: 50.0})


def test_telling_the_same_again_writes_nothing_and_a_new_lease_only_the_record(target: World) -> None:
    split = target.introduced(target.provider(), percent=25.0)
    written = len(target.cluster.writes())
    target.provider().apply(split, fence=1)
    assert len(target.cluster.writes()) == written
    target.provider().apply(split, fence=5)
    assert [path.rpartition("/")[0].rpartition("/")[2] for path in target.cluster.writes()[written:]] == ["leases"]
    assert target.provider().live().fence == 5


def test_a_share_grows_by_one_write(target: World) -> None:
    provider = target.provider()
    target.introduced(provider, percent=1.0)
    written = len(target.cluster.writes())
    provider.apply(Split(A, B, 25.0, salt="r1"), fence=1)
    assert sum("leases" not in path for path in target.cluster.writes()[written:]) == 1


@pytest.mark.parametrize("what", ["edit_share", "edit_spec"])
def test_an_edit_by_somebody_else_stops_with_the_field(target: World, what: str) -> None:
    target.introduced(target.provider(), percent=25.0)
    field = getattr(target, what)()
    written = len(target.cluster.writes())
    with pytest.raises(DriftError, match=r"expected .*, found ") as seen:
        target.provider().live()
    assert field in str(seen.value)
    for split in (Split(A), Split(A, B, 50.0, salt="r1")):
        with pytest.raises(DriftError, match="Somebody changed"):
            target.provider().apply(split, fence=9)
    assert len(target.cluster.writes()) == written


def test_what_was_edited_is_taken_once_its_record_is_gone(target: World) -> None:
    target.introduced(target.provider(), percent=25.0)
    target.edit_spec()
    target.cluster.forget("leases", target.provider().ledger.lease)
    assert target.provider().live() == Live(None, 0, True)
    target.provider().apply(Split(A), fence=1)
    assert {release: share for release, share in target.shares().items() if share} == {A: 100.0}


def test_an_edited_record_is_no_record(target: World) -> None:
    provider = target.provider()
    provider.apply(Split(A), fence=1)

    def change(lease: dict[str, Any]) -> None:
        lease["metadata"]["annotations"]["serin.dev/told"] = "{}"

    target.cluster.edit("leases", provider.ledger.lease, change)
    with pytest.raises(DriftError, match="was edited"):
        provider.live()


def test_an_earlier_lease_is_refused(target: World) -> None:
    target.introduced(target.provider(), percent=25.0, fence=7)
    written = len(target.cluster.writes())
    with pytest.raises(FencedError, match="lease 7"):
        target.provider().apply(Split(A), fence=6)
    assert len(target.cluster.writes()) == written


def test_a_controller_that_lost_its_lease_between_reading_and_writing_changes_nothing(target: World) -> None:
    target.introduced(target.provider(), percent=25.0)
    overtaken: list[bool] = []

    class Slow(KubernetesApi):
        def put(self, path: str, *arguments: Any, **query: Any) -> dict[str, Any]:
            if "leases" not in path and not overtaken:
                overtaken.append(True)
                target.provider().apply(Split(A), fence=2)
            return super().put(path, *arguments, **query)

    with pytest.raises(FencedError, match="lease 2"):
        target.provider(api=Slow).apply(Split(A, B, 50.0, salt="r1"), fence=1)
    assert {release: share for release, share in target.shares().items() if share} == {A: 100.0}
    assert target.provider().live() == Live(Split(A), 2, True)


def test_a_write_that_arrives_late_is_no_edit_by_somebody_else(target: World) -> None:
    target.introduced(target.provider(), percent=25.0)
    late: list[tuple[str, Any]] = []

    class Posting(KubernetesApi):
        def put(self, path: str, body: Any, **query: Any) -> dict[str, Any]:
            if "leases" in path:
                return super().put(path, body, **query)
            late.append((path, body))
            raise Killed

    with pytest.raises(Killed):
        target.provider(api=Posting).apply(Split(A, B, 50.0, salt="r1"), fence=1)
    with pytest.raises(Killed):
        target.provider(api=Posting).apply(Split(A), fence=2)
    target.provider().api.put(*late[0])
    assert target.provider().live().split == Split(A, B, 25.0, salt="r1")
    target.provider().apply(Split(A), fence=3)
    assert {release: share for release, share in target.shares().items() if share} == {A: 100.0}


def test_conflicts_are_read_again(target: World) -> None:
    provider = target.provider()
    target.introduced(provider)
    target.cluster.touch_before_put = 3
    provider.apply(Split(A, B, 25.0, salt="r1"), fence=1)
    assert target.shares() == pytest.approx({A: 75.0, B: 25.0}, abs=0.006)
    target.cluster.touch_before_put = 1_000
    with pytest.raises(ServingError, match="without a pause"):
        provider.apply(Split(A, B, 50.0, salt="r1"), fence=1)
    target.cluster.touch_before_put = 0
    assert provider.live().split == Split(A, B, 25.0, salt="r1")
    provider.apply(Split(A, B, 50.0, salt="r1"), fence=1)
    assert target.shares() == pytest.approx({A: 50.0, B: 50.0}, abs=0.006)


def test_an_api_that_restarts_is_waited_for_and_one_that_stays_away_is_said(target: World) -> None:
    target.introduced(target.provider())
    target.cluster.stop()
    ticking = Ticking(after=3, happens=target.cluster.start)
    target.provider(clock=ticking.clock()).apply(Split(A, B, 25.0, salt="r1"), fence=1)
    assert target.shares() == pytest.approx({A: 75.0, B: 25.0}, abs=0.006)
    target.cluster.fail_next = [503, 429, 0, 500]
    assert target.provider().live().split == Split(A, B, 25.0, salt="r1")
    target.cluster.stop()
    with pytest.raises(UnavailableError, match="did not answer for 60 s"):
        target.provider().live()


def test_an_answer_that_is_lost_is_no_second_write(target: World) -> None:
    provider = target.provider()
    target.introduced(provider)
    for split in (Split(A, B, 25.0, salt="r1"), Split(A)):
        target.cluster.lose_next_answer = True
        provider.apply(split, fence=1)
        assert provider.live().split == split


STEPS = {
    "introduced": (Split(A), Split(A, B, 0.0, salt="r1"), {A: 100.0}),
    "grown": (Split(A, B, 25.0, salt="r1"), Split(A, B, 50.0, salt="r1"), {A: 50.0, B: 50.0}),
    "promoted": (Split(A, B, 50.0, salt="r1"), Split(B), {B: 100.0}),
    "taken back": (Split(A, B, 50.0, salt="r1"), Split(A), {A: 100.0}),
}


BETWEEN = (Split(A, B, 0.0, salt="r1"), Split(A, B, 100.0, salt="r1"))
"""Where a target lets the traffic go before it lets the release go."""


@pytest.mark.parametrize("done", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_write_the_traffic_is_whole_and_the_next_one_ends_it(
    target: World, step: str, done: bool
) -> None:
    before, split, shares = STEPS[step]
    for write in range(1, 9):
        _reset(target)
        _reach(target, before)
        start = len(target.cluster.history)
        try:
            target.provider(api=dying(write, done=done)).apply(split, fence=1)
        except Killed:
            killed = True
        else:
            killed = False
        for state in target.cluster.history[start:]:
            now = target.shares_of(state)
            assert sum(now.values()) == pytest.approx(100.0)
            assert set(now) <= {A, B}
            target.require_whole_releases(state)
        assert target.provider().live().split in (before, split, *BETWEEN)
        target.provider().apply(split, fence=2)
        assert {release: share for release, share in target.shares().items() if share} == pytest.approx(
            shares, abs=0.006
        )
        if not killed:
            break
    assert write > 3


def test_an_edit_while_a_change_is_half_made_is_found_too(target: World) -> None:
    target.introduced(target.provider(), percent=25.0)
    with pytest.raises(Killed):
        target.provider(api=dying(1, done=True)).apply(Split(A, B, 50.0, salt="r1"), fence=1)
    field = target.edit_share()
    with pytest.raises(DriftError) as seen:
        target.provider().live()
    assert field in str(seen.value)


def test_a_candidate_that_cannot_run_is_said(target: World) -> None:
    provider = target.provider()
    provider.apply(Split(A), fence=1)
    provider.apply(Split(A, B, 0.0, salt="r1"), fence=1)
    for reason, words in (("CrashLoopBackOff", "crashes at start"), ("ImagePullBackOff", "cannot pull its image")):
        target.breaks(B, reason, restarts=4)
        live = provider.live()
        assert (live.candidate_ready, live.failed, live.restarts) == (False, True, 4)
        assert words in live.reason
    with pytest.raises(ServingError, match="cannot be promoted"):
        provider.apply(Split(B), fence=1)
    provider.apply(Split(A), fence=1)
    assert {release: share for release, share in target.shares().items() if share} == {A: 100.0}


def test_a_release_gets_no_traffic_before_it_is_there(target: World) -> None:
    provider = target.provider()
    provider.apply(Split(A), fence=1)
    with pytest.raises(NotReadyError, match="with a share of 0"):
        provider.apply(Split(A, B, 5.0, salt="r1"), fence=1)
    provider.apply(Split(A, B, 0.0, salt="r1"), fence=1)
    with pytest.raises(NotReadyError, match="cannot get traffic"):
        provider.apply(Split(A, B, 5.0, salt="r1"), fence=1)
    with pytest.raises(NotReadyError, match="cannot be promoted"):
        provider.apply(Split(B), fence=1)
    assert {release: share for release, share in target.shares().items() if share} == {A: 100.0}


def test_a_split_that_contradicts_itself_is_refused(target: World) -> None:
    for split in (Split(A, None, 5.0), Split(A, A, 5.0), Split(A, B, 101.0), Split(A, B, 0.0, mirror_percent=200.0)):
        with pytest.raises(ConfigError):
            target.provider().apply(split, fence=1)
    assert target.cluster.writes() == []


def test_mirroring_is_done_or_refused(target: World) -> None:
    provider = target.provider()
    split = Split(A, B, 0.0, mirror_percent=10.0)
    if target.kind == "httproute":
        provider.check((1.0,), mirror=True)
        provider.apply(split, fence=1)
        assert provider.live().split == split
        return
    for ask in (lambda: provider.check((1.0,), mirror=True), lambda: provider.apply(split, fence=1)):
        with pytest.raises(ConfigError, match="cannot mirror requests"):
            ask()
    assert target.cluster.writes() == []


def test_the_release_that_answers_is_on_the_pods_or_the_route_and_the_record(target: World) -> None:
    target.introduced(target.provider(), percent=25.0)
    labels = target.cluster.objects["leases", target.provider().ledger.lease]["metadata"]["labels"]
    assert labels["serin.dev/champion"] == A[:12]
    assert (labels["serin.dev/candidate"], labels["serin.dev/candidate-percent"]) == (B[:12], "25")
    pods = [item["metadata"]["labels"] for (kind, _), item in target.cluster.objects.items() if kind == "pods"]
    for release in (A, B):
        assert any(release[:12] in labels.values() for labels in pods)


def test_steps_and_objects_are_checked_before_anything_is_written(target: World) -> None:
    provider = target.provider()
    provider.check((1.0, 5.0, 25.0, 50.0), mirror=False)
    with pytest.raises(ConfigError, match="use multiples of"):
        provider.check((0.123456,), mirror=False)
    assert target.cluster.writes() == []


def test_an_absent_object_and_a_missing_right_are_said_in_a_sentence(target: World) -> None:
    provider = target.provider()
    target.cluster.rules = []
    with pytest.raises(ServingError, match=r"refuses a request.*forbidden"):
        provider.live()
    target.cluster.rules = [{"apiGroups": ["", *_groups()], "resources": [*_resources()], "verbs": ["get"]}]
    for name in target.names:
        target.cluster.forget(target.resource, name)
    with pytest.raises(ServingError, match=f"Namespace '{NAMESPACE}' lacks what 'traffic' names"):
        provider.live()


def test_every_object_that_was_sent_fits_its_definition(target: World) -> None:
    if not schemas.SHARED_CRDS.is_dir():
        pytest.skip("needs the CustomResourceDefinitions in ../shared/crds, which are not here")
    provider = target.provider()
    target.introduced(provider, percent=25.0)
    provider.apply(Split(B), fence=1)
    assert target.cluster.schema_failures == 0


def _reset(target: World) -> None:
    target.cluster.objects.clear()
    target.ready.intersection_update({A})
    target.ready.add(A)
    target.__post_init__()


def _reach(target: World, split: Split) -> None:
    provider = target.provider()
    if split.candidate is None:
        provider.apply(split, fence=1)
        return
    target.introduced(provider, percent=split.percent)


def _groups() -> list[str]:
    return ["serving.kserve.io", "gateway.networking.k8s.io", "coordination.k8s.io"]


def _resources() -> list[str]:
    return ["inferenceservices", "llminferenceservices", "httproutes", "leases"]
