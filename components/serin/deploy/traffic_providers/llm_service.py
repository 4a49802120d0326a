"""KServe's LLMInferenceService: two services of one routing group, whose weights are proportions.

What KServe does (kserve/website, docs/model-serving/generative-inference/llmisvc/canary-rollout.md): each member has
``spec.router.route.group`` and ``weight``; a member's share is its weight over the sum of all; every member's HTTPRoute
carries all weights; members with different model names or adapters do not share traffic.

Two objects cannot be written in one step, so no step needs both: the champion's weight stays and the candidate's
follows from the share.  Only a promotion writes two, the new champion's weight first, so that the sum is never zero.
"""

from collections.abc import Mapping

from serin.core.errors import ConfigError, ServingError
from serin.deploy.traffic_providers.base import Split
from serin.deploy.traffic_providers.cluster import ClusterProvider, Object, Readiness, Step, condition, edited, unseen
from serin.deploy.traffic_providers.pods import judged, pods_of
from serin.deploy.traffic_providers.releases import RELEASE_LABEL, filled, labelled, laid_over, short

WHOLE = 10_000
"""The champion's weight; the definition allows 1,000,000, so the candidate's share can be 99%."""
MOST_PERCENT = 99.0
NEVER = ("ProgressDeadlineExceeded", "ConfigNotFound", "CombineBaseError", "RefsInvalid")
"""Reasons of conditions that stay until somebody helps."""


class LLMServices(ClusterProvider):
    """Splits traffic between two LLMInferenceServices; the releases take turns in them."""

    kind = "LLMInferenceService"

    @property
    def name(self) -> str:
        """See ClusterProvider."""
        return self.config.services[0]

    def paths(self) -> dict[str, str]:
        """See ClusterProvider."""
        folder = f"/apis/serving.kserve.io/v1alpha2/namespaces/{self.namespace}/llminferenceservices"
        return {name: f"{folder}/{name}" for name in self.config.services}

    def check(self, steps_percent: tuple[float, ...], *, mirror: bool) -> None:
        """See TrafficProvider."""
        super().check(steps_percent, mirror=mirror)
        if any(step > MOST_PERCENT for step in steps_percent):
            raise ConfigError(
                f"An LLMInferenceService's candidate can have at most {MOST_PERCENT:g}%, since shares are proportions: "
                "leave the last step out, and let the promotion follow."
            )

    def wanted(self, objects: Mapping[str, Object], split: Split, before: Split | None) -> list[Step]:
        """See ClusterProvider."""
        mine = self._slot(objects, split.champion)
        other = next(name for name in objects if name != mine)
        champion = self._holding(objects[mine], split.champion, WHOLE)
        if split.candidate is None:
            return [(mine, champion), (other, self._weighing(objects[other], 0))]
        candidate = self._holding(objects[other], split.candidate, weight_of(split.percent))
        if _weight(objects[other]) and _release(objects[other]) != short(split.candidate):
            # Another release has traffic there: it loses it before its service becomes the candidate's.
            raise ServingError(
                f"LLMInferenceService {other} has traffic for another release: have the champion served alone first."
            )
        return [(mine, champion), (other, candidate)]

    def readiness(self, objects: Mapping[str, Object], split: Split) -> Readiness:
        """See ClusterProvider."""
        assert split.candidate
        item = next(one for one in objects.values() if _release(one) == short(split.candidate))
        pods = judged(pods_of(self.api, self.namespace, **{RELEASE_LABEL: short(split.candidate)}))
        if pods.failed:
            return pods
        name = item["metadata"]["name"]
        if unseen(item):
            return Readiness(False, f"KServe has not seen the change of {name} yet.", False, pods.restarts)
        for kind in ("PresetsCombined", "WorkloadsReady", "RouterReady", "Ready"):
            found = condition(item, kind)
            if found and found["status"] != "True":
                why = f"{found.get('reason', '')} {found.get('message', '')}".strip() or "no reason given"
                reason = f"{name}: {kind} is {found['status']} ({why})."
                return Readiness(False, reason, why.startswith(NEVER), pods.restarts)
        if not condition(item, "Ready"):
            return Readiness(False, f"{name} does not say that it is ready yet.", False, pods.restarts)
        if (split_up := condition(item, "GroupDegraded")).get("status") == "True":
            why = split_up.get("message") or split_up.get("reason", "")
            return Readiness(False, f"{name} does not share traffic with its group ({why}).", True, pods.restarts)
        return pods

    def require_usable(self, objects: Mapping[str, Object]) -> None:
        """See ClusterProvider."""
        for name, item in objects.items():
            route = item["spec"].get("router", {}).get("route", {})
            if "group" not in route:
                raise ConfigError(
                    f"LLMInferenceService {name} is in no group: give both the same spec.router.route.group."
                )
            if item["spec"].get("router", {}).get("ingress") is not None:
                raise ConfigError(f"LLMInferenceService {name} has an ingress, which knows no weights: use a gateway.")
        one, two = objects.values()
        for what, value in (("router.route.group", _group), ("model.name", _model_name)):
            if value(one) != value(two):
                raise ConfigError(
                    f"LLMInferenceServices {' and '.join(objects)} differ in spec.{what} ({value(one)!r}, "
                    f"{value(two)!r}), so KServe does not share traffic between them: make it the same."
                )

    def _slot(self, objects: Mapping[str, Object], champion: str) -> str:
        """Which service is the champion's: the one that holds it, or else the one with the larger weight."""
        held = [name for name, item in objects.items() if _release(item) == short(champion)]
        return held[0] if held else max(objects, key=lambda name: _weight(objects[name]))

    def _holding(self, item: Object, release_id: str, weight: int) -> Object:
        fields = filled(self.config.release_fields, self.release_of(release_id))
        spec = labelled(laid_over(item["spec"], fields), release_id)
        return edited(item, _weighed(spec, weight), {RELEASE_LABEL: short(release_id)})

    def _weighing(self, item: Object, weight: int) -> Object:
        return edited(item, _weighed(item["spec"], weight))


def weight_of(percent: float) -> int:
    """The candidate's weight beside the champion's, for its share of both."""
    percent = min(percent, MOST_PERCENT)
    return round(WHOLE * percent / (100 - percent))


def _weighed(spec: Object, weight: int) -> Object:
    made: Object = laid_over(spec, {"router": {"route": {"weight": weight}}})
    return made


def _release(item: Object) -> str:
    return str(item["spec"].get("labels", {}).get(RELEASE_LABEL, ""))


def _weight(item: Object) -> int:
    return int(item["spec"].get("router", {}).get("route", {}).get("weight", 0))


def _group(item: Object) -> str:
    return str(item["spec"]["router"]["route"]["group"])


def _model_name(item: Object) -> str:
    return str(item["spec"].get("model", {}).get("name", item["metadata"]["name"]))
