"""The KFP interface of the deploy stage."""

from kfp import dsl

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def deploy(
    release: dsl.Input[dsl.Artifact],
    baseline: dsl.Input[dsl.Artifact],
    evaluation: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    config: dict,
    approved_by: str,
    rollout: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
) -> str:
    """Roll a gated release out as a canary; returns promote, hold, rollback, unchanged or handed over."""
    from pathlib import Path

    from serin.core.context import stage_context
    from serin.core.release import load_release
    from serin.deploy.config import DeployConfig
    from serin.deploy.rollout import deploy as run_deploy
    from serin.deploy.summary import write

    with stage_context(
        "deploy", store_uri=store_uri, tracking_uri=tracking_uri, lineage_id=lineage_id, endpoint=endpoint
    ) as context:
        result = run_deploy(
            DeployConfig.load(config),
            load_release(context.store.storage, release.metadata["release_id"]),
            load_release(context.store.storage, baseline.metadata["release_id"]),
            context.open(dataset),
            context,
            approved_by=approved_by,
        )
        write(result, context, summary=Path(summary.path), rollout=Path(rollout.path), page=Path(page.path))
        rollout.metadata.update(decision=result.decision.outcome, release_id=result.candidate)
        context.finished(**result.summary())
    return result.decision.outcome
