"""The monitoring pipeline: one look at the champion's traffic."""

from kfp import dsl

from serin.conclude.component import conclude
from serin.monitor.component import monitor
from serin.release.resolve_component import resolve
from serin_pipelines.placement import place


def monitoring(
    store_uri: str,
    tracking_uri: str = "",
    endpoint: str = "assistant",
    lineage_id: str = "",
    release_id: str = "",
    monitor_config: dict = {},  # noqa: B006 - KFP reads defaults, it never shares them
) -> None:
    """The champion's traffic against what it was made for; the decision (none, alert, reindex, retrain) is journalled.

    Args:
        store_uri: where artefacts, releases, events and the journal are kept.
        tracking_uri: MLflow tracking URI; empty for none.
        endpoint: name of the endpoint.
        lineage_id: ties everything that this run makes together; empty takes the id of the Kubeflow run.
        release_id: another release than the champion.
        monitor_config: signals and thresholds (MonitorConfig); {} for the defaults.
    """
    common = {"store_uri": store_uri, "tracking_uri": tracking_uri, "endpoint": endpoint, "lineage_id": lineage_id}
    ended = conclude(**common)
    with dsl.ExitHandler(ended, name="monitoring"):
        found = resolve(release_id=release_id, source_store_uri="", approved_by="", **common)
        dataset = found.outputs["dataset"]
        watched = monitor(release=found.outputs["release"], dataset=dataset, config=monitor_config, **common)
    place(conclude=ended, resolve=found, monitor=watched)
