"""Human review: a blind page, verdicts read back, and the gate that counts them."""

import json
import re
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from serin.core.artifacts import ArtifactStore
from serin.core.errors import ConfigError, InputError
from serin.core.journal import Journal
from serin.core.records import read_jsonl
from serin.core.release import save_release
from serin.evaluate.config import EvaluateConfig, GatePolicy, Rule
from serin.evaluate.results import Answer
from serin.evaluate.review import krippendorff, read_verdicts, review_of
from serin.evaluate.run import evaluate, read_results
from serin_pipelines.cli import app

CONFIG = EvaluateConfig(suites=(), num_conversations=32, num_retrieved=2, resamples=1_000)


@pytest.fixture
def evaluation(world):
    with world.stage() as context:
        save_release(context.store.storage, world.candidate)
        return evaluate(CONFIG, world.candidate, world.baseline, None, world.dataset, context)


def exported(world, evaluation, tmp_path, number=12):
    done = CliRunner().invoke(
        app, ["evaluate", "review", "--release", world.candidate.id, "--output", str(tmp_path / "review.html"),
              "--number", str(number), "--store", world.store_uri, "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def judged(review, reviewer, choose, tmp_path):
    """What the page would save when a reviewer chooses so."""
    verdicts = [{"item": pair.item, "choice": choose(pair), "time": "2026-01-01T00:00:00Z"} for pair in review.pairs]
    path = tmp_path / f"{reviewer}.json"
    path.write_text(json.dumps({"review": review.id, "reviewer": reviewer, "verdicts": verdicts}))
    return path


def imported(path, world):
    return CliRunner().invoke(app, ["evaluate", "verdicts", str(path), "--store", world.store_uri, "--json"])


def candidate_wins(pair):
    return "a" if pair.candidate_first else "b"


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.items, self.outside, self.labels = [], [], 0

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.outside += [attributes[name] for name in ("src", "href") if name in attributes]
        self.labels += tag == "label"
        if tag == "article":
            self.items.append(attributes["data-item"])


def test_the_page_is_blind_repeatable_and_stands_alone(world, evaluation, tmp_path):
    first = exported(world, evaluation, tmp_path)
    html = (tmp_path / "review.html").read_text(encoding="utf-8")
    assert exported(world, evaluation, tmp_path) == first
    assert (tmp_path / "review.html").read_text(encoding="utf-8") == html
    page = Page()
    page.feed(html)
    assert len(page.items) == first["pairs"] == 12
    assert page.outside == []
    assert page.labels == 12 * 5 + 1
    _, _, content = html.partition("</style>")  # the stylesheet names its colours so, in every page
    assert not re.search(r"candidate|baseline|champion", content)
    review = review_of(evaluation.artifact, 12)
    assert {pair.candidate_first for pair in review.pairs} == {True, False}


def test_verdicts_become_evidence_that_the_gate_counts(world, evaluation, tmp_path):
    exported(world, evaluation, tmp_path)
    review = review_of(evaluation.artifact, 12)
    done = imported(judged(review, "ana", candidate_wins, tmp_path), world)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "release": world.candidate.id, "reviewer": "ana", "won": 12, "lost": 0, "tied": 0, "new": True,
    }  # fmt: skip
    assert json.loads(imported(tmp_path / "ana.json", world).stdout)["new"] is False
    entries = Journal(ArtifactStore(world.store_uri).storage, "assistant").find(kind="review")
    assert [(one.approved_by, one.evidence["reviewer"]) for one in entries] == [("ana", "ana")]
    rule = Rule(metric="human_preference", kind="superiority", against="baseline", min_items=2)
    with world.stage() as context:
        config = CONFIG.model_copy(update={"gate": GatePolicy(rules=(rule,))})
        again = evaluate(config, world.candidate, world.baseline, None, world.dataset, context)
    results = read_results(again.artifact)
    preferred = results.comparisons["baseline"]["human_preference"]
    assert (preferred.won, preferred.improvement.estimate) == (12, 1.0)
    assert again.decision.evidence["rules"][0]["observed"]["estimate"] == 1.0


def test_two_reviewers_agreement_is_reported_and_their_mean_counts(world, evaluation, tmp_path):
    exported(world, evaluation, tmp_path)
    review = review_of(evaluation.artifact, 12)
    imported(judged(review, "ana", candidate_wins, tmp_path), world)
    half = {pair.item for pair in review.pairs[:6]}
    imported(judged(review, "ben", lambda p: candidate_wins(p) if p.item in half else "same", tmp_path), world)
    with world.stage() as context:
        again = evaluate(CONFIG, world.candidate, world.baseline, None, world.dataset, context)
    results = read_results(again.artifact)
    assert results.comparisons["baseline"]["human_preference"].improvement.estimate == pytest.approx(0.75, abs=0.2)
    assert results.review_agreement == pytest.approx(krippendorff([[1, 1]] * 6 + [[1, 0]] * 6))
    assert "alpha" in (again.artifact.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda values: values | {"review": "0" * 64}, "was not exported from"),
        (lambda values: values | {"reviewer": ""}, "reviewer"),
        (lambda values: values | {"verdicts": [{"item": "nobody", "choice": "a"}]}, "not in the review"),
        (lambda values: values | {"verdicts": values["verdicts"][:1] * 2}, "twice"),
        (lambda values: values | {"verdicts": [values["verdicts"][0] | {"choice": "c"}]}, "choice"),
    ],
)
def test_verdicts_that_do_not_fit_are_refused_and_nothing_is_journalled(world, evaluation, tmp_path, change, sentence):
    exported(world, evaluation, tmp_path)
    path = judged(review_of(evaluation.artifact, 12), "ana", candidate_wins, tmp_path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    error = imported(path, world).exception
    assert isinstance(error, InputError)
    assert sentence in str(error)
    assert Journal(ArtifactStore(world.store_uri).storage, "assistant").find(kind="review") == []


def test_verdicts_on_answers_that_have_changed_do_not_count(world, evaluation):
    from serin.core.journal import Entry
    from serin.evaluate.review import evidence_of, preferences

    review = review_of(evaluation.artifact, 4)
    verdicts = {
        "review": review.id,
        "reviewer": "ana",
        "verdicts": [{"item": p.item, "choice": "a"} for p in review.pairs],
    }
    from serin.evaluate.review import Verdicts

    entry = Entry(
        number=1, time="", kind="review", release_id="", decision="", previous_hash="", hash="",
        evidence=evidence_of(Verdicts.model_validate(verdicts), review),
    )  # fmt: skip
    candidate, other = (read_jsonl(evaluation.artifact.path / f"{r}.jsonl", Answer) for r in ("candidate", "baseline"))
    assert len(preferences([entry], candidate, {"baseline": other})[0]["baseline"]) == 4
    changed = [one.model_copy(update={"answer": one.answer + "!"}) for one in candidate]
    assert preferences([entry], changed, {"baseline": other}) == ({}, None)


def test_krippendorffs_alpha_gives_the_published_example():
    # Krippendorff 2011, section B: two observers, ten units, binary, alpha = .095
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff(list(zip(first, second, strict=True))) == pytest.approx(0.095, abs=0.001)
    assert krippendorff([[1, 1], [0, 0]]) == 1.0
    assert krippendorff([[1], [0]]) is None


def test_a_file_that_is_no_file_of_verdicts_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json is not JSON"):
        read_verdicts(tmp_path / "x.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_verdicts(tmp_path / "none.json")


@pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy",  # MLflow's own use of SQLAlchemy
    "ignore:.*Any type hint is inferred",  # and of its own type hints
)
def test_verdicts_given_in_an_mlflow_review_queue_count_like_those_of_the_page(world, evaluation, tmp_path):
    import mlflow
    from mlflow.entities import AssessmentSource
    from mlflow.genai.review_queues import (
        get_review_queue,
        list_review_queue_items,
        remove_items_from_review_queue,
    )

    from serin.evaluate.review_mlflow import QUESTION

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    where = ["--store", world.store_uri, "--tracking", uri, "--json"]
    asked = ["evaluate", "review", "--release", world.candidate.id, "--output", str(tmp_path / "r.html"),
             "--number", "3", "--queue", "--reviewer", "ada"]  # fmt: skip
    made = json.loads(CliRunner().invoke(app, [*asked, *where]).stdout)
    mlflow.set_tracking_uri(uri)
    queue = get_review_queue(name=made["queue"], experiment_id=mlflow.get_experiment_by_name("assistant").experiment_id)
    items = [item.item_id for item in list_review_queue_items(queue.queue_id)]
    remove_items_from_review_queue(queue.queue_id, item_ids=items[1:])  # as a command that was killed leaves it
    mlflow.set_tracking_uri(None)
    assert json.loads(CliRunner().invoke(app, [*asked, *where]).stdout) == made
    nobody = CliRunner().invoke(app, ["evaluate", "verdicts", "--queued", made["review"], *where])
    assert "Nobody has judged" in str(nobody.exception)

    pairs = {pair.item: pair for pair in review_of(evaluation.artifact, 3).pairs}
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        experiment = mlflow.get_experiment_by_name("assistant").experiment_id
        queue = get_review_queue(name=made["queue"], experiment_id=experiment)
        assert queue.users == ["ada"]
        items = list_review_queue_items(queue.queue_id)
        assert len(items) == 3
        for item in items:
            trace = mlflow.get_trace(item.item_id)
            assert "candidate" not in json.dumps([trace.data.request, trace.data.response])  # blind
            letter = candidate_wins(pairs[trace.info.tags["serin.item"]]).upper()
            source = AssessmentSource(source_type="HUMAN", source_id="ada")
            value = f"{letter} is better"
            mlflow.log_feedback(trace_id=item.item_id, name=QUESTION, value=value, rationale="clear", source=source)
    finally:
        mlflow.set_tracking_uri(before)
    read = ["evaluate", "verdicts", "--queued", made["review"], *where]
    (ada,) = json.loads(CliRunner().invoke(app, read).stdout)["reviewers"]
    assert (ada["reviewer"], ada["won"], ada["lost"], ada["new"]) == ("ada", 3, 0, True)
    (again,) = json.loads(CliRunner().invoke(app, read).stdout)["reviewers"]
    assert not again["new"]


def test_verdicts_come_from_a_file_or_from_a_queue_not_from_both(tmp_path):
    for arguments in ([], [str(tmp_path / "v.json"), "--queued", "ab"]):
        done = CliRunner().invoke(app, ["evaluate", "verdicts", *arguments])
        assert isinstance(done.exception, ConfigError)
