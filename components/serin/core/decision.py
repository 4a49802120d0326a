"""Decisions: what a pure policy returns and an executor carries out."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Decision(BaseModel):
    """An outcome with its reasons and the numbers behind it.

    The gate says ``pass`` or ``fail``; the canary judge ``advance``, ``hold``, ``promote`` or ``rollback``; the
    monitor ``none``, ``alert``, ``reindex`` or ``retrain``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: str
    reasons: tuple[str, ...]
    """Sentences, the weightiest first."""
    evidence: dict[str, Any] = {}
    """JSON values: the numbers that the reasons rest on."""
    policy_version: str = ""
    """Digest of the policy that decided."""
