"""KFP component that finds a release: a named one, or the champion."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Markdown, Output

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def resolve(
    release_id: str,
    source_store_uri: str,
    approved_by: str,
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    release: Output[Artifact],
    baseline: Output[Artifact],
    dataset: Output[Dataset],
    summary: Output[Markdown],
) -> None:
    """Find a release (empty: the champion), verify every part, and bring it into this store."""
    from pathlib import Path

    from serin.core.context import stage_context
    from serin.release import create
    from serin.release import resolve as logic

    with stage_context(
        "release", store_uri=store_uri, tracking_uri=tracking_uri, lineage_id=lineage_id, endpoint=endpoint
    ) as context:
        found = logic.resolve(release_id, source_store_uri, approved_by, context)
        create.export(found.release, context, release)
        create.export(found.baseline, context, baseline)
        context.export(found.dataset, dataset)
        Path(summary.path).parent.mkdir(parents=True, exist_ok=True)
        Path(summary.path).write_text(logic.summary(found), encoding="utf-8")
        context.finished(release=found.release.id, baseline=found.baseline.id, imported=found.imported)
