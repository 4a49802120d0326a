import json
from types import SimpleNamespace

import pytest
from pages import stands_alone

from serin.core.artifacts import Built
from serin.core.errors import InputError, IntegrityError
from serin.core.records import read_jsonl, write_jsonl
from serin.core.reference import Reference
from serin.core.release import save_release
from serin.core.tracking import prepare_database
from serin.evaluate.config import EvaluateConfig, GatePolicy, Rule
from serin.evaluate.results import Answer
from serin.evaluate.run import champion_of, evaluate, headline, read_results

CONFIG = EvaluateConfig(num_conversations=32, num_retrieved=8, resamples=1000, num_threads=1, suites=())


def run(world, champion=None, config=CONFIG, dataset=None, candidate=None):
    with world.stage() as context:
        return evaluate(
            config, candidate or world.candidate, world.baseline, champion, dataset or world.dataset, context
        )


def test_a_model_that_learnt_passes_against_one_that_did_not_and_says_by_how_much(world):
    evaluation = run(world)
    results = read_results(evaluation.artifact)
    assert evaluation.decision.outcome == "pass", evaluation.decision.reasons
    assert results.values["candidate"]["token_f1"].estimate > 0.8
    assert results.values["baseline"]["token_f1"].estimate < 0.3
    gain = results.comparisons["baseline"]["token_f1"]
    assert gain.improvement.low > 0.5
    assert gain.improvement.count == 32
    assert gain.won > gain.lost
    assert results.comparisons["baseline"]["bits_per_byte"].improvement.low > 0
    assert results.values["candidate"]["number_accuracy"].estimate > 0.8
    assert results.values["candidate"]["recall_at_5"].estimate == 1.0
    assert results.num_items == {"given": 32, "retrieved": 8, "golden": 12}
    assert set(results.by_language) == {"en", "fr"}
    assert headline(evaluation)["gain_over_baseline"]["low"] > 0.5
    assert set(headline(evaluation)["metrics"]) == {"candidate", "baseline"}


def test_the_untuned_model_fails_against_itself(world):
    evaluation = run(world, candidate=world.baseline)
    assert evaluation.decision.outcome == "fail"
    assert "0.000 better than the baseline's" in evaluation.decision.reasons[0]


def test_a_champion_is_compared_with_unless_it_is_the_candidate(world):
    against = read_results(run(world, champion=world.better).artifact)
    assert against.comparisons["champion"]["token_f1"].improvement.count == 32
    itself = run(world, champion=world.candidate)
    assert itself.decision.outcome == "pass"
    assert any("the candidate is the champion already" in reason for reason in itself.decision.reasons)
    assert "champion" not in read_results(itself.artifact).comparisons


def test_the_journal_gets_one_gate_entry_for_each_different_evaluation(world):
    evaluation = run(world)
    run(world)
    with world.stage() as context:
        (entry,) = context.journal.find(kind="gate", release_id=world.candidate.id)
        assert entry.decision == "pass"
        assert entry.evidence["evaluation"]["uri"] == evaluation.artifact.uri
        assert entry.evidence["rules"][0]["observed"]["low"] > 0.5
        assert entry.policy_version == CONFIG.gate.version
    run(world, champion=world.better)
    with world.stage() as context:
        assert len(context.journal.find(kind="gate")) == 2


def test_answers_are_reused_when_only_the_policy_changes(world):
    run(world)
    folder = world.dataset.path.parents[1]
    before = {path: path.stat().st_mtime_ns for path in (folder / "answers").glob("*/answers.jsonl")}
    strict = GatePolicy(rules=(Rule(metric="token_f1", kind="floor", limit=1.01),))
    failed = run(world, config=CONFIG.model_copy(update={"gate": strict}))
    assert failed.decision.outcome == "fail"
    after = {path: path.stat().st_mtime_ns for path in (folder / "answers").glob("*/answers.jsonl")}
    assert len(before) >= 2
    assert after == before


def test_evaluating_again_from_nothing_gives_the_same_digest(world):
    first = run(world).artifact
    folder = world.dataset.path.parents[1]
    for kind in ("evaluation", "answers", "retrieval"):
        (folder / kind).rename(folder / f".{kind}.before")
    second = run(world).artifact
    assert second.digest == first.digest


def test_a_dataset_without_golden_questions_passes_the_optional_rule_over(world):
    evaluation = run(world, dataset=world.bare_dataset)
    assert evaluation.decision.outcome == "pass"
    assert any("no golden questions" in reason for reason in evaluation.decision.reasons)


