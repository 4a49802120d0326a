"""MLflow: one parent run per lineage id, a nested run per stage, and the registry's aliases.

MLflow mirrors what happened so that people find it; artefact manifests and the journal are the record.  Runs are
found or created by tags, and every call names its run id, so a stage that runs again continues its own run.

What stages log is written to a spool below ``$SERIN_HOME/tracking`` and sent by a thread, so that MLflow being slow or
away neither stops nor slows them; what could not be sent is sent by the next stage with the same tracking URI.  In a
cluster, where a pod's disk ends with the pod, set SERIN_HOME to a volume that stays if that must not be lost.
"""

from serin.core.tracking.delivery import send_leftovers
from serin.core.tracking.logged_model import log_model
from serin.core.tracking.runs import LINEAGE_TAG, PARENT_TAG, STAGE_TAG, MlflowFailure
from serin.core.tracking.system import SystemMetrics
from serin.core.tracking.tracker import ALIASES, RELEASE_TAG, RUN_ID_VARIABLE, Tracker, prepare_database

__all__ = [
    "ALIASES",
    "LINEAGE_TAG",
    "PARENT_TAG",
    "RELEASE_TAG",
    "RUN_ID_VARIABLE",
    "STAGE_TAG",
    "MlflowFailure",
    "SystemMetrics",
    "Tracker",
    "log_model",
    "prepare_database",
    "send_leftovers",
]
