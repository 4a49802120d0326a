"""The training pipeline: from documents and conversations to a canaried release and its first drift check."""

from typing import Any

from kfp import dsl

from serin.data_prep.component import data_prep
from serin.deploy.component import deploy
from serin.evaluate.component import evaluate
from serin.finetune.component import finetune
from serin.index.component import index
from serin.monitor.component import monitor
from serin.release.component import release


@dsl.pipeline(
    name="serin-training",
    display_name="Serin training",
    description="Documents and conversations to a dataset, a tuned model and an index; evaluated, gated, canaried.",
)
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
    """Train, index, release, evaluate, gate, deploy, monitor.

    Args:
        source_uri: folder or s3:// prefix of documents and conversations.
        store_uri: where artefacts, releases, events and the journal are kept.
        tracking_uri: MLflow tracking URI; empty for none.
        endpoint: name of the endpoint, of its MLflow experiment and registered model.
        lineage_id: ties everything that this run makes together.
        base_model: Hugging Face id, folder, s3:// prefix or serin://tiny.
        data_prep_config: settings of data prep (DataPrepConfig).
        finetune_config: settings of fine-tuning (FinetuneConfig).
        index_config: settings of the index (IndexConfig).
        prompt: the release's prompt (Prompt).
        release_config: serving settings and guardrail policy (ReleaseConfig).
        evaluate_config: suites and gate policy (EvaluateConfig).
        deploy_config: canary steps and judge policy (DeployConfig).
        monitor_config: signals and thresholds (MonitorConfig).
    """
    common: dict[str, Any] = {
        "store_uri": store_uri,
        "tracking_uri": tracking_uri,
        "endpoint": endpoint,
        "lineage_id": lineage_id,
    }
    prepared = data_prep(source_uri=source_uri, config=data_prep_config, **common)
    dataset, documents = prepared.outputs["dataset"], prepared.outputs["documents"]
    tuned = finetune(
        base_model=base_model, prompt=prompt, dataset=dataset, documents=documents, config=finetune_config, **common
    )
    indexed = index(documents=documents, config=index_config, **common)
    released = release(
        base=tuned.outputs["base"],
        model=tuned.outputs["model"],
        index=indexed.outputs["index"],
        dataset=dataset,
        prompt=prompt,
        config=release_config,
        **common,
    )
    candidate, baseline = released.outputs["release"], released.outputs["baseline"]
    evaluated = evaluate(release=candidate, baseline=baseline, dataset=dataset, config=evaluate_config, **common)
    with dsl.If(evaluated.outputs["Output"] == True, name="gate passed"):  # noqa: E712 - KFP builds the condition
        deployed = deploy(
            release=candidate,
            baseline=baseline,
            evaluation=evaluated.outputs["evaluation"],
            dataset=dataset,
            config=deploy_config,
            **common,
        )
        watched = monitor(release=candidate, dataset=dataset, config=monitor_config, **common).after(deployed)
    # KFP's cache does not see changes in imported code; the artefact store reuses finished work by digests that do.
    for task in (prepared, tuned, indexed, released, evaluated, deployed, watched):
        task.set_caching_options(False)
