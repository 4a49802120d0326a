"""KFP component that journals why a retraining runs."""

from kfp import dsl
from kfp.dsl import Markdown, Output

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def trigger(
    trigger_id: str,
    window_start: str,
    window_end: str,
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    summary: Output[Markdown],
) -> bool:
    """Journal the cause of a run; whether it is a new one."""
    from pathlib import Path

    from serin.core.context import stage_context
    from serin.monitor.trigger import markdown, record_trigger

    with stage_context(
        "trigger", store_uri=store_uri, tracking_uri=tracking_uri, lineage_id=lineage_id, endpoint=endpoint
    ) as context:
        new = record_trigger(trigger_id, window_start, window_end, context)
        Path(summary.path).parent.mkdir(parents=True, exist_ok=True)
        Path(summary.path).write_text(markdown(trigger_id, window_start, window_end, new), encoding="utf-8")
        context.finished(trigger_id=trigger_id, new=new)
        return new
