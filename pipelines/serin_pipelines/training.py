"""The training pipeline: from documents and conversations to a canaried release and its first drift check."""

from typing import Any

from kfp import dsl

from serin.conclude.component import conclude
from serin.core.digests import code_version
from serin.data_prep.component import data_prep
from serin.deploy.component import deploy
from serin.evaluate.component import evaluate
from serin.finetune.component import finetune
from serin.index.component import index
from serin.monitor.component import monitor
from serin.release.component import release
from serin_pipelines.placement import place, ray_cluster


def training(
    source_uri: str,
    store_uri: str,
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
    """Documents and conversations to a dataset, a tuned model and an index; evaluated, gated, canaried.

    Args:
        source_uri: folder or s3:// prefix of documents and conversations.
        store_uri: where artefacts, releases, events and the journal are kept.
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
    place(conclude=ended)
    with dsl.ExitHandler(ended, name="training"):
        train(
            common, source_uri, base_model, prompt,
            data_prep=data_prep_config, finetune=finetune_config, index=index_config, release=release_config,
            evaluate=evaluate_config, deploy=deploy_config, monitor=monitor_config,
        )  # fmt: skip


def train(
    common: dict[str, Any],
    source_uri: str,
    base_model: str,
    prompt: dict[str, Any],
    window_start: str = "",
    window_end: str = "",
    **config: Any,
) -> dsl.PipelineTask:
    """The tasks of training, in the pipeline that is being traced; returns the first of them.

    Args:
        common: store_uri, tracking_uri, endpoint and lineage_id, which every component takes.
        source_uri: documents and conversations.
        base_model: what is tuned.
        prompt: the release's.
        window_start: first day of the conversations; empty for all.
        window_end: day after the last.
        config: stage to its settings.
    """
    prepared = data_prep(
        source_uri=source_uri, config=config["data_prep"], window_start=window_start, window_end=window_end, **common
    )
    dataset, documents = prepared.outputs["dataset"], prepared.outputs["documents"]
    tuned = finetune(
        base_model=base_model, prompt=prompt, dataset=dataset, documents=documents, config=config["finetune"],
        cluster=ray_cluster(), code_version=code_version("finetune"), **common,
    )  # fmt: skip
    indexed = index(documents=documents, config=config["index"], code_version=code_version("index"), **common)
    released = release(
        base=tuned.outputs["base"], model=tuned.outputs["model"], index=indexed.outputs["index"], dataset=dataset,
        prompt=prompt, config=config["release"], **common,
    )  # fmt: skip
    gate_and_canary(released, dataset, common, config, watch=True)
    place(data_prep=prepared, finetune=tuned, index=indexed, release=released)
    return prepared


def gate_and_canary(
    released: dsl.PipelineTask,
    dataset: Any,
    common: dict[str, Any],
    config: dict[str, Any],
    *,
    approved_by: str = "",
    watch: bool = False,
) -> None:
    """Evaluate a release; roll it out when it passes the gate, and with ``watch`` look at its first traffic."""
    candidate, baseline = released.outputs["release"], released.outputs["baseline"]
    evaluated = evaluate(release=candidate, baseline=baseline, dataset=dataset, config=config["evaluate"], **common)
    with dsl.If(evaluated.outputs["Output"] == True, name="gate passed"):  # noqa: E712 - KFP builds the condition
        deployed = deploy(
            release=candidate, baseline=baseline, evaluation=evaluated.outputs["evaluation"], dataset=dataset,
            config=config["deploy"], approved_by=approved_by, **common,
        )  # fmt: skip
        if watch:
            watched = monitor(release=candidate, dataset=dataset, config=config["monitor"], **common).after(deployed)
            place(monitor=watched)
    place(evaluate=evaluated, deploy=deployed)
