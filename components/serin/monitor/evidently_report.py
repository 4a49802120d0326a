"""Evidently as the report layer: our permutation test registered in it, its own verdicts left aside.

Its default tests take the reference for exact and its ``dataset_drift`` follows them; neither decides anything here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serin.core.events import EndpointEvent
from serin.core.reference import Reference
from serin.core.statistics import mean_shift_test
from serin.core.telemetry import silence_dependencies
from serin.core.text import words
from serin.monitor.config import MonitorConfig

if TYPE_CHECKING:
    import pandas as pd

TEST_NAME = "serin_mean_shift"
JSON_FILE, HTML_FILE = "evidently.json", "evidently.html"
MIN_VALUES = 5


def write_evidently(
    output: Path,
    reference: Reference | None,
    questions: Sequence[str],
    events: Sequence[EndpointEvent],
    config: MonitorConfig,
    *,
    html: bool,
) -> None:
    """Write ``evidently.json`` and, when asked, ``evidently.html`` (4 MB); without comparable columns, neither.

    Args:
        output: folder.
        reference: what evaluation saw; None leaves its columns out.
        questions: of the dataset, for their length.
        events: the traffic.
        config: level, permutations and seed of the test.
        html: whether to write the HTML.
    """
    before, now = _columns(reference, questions, events)
    names = [name for name in before if min(len(before[name]), len(now[name])) >= MIN_VALUES]
    if not names:
        return
    silence_dependencies()  # before the import, which reads the variables
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import MeanValue, ValueDrift

    _register(config)
    metrics: list[Any] = []
    for name in names:
        metrics += [ValueDrift(column=name, method=TEST_NAME, threshold=config.policy.alpha), MeanValue(column=name)]
    definition = DataDefinition(numerical_columns=names)
    snapshot = Report(metrics).run(
        Dataset.from_pandas(_frame(now, names), data_definition=definition),
        Dataset.from_pandas(_frame(before, names), data_definition=definition),
    )
    (output / JSON_FILE).write_text(json.dumps(json.loads(snapshot.json()), indent=1), encoding="utf-8")
    if html:
        snapshot.save_html(str(output / HTML_FILE))


def _columns(
    reference: Reference | None, questions: Sequence[str], events: Sequence[EndpointEvent]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    answered = [event for event in events if event.status == 200]
    before = {"question_words": [float(len(words(text))) for text in questions]}
    if reference:
        before["support_score"] = list(reference.support_scores)
        before["refused"] = [float(value) for value in reference.refused]
        before["best_passage_similarity"] = list(reference.top_scores)
    now = {
        "question_words": [float(len(words(event.question))) for event in events if event.question],
        "support_score": [event.support_score for event in answered if event.support_score is not None],
        "refused": [float(event.refused) for event in answered],
        "best_passage_similarity": [max(event.retrieval_scores, default=0.0) for event in answered],
    }
    return before, now


def _frame(columns: dict[str, list[float]], names: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame({name: pd.Series(columns[name], dtype="float64") for name in names})


def _register(config: MonitorConfig) -> None:
    """Make our test known to Evidently, with this look's settings."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def permutation(
        reference: "pd.Series", current: "pd.Series", feature_type: Any, threshold: float
    ) -> tuple[float, bool]:
        result = mean_shift_test(
            reference.dropna(), current.dropna(), permutations=config.permutations, seed=config.seed
        )
        return result.p_value, result.p_value <= threshold

    test = StatTest(
        name=TEST_NAME,
        display_name="Permutation test of the mean",
        allowed_feature_types=[ColumnType.Numerical],
        default_threshold=config.policy.alpha,
    )
    register_stattest(test, permutation)
