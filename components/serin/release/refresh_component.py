"""KFP component that gives the champion a new index."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Markdown, Output

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def refresh(
    index: Input[Artifact],
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    release: Output[Artifact],
    baseline: Output[Artifact],
    dataset: Output[Dataset],
    summary: Output[Markdown],
) -> None:
    """Bind the champion's model, prompt, guardrails and settings with a new index into a candidate release."""
    from pathlib import Path

    from serin.core.context import stage_context
    from serin.release import create

    with stage_context(
        "release", store_uri=store_uri, tracking_uri=tracking_uri, lineage_id=lineage_id, endpoint=endpoint
    ) as context:
        candidate, champion, data = create.refresh(context.open(index), context)
        create.export(candidate, context, release)
        create.export(champion, context, baseline)
        context.export(data, dataset)
        Path(summary.path).parent.mkdir(parents=True, exist_ok=True)
        Path(summary.path).write_text(create.summary(candidate, champion), encoding="utf-8")
        context.finished(release=candidate.id, baseline=champion.id)
