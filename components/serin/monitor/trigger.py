"""Why a retraining runs: who or what asked for it, with which data window."""

from serin.core.context import StageContext


def record_trigger(trigger_id: str, window_start: str, window_end: str, context: StageContext) -> bool:
    """Journal a trigger once.

    Args:
        trigger_id: names the cause (a schedule, an alarm, a ticket); the same id again is the same trigger.
        window_start: first day of the data, as given.
        window_end: day after the last, as given.
        context: the stage's.

    Returns:
        Whether the trigger is new.
    """
    known = context.journal.find(kind="trigger")
    if any(entry.evidence.get("trigger_id") == trigger_id and trigger_id for entry in known):
        return False
    context.journal.append(
        "trigger",
        release_id=context.journal.champion() or "",
        decision="retrain",
        reasons=(f"Triggered by {trigger_id or 'hand'}.",),
        evidence={"trigger_id": trigger_id, "window_start": window_start, "window_end": window_end},
        lineage_id=context.lineage_id,
        mlflow_run_id=context.tracker.run_id,
    )
    context.tracker.tags({"serin.trigger_id": trigger_id})
    return True


def markdown(trigger_id: str, window_start: str, window_end: str, new: bool) -> str:
    """The trigger for the Kubeflow UI."""
    again = "" if new else " It was journalled before; this run continues or repeats it."
    data = f"conversations from {window_start or 'the first'} to {window_end or 'the last'}"
    return f"# Trigger: {trigger_id or 'by hand'}\n\nLearns from {data}.{again}\n"
