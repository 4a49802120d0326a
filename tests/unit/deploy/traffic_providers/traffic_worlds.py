"""A cluster for each kind of target: its objects, controllers that do what real ones do, and who gets which share."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fake_cluster import FakeCluster, Object

from serin.core.kubernetes import Clock, KubernetesApi
from serin.core.prompts import Prompt
from serin.core.release import Part, Release
from serin.deploy.traffic_providers.base import Split
from serin.deploy.traffic_providers.cluster import ClusterProvider
from serin.deploy.traffic_providers.config import TrafficConfig
from serin.deploy.traffic_providers.from_config import CLUSTER_PROVIDERS
from serin.deploy.traffic_providers.releases import RELEASE_LABEL

Shares = dict[str, float]


def _release(name: str) -> Release:
    def part(kind: str) -> Part:
        return Part(kind=kind, digest=f"{kind}-{name}", uri=f"s3://store/{kind}/{name}")

    return Release(
        model=part("model"),
        index=part("index"),
        data=part("data"),
        prompt=Prompt(),
        guardrails={"rails": [name]},
        serving={},
        code_version=name,
    )


RELEASES = {made.id: made for made in map(_release, "ABC")}
A, B, C = RELEASES
MODE = "serving.kserve.io/deploymentMode"


@dataclass
class Ticking:
    """A clock that passes at once, and something that happens after so many pauses."""

    after: int = 0
    happens: Callable[[], None] = lambda: None
    seconds: float = 0.0
    pauses: int = 0

    def clock(self) -> Clock:
        return Clock(now=lambda: self.seconds, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.pauses += 1
        if self.pauses == self.after:
            self.happens()


@dataclass
class World:
    """A target with release A in all of its traffic."""

    cluster: FakeCluster
    ready: set[str] = field(default_factory=lambda: {A})
    """Releases whose pods are up."""
    kind: ClassVar[str] = ""
    resource: ClassVar[str] = ""
    names: ClassVar[tuple[str, ...]] = ("assistant",)
    step: ClassVar[float] = 25.0
    """A share that the target can have."""
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.create()
        self.cluster.controllers = lambda cluster: self.reconcile()
        self.reconcile()

    def config(self, **more: Any) -> TrafficConfig:
        return TrafficConfig.load({"kind": self.kind, "name": "assistant", **self.settings, **more})

    def provider(
        self, *, api: type[KubernetesApi] = KubernetesApi, clock: Clock | None = None, **more: Any
    ) -> ClusterProvider:
        """A provider that knows nothing of those before it."""
        make = CLUSTER_PROVIDERS[self.kind]
        return make(self.config(**more), self.cluster.api(api), RELEASES.__getitem__, clock=clock or Ticking().clock())

    def objects(self) -> dict[str, Object]:
        return {name: self.cluster.objects[self.resource, name] for name in self.names}

    def create(self) -> None:
        raise NotImplementedError

    def reconcile(self) -> None:
        raise NotImplementedError

    def shares_of(self, state: dict[tuple[str, str], Object]) -> Shares:
        """Who got which share of the traffic in one state of the cluster; percent."""
        raise NotImplementedError

    def require_whole_releases(self, state: dict[tuple[str, str], Object]) -> None:
        """No state has a Deployment, revision or service that runs another release than it is named for."""

    def edit_share(self) -> str:
        """Somebody moves traffic by hand; returns the field."""
        raise NotImplementedError

    def edit_spec(self) -> str:
        """Somebody changes something else of the objects; returns the field."""
        raise NotImplementedError

    def shares(self) -> Shares:
        return self.shares_of(self.cluster.objects)

    def comes_up(self, release_id: str) -> None:
        """The pods of a release become ready."""
        self.ready.add(release_id)
        self.reconcile()

    def pod(self, release_id: str, labels: dict[str, str], problem: Object | None = None, restarts: int = 0) -> None:
        """A pod of a release, ready when the release is up, or with a problem."""
        up = release_id in self.ready and problem is None
        status: Object = {
            "conditions": [{"type": "Ready", "status": "True" if up else "False"}],
            "containerStatuses": [
                {"name": "main", "ready": up, "restartCount": restarts, **({"state": problem} if problem else {})}
            ],
        }
        name = f"pod-{release_id[:12]}"
        self.cluster.objects["pods", name] = {"metadata": {"name": name, "labels": labels}, "status": status}

    def pod_labels(self, release_id: str) -> dict[str, str]:
        return {RELEASE_LABEL: release_id[:12]}

    def breaks(self, release_id: str, reason: str, restarts: int) -> None:
        """A release's pod waits for a reason."""
        self.pod(release_id, self.pod_labels(release_id), {"waiting": {"reason": reason, "message": "x"}}, restarts)

    def introduced(self, provider: ClusterProvider, percent: float = 0.0, fence: int = 1) -> Split:
        """A and B, B up; returns the split."""
        provider.apply(Split(A), fence=fence)
        split = Split(A, B, 0.0, salt="r1")
        provider.apply(split, fence=fence)
        self.comes_up(B)
        if percent:
            split = Split(A, B, percent, salt="r1")
            provider.apply(split, fence=fence)
        return split


