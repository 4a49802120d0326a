"""A Gateway API HTTPRoute: weights of two Services, one a release.

What the API says (kubernetes-sigs/gateway-api, HTTPRoute's definition): a backend's share is its weight over the sum
of a rule's weights, "some epsilon" aside; a weight is an integer up to 1,000,000; each request is dealt by itself
unless the rule has ``sessionPersistence`` (GEP-1619, experimental channel); ``requestMirror`` sends a copy of a share
of a rule's requests and drops the answers (extended support).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from serin.core.errors import ConfigError
from serin.core.kubernetes import NOT_FOUND, RefusedError
from serin.deploy.traffic_providers.base import Split
from serin.deploy.traffic_providers.cluster import ClusterProvider, Object, Readiness, Step, edited
from serin.deploy.traffic_providers.pods import judged, pods_of
from serin.deploy.traffic_providers.releases import filled, short

WHOLE = 10_000
"""The sum of a rule's weights, so that a share can be a hundredth of a percent."""
MIRROR = "RequestMirror"
RELEASES = ("serin.dev/champion", "serin.dev/candidate")


class HTTPRoute(ClusterProvider):
    """Splits the traffic of all of a route's rules between the Services of two releases."""

    kind = "HTTPRoute"

    @property
    def sticky(self) -> bool:  # type: ignore[override]
        """Whether its rules keep a session with its backend."""
        return self.config.sticky

    def paths(self) -> dict[str, str]:
        """See ClusterProvider."""
        path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{self.namespace}/httproutes/{self.name}"
        return {self.name: path}

    def require_mirroring(self) -> None:
        """A route can mirror."""

    def wanted(self, objects: Mapping[str, Object], split: Split, before: Split | None) -> list[Step]:
        """See ClusterProvider."""
        if split.mirror_percent and split.percent:
            raise ConfigError("A route mirrors all of a rule's requests: mirror only while the candidate's share is 0.")
        spec = copy.deepcopy(objects[self.name]["spec"])
        for rule in _split_rules(spec):
            rule["backendRefs"] = self._backends(split)
            filters = [one for one in rule.get("filters", []) if one["type"] != MIRROR] + self._mirrors(split)
            rule.pop("filters", None)
            rule |= {"filters": filters} if filters else {}
        made = edited(objects[self.name], spec)
        annotations = {k: v for k, v in made["metadata"].get("annotations", {}).items() if k not in RELEASES}
        told = dict(zip(RELEASES, (split.champion, split.candidate), strict=True))
        made["metadata"]["annotations"] = annotations | {key: value for key, value in told.items() if value}
        return [(self.name, made)]

    def readiness(self, objects: Mapping[str, Object], split: Split) -> Readiness:
        """See ClusterProvider."""
        assert split.candidate
        service = self._service_of(split.candidate)
        try:
            found = self.api.get(f"/api/v1/namespaces/{self.namespace}/services/{service}")
        except RefusedError as error:
            if error.status != NOT_FOUND:
                raise
            return Readiness(False, f"There is no Service {service}: deploy the release {short(split.candidate)}.")
        pods = judged(pods_of(self.api, self.namespace, **found["spec"].get("selector", {})))
        return self._accepted(objects[self.name], pods) if pods.ready else pods

    def require_usable(self, objects: Mapping[str, Object]) -> None:
        """See ClusterProvider."""
        rules = _split_rules(objects[self.name]["spec"])
        if not rules:
            raise ConfigError(f"HTTPRoute {self.name} has no rule with a backend: there is nothing to split.")
        backends = [backend for rule in rules for backend in rule["backendRefs"]]
        others = [backend["name"] for backend in backends if backend.get("kind", "Service") != "Service"]
        if others:
            raise ConfigError(f"HTTPRoute {self.name} sends to {others[0]}, which is no Service: use another route.")
        persistent = [rule for rule in rules if "sessionPersistence" in rule]
        if self.config.sticky and len(persistent) != len(rules):
            raise ConfigError(
                f"HTTPRoute {self.name} has rules without sessionPersistence, so sessions would not stay: add it "
                "(experimental channel of the Gateway API), or set sticky to false."
            )

    def _backends(self, split: Split) -> list[Object]:
        weight = round(split.percent * WHOLE / 100)
        shares = [(split.champion, WHOLE - weight), *([(split.candidate, weight)] if split.candidate else [])]
        return [{**self._backend(release_id), "weight": share} for release_id, share in shares]

    def _backend(self, release_id: str) -> Object:
        return {"group": "", "kind": "Service", "name": self._service_of(release_id), "port": self.config.port}

    def _mirrors(self, split: Split) -> list[Object]:
        if not split.candidate or not split.mirror_percent:
            return []
        share = {"numerator": round(split.mirror_percent * WHOLE / 100), "denominator": WHOLE}
        mirror = {"backendRef": self._backend(split.candidate), "fraction": share}
        return [{"type": MIRROR, "requestMirror": mirror}]

    def _service_of(self, release_id: str) -> str:
        return str(filled(self.config.service, self.release_of(release_id)))

    def _accepted(self, route: Mapping[str, Any], pods: Readiness) -> Readiness:
        """What the Gateways say of the route as it is now."""
        generation = route["metadata"].get("generation", 0)
        parents: Sequence[Mapping[str, Any]] = route.get("status", {}).get("parents", [])
        if not parents:
            return Readiness(False, f"No Gateway has taken HTTPRoute {self.name} yet.", False, pods.restarts)
        for one in (each for parent in parents for each in parent.get("conditions", [])):
            if one.get("observedGeneration", generation) < generation:
                return Readiness(False, "A Gateway has not seen the route's last change yet.", False, pods.restarts)
            if one["type"] in ("Accepted", "ResolvedRefs") and one["status"] != "True":
                why = one.get("message") or one.get("reason", "no reason given")
                return Readiness(False, f"A Gateway does not take the route ({why}).", False, pods.restarts)
        return pods


def _split_rules(spec: Mapping[str, Any]) -> list[Object]:
    return [rule for rule in spec.get("rules", []) if rule.get("backendRefs")]
