"""What each target can and cannot do: its limits, its traps, its readiness."""

from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster, Object
from test_provider_contract import Killed, dying
from tests.manifests import building
from traffic_worlds import MODE, RELEASES, A, B, C, CanaryWorld, KnativeWorld, LLMWorld, RouteWorld, Ticking

from serin.core.errors import ConfigError, ServingError
from serin.core.gateway_client import NotReadyError
from serin.deploy.traffic_providers.base import Split
from serin.deploy.traffic_providers.llm_service import WHOLE, weight_of
from serin.deploy.traffic_providers.releases import filled, laid_over


def _edit(world: Any, change: Any, name: str = "assistant") -> None:
    world.cluster.edit(world.resource, name, change)


def test_a_canary_is_named_after_its_release_and_has_replicas_of_its_own(cluster: FakeCluster) -> None:
    world = CanaryWorld(cluster)
    world.introduced(world.provider(replicas=4, candidate_replicas=2))
    spec = world.objects()["assistant"]["spec"]
    canary = spec["canary"][0]["predictor"]
    assert canary["name"] == f"r{B[:12]}"
    assert canary["minReplicas"] == 2
    assert canary["model"]["storageUri"] == "s3://store/model/B"
    assert canary["annotations"] == {"serin.dev/index": "s3://store/index/B"}
    assert spec["predictor"]["minReplicas"] == 6  # KServe takes the canary's two away again


def test_a_promotion_in_standard_mode_keeps_the_candidates_deployment(cluster: FakeCluster) -> None:
    world = CanaryWorld(cluster)
    provider = world.provider()
    world.introduced(provider, percent=50.0)
    canary = world.objects()["assistant"]["spec"]["canary"][0]["predictor"]
    stable = world.objects()["assistant"]["spec"]["predictor"]
    provider.apply(Split(B), fence=1)
    promoted = world.objects()["assistant"]["spec"]["predictor"]
    assert promoted["name"] == canary["name"]
    # What KServe made the canary's pods of: the canary laid over the stable predictor, less the container's name.
    merged = laid_over(stable, canary)
    merged["model"].pop("name")
    assert promoted == merged
    assert "canary" not in world.objects()["assistant"]["spec"]


def test_no_service_goes_while_the_route_still_sends_to_it(cluster: FakeCluster) -> None:
    world = CanaryWorld(cluster)
    provider = world.provider()
    for last in (Split(A), Split(B)):
        world.introduced(provider, percent=50.0)
        provider.apply(last, fence=1)
    assert world.dangling == []
    assert world.shares() == {B: 100.0}


def test_a_kserve_that_does_not_follow_is_waited_for_and_said(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = CanaryWorld(cluster)
    world.introduced(world.provider(), percent=50.0)
    monkeypatch.setattr(CanaryWorld, "follows", False)
    with pytest.raises(NotReadyError, match="has not moved the traffic in its HTTPRoute assistant for 60 s"):
        world.provider().apply(Split(A), fence=1)
    assert world.shares() == {A: 100.0, B: 0.0}

    def follow() -> None:
        monkeypatch.setattr(CanaryWorld, "follows", True)
        world.reconcile()

    world.provider(clock=Ticking(after=3, happens=follow).clock()).apply(Split(A), fence=1)
    assert world.shares() == {A: 100.0}
    assert world.dangling == []


def test_a_half_made_promotion_is_ended_or_taken_back_and_never_split(cluster: FakeCluster) -> None:
    world = CanaryWorld(cluster)
    world.introduced(world.provider(), percent=50.0)
    with pytest.raises(Killed):  # the last of its writes but one: the promoted predictor, before that is settled
        world.provider(api=dying(5, done=True)).apply(Split(B), fence=1)
    assert "canary" not in world.objects()["assistant"]["spec"]
    with pytest.raises(ServingError, match="by a promotion that was begun"):
        world.provider().apply(Split(A, B, 25.0, salt="r1"), fence=2)
    world.provider().apply(Split(A), fence=2)
    assert world.shares() == {A: 100.0}
    world.provider().apply(Split(A, B, 0.0, salt="r2"), fence=3)  # its name is the stable predictor's by now
    spec = world.objects()["assistant"]["spec"]
    assert spec["canary"][0]["predictor"]["name"] == f"{spec['predictor']['name']}x"
    assert world.provider().live().candidate_ready


def test_replicas_are_kept_where_nothing_is_said(cluster: FakeCluster) -> None:
    world = CanaryWorld(cluster)
    _edit(world, lambda item: item["spec"]["predictor"].update(minReplicas=3))
    provider = world.provider()
    world.introduced(provider, percent=50.0)
    spec = world.objects()["assistant"]["spec"]
    assert (spec["predictor"]["minReplicas"], spec["canary"][0]["predictor"]["minReplicas"]) == (6, 3)
    provider.apply(Split(B), fence=1)
    assert world.objects()["assistant"]["spec"]["predictor"]["minReplicas"] == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda item: item["metadata"]["annotations"].update({MODE: "Knative"}), "use kind kserve_knative"),
        (lambda item: item["metadata"]["annotations"].clear(), "does not say its mode"),
        (lambda item: item["spec"].update(transformer={"minReplicas": 1}), "has a transformer"),
        (lambda item: item["spec"].update(explainer={"minReplicas": 1}), "has a explainer"),
        (lambda item: item["spec"]["predictor"].update(maxReplicas=3), "scales by itself .maxReplicas."),
        (lambda item: item["spec"]["predictor"].update(scaleTarget=5), "scales by itself .scaleTarget."),
        (
            lambda item: item["metadata"]["labels"].update({"networking.kserve.io/visibility": "cluster-local"}),
            "is cluster-local",
        ),
    ],
)
def test_what_a_canary_cannot_be_with_is_said_at_once(cluster: FakeCluster, change: Any, words: str) -> None:
    world = CanaryWorld(cluster)
    _edit(world, change)
    with pytest.raises(ConfigError, match=words):
        world.provider().check((1.0, 50.0), mirror=False)


