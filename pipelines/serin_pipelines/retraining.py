"""The retraining pipeline: training on a window of the data, with the cause in the journal."""

from kfp import dsl

from serin.conclude.component import conclude
from serin.monitor.trigger_component import trigger
from serin_pipelines.placement import place
from serin_pipelines.training import train


def retraining(
    source_uri: str,
    store_uri: str,
    trigger_id: str = "",
    window_start: str = "90d",
    window_end: str = "",
    tracking_uri: str = "",
    endpoint: str = "assistant",
    lineage_id: str = "",
    base_model: str = "serin://tiny",
    data_prep_config: dict = {},  # noqa: B006 - KFP reads defaults, it never shares them
    finetune_config: dict = {},  # noqa: B006
    index_config: dict = {},  # noqa: B006
    prompt: dict = {},  # noqa: B006
    release_config: dict = {},  # noqa: B006
    evaluate_config: dict = {},  # noqa: B006
    deploy_config: dict = {},  # noqa: B006
    monitor_config: dict = {},  # noqa: B006
) -> None:
    """Training on the conversations of a window, recorded with the trigger that asked for it.

    Args:
        source_uri: folder or s3:// prefix of documents and conversations.
        store_uri: where artefacts, releases, events and the journal are kept.
        trigger_id: names the cause (a schedule, an alarm, a ticket); goes into the journal once.
        window_start: first day of the conversations, as 2026-03-01 or 90d (so many days ago); empty for all.
        window_end: the day after the last, in the same forms; empty for no end.
        tracking_uri: MLflow tracking URI; empty for none.
        endpoint: name of the endpoint, of its MLflow experiment and registered model.
        lineage_id: ties everything that this run makes together; empty takes the id of the Kubeflow run.
        base_model: Hugging Face id, folder, s3:// prefix or serin://tiny.
        data_prep_config: settings of data prep (DataPrepConfig); {} for the defaults, as in all that follow.
        finetune_config: settings of fine-tuning (FinetuneConfig).
        index_config: settings of the index (IndexConfig).
        prompt: the release's prompt (Prompt).
        release_config: serving settings and guardrail policy (ReleaseConfig).
        evaluate_config: suites and gate policy (EvaluateConfig).
        deploy_config: canary steps and judge policy (DeployConfig).
        monitor_config: signals and thresholds (MonitorConfig).
    """
    common = {"store_uri": store_uri, "tracking_uri": tracking_uri, "endpoint": endpoint, "lineage_id": lineage_id}
    ended = conclude(**common)
    with dsl.ExitHandler(ended, name="retraining"):
        triggered = trigger(trigger_id=trigger_id, window_start=window_start, window_end=window_end, **common)
        prepared = train(
            common, source_uri, base_model, prompt, window_start, window_end,
            data_prep=data_prep_config, finetune=finetune_config, index=index_config, release=release_config,
            evaluate=evaluate_config, deploy=deploy_config, monitor=monitor_config,
        )  # fmt: skip
        prepared.after(triggered)
    place(conclude=ended, trigger=triggered)
