"""A review in MLflow's review queues: each pair is a trace there, each verdict feedback on it.

The traces show the question, the passages and the answers A and B; which is whose stays with the evaluation, as on the
page.  Verdicts come back by the review's id and are then judged as those of the page are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

from serin.core.errors import ConfigError, InputError
from serin.core.tracking.runs import Runs
from serin.evaluate.review import Choice, Pair, Review, Verdict, Verdicts

QUESTION = "Which answer is better?"
CHOICES = {"A is better": "a", "B is better": "b", "Both are right": "same", "Both are wrong": "neither"}
REVIEW_TAG, ITEM_TAG = "serin.review", "serin.item"
PAGE = 500


def queue_review(review: Review, tracking_uri: str, endpoint: str, reviewers: Sequence[str]) -> str:
    """Put a review's pairs into a queue of MLflow's; a second time changes nothing.

    Args:
        review: what to judge.
        tracking_uri: MLflow's.
        endpoint: whose experiment people find the queue in.
        reviewers: who is asked, at most 10; none: whoever opens it.

    Returns:
        The queue's name.

    Raises:
        ConfigError: MLflow cannot be used for it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.genai.review_queues import add_items_to_review_queue, create_review_queue, get_review_queue

    name = f"review {review.id[:12]}"
    with _mlflow(tracking_uri, endpoint) as experiment_id:
        known = {trace.info.tags[ITEM_TAG]: trace.info.trace_id for trace in _traces(review.id, experiment_id)}
        traces = [known.get(pair.item) or _trace(pair, review, experiment_id) for pair in review.pairs]
        try:
            queue = create_review_queue(
                name,
                queue_type="custom",
                users=list(reviewers),
                schema_ids=[_question(experiment_id)],
                experiment_id=experiment_id,
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            queue = get_review_queue(name=name, experiment_id=experiment_id)  # it may have been left without its items
        add_items_to_review_queue(queue.queue_id, item_ids=traces)
    return name


def queued_verdicts(review_id: str, tracking_uri: str, endpoint: str) -> list[Verdicts]:
    """What reviewers said in MLflow about a review, one file's worth for each; of what is judged twice the last counts.

    Raises:
        InputError: the review is in no queue there, or nobody has judged anything yet.
        ConfigError: MLflow cannot be used for it.
    """
    with _mlflow(tracking_uri, endpoint) as experiment_id:
        traces = _traces(review_id, experiment_id)
    if not traces:
        raise InputError(
            f"Review {review_id[:12]} is in no queue of MLflow: 'serin evaluate review --queue' puts it there."
        )
    said: dict[str, dict[str, Verdict]] = {}
    for trace in traces:
        for one in sorted(trace.info.assessments, key=lambda one: one.last_update_time_ms or 0):
            if one.name == QUESTION and one.source.source_type == "HUMAN" and one.value in CHOICES:
                verdict = _verdict(trace.info.tags[ITEM_TAG], one)
                said.setdefault(one.source.source_id, {})[verdict.item] = verdict
    if not said:
        raise InputError(f"Nobody has judged a pair of review {review_id[:12]} in MLflow yet: ask again later.")
    return [
        Verdicts(review=review_id, reviewer=reviewer, verdicts=tuple(of_one.values()))
        for reviewer, of_one in sorted(said.items())
    ]


def _verdict(item: str, assessment: Any) -> Verdict:
    time = datetime.fromtimestamp((assessment.last_update_time_ms or 0) / 1000, UTC)
    return Verdict(
        item=item,
        choice=cast(Choice, CHOICES[assessment.value]),
        comment=(assessment.rationale or "")[:2000],
        time=time.isoformat(timespec="seconds"),
    )


def _trace(pair: Pair, review: Review, experiment_id: str) -> str:
    from mlflow import MlflowClient

    client = MlflowClient()
    root = client.start_trace(
        "review",
        inputs={"question": pair.question, "passages": list(pair.passages)},
        tags={REVIEW_TAG: review.id, ITEM_TAG: pair.item},
        experiment_id=experiment_id,
    )
    client.end_trace(root.trace_id, outputs={"A": pair.first, "B": pair.second})
    if not str(root.trace_id).startswith("tr-"):  # what MLflow's client gives when it could not start one
        raise ConfigError("MLflow's tracing is off or cannot be reached, so there is nothing to queue: use the page.")
    return str(root.trace_id)


def _traces(review_id: str, experiment_id: str) -> list[Any]:
    import mlflow

    return list(
        mlflow.search_traces(
            locations=[experiment_id],
            filter_string=f"tags.`{REVIEW_TAG}` = '{review_id}'",
            max_results=PAGE,
            return_type="list",
            flush=True,
        )
    )


def _question(experiment_id: str) -> str:
    """Id of the question that reviewers answer, which is one for all reviews of an experiment."""
    from mlflow.exceptions import MlflowException
    from mlflow.genai.label_schemas import InputCategorical, create_label_schema, get_label_schema

    instruction = "Judge by the passages: is it right, and does it say no more than they do?"
    try:
        made = create_label_schema(
            QUESTION,
            type="feedback",
            input=InputCategorical(options=list(CHOICES)),
            instruction=instruction,
            enable_comment=True,
            experiment_id=experiment_id,
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        made = get_label_schema(QUESTION, experiment_id=experiment_id)
    return str(made.schema_id)


@contextmanager
def _mlflow(tracking_uri: str, endpoint: str) -> Iterator[str]:
    """The endpoint's experiment, on the server that MLflow's functions for queues and traces know meanwhile."""
    import mlflow
    from mlflow.exceptions import MlflowException

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield Runs(tracking_uri).experiment(endpoint)
    except MlflowException as error:
        raise ConfigError(
            f"MLflow at {tracking_uri} cannot keep a review queue ({error.error_code}): use the page alone."
        ) from error
    finally:
        mlflow.set_tracking_uri(before)
