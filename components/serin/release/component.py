"""KFP component of the release stage."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Markdown, Model, Output

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def release(
    base: Input[Model],
    model: Input[Model],
    index: Input[Artifact],
    dataset: Input[Dataset],
    prompt: dict,
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    config: dict,
    release: Output[Artifact],
    baseline: Output[Artifact],
    summary: Output[Markdown],
) -> None:
    """Bind the run's artefacts into the candidate release, and the base model into the baseline release."""
    from pathlib import Path

    from serin.core.context import stage_context
    from serin.core.prompts import Prompt
    from serin.release import create
    from serin.release.config import ReleaseConfig

    with stage_context(
        "release", store_uri=store_uri, tracking_uri=tracking_uri, lineage_id=lineage_id, endpoint=endpoint
    ) as context:
        settings, wording = ReleaseConfig.load(config), Prompt.load(prompt)
        shared = (context.open(index), context.open(dataset), wording, context)
        baseline_release = create.create_baseline(settings, context.open(base), *shared)
        candidate = create.create_release(settings, context.open(model), *shared)
        create.export(candidate, context, release)
        create.export(baseline_release, context, baseline)
        text = create.summary(candidate, baseline_release)
        Path(summary.path).parent.mkdir(parents=True, exist_ok=True)
        Path(summary.path).write_text(text, encoding="utf-8")
        context.finished(release=candidate.id, baseline=baseline_release.id)