def test_a_canary_needs_the_gateway_api_integers_and_a_kserve_that_knows_it(cluster: FakeCluster) -> None:
    world = CanaryWorld(cluster)
    with pytest.raises(ConfigError, match="multiples of 1 "):
        world.provider().check((0.5, 50.0), mirror=False)
    with pytest.raises(ConfigError, match="cannot mirror"):
        world.provider().check((1.0,), mirror=True)
    cluster.unknown_fields = {"canary"}
    with pytest.raises(ConfigError, match=r"KServe 0\.20 or later"):
        world.provider().check((1.0,), mirror=False)
    cluster.unknown_fields = set()
    cluster.forget("httproutes", "assistant")
    with pytest.raises(ConfigError, match="set enableGatewayApi"):
        world.provider().check((1.0,), mirror=False)


def test_a_cluster_that_drops_the_field_is_found_by_the_write_too(cluster: FakeCluster) -> None:
    world = CanaryWorld(cluster)
    provider = world.provider()
    provider.apply(Split(A), fence=1)
    cluster.unknown_fields = {"canary"}
    with pytest.raises(ServingError, match=r"did not take assistant\.spec\.canary"):
        provider.apply(Split(A, B, 0.0), fence=1)


def test_a_model_that_does_not_load_is_said_by_kserve(cluster: FakeCluster) -> None:
    world = CanaryWorld(cluster)
    provider = world.provider()
    provider.apply(Split(A), fence=1)
    provider.apply(Split(A, B, 0.0), fence=1)
    failed = {
        "transitionStatus": "BlockedByFailedLoad",
        "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "OOM"},
    }
    statuses = [{"name": f"r{B[:12]}", "ready": False, "trafficPercent": 0, "modelStatus": failed}]
    cluster.status("inferenceservices", "assistant", canaryStatuses=statuses)
    live = provider.live()
    assert live.failed
    assert live.reason == "The model does not load: OOM."


def test_a_status_of_an_earlier_generation_is_not_believed(cluster: FakeCluster) -> None:
    world = CanaryWorld(cluster)
    provider = world.provider()
    world.introduced(provider)
    cluster.status("inferenceservices", "assistant", observedGeneration=1)
    assert provider.live().reason == "KServe has not made the canary yet."


def test_the_share_of_knative_is_refused_in_standard_mode_which_ignores_it(cluster: FakeCluster) -> None:
    world = KnativeWorld(cluster)
    world.provider().check((1.0, 50.0), mirror=False)
    _edit(world, lambda item: item["metadata"]["annotations"].update({MODE: "Standard"}))
    with pytest.raises(ConfigError, match=r"is in Standard mode.*use kind kserve_canary"):
        world.provider().check((1.0, 50.0), mirror=False)


