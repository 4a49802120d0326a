"""The verdict pipeline: how a rollout that was handed over to a controller ended."""

from kfp import dsl

from serin.conclude.component import conclude
from serin.deploy.verdict_component import verdict as verdict_of
from serin_pipelines.placement import place


def verdict(
    store_uri: str,
    tracking_uri: str = "",
    endpoint: str = "assistant",
    lineage_id: str = "",
    rollout_id: str = "",
) -> None:
    """The verdict of a canary of hours, which no pod waited for: its outcome, numbers and page.

    Args:
        store_uri: where artefacts, releases, events and the journal are kept.
        tracking_uri: MLflow tracking URI; empty for none.
        endpoint: name of the endpoint.
        lineage_id: ties everything that this run makes together; empty takes the id of the Kubeflow run.
        rollout_id: which rollout; empty for the endpoint's last one.
    """
    common = {"store_uri": store_uri, "tracking_uri": tracking_uri, "endpoint": endpoint, "lineage_id": lineage_id}
    ended = conclude(**common)
    with dsl.ExitHandler(ended, name="verdict"):
        found = verdict_of(rollout_id=rollout_id, **common)
    place(conclude=ended, verdict=found)
