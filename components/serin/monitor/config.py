"""Settings of the monitor and its policy."""

from pydantic import Field

from serin.core.config import Section
from serin.core.digests import digest_of


class MonitorPolicy(Section):
    """When traffic calls for an alert, a new index or a new model."""

    min_events: int = Field(30, ge=1)
    """With fewer requests nothing but errors is judged."""
    min_sessions: int = Field(20, ge=2)
    """The same for sessions, which unlike requests are independent."""
    max_error_share: float = Field(0.02, ge=0, le=1)
    """Alert once the share of failed requests is surely above this (Wilson interval)."""
    min_failures: int = Field(3, ge=1)
    """And so many failed: one failure among a handful of requests proves nothing."""
    max_p95_latency_ms: float = Field(10_000.0, gt=0)
    """Service level of a whole answer, milliseconds."""
    max_p95_ttft_ms: float = Field(5_000.0, gt=0)
    """Service level of the first token, milliseconds."""
    alpha: float = Field(0.01, gt=0, lt=0.5)
    """Level of each test of a change in quality."""
    max_support_drop: float = Field(0.10, ge=0, le=1)
    """A drop of the mean support score counts when it is sure and larger than this."""
    max_refusal_rise: float = Field(0.10, ge=0, le=1)
    """The same for a rise of the share of refusals."""
    max_retrieval_drop: float = Field(0.10, ge=0, le=1)
    """The same for a drop of the best passage's cosine similarity."""
    topic_tolerance: float = Field(1.25, ge=1)
    """Questions have drifted when their novelty or their mix of topics is more than this times what held-out groups
    of the reference itself reach."""
    max_unknown_word_share: float = Field(0.30, ge=0, le=1)
    """Or when more of their content words than this occur in no reference question."""
    max_language_shift: float = Field(0.25, ge=0, le=1)
    """Or when more of them than this are in other languages than the reference's shares say."""
    drifted_looks: int = Field(2, ge=1)
    """Looks in a row with drifted questions that, with a drop of support, ask for retraining."""
    max_index_age_days: float = Field(30.0, gt=0)
    """An older index is to be built again."""
    max_expired_share: float | None = Field(None, ge=0, le=1)
    """Build the index again when more of its dated documents than this are past their date; none: only report it."""

    @property
    def version(self) -> str:
        """The first 16 hex digits of the policy's digest."""
        return digest_of(self.dump())[:16]


class MonitorConfig(Section):
    """What is looked at, and the policy."""

    window_hours: float | None = Field(None, gt=0)
    """Only requests of the last so many hours; none: all since the release's rollout began."""
    max_reference_questions: int = Field(600, ge=20)
    """Questions of the dataset that the traffic's are compared with."""
    max_questions: int = Field(200, ge=10)
    """Questions of the traffic that are compared, one from each session."""
    calibration_windows: int = Field(200, ge=50)
    """Windows drawn from the reference itself, which set the limits of question drift."""
    permutations: int = Field(1_999, ge=199)
    """Behind each test of a change in quality."""
    evidently_html: bool = False
    """Write Evidently's HTML (4 MB) even when there is nothing to report."""
    seed: int = 0
    """Of the samples and permutations."""
    policy: MonitorPolicy = MonitorPolicy()
    """What the signals lead to."""
