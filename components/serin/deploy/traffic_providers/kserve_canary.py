"""KServe's ``spec.canary``, in Standard mode from 0.20 on: a second Deployment, and weights in KServe's HTTPRoute.

What KServe does with it (kserve/kserve, pkg/controller/v1beta1/inferenceservice/components/predictor.go, and pull
request 5672): a canary's predictor is the stable one with the canary's fields laid over it; its Deployment and Service
are named ``{service}-{name}-predictor``; a promotion that gives the stable predictor the canary's name restarts no pod;
the canaries' replicas are subtracted from the stable predictor's ``minReplicas``.  KServe 0.20.0 sends traffic to
canaries that are not ready (issue 5983): the first split of a rollout has to have a share of 0.

It deletes the Deployments and Services that are no longer named before it writes its HTTPRoute anew.  So a promotion
first gives the candidate all traffic, the way back first takes all from it, and only once the route says so is the
other one left out.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serin.core.errors import ConfigError, ServingError
from serin.core.gateway_client import NotReadyError
from serin.core.kubernetes import NOT_FOUND, RefusedError
from serin.deploy.traffic_providers.base import Split
from serin.deploy.traffic_providers.cluster import (
    Object,
    Readiness,
    Step,
    condition,
    edited,
    require_whole,
    unseen,
)
from serin.deploy.traffic_providers.kserve import STANDARD, InferenceServiceProvider
from serin.deploy.traffic_providers.ledger import require_taken
from serin.deploy.traffic_providers.pods import judged, pods_of
from serin.deploy.traffic_providers.releases import RELEASE_LABEL, filled, short

AUTOSCALING = ("scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling")
VISIBILITY = "networking.kserve.io/visibility"
FAILED_LOADS = ("BlockedByFailedLoad", "InvalidSpec")
CONTAINER = "kserve-container"
ROUTE_S, ROUTE_POLL_S = 60.0, 0.25
"""KServe has so long to follow with its route; and how often that is looked at."""


class KServeCanary(InferenceServiceProvider):
    """Splits an InferenceService's traffic between its predictor and one canary."""

    modes = STANDARD
    other_kind = "kserve_knative"

    def apply(self, split: Split, *, fence: int) -> None:
        """See TrafficProvider."""
        require_whole(split, self.resolution_percent, self.kind)
        leaving = self._patiently(lambda: self._leaving(split))
        if leaving is not None:
            before, canary = leaving
            promoted = split.champion == before.candidate
            super().apply(replace(before, percent=100.0 if promoted else 0.0), fence=fence)
            self._wait_for_route(canary, all_of_it=promoted)
        super().apply(split, fence=fence)

    def _leaving(self, split: Split) -> tuple[Split, str] | None:
        """The split of now and its canary's name, when one of its two releases is to be left out and is still there."""
        before, objects = self.ledger.read().split, self.read()
        canary = _canary_name(objects[self.name]["spec"])
        if split.candidate or before is None or not before.candidate or not canary:
            return None
        if split.champion == before.candidate:
            self.require_ready(objects, before, "be promoted")
        return (before, canary) if split.champion in (before.champion, before.candidate) else None

    def wanted(self, objects: Mapping[str, Object], split: Split, before: Split | None) -> list[Step]:
        """See ClusterProvider."""
        spec = copy.deepcopy(objects[self.name]["spec"])
        replicas = self.config.replicas or _replicas(spec)
        candidates = self.config.candidate_replicas or replicas
        canary_name = _canary_name(spec)
        spec.pop("canary", None)
        if split.candidate and spec["predictor"].get("labels", {}).get(RELEASE_LABEL) == short(split.candidate):
            raise ServingError(
                f"Release {short(split.candidate)} is InferenceService {self.name}'s own already, by a promotion that "
                "was begun: end that, or have the champion served alone first."
            )
        promoted = before is not None and before.candidate == split.champion
        predictor = self.predictor_of(spec["predictor"], split.champion)
        # The canary's are subtracted again by KServe.
        predictor["minReplicas"] = replicas + (candidates if split.candidate else 0)
        if "maxReplicas" in predictor:
            predictor["maxReplicas"] = predictor["minReplicas"]
        spec["predictor"] = {**predictor, "name": canary_name} if promoted and canary_name else predictor
        if split.candidate:
            canary = self._canary(predictor, split.candidate, candidates)
            spec["canary"] = [{"trafficPercent": round(split.percent), "predictor": canary}]
        return [(self.name, edited(objects[self.name], spec))]

    def readiness(self, objects: Mapping[str, Object], split: Split) -> Readiness:
        """See ClusterProvider."""
        assert split.candidate
        item, name = objects[self.name], _canary_name(objects[self.name]["spec"])
        pods = judged(pods_of(self.api, self.namespace, **{RELEASE_LABEL: short(split.candidate)}))
        status = next((one for one in item.get("status", {}).get("canaryStatuses", []) if one["name"] == name), None)
        model = (status or {}).get("modelStatus", {})
        if model.get("transitionStatus") in FAILED_LOADS:
            why = model.get("lastFailureInfo", {})
            reason = f"The model does not load: {why.get('message') or why.get('reason', 'no reason given')}."
            return Readiness(False, reason, True, pods.restarts)
        if pods.failed:
            return pods
        if status is None or unseen(item):
            return Readiness(False, "KServe has not made the canary yet.", False, pods.restarts)
        if not status["ready"]:
            reason = condition(item, "CanaryPredictorReady").get("reason") or "no pod of it is available"
            return Readiness(False, pods.reason or f"The canary is not ready ({reason}).", False, pods.restarts)
        return pods

    def require_usable(self, objects: Mapping[str, Object]) -> None:
        """See ClusterProvider."""
        super().require_usable(objects)
        item, spec = objects[self.name], objects[self.name]["spec"]
        where = f"InferenceService {self.name}"
        for component in ("transformer", "explainer"):
            if component in spec:
                raise ConfigError(
                    f"{where} has a {component}, which a canary would not change with its predictor: split the traffic "
                    "before it, with kind httproute."
                )
        predictor = spec["predictor"]
        scaled = [name for name in AUTOSCALING if name in predictor]
        if predictor.get("maxReplicas", 0) not in (0, predictor.get("minReplicas", 1)):
            scaled.append("maxReplicas")
        if scaled:
            raise ConfigError(
                f"{where} scales by itself ({', '.join(scaled)}), and a canary's replicas are fixed: leave that out of "
                "its predictor, and set 'replicas' in 'traffic'."
            )
        if item["metadata"].get("labels", {}).get(VISIBILITY) == "cluster-local":
            raise ConfigError(
                f"{where} is cluster-local, so KServe makes no HTTPRoute that could split: remove the label "
                f"{VISIBILITY}, and have KServe use an internal Gateway."
            )
        self._require_route()
        self._require_canaries(item)

    def _wait_for_route(self, canary: str, *, all_of_it: bool) -> None:
        """Wait until KServe's HTTPRoute gives a canary all traffic, or none; NotReadyError when it does not in time."""
        until = self._clock.now() + ROUTE_S
        while True:
            shares = _shares(self._patiently(lambda: self.api.get(self._route)), f"{self.name}-{canary}-predictor")
            if shares == {1.0 if all_of_it else 0.0}:
                return
            if self._clock.now() > until:
                raise NotReadyError(
                    f"KServe has not moved the traffic in its HTTPRoute {self.name} for {ROUTE_S:g} s: look at its "
                    "controller's log."
                )
            self._clock.sleep(ROUTE_POLL_S)

    @property
    def _route(self) -> str:
        return f"/apis/gateway.networking.k8s.io/v1/namespaces/{self.namespace}/httproutes/{self.name}"

    def _require_route(self) -> None:
        try:
            self.api.get(self._route)
        except RefusedError as error:
            if error.status != NOT_FOUND:
                raise
            raise ConfigError(
                f"KServe has made no HTTPRoute {self.name}, and canaries are split in one: set enableGatewayApi in "
                "KServe's ingress settings, or use kind gateway."
            ) from error

    def _require_canaries(self, item: Object) -> None:
        """Ask the API server, without writing: it drops fields that it does not know without a word."""
        spec = copy.deepcopy(item["spec"])
        probe = self._named(spec["predictor"], {"name": "probe", "minReplicas": 1})
        spec["canary"] = [*spec.get("canary", []), {"trafficPercent": 0, "predictor": probe}]
        sent = edited(item, spec)
        sent.pop("status", None)
        try:
            require_taken(self.api.put(self.paths()[self.name], sent, dryRun="All")["spec"], spec, f"{self.name}.spec")
        except ServingError as error:
            raise ConfigError(
                "This cluster's InferenceServices have no 'canary': KServe 0.20 or later is needed; use kind httproute "
                "or gateway until then."
            ) from error

    def _canary(self, stable: Mapping[str, Any], release_id: str, replicas: int) -> Object:
        fields = filled(self.config.release_fields, self.release_of(release_id))
        # The stable predictor's name stays where its release was replaced in place, and may be this one's.
        name = f"r{short(release_id)}" + ("x" if stable.get("name") == f"r{short(release_id)}" else "")
        labels = {"labels": {**fields.get("labels", {}), RELEASE_LABEL: short(release_id)}}
        return self._named(stable, {**fields, **labels, "name": name, "minReplicas": replicas})

    def _named(self, stable: Mapping[str, Any], canary: Object) -> Object:
        """A canary's definition asks for two fields of a model that it would otherwise take from the stable one."""
        if "model" not in stable:
            return canary
        model = {"name": CONTAINER, "modelFormat": stable["model"]["modelFormat"], **canary.get("model", {})}
        return {**canary, "model": model}


def _canary_name(spec: Mapping[str, Any]) -> str:
    """The name of what is there as a canary; empty where nothing is."""
    canaries = spec.get("canary", [])
    return str(canaries[0]["predictor"].get("name", "")) if canaries else ""


def _replicas(spec: Mapping[str, Any]) -> int:
    """The champion's own, of what is there."""
    canaries = sum(one["predictor"].get("minReplicas", 0) for one in spec.get("canary", []))
    return max(1, int(spec["predictor"].get("minReplicas", 1)) - canaries)


def _shares(route: Mapping[str, Any], service: str) -> set[float]:
    """The shares that the rules of a route give to a Service."""
    shares = set()
    for rule in route["spec"].get("rules", []):
        weights = [(ref["name"], ref.get("weight", 1)) for ref in rule.get("backendRefs", [])]
        if whole := sum(weight for _, weight in weights):
            shares.add(sum(weight for name, weight in weights if name == service) / whole)
    return shares
