"""KFP component that picks up the verdict of a rollout which was handed over to a controller."""

from kfp import dsl

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def verdict(
    rollout_id: str,
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    rollout: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
) -> str:
    """How a rollout ended: promote, hold, rollback or aborted; 'handed over' while it is under way."""
    from pathlib import Path

    from serin.core.context import stage_context
    from serin.deploy.rollout import handed_over
    from serin.deploy.rollout import verdict as verdict_of
    from serin.deploy.summary import write

    with stage_context(
        "deploy", store_uri=store_uri, tracking_uri=tracking_uri, lineage_id=lineage_id, endpoint=endpoint
    ) as context:
        result = verdict_of(rollout_id, context) or handed_over(rollout_id, context)
        write(result, context, summary=Path(summary.path), rollout=Path(rollout.path), page=Path(page.path))
        rollout.metadata.update(decision=result.decision.outcome, release_id=result.candidate)
        context.finished(**result.summary())
    return result.decision.outcome