def test_the_way_back_in_knative_is_a_share_of_zero_with_the_champions_fields(cluster: FakeCluster) -> None:
    world = KnativeWorld(cluster)
    provider = world.provider()
    world.introduced(provider, percent=50.0)
    world.ready.discard(A)  # the champion's new revision starts slowly; its old one serves
    by_name = {one["name"]: world._release(one) for one in world.made}
    provider.apply(Split(A), fence=1)
    predictor = world.objects()["assistant"]["spec"]["predictor"]
    status = world.objects()["assistant"]["status"]["components"]["predictor"]
    assert predictor["canaryTrafficPercent"] == 0
    assert predictor["model"]["storageUri"] == "s3://store/model/A"
    assert by_name[status["latestRolledoutRevision"]] == A
    assert by_name[status["latestReadyRevision"]] == B  # it would get everything, had the field been removed
    with pytest.raises(NotReadyError, match="a turned-away release would get the traffic"):
        provider.apply(Split(C), fence=1)
    world.comes_up(A)
    provider.apply(Split(C), fence=1)
    world.comes_up(C)
    assert world.shares() == {C: 100.0}


def test_the_way_back_from_a_half_made_promotion_in_knative_rolls_the_champion_out(cluster: FakeCluster) -> None:
    world = KnativeWorld(cluster)
    world.introduced(world.provider(), percent=50.0)
    with pytest.raises(Killed):
        world.provider(api=dying(2, done=True)).apply(Split(B), fence=1)
    assert world.shares() == {B: 100.0}
    world.provider().apply(Split(A), fence=2)  # a share of 0 would keep it with the release that had everything last
    assert world.shares() == {A: 100.0}


def test_knative_ignores_a_share_before_a_revision_had_everything(cluster: FakeCluster) -> None:
    world = KnativeWorld(cluster)
    provider = world.provider()
    provider.apply(Split(A), fence=1)
    cluster.status("inferenceservices", "assistant", components={"predictor": {}})
    with pytest.raises(NotReadyError, match="wait until it is ready"):
        provider.apply(Split(A, B, 0.0), fence=1)


def test_a_rollout_in_knative_waits_until_its_champion_has_the_traffic(cluster: FakeCluster) -> None:
    world = KnativeWorld(cluster)
    provider = world.provider()
    provider.apply(Split(A), fence=1)
    provider.apply(Split(C), fence=1)  # it starts slowly: A serves
    with pytest.raises(NotReadyError, match="is not with the champion"):
        provider.apply(Split(C, B, 0.0, salt="r1"), fence=1)
    world.comes_up(C)
    provider.apply(Split(C, B, 0.0, salt="r1"), fence=1)
    assert world.shares()[C] == 100.0


def test_a_third_release_waits_for_the_end_of_a_rollout_in_knative(cluster: FakeCluster) -> None:
    world = KnativeWorld(cluster)
    provider = world.provider()
    world.introduced(provider, percent=50.0)
    with pytest.raises(ServingError, match="takes no part in the rollout"):
        provider.apply(Split(C), fence=1)


def test_a_revision_that_fails_is_said_by_knative(cluster: FakeCluster) -> None:
    world = KnativeWorld(cluster)
    provider = world.provider()
    provider.apply(Split(A), fence=1)
    provider.apply(Split(A, B, 0.0), fence=1)
    cluster.forget("pods", f"pod-{B[:12]}")  # scaled to zero
    revision = cluster.objects["revisions", world.made[-1]["name"]]
    revision["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "reason": "ExitCode1", "message": "Container failed"}
    ]
    live = provider.live()
    assert (live.candidate_ready, live.failed) == (False, True)
    assert "ExitCode1 Container failed" in live.reason


def test_weights_of_a_group_are_proportions_of_a_fixed_one() -> None:
    for percent in (0.0, 0.01, 1.0, 12.5, 50.0, 98.9):
        weight = weight_of(percent)
        assert 100 * weight / (weight + WHOLE) == pytest.approx(percent, abs=0.006)
    assert weight_of(100.0) == weight_of(99.0) < 1_000_000


def test_a_promotion_in_a_group_never_leaves_it_without_weight(cluster: FakeCluster) -> None:
    world = LLMWorld(cluster)
    provider = world.provider()
    world.introduced(provider, percent=1.0)
    start = len(cluster.history)
    provider.apply(Split(B), fence=1)
    seen = [
        tuple(state[world.resource, name]["spec"]["router"]["route"]["weight"] for name in world.names)
        for state in cluster.history[start:]
    ]
    assert list(dict.fromkeys(seen)) == [(WHOLE, weight_of(1.0)), (WHOLE, WHOLE), (0, WHOLE)]


