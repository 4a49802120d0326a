"""KFP component that ends every run: an exit handler."""

from kfp import dsl
from kfp.dsl import Markdown, Output, PipelineTaskFinalStatus

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def conclude(
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    status: PipelineTaskFinalStatus,
    summary: Output[Markdown],
) -> None:
    """Report how the run ended, close what it left open, and give traffic back to the champion."""
    from pathlib import Path

    from serin.conclude import run
    from serin.core.context import stage_context

    with stage_context(
        "conclude", store_uri=store_uri, tracking_uri=tracking_uri, lineage_id=lineage_id, endpoint=endpoint
    ) as context:
        conclusion = run.conclude(status.state, status.error_message or "", context)
        Path(summary.path).parent.mkdir(parents=True, exist_ok=True)
        Path(summary.path).write_text(run.markdown(conclusion, context), encoding="utf-8")
        context.finished(**conclusion.summary())
