"""KServe's ``canaryTrafficPercent``, in Knative mode: revisions of one predictor.

What KServe does with it (kserve/kserve, ksvc_reconciler.go below pkg/controller/v1beta1/inferenceservice/reconcilers):
the latest revision gets that share, and the last one that had 100% the rest; without the field the latest *ready*
revision gets everything; as long as none had 100%, the field is ignored.

So the way back is one write with the champion's fields and a share of 0, never the removal of the field: until the
champion's new revision is ready, the latest ready one is the candidate.
"""

import copy
from collections.abc import Mapping
from typing import Any

from serin.core.errors import ServingError
from serin.core.gateway_client import NotReadyError
from serin.deploy.traffic_providers.base import Split
from serin.deploy.traffic_providers.cluster import Object, Readiness, Step, edited
from serin.deploy.traffic_providers.kserve import KNATIVE, InferenceServiceProvider
from serin.deploy.traffic_providers.pods import judged, pods_of
from serin.deploy.traffic_providers.releases import RELEASE_LABEL, short

PERCENT = "canaryTrafficPercent"
NEVER = ("ContainerMissing", "RevisionFailed", "ExitCode1", "CrashLoopBackOff", "ImagePullBackOff")
"""Reasons of a revision that is not ready and will not be."""


class KServeKnative(InferenceServiceProvider):
    """Splits an InferenceService's traffic between its last two revisions."""

    modes = KNATIVE
    other_kind = "kserve_canary"

    def wanted(self, objects: Mapping[str, Object], split: Split, before: Split | None) -> list[Step]:
        """See ClusterProvider."""
        item = objects[self.name]
        spec = copy.deepcopy(item["spec"])
        predictor = spec["predictor"]
        had = predictor.pop(PERCENT, None)
        if split.candidate:
            self._require_rolled_out(item, split.champion)
            spec["predictor"] = {**self.predictor_of(predictor, split.candidate), PERCENT: round(split.percent)}
            return [(self.name, edited(item, spec))]
        spec["predictor"] = self.predictor_of(predictor, split.champion)
        if before is not None and before.candidate and before.champion == split.champion:
            if not self._has_everything(item, before.candidate):  # else a promotion was begun: roll the champion out
                spec["predictor"][PERCENT] = 0
        elif before is not None and before.candidate and before.candidate != split.champion:
            raise ServingError(
                f"Release {short(split.champion)} takes no part in the rollout under way: end that first, with its "
                f"champion {short(before.champion)} alone."
            )
        elif before is not None and before.champion == split.champion and had is not None:
            spec["predictor"][PERCENT] = had  # after a way back: nothing to change
        elif had == 0 and not (before is not None and before.candidate):
            self._require_latest_ready(item)
        return [(self.name, edited(item, spec))]

    def readiness(self, objects: Mapping[str, Object], split: Split) -> Readiness:
        """See ClusterProvider."""
        assert split.candidate
        pods = judged(pods_of(self.api, self.namespace, **{RELEASE_LABEL: short(split.candidate)}))
        if pods.failed:
            return pods
        revision = self._revision(split.candidate)
        if revision is None:
            return Readiness(False, "Knative has not made its revision yet.", False, pods.restarts)
        conditions = revision.get("status", {}).get("conditions", [])
        ready = next((one for one in conditions if one["type"] == "Ready"), {"status": "Unknown"})
        if ready["status"] == "True":
            return Readiness(restarts=pods.restarts)
        why = f"{ready.get('reason', '')} {ready.get('message', '')}".strip() or "it is starting"
        failed = ready["status"] == "False" and ready.get("reason") in NEVER
        return Readiness(False, f"Revision {revision['metadata']['name']}: {why}.", failed, pods.restarts)

    def _revision(self, release_id: str) -> Object | None:
        """The newest of a release's revisions."""
        revisions = self._revisions(release_id)
        return max(revisions, key=lambda each: each["metadata"].get("creationTimestamp", ""), default=None)

    def _revisions(self, release_id: str) -> list[Object]:
        path = f"/apis/serving.knative.dev/v1/namespaces/{self.namespace}/revisions"
        items: list[Object] = self.api.get(path, labelSelector=f"{RELEASE_LABEL}={short(release_id)}")["items"]
        return items

    def _has_everything(self, item: Mapping[str, Any], release_id: str) -> bool:
        """Whether the last revision that had all traffic is a release's."""
        last = item.get("status", {}).get("components", {}).get("predictor", {}).get("latestRolledoutRevision")
        return last in [revision["metadata"]["name"] for revision in self._revisions(release_id)]

    def _require_latest_ready(self, item: Mapping[str, Any]) -> None:
        """After a way back the latest revision is the champion's again; until it is ready, the candidate is ahead."""
        predictor = item.get("status", {}).get("components", {}).get("predictor", {})
        if predictor.get("latestReadyRevision") != predictor.get("latestCreatedRevision"):
            raise NotReadyError(
                f"The champion's new revision {predictor.get('latestCreatedRevision')} is not ready, and without it a "
                "turned-away release would get the traffic: wait until it is."
            )

    def _require_rolled_out(self, item: Mapping[str, Any], champion: str) -> None:
        """A share's other side is the last revision that had everything, whoever's that is."""
        predictor = item.get("status", {}).get("components", {}).get("predictor", {})
        last, own = predictor.get("latestRolledoutRevision"), self._revisions(champion)
        if not last:
            raise NotReadyError(
                f"InferenceService {self.name} has no revision that had all traffic, and KServe ignores a share until "
                "it has: wait until it is ready."
            )
        if own and last not in [revision["metadata"]["name"] for revision in own]:
            raise NotReadyError(
                f"The traffic of InferenceService {self.name} is not with the champion {short(champion)} but with "
                f"revision {last}: wait until the champion is ready, or have it served alone first."
            )
