"""KFP interface of the fine-tune stage."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def finetune(
    base_model: str,
    prompt: dict,
    dataset: Input[Dataset],
    documents: Input[Dataset],
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    config: dict,
    cluster: dict,
    code_version: str,
    base: Output[Model],
    model: Output[Model],
    metrics: Output[Metrics],
    report: Output[HTML],
) -> None:
    """Tune a base on a dataset; for ``serin://tiny`` pretrain it first."""
    import shutil

    from serin.core.context import stage_context
    from serin.core.prompts import Prompt
    from serin.finetune.cluster.config import ClusterConfig
    from serin.finetune.cluster.launcher import launch
    from serin.finetune.config import FinetuneConfig

    with stage_context(
        "finetune",
        store_uri=store_uri,
        tracking_uri=tracking_uri,
        lineage_id=lineage_id,
        endpoint=endpoint,
        compiled_for=code_version,
    ) as context:
        made = launch(
            FinetuneConfig.load(config),
            base_model,
            Prompt.load(prompt),
            context.open(dataset),
            context.open(documents),
            context,
            ClusterConfig.load(cluster),
        )
        context.export(made.base, base)
        context.export(made.model, model)
        shutil.copyfile(made.model.path / "report.html", report.path)
        for name, value in made.model.metadata.items():
            if isinstance(value, int | float):
                metrics.log_metric(name, value)
        context.finished(**made.model.metadata)
