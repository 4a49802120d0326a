"""KFP component of the monitor stage."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def monitor(
    release: Input[Artifact],
    dataset: Input[Dataset],
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    config: dict,
    report: Output[HTML],
) -> str:
    """Look at the release's traffic: none, alert, reindex or retrain."""
    import shutil
    from pathlib import Path

    from serin.core.context import stage_context
    from serin.core.release import load_release
    from serin.monitor import run
    from serin.monitor.config import MonitorConfig

    with stage_context(
        "monitor", store_uri=store_uri, tracking_uri=tracking_uri, lineage_id=lineage_id, endpoint=endpoint
    ) as context:
        watched = load_release(context.store.storage, release.metadata["release_id"])
        look = run.watch(MonitorConfig.load(config), watched, context.open(dataset), context)
        context.export(look.artifact, report)
        Path(report.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(look.artifact.path / run.REPORT, report.path)
        context.finished(**run.headline(look))
        return look.decision.outcome
