"""What the two providers of KServe's InferenceServices share."""

from collections.abc import Mapping
from typing import Any

from serin.core.errors import ConfigError
from serin.deploy.traffic_providers.cluster import ClusterProvider, Object
from serin.deploy.traffic_providers.releases import filled, labelled, laid_over

MODE = "serving.kserve.io/deploymentMode"
STANDARD, KNATIVE = ("Standard", "RawDeployment"), ("Knative", "Serverless")
"""The modes' names; the second ones are those of before KServe 0.16."""


class InferenceServiceProvider(ClusterProvider):
    """Splits the traffic of one InferenceService."""

    kind = "InferenceService"
    resolution_percent = 1.0
    modes: tuple[str, ...] = ()
    """In which it works."""
    other_kind = ""
    """What to use in the other modes."""

    def paths(self) -> dict[str, str]:
        """See ClusterProvider."""
        path = f"/apis/serving.kserve.io/v1beta1/namespaces/{self.namespace}/inferenceservices/{self.name}"
        return {self.name: path}

    def require_usable(self, objects: Mapping[str, Object]) -> None:
        """See ClusterProvider."""
        item = objects[self.name]
        mode = item["metadata"].get("annotations", {}).get(MODE) or item.get("status", {}).get("deploymentMode", "")
        if mode not in self.modes:
            found = f"is in {mode} mode" if mode else f"does not say its mode (annotation {MODE})"
            raise ConfigError(
                f"InferenceService {self.name} {found}, and kind {self.config.kind} needs {self.modes[0]}, since other "
                f"modes ignore its field: use kind {self.other_kind}, or httproute."
            )

    def predictor_of(self, predictor: Mapping[str, Any], release_id: str) -> Object:
        """A predictor with what a release decides, and its label on the pods."""
        fields = filled(self.config.release_fields, self.release_of(release_id))
        return labelled(laid_over(dict(predictor), fields), release_id)
