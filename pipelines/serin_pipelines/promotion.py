"""The promotion pipeline: a release that was made elsewhere, verified, evaluated and canaried here."""

from kfp import dsl

from serin.conclude.component import conclude
from serin.release.resolve_component import resolve
from serin_pipelines.placement import place
from serin_pipelines.training import gate_and_canary


def promotion(
    release_id: str,
    store_uri: str,
    source_store_uri: str = "",
    approved_by: str = "",
    tracking_uri: str = "",
    endpoint: str = "assistant",
    lineage_id: str = "",
    evaluate_config: dict = {},  # noqa: B006 - KFP reads defaults, it never shares them
    deploy_config: dict = {},  # noqa: B006
) -> None:
    """A named release: every part verified, copied here, evaluated again in this place, gated, canaried, promoted.

    Args:
        release_id: id of the release, or its first 8 digits at least.
        store_uri: this place's store of artefacts, releases, events and the journal.
        source_store_uri: the store that the release was made in; empty when it is this one.
        approved_by: who asked for the promotion; goes into the journal.
        tracking_uri: MLflow tracking URI; empty for none.
        endpoint: name of the endpoint.
        lineage_id: ties everything that this run makes together; empty takes the id of the Kubeflow run.
        evaluate_config: suites and gate policy (EvaluateConfig); {} for the defaults.
        deploy_config: canary steps and judge policy (DeployConfig); {} for the defaults.
    """
    common = {"store_uri": store_uri, "tracking_uri": tracking_uri, "endpoint": endpoint, "lineage_id": lineage_id}
    ended = conclude(**common)
    with dsl.ExitHandler(ended, name="promotion"):
        found = resolve(release_id=release_id, source_store_uri=source_store_uri, approved_by=approved_by, **common)
        config = {"evaluate": evaluate_config, "deploy": deploy_config}
        gate_and_canary(found, found.outputs["dataset"], common, config, approved_by=approved_by)
    place(conclude=ended, resolve=found)