def test_the_release_before_is_back_at_once_in_a_group(cluster: FakeCluster) -> None:
    world = LLMWorld(cluster)
    provider = world.provider()
    world.introduced(provider, percent=50.0)
    provider.apply(Split(B), fence=1)
    models = [item["spec"]["model"]["uri"] for item in world.objects().values()]
    provider.apply(Split(A), fence=2)
    assert [item["spec"]["model"]["uri"] for item in world.objects().values()] == models
    assert world.shares() == {A: 100.0, B: 0.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda item: item["spec"]["router"]["route"].pop("group"), "is in no group"),
        (lambda item: item["spec"]["router"]["route"].update(group="other"), r"differ in spec\.router\.route\.group"),
        (lambda item: item["spec"]["model"].update(name="other"), r"differ in spec\.model\.name"),
        (lambda item: item["spec"]["router"].update(ingress={}), "has an ingress"),
    ],
)
def test_services_that_kserve_would_not_split_between_are_refused(
    cluster: FakeCluster, change: Any, words: str
) -> None:
    world = LLMWorld(cluster)
    _edit(world, change, "assistant-b")
    with pytest.raises(ConfigError, match=words):
        world.provider().check((1.0, 50.0), mirror=False)


def test_a_group_has_a_largest_share(cluster: FakeCluster) -> None:
    world = LLMWorld(cluster)
    world.provider().check((0.01, 99.0), mirror=False)
    with pytest.raises(ConfigError, match="at most 99%"):
        world.provider().check((99.5,), mirror=False)


def test_conditions_of_a_service_say_why_it_is_not_ready(cluster: FakeCluster) -> None:
    world = LLMWorld(cluster)
    provider = world.provider()
    world.introduced(provider)
    cases: list[tuple[list[Object], str, bool]] = [
        ([{"type": "PresetsCombined", "status": "False", "reason": "ConfigNotFound"}], "ConfigNotFound", True),
        ([{"type": "RouterReady", "status": "False", "reason": "GatewaysNotReady"}], "GatewaysNotReady", False),
        ([{"type": "Ready", "status": "Unknown"}], "no reason given", False),
        ([], "does not say that it is ready", False),
        (
            [
                {"type": "Ready", "status": "True"},
                {"type": "GroupDegraded", "status": "True", "reason": "MemberDivergence"},
            ],
            "does not share traffic with its group (MemberDivergence)",
            True,
        ),
    ]
    for conditions, words, failed in cases:
        cluster.status(world.resource, "assistant-b", conditions=conditions)
        live = provider.live()
        assert (words in live.reason, live.candidate_ready, live.failed) == (True, False, failed)


def test_traffic_of_another_release_in_the_second_service_is_not_taken_over(cluster: FakeCluster) -> None:
    world = LLMWorld(cluster)
    _edit(world, lambda item: item["spec"]["router"]["route"].update(weight=1), "assistant-b")
    provider = world.provider()
    with pytest.raises(ServingError, match="has traffic for another release"):
        provider.apply(Split(A, B, 0.0), fence=1)
    provider.apply(Split(A), fence=1)
    provider.apply(Split(A, B, 0.0), fence=1)
    assert world.shares() == {A: 100.0, B: 0.0}


def test_a_route_splits_all_its_rules_in_hundredths_of_a_percent(cluster: FakeCluster) -> None:
    world = RouteWorld(cluster)
    provider = world.provider()
    world.introduced(provider, percent=0.25)
    for rule in world.objects()["assistant"]["spec"]["rules"]:
        assert [(ref["name"], ref["weight"]) for ref in rule["backendRefs"]] == [
            (f"serin-{A[:12]}", 9_975),
            (f"serin-{B[:12]}", 25),
        ]
    annotations = world.objects()["assistant"]["metadata"]["annotations"]
    assert annotations == {"serin.dev/champion": A, "serin.dev/candidate": B}
    provider.apply(Split(A), fence=1)
    assert world.objects()["assistant"]["metadata"]["annotations"] == {"serin.dev/champion": A}


def test_a_route_mirrors_while_the_candidate_has_no_share(cluster: FakeCluster) -> None:
    world = RouteWorld(cluster)
    headers = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x", "value": "1"}]}}
    _edit(world, lambda item: item["spec"]["rules"][0].update(filters=[headers]))
    provider = world.provider()
    provider.check((1.0,), mirror=True)
    provider.apply(Split(A, B, 0.0, mirror_percent=12.5), fence=1)
    first, second = world.objects()["assistant"]["spec"]["rules"]
    mirror = second["filters"][0]["requestMirror"]
    assert mirror["backendRef"]["name"] == f"serin-{B[:12]}"
    assert mirror["fraction"] == {"numerator": 1_250, "denominator": 10_000}
    assert [one["type"] for one in first["filters"]] == ["RequestHeaderModifier", "RequestMirror"]
    world.comes_up(B)
    with pytest.raises(ConfigError, match="mirror only while"):
        provider.apply(Split(A, B, 5.0, mirror_percent=12.5), fence=1)
    provider.apply(Split(A, B, 5.0), fence=1)
    first, second = world.objects()["assistant"]["spec"]["rules"]
    assert first["filters"] == [headers]
    assert "filters" not in second


