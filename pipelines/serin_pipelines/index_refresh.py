"""The index refresh pipeline: today's documents behind the champion's model."""

from kfp import dsl

from serin.conclude.component import conclude
from serin.core.digests import code_version
from serin.data_prep.component import data_prep
from serin.index.component import index
from serin.release.refresh_component import refresh
from serin_pipelines.placement import place
from serin_pipelines.training import gate_and_canary

NOT_WORSE = {
    "gate": {
        "rules": [
            {"metric": "token_f1", "kind": "non_inferiority", "against": "baseline", "margin": 0.02},
            {"metric": "recall_at_5", "kind": "floor", "limit": 0.5, "min_items": 10, "optional": True},
        ]
    }
}
"""A refreshed index is not expected to answer better on yesterday's questions, only no worse than the champion."""


def index_refresh(
    source_uri: str,
    store_uri: str,
    tracking_uri: str = "",
    endpoint: str = "assistant",
    lineage_id: str = "",
    data_prep_config: dict = {"require_conversations": False},  # noqa: B006 - KFP reads defaults, it never shares them
    index_config: dict = {},  # noqa: B006
    evaluate_config: dict = NOT_WORSE,
    deploy_config: dict = {},  # noqa: B006
) -> None:
    """Today's documents to a new index; the champion with it is evaluated against the champion, gated, canaried.

    Args:
        source_uri: folder or s3:// prefix of the documents.
        store_uri: where artefacts, releases, events and the journal are kept.
        tracking_uri: MLflow tracking URI; empty for none.
        endpoint: name of the endpoint; it must have a champion.
        lineage_id: ties everything that this run makes together; empty takes the id of the Kubeflow run.
        data_prep_config: settings of data prep (DataPrepConfig).
        index_config: settings of the index (IndexConfig); {} for the defaults.
        evaluate_config: suites and gate policy (EvaluateConfig); the baseline is the champion.
        deploy_config: canary steps and judge policy (DeployConfig); {} for the defaults.
    """
    common = {"store_uri": store_uri, "tracking_uri": tracking_uri, "endpoint": endpoint, "lineage_id": lineage_id}
    ended = conclude(**common)
    with dsl.ExitHandler(ended, name="index refresh"):
        prepared = data_prep(source_uri=source_uri, config=data_prep_config, window_start="", window_end="", **common)
        indexed = index(
            documents=prepared.outputs["documents"], config=index_config, code_version=code_version("index"), **common
        )
        refreshed = refresh(index=indexed.outputs["index"], **common)
        config = {"evaluate": evaluate_config, "deploy": deploy_config}
        gate_and_canary(refreshed, refreshed.outputs["dataset"], common, config)
    place(conclude=ended, data_prep=prepared, index=indexed, refresh=refreshed)
