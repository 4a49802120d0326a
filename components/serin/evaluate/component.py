"""KFP component of the evaluate stage."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Output

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def evaluate(
    release: Input[Artifact],
    baseline: Input[Artifact],
    dataset: Input[Dataset],
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    config: dict,
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    refusals: Output[ClassificationMetrics],
    report: Output[HTML],
) -> bool:
    """Measure the candidate against the baseline and the champion; whether it passes the gate."""
    import shutil
    from pathlib import Path

    from serin.core.context import stage_context
    from serin.core.release import load_release
    from serin.evaluate import run
    from serin.evaluate.config import EvaluateConfig

    with stage_context(
        "evaluate", store_uri=store_uri, tracking_uri=tracking_uri, lineage_id=lineage_id, endpoint=endpoint
    ) as context:
        candidate, base = (
            load_release(context.store.storage, one.metadata["release_id"]) for one in (release, baseline)
        )
        result = run.evaluate(
            EvaluateConfig.load(config), candidate, base, run.champion_of(context), context.open(dataset), context
        )
        context.export(result.artifact, evaluation)
        context.export(result.artifact, metrics)
        for name, value in result.artifact.metadata["metrics"].items():
            metrics.log_metric(name, value)
        refusals.log_confusion_matrix(["answers", "refuses"], result.artifact.metadata["refusals"])
        Path(report.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(result.artifact.path / run.REPORT, report.path)
        context.finished(**run.headline(result))
        return result.decision.outcome == "pass"