def test_a_route_is_sticky_only_where_its_rules_say_so(cluster: FakeCluster) -> None:
    world = RouteWorld(cluster)
    assert not world.provider().sticky
    assert world.provider(sticky=True).sticky
    with pytest.raises(ConfigError, match="rules without sessionPersistence"):
        world.provider(sticky=True).check((1.0,), mirror=False)

    def persist(item: Object) -> None:
        for rule in item["spec"]["rules"]:
            rule["sessionPersistence"] = {"type": "Cookie"}

    _edit(world, persist)
    world.provider(sticky=True).check((1.0,), mirror=False)


def test_a_route_without_services_to_split_is_refused(cluster: FakeCluster) -> None:
    world = RouteWorld(cluster)
    _edit(world, lambda item: item["spec"]["rules"][1]["backendRefs"][0].update(kind="InferencePool"))
    with pytest.raises(ConfigError, match="sends to old, which is no Service"):
        world.provider().check((1.0,), mirror=False)
    _edit(world, lambda item: item["spec"].update(rules=[{"filters": []}]))
    with pytest.raises(ConfigError, match="no rule with a backend"):
        world.provider().check((1.0,), mirror=False)


def test_a_route_waits_for_the_service_of_a_release_and_for_its_gateways(cluster: FakeCluster) -> None:
    world = RouteWorld(cluster)
    provider = world.provider()
    world.introduced(provider)
    cluster.forget("services", f"serin-{B[:12]}")
    assert "There is no Service" in provider.live().reason
    cluster.put("services", {"metadata": {"name": f"serin-{B[:12]}"}, "spec": {"selector": {"app": B[:12]}}})
    cases = [
        ([], "No Gateway has taken"),
        ([{"type": "Accepted", "status": "True", "observedGeneration": 1}], "has not seen the route's last change"),
        ([{"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound"}], "BackendNotFound"),
    ]
    for conditions, words in cases:
        cluster.status("httproutes", "assistant", parents=[{"conditions": conditions}] if conditions else [])
        live = provider.live()
        assert words in live.reason
        assert not live.candidate_ready


def test_pods_without_a_node_and_pods_that_go_are_told_apart(cluster: FakeCluster) -> None:
    world = RouteWorld(cluster)
    provider = world.provider()
    world.introduced(provider)
    pod = cluster.objects["pods", f"pod-{B[:12]}"]
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes have a GPU"}]
    assert "waits for a node (0/3 nodes have a GPU)" in provider.live().reason
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert provider.live().reason == "It has no pods yet."


def test_a_template_names_only_what_a_release_has() -> None:
    release = RELEASES[A]
    assert filled({"a": ["{short_id}:{index_digest}"], "b": 3}, release) == {"a": [f"{A[:12]}:index-A"], "b": 3}
    with pytest.raises(ConfigError, match=r"'{model}' is no value of a release"):
        filled("{model}", release)


@pytest.mark.parametrize(
    ("build", "kind", "names", "world"),
    [
        ("prod + kserve/vllm-canary", "InferenceService", ["assistant"], CanaryWorld),
        ("prod + kserve/llm-pair", "LLMInferenceService", ["assistant", "assistant-next"], LLMWorld),
        ("prod", "HTTPRoute", ["gateway"], RouteWorld),
    ],
)
def test_the_projects_own_manifests_can_be_split(
    build: str, kind: str, names: list[str], world: Any, cluster: FakeCluster, tmp_path: Path
) -> None:
    if building.build_command() is None:
        pytest.skip("needs kubectl (1.27 or later) or kustomize (5 or later) to build the manifests")
    names = {"HTTPRoute": ("gateway",), "LLMInferenceService": ("assistant", "assistant-next")}.get(
        kind, ("assistant",)
    )
    made = building.build(build, tmp_path)
    target = world(cluster)
    for name in names:
        item = building.one(made, kind, name)
        metadata = {key: value for key, value in item["metadata"].items() if key != "namespace"}
        cluster.put(target.resource, {**item, "metadata": metadata})
    cluster.controllers = lambda _: None
    provider = target.provider(fields={}, **({"services": names} if len(names) > 1 else {"name": names[0]}))
    provider.check((1.0, 50.0), mirror=False)
    provider.apply(Split(A), fence=1)
    provider.apply(Split(A, B, 0.0), fence=1)
    assert provider.live().split == Split(A, B, 0.0)
    assert cluster.schema_failures == 0