def full(short_id: str) -> str:
    """A release id by its label; what has none runs A."""
    return next((release for release in RELEASES if short_id and release.startswith(short_id)), A)


def _isvc(mode: str) -> Object:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "assistant", "annotations": {MODE: mode}, "labels": {"team": "support"}},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "labels": {"app.kubernetes.io/part-of": "serin"},
                "model": {
                    "modelFormat": {"name": "vllm"},
                    "runtime": "serin-vllm",
                    "storageUri": "s3://store/model/A",
                    "args": ["--served-model-name=assistant", "--release=old"],
                },
            }
        },
    }


ISVC_FIELDS = {
    "model": {"storageUri": "{model_uri}", "args": ["--served-model-name=assistant", "--release={short_id}"]},
    "annotations": {"serin.dev/index": "{index_uri}"},
}


def _service_of(predictor: Object) -> str:
    return f"assistant-{predictor['name']}-predictor" if "name" in predictor else "assistant-predictor"


class CanaryWorld(World):
    """KServe in Standard mode, as 0.20.0 does it: traffic goes to canaries whether they are ready or not."""

    kind, resource = "kserve_canary", "inferenceservices"
    follows: ClassVar[bool] = True
    """Whether KServe writes its route."""

    def create(self) -> None:
        self.settings = {"fields": ISVC_FIELDS}
        self.cluster.put(self.resource, _isvc("Standard"))
        self.cluster.put("httproutes", {"metadata": {"name": "assistant"}, "spec": {"rules": []}})
        self.dangling: list[str] = []

    def reconcile(self) -> None:
        item = self.objects()["assistant"]
        canaries = item["spec"].get("canary", [])
        running = [item["spec"]["predictor"], *(one["predictor"] for one in canaries)]
        self._services_then_route([_service_of(predictor) for predictor in running], canaries)
        for predictor in running:
            release = full(predictor["labels"].get(RELEASE_LABEL, ""))
            self.pod(release, dict(predictor["labels"]))
        statuses = [
            {
                "name": one["predictor"]["name"],
                "ready": full(one["predictor"]["labels"][RELEASE_LABEL]) in self.ready,
                "trafficPercent": one["trafficPercent"],
            }
            for one in canaries
        ]
        conditions = [{"type": "CanaryPredictorReady", "status": "False", "reason": "CanariesNotReady"}]
        self.cluster.status(self.resource, "assistant", canaryStatuses=statuses, conditions=conditions)

    def require_whole_releases(self, state: dict[tuple[str, str], Object]) -> None:
        spec = state[self.resource, "assistant"]["spec"]
        for predictor in (spec["predictor"], *(one["predictor"] for one in spec.get("canary", []))):
            release = full(predictor["labels"].get(RELEASE_LABEL, ""))
            assert predictor.get("name", f"r{A[:12]}") == f"r{release[:12]}"
            assert release in (A, full(predictor["model"]["args"][-1].removeprefix("--release=")))

    def _services_then_route(self, services: list[str], canaries: list[Object]) -> None:
        """Services that are no longer named go first; then the route is written anew."""
        if not self.follows:
            return
        route = self.cluster.objects["httproutes", "assistant"]
        refs = [ref for rule in route["spec"]["rules"] for ref in rule["backendRefs"] if ref["weight"]]
        self.dangling += [ref["name"] for ref in refs if ref["name"] not in services]
        shares = [one["trafficPercent"] for one in canaries]
        weights = [100 - sum(shares), *shares]
        backends = [{"name": name, "weight": weight} for name, weight in zip(services, weights, strict=True)]
        self.cluster.put("httproutes", {**route, "spec": {"rules": [{"backendRefs": backends}]}})

    def shares_of(self, state: dict[tuple[str, str], Object]) -> Shares:
        spec = state[self.resource, "assistant"]["spec"]
        canaries = spec.get("canary", [])
        assert len(canaries) < 2
        stable = full(spec["predictor"]["labels"].get(RELEASE_LABEL, ""))
        shares = {stable: 100.0 - sum(one["trafficPercent"] for one in canaries)}
        for one in canaries:
            shares[full(one["predictor"]["labels"][RELEASE_LABEL])] = float(one["trafficPercent"])
        return shares

    def edit_share(self) -> str:
        self.cluster.edit(self.resource, "assistant", lambda item: item["spec"]["canary"][0].update(trafficPercent=60))
        return "assistant.spec.canary[0].trafficPercent".replace(".spec", "")

    def edit_spec(self) -> str:
        def change(item: Object) -> None:
            item["spec"]["predictor"]["model"]["runtime"] = "another"

        self.cluster.edit(self.resource, "assistant", change)
        return "assistant.predictor.model.runtime"


