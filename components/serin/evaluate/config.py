"""Settings of the evaluation and the policy of its gate."""

from typing import Literal

from pydantic import Field, model_validator

from serin.core.config import Section
from serin.core.digests import digest_of
from serin.evaluate.judge_config import JudgeConfig
from serin.evaluate.suite_config import DEFAULT_SUITES, Suite


class Rule(Section):
    """One condition that a candidate must meet."""

    metric: str
    """Name of the metric, as in the evaluation's results."""
    kind: Literal["superiority", "non_inferiority", "no_regression", "floor", "ceiling"]
    """``superiority``: surely better than ``against`` by more than the margin; ``non_inferiority``: surely not worse
    by more than the margin; ``no_regression``: not surely worse by more than the margin, for slices too small to prove
    the absence of harm; ``floor`` and ``ceiling``: the candidate's own value is at least, at most, ``limit``."""
    against: Literal["baseline", "champion"] | None = None
    """The release compared with; none for floor and ceiling."""
    margin: float = Field(0.0, ge=0)
    """In the metric's unit."""
    limit: float | None = None
    """For floor and ceiling, in the metric's unit."""
    slices: tuple[str, ...] = ()
    """Judged on these slices, each by itself, instead of on all items: 'language:fr', or 'language:*' for every
    language with enough items.  A slice that is named and has too few items fails the rule."""
    surely: bool = False
    """For floor and ceiling: the whole interval must keep to the limit, not the estimate alone."""
    min_items: int = Field(30, ge=2)
    """Fewer independent items than this fail the rule, whatever the values."""
    optional: bool = False
    """Passed over when the evaluation says that the metric cannot apply (a dataset without golden questions)."""

    @model_validator(mode="after")
    def _complete(self) -> "Rule":
        compares = self.kind in ("superiority", "non_inferiority", "no_regression")
        if compares != (self.against is not None):
            raise ValueError(f"a {self.kind} rule {'needs' if compares else 'takes no'} 'against'")
        if compares != (self.limit is None):
            raise ValueError(f"a {self.kind} rule {'takes no' if compares else 'needs a'} 'limit'")
        if self.slices and not compares:
            raise ValueError(f"a {self.kind} rule takes no 'slices'")
        if self.surely and compares:
            raise ValueError(f"a {self.kind} rule takes no 'surely': it always rests on the whole interval")
        return self


DEFAULT_RULES = (
    Rule(metric="token_f1", kind="superiority", against="baseline"),
    Rule(metric="token_f1", kind="non_inferiority", against="champion", margin=0.02),
    Rule(metric="recall_at_5", kind="floor", limit=0.5, min_items=10, optional=True),
)


class GatePolicy(Section):
    """All rules must hold for a candidate to pass."""

    rules: tuple[Rule, ...] = Field(DEFAULT_RULES, min_length=1)
    """Judged in order."""
    alpha: float = Field(0.025, gt=0, lt=0.5)
    """One-sided level of what the comparing rules claim, all together: Holm's correction is over all of them."""
    power: float = Field(0.8, gt=0.5, lt=1)
    """With which the smallest detectable difference and the items that are needed are stated."""
    suites: dict[str, str] = Field(default_factory=dict)
    """Suite to the digest that its items must have; a suite that is missing or has another digest fails the gate."""
    lower_is_better: tuple[str, ...] = ()
    """Metrics of one's own where less is better; the direction of the built-in ones is known."""
    contaminated: Literal["fail", "report"] = "fail"
    """What items do that were found in the training data."""
    judge: JudgeConfig = JudgeConfig()
    """A judge model, whose preferences rules may name as ``judge_preference``; none unless a URL is given."""

    @property
    def version(self) -> str:
        """The first 16 hex digits of the policy's digest: the judge's prompt and model are in it."""
        values = self.dump()
        if not self.judge.url:
            del values["judge"]
        return digest_of(values)[:16]


TAKEN = ("conversations", "golden", "candidate", "champion", "baseline")
"""Names that no declared suite may have."""


class EvaluateConfig(Section):
    """What is measured, and the gate."""

    num_conversations: int = Field(120, ge=2)
    """Held-out conversations answered from the passages that they come with."""
    num_retrieved: int = Field(40, ge=0)
    """How many of them are also answered from live retrieval in the release's index; 0 leaves it out."""
    num_golden: int = Field(300, ge=0)
    """Golden questions of the dataset asked of the index at most; 0 leaves them out."""
    golden_depth: int = Field(10, ge=5)
    """Results looked at for each golden question."""
    num_examples: int = Field(6, ge=0)
    """Examples won and lost that the report shows, each."""
    resamples: int = Field(10_000, ge=1_000)
    """Bootstrap resamples behind each interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of every interval."""
    seed: int = 0
    """Chooses the conversations and seeds the bootstrap and any sampling."""
    num_threads: int | None = Field(1, ge=1)
    """CPU threads of the evaluation; none leaves the number to PyTorch.  One is fastest for models of a few million
    parameters, and by far on a busy machine."""
    suites: tuple[Suite, ...] = DEFAULT_SUITES
    """What is measured beside the dataset's own held-out conversations and golden questions; [] for nothing."""
    concurrency: int = Field(1, ge=1)
    """Requests under way at once where suites ask the endpoint (never in latency suites).  One is repeatable to the
    last bit; with more, the engine's batches depend on who comes first."""
    request_timeout_s: float = Field(60.0, gt=0)
    """Longest wait for one answer of the endpoint; an item without an answer fails the gate."""
    min_slice_items: int = Field(10, ge=2)
    """Independent items that a slice must have to be compared with another in ``gap`` metrics."""
    gate: GatePolicy = GatePolicy()
    """What the candidate must meet."""

    @model_validator(mode="after")
    def _names_differ(self) -> "EvaluateConfig":
        names = [suite.name for suite in self.suites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two suites are called {twice[0]!r}: give each a name of its own")
        if taken := [name for name in names if name in TAKEN]:
            raise ValueError(f"a suite may not be called {taken[0]!r}: the evaluation uses that name itself")
        return self