def test_without_live_retrieval_the_reference_for_monitoring_is_the_given_passages(world):
    with_retrieval = run(world)
    without = run(world, config=CONFIG.model_copy(update={"num_retrieved": 0}))
    (candidate, baseline) = read_jsonl(with_retrieval.artifact.path / "reference.jsonl", Reference)
    assert (candidate.source, len(candidate.top_scores), len(candidate.refused)) == ("retrieved", 8, 8)
    assert candidate.release_id == world.candidate.id
    assert baseline.release_id == world.baseline.id
    (candidate, _) = read_jsonl(without.artifact.path / "reference.jsonl", Reference)
    assert (candidate.source, candidate.top_scores, len(candidate.support_scores)) == ("given", (), 32)


def test_retrieved_answers_rest_on_passages_of_the_releases_index(world):
    evaluation = run(world)
    answers = read_jsonl(evaluation.artifact.path / "candidate.jsonl", Answer)
    retrieved = [one for one in answers if one.source == "retrieved"]
    assert all(one.passages and len(one.passages) == len(one.retrieval_scores) for one in retrieved)
    assert all("costs 12 euros" in one.passages[0] for one in retrieved)


def test_an_empty_test_split_is_refused_in_one_sentence(world):
    with world.stage() as context:

        def build(output, scratch):
            write_jsonl(output / "test.jsonl", [])
            return Built()

        empty = context.produce("dataset", build, inputs={"name": "empty"}, config={})
    with pytest.raises(InputError, match="holds out 0 conversations"):
        run(world, dataset=empty)


def test_a_release_whose_model_was_changed_is_refused(world):
    changed = world.candidate.model_copy(
        update={"model": world.candidate.model.model_copy(update={"digest": "0" * 64})}
    )
    with pytest.raises(IntegrityError, match="the release was made with"):
        run(world, candidate=changed)


def test_the_champion_is_the_one_that_the_journal_names(world):
    with world.stage() as context:
        assert champion_of(context) is None
        save_release(context.store.storage, world.better)
        context.journal.append("promotion", release_id=world.better.id, decision="promote")
        assert champion_of(context) == world.better


def test_the_report_is_of_this_evaluation_and_draws_what_its_release_was_made_from(world):
    report = (run(world, champion=world.better).artifact.path / "report.html").read_text(encoding="utf-8")
    assert stands_alone(report).pictures > 30
    assert f"Release {world.candidate.short_id} passes the gate" in report
    for name in ("Documents", "Index", "Dataset", "Model", "Gate"):
        assert f">{name}</text>" in report
    assert world.better.model.digest in report


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own use of SQLAlchemy
def test_metrics_and_the_verdict_go_to_mlflow(world, tmp_path):
    from serin.core.context import stage_context

    tracking_uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    prepare_database(tracking_uri)
    with stage_context("evaluate", store_uri=world.store_uri, tracking_uri=tracking_uri, lineage_id="run-2") as context:
        evaluation = evaluate(CONFIG, world.candidate, world.baseline, None, world.dataset, context)
        data = context.tracker.client.get_run(context.tracker.run_id).data
    assert data.metrics["candidate.token_f1"] == pytest.approx(
        read_results(evaluation.artifact).values["candidate"]["token_f1"].estimate
    )
    assert data.tags["serin.gate"] == "pass"
    assert json.loads((evaluation.artifact.path / "decision.json").read_text())["outcome"] == "pass"


class LoggedMetrics(SimpleNamespace):
    """A KFP metrics output."""

    def log_metric(self, name, value):
        self.metadata[name] = value


def test_the_component_returns_whether_the_gate_passed(world, tmp_path):
    from kfp.dsl import ClassificationMetrics

    from serin.evaluate.component import evaluate as component

    with world.stage() as context:
        for release in (world.candidate, world.baseline):
            save_release(context.store.storage, release)
    metrics = LoggedMetrics(path=str(tmp_path / "metrics"), metadata={})
    refusals = ClassificationMetrics(uri=str(tmp_path / "refusals"), metadata={})
    report, evaluation = (SimpleNamespace(path=str(tmp_path / name), metadata={}) for name in ("html", "evaluation"))
    passed = component.python_func(
        release=SimpleNamespace(metadata={"release_id": world.candidate.id}),
        baseline=SimpleNamespace(metadata={"release_id": world.baseline.id}),
        dataset=SimpleNamespace(metadata={"uri": world.dataset.uri}),
        store_uri=world.store_uri,
        tracking_uri="",
        endpoint="assistant",
        lineage_id="run-1",
        config={**CONFIG.dump(), "num_conversations": 32.0},
        evaluation=evaluation,
        metrics=metrics,
        refusals=refusals,
        report=report,
    )
    assert passed is True
    matrix = refusals.metadata["confusionMatrix"]
    assert [row["displayName"] for row in matrix["annotationSpecs"]] == ["answers", "refuses"]
    assert sum(sum(row["row"]) for row in matrix["rows"]) == 32
    assert metrics.metadata["candidate.token_f1"] > 0.8
    assert evaluation.metadata["kind"] == "evaluation"
    assert "passes the gate" in (tmp_path / "html").read_text(encoding="utf-8")