class KnativeWorld(World):
    """KServe in Knative mode: revisions, the last one with all traffic, the last one that became ready."""

    kind, resource = "kserve_knative", "inferenceservices"

    def create(self) -> None:
        self.settings = {"fields": ISVC_FIELDS}
        self.made: list[Object] = []
        self.rolled_out = ""
        self.cluster.put(self.resource, _isvc("Knative"))

    def reconcile(self) -> None:
        predictor = dict(self.objects()["assistant"]["spec"]["predictor"])
        percent = predictor.pop("canaryTrafficPercent", None)
        if not self.made or self.made[-1]["template"] != predictor:
            name = f"assistant-predictor-{len(self.made) + 1:05d}"
            self.made.append({"name": name, "template": predictor})
        for index, one in enumerate(self.made):
            self._revision(index, one)
        ready = [one for one in self.made if self._release(one) in self.ready]
        latest_ready = ready[-1]["name"] if ready else ""
        if percent is None or not self.rolled_out:
            self.rolled_out = latest_ready
        status = {
            "latestCreatedRevision": self.made[-1]["name"],
            "latestReadyRevision": latest_ready,
            "latestRolledoutRevision": self.rolled_out,
        }
        self.cluster.status(self.resource, "assistant", components={"predictor": status})

    def _release(self, revision: Object) -> str:
        return full(revision["template"]["labels"].get(RELEASE_LABEL, ""))

    def _revision(self, index: int, one: Object) -> None:
        up = self._release(one) in self.ready
        self.pod(self._release(one), dict(one["template"]["labels"]))
        self.cluster.objects["revisions", one["name"]] = {
            "metadata": {
                "name": one["name"],
                "labels": one["template"]["labels"],
                "creationTimestamp": f"2026-01-01T00:00:{index:02d}Z",
            },
            "status": {"conditions": [{"type": "Ready", "status": "True" if up else "Unknown", "reason": "Deploying"}]},
        }

    def shares_of(self, state: dict[tuple[str, str], Object]) -> Shares:
        item = state[self.resource, "assistant"]
        status = item.get("status", {}).get("components", {}).get("predictor", {})
        by_name = {one["name"]: self._release(one) for one in self.made}
        percent = item["spec"]["predictor"].get("canaryTrafficPercent")
        latest, rolled_out = by_name[status["latestReadyRevision"]], status["latestRolledoutRevision"]
        if percent is None or not rolled_out:
            return {latest: 100.0}
        shares = {by_name[rolled_out]: 0.0, latest: 0.0}
        shares[latest] += percent
        shares[by_name[rolled_out]] += 100.0 - percent
        return shares

    def edit_share(self) -> str:
        def change(item: Object) -> None:
            item["spec"]["predictor"]["canaryTrafficPercent"] = 60

        self.cluster.edit(self.resource, "assistant", change)
        return "assistant.predictor.canaryTrafficPercent"

    def edit_spec(self) -> str:
        def change(item: Object) -> None:
            item["spec"]["predictor"]["model"]["args"].append("--enforce-eager")

        self.cluster.edit(self.resource, "assistant", change)
        return "assistant.predictor.model.args"


class LLMWorld(World):
    """Two LLMInferenceServices of a group."""

    kind, resource, names = "llm_service", "llminferenceservices", ("assistant-a", "assistant-b")
    step = 12.5

    def create(self) -> None:
        fields = {"model": {"uri": "{model_uri}"}, "annotations": {"serin.dev/index": "{index_uri}"}}
        self.settings = {"fields": fields, "services": list(self.names), "name": ""}
        for name, weight in zip(self.names, (9, 0), strict=True):
            item = {
                "apiVersion": "serving.kserve.io/v1alpha2",
                "kind": "LLMInferenceService",
                "metadata": {"name": name},
                "spec": {
                    "model": {"name": "assistant", "uri": "s3://store/model/A"},
                    "replicas": 1,
                    "router": {"route": {"group": "assistant", "weight": weight}, "scheduler": {}},
                },
            }
            self.cluster.put(self.resource, item)

    def reconcile(self) -> None:
        for name, item in self.objects().items():
            release = full(item["spec"].get("labels", {}).get(RELEASE_LABEL, ""))
            self.pod(release, dict(item["spec"].get("labels", {})))
            conditions = [{"type": "Ready", "status": "True" if release in self.ready else "False", "reason": "NotYet"}]
            generation = item["metadata"]["generation"]
            self.cluster.status(self.resource, name, conditions=conditions, observedGeneration=generation)

    def shares_of(self, state: dict[tuple[str, str], Object]) -> Shares:
        specs = [state[self.resource, name]["spec"] for name in self.names]
        weights = [spec["router"]["route"]["weight"] for spec in specs]
        shares: Shares = {}
        for spec, weight in zip(specs, weights, strict=True):
            release = full(spec.get("labels", {}).get(RELEASE_LABEL, ""))
            shares[release] = shares.get(release, 0.0) + 100.0 * weight / sum(weights)
        return shares

    def edit_share(self) -> str:
        def change(item: Object) -> None:
            item["spec"]["router"]["route"]["weight"] = 7

        self.cluster.edit(self.resource, "assistant-b", change)
        return "assistant-b.router.route.weight"

    def edit_spec(self) -> str:
        self.cluster.edit(self.resource, "assistant-a", lambda item: item["spec"].update(replicas=3))
        return "assistant-a.replicas"


class RouteWorld(World):
    """An HTTPRoute before one Service a release."""

    kind, resource = "httproute", "httproutes"
    step = 0.5

    def create(self) -> None:
        self.settings = {}
        for release in RELEASES:
            name, selector = f"serin-{release[:12]}", {"app": release[:12]}
            self.cluster.put("services", {"metadata": {"name": name}, "spec": {"selector": selector}})
        rules = [
            {"matches": [{"path": {"type": "PathPrefix", "value": path}}], "backendRefs": [{"name": "old", "port": 80}]}
            for path in ("/v1", "/v2")
        ]
        item = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "assistant"},
            "spec": {"hostnames": ["assistant.example"], "rules": rules},
        }
        self.cluster.put(self.resource, copy.deepcopy(item))

    def reconcile(self) -> None:
        item = self.objects()["assistant"]
        for release in RELEASES:
            self.pod(release, self.pod_labels(release))
        seen = {"type": "Accepted", "status": "True", "observedGeneration": item["metadata"]["generation"]}
        self.cluster.status(self.resource, "assistant", parents=[{"conditions": [seen]}])

    def pod_labels(self, release_id: str) -> dict[str, str]:
        return {"app": release_id[:12]}

    def shares_of(self, state: dict[tuple[str, str], Object]) -> Shares:
        each = [self._shares_of_rule(rule) for rule in state[self.resource, "assistant"]["spec"]["rules"]]
        assert all(shares == each[0] for shares in each)
        return each[0]

    def _shares_of_rule(self, rule: Object) -> Shares:
        total = sum(ref.get("weight", 1) for ref in rule["backendRefs"])
        assert total in (1, 10_000)
        return {
            full(ref["name"].removeprefix("serin-")): 100.0 * ref.get("weight", 1) / total
            for ref in rule["backendRefs"]
        }

    def edit_share(self) -> str:
        def change(item: Object) -> None:
            item["spec"]["rules"][1]["backendRefs"][1]["weight"] = 5_000

        self.cluster.edit(self.resource, "assistant", change)
        return "assistant.rules[1].backendRefs[1].weight"

    def edit_spec(self) -> str:
        self.cluster.edit(self.resource, "assistant", lambda item: item["spec"].update(hostnames=["other.example"]))
        return "assistant.hostnames[0]"


WORLDS = (CanaryWorld, KnativeWorld, LLMWorld, RouteWorld)
