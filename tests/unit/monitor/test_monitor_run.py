import random
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from pages import stands_alone

from serin.core.artifacts import Built
from serin.core.context import stage_context
from serin.core.events import EndpointEvent, write_events
from serin.core.prompts import Prompt
from serin.core.records import Conversation, Document, Message, write_jsonl
from serin.core.reference import REFERENCE_FILE, Reference
from serin.core.release import Part, Release, save_release
from serin.monitor.config import MonitorConfig
from serin.monitor.run import monitor, one_question_a_session, watch

# Evidently 0.7 imports litestar, nltk and numpy.core through names that are on their way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONFIG = MonitorConfig(permutations=499, calibration_windows=100)
THINGS = ("kettle", "lamp", "tent", "rug", "chair", "bench", "desk", "stove", "mirror", "pillow")
ASKED = (
    "How much is the {}?", "What does the {} cost?", "Is the {} in stock?", "Can I return the {}?",
    "Which colours does the {} come in?", "How big is the {}?", "When will the {} come?", "Do you send the {} abroad?",
    "How long is the warranty of the {}?", "Is the {} sold out?", "Please tell me the price of the {}.",
    "What would delivery of the {} cost?",
)  # fmt: skip
ELSEWHERE = (
    "My knee hurts after running, what should I take?", "Which tax form do I need as a freelancer?",
    "Explain photosynthesis to a child.", "Who won the election in 1968?", "Write a poem about the moon landing.",
    "How do I prove that the square root of two is irrational?", "Translate this contract clause for my lawyer.",
    "What causes inflation in emerging economies?", "Is this mole on my arm dangerous?",
    "How many protons does helium have?",
)  # fmt: skip


@pytest.fixture
def stage(tmp_path):
    """A store with a dataset, an index, an evaluated release and its rollout begun."""
    with stage_context("monitor", store_uri=str(tmp_path / "store"), lineage_id="run-1") as context:
        yield context


def an_artifact(context, kind, write, **inputs):
    def build(output, scratch):
        write(output)
        return Built()

    return context.produce(kind, build, inputs=inputs or {"name": kind}, config={})


def conversations(start, templates):
    made = []
    for i, template in enumerate(templates, start):
        for thing in THINGS:
            turns = (Message(role="user", content=template.format(thing)), Message(role="assistant", content="Yes."))
            made.append(Conversation(id=f"{i}-{thing}", messages=turns, group=f"g{i}"))
    return made


def write_dataset(output):
    write_jsonl(output / "train.jsonl", conversations(0, ASKED[:8]))
    write_jsonl(output / "validation.jsonl", conversations(8, ASKED[8:10]))
    write_jsonl(output / "test.jsonl", conversations(10, ASKED[10:]))


def a_world(context, evaluated=True, text_ends=""):
    dataset = an_artifact(context, "dataset", write_dataset)
    document = Document(id="a.md", title="A", text="A", source="a.md", metadata={"valid_until": text_ends})
    documents = an_artifact(context, "documents", lambda out: write_jsonl(out / "documents.jsonl", [document]))
    index = an_artifact(context, "index", lambda out: (out / "index.json").write_text("{}"), documents=documents)
    model = an_artifact(context, "model", lambda out: (out / "config.json").write_text("{}"))
    release = Release(
        model=Part.of(model), index=Part.of(index), data=Part.of(dataset), prompt=Prompt(),
        guardrails={}, serving={}, code_version="test",
    )  # fmt: skip
    if evaluated:
        rng = random.Random(1)
        reference = Reference(
            release_id=release.id,
            source="retrieved",
            support_scores=tuple(rng.uniform(0.6, 1) for _ in range(60)),
            refused=tuple(i % 10 == 0 for i in range(60)),
            top_scores=tuple(rng.uniform(0.5, 0.8) for _ in range(60)),
        )
        evaluation = an_artifact(context, "evaluation", lambda out: write_jsonl(out / REFERENCE_FILE, [reference]))
        evidence = {"evaluation": {"uri": evaluation.uri, "digest": evaluation.digest}}
        context.journal.append("gate", release_id="another", decision="pass", evidence=evidence)
    context.journal.append("rollout", release_id=release.id, decision="started")
    return release, dataset


def traffic(release, questions, number=60, seed=2, **fields):
    rng = random.Random(seed)
    now = datetime.now(UTC) + timedelta(seconds=seed)
    events = []
    for i in range(number):
        values = {
            "trace_id": f"{seed:016x}{i:016x}",
            "time": (now + timedelta(milliseconds=i)).isoformat(timespec="milliseconds"),
            "session_id": f"s{seed}-{i}", "endpoint": "assistant", "release_id": release.id, "track": "candidate",
            "status": 200, "question": rng.choice(questions), "answer": "Yes.", "ttft_ms": 40.0, "latency_ms": 200.0,
            "retrieval_ids": ("c",), "retrieval_scores": (rng.uniform(0.5, 0.8),),
            "support_score": rng.uniform(0.6, 1), "refused": rng.random() < 0.1,
        }  # fmt: skip
        values |= {name: value(rng) if callable(value) else value for name, value in fields.items()}
        events.append(EndpointEvent(**values))
    return events


def usual():
    """What the held-out templates ask, as the demo replays it."""
    return [conversation.question for conversation in conversations(10, ASKED[10:])]


def send(context, events):
    write_events(context.store.storage, "assistant", events)


def test_traffic_like_the_dataset_calls_for_nothing(stage):
    release, dataset = a_world(stage)
    send(stage, traffic(release, usual()))
    look = watch(CONFIG, release, dataset, stage)
    assert look.decision.outcome == "none", look.decision.reasons
    signals = look.decision.evidence["signals"]
    assert (signals["num_events"], signals["num_sessions"]) == (60, 60)
    assert signals["questions"]["unknown_word_share"] == 0
    assert signals["missing"] == {}
    assert (look.artifact.path / "evidently.json").is_file()
    assert not (look.artifact.path / "evidently.html").exists()
    page = (look.artifact.path / "report.html").read_text(encoding="utf-8")
    assert "NONE." in page
    assert stands_alone(page).pictures >= 8
    assert "limit" in page


def test_usual_traffic_of_other_days_calls_for_nothing_either(stage):
    release, dataset = a_world(stage)
    for seed in range(3, 6):
        send(stage, traffic(release, usual(), number=40, seed=seed))
        assert monitor(CONFIG, release, dataset, stage).outcome == "none"


def test_questions_of_another_domain_do_not_pass_unseen(stage):
    release, dataset = a_world(stage)
    send(stage, traffic(release, ELSEWHERE))
    look = watch(CONFIG, release, dataset, stage)
    assert look.decision.outcome == "alert"
    questions = look.decision.evidence["signals"]["questions"]
    assert questions["novelty"] > 1.5 * questions["novelty_limit"]
    assert questions["unknown_word_share"] > 0.5
    assert (look.artifact.path / "evidently.html").is_file()


def test_another_domain_that_the_documents_do_not_cover_asks_for_a_new_index(stage):
    release, dataset = a_world(stage)
    send(stage, traffic(release, ELSEWHERE, retrieval_scores=lambda rng: (rng.uniform(0.0, 0.3),)))
    assert monitor(CONFIG, release, dataset, stage).outcome == "reindex"


def test_lasting_drift_with_less_support_asks_for_retraining(stage):
    release, dataset = a_world(stage)
    outcomes = []
    for seed in (11, 12):
        poor = traffic(release, ELSEWHERE, number=40, seed=seed, support_score=lambda rng: rng.uniform(0.0, 0.4))
        send(stage, poor)
        outcomes.append(monitor(CONFIG, release, dataset, stage).outcome)
    assert outcomes == ["alert", "retrain"]


def test_looking_twice_at_the_same_traffic_is_one_look(stage):
    release, dataset = a_world(stage)
    send(stage, traffic(release, ELSEWHERE, support_score=0.1))
    first, second = (watch(CONFIG, release, dataset, stage) for _ in range(2))
    assert second == first
    assert second.decision.outcome == "alert"
    assert len(stage.journal.find(kind="monitor")) == 1


def test_the_journal_entry_holds_the_signals_and_the_report(stage):
    release, dataset = a_world(stage)
    send(stage, traffic(release, usual()))
    look = watch(CONFIG, release, dataset, stage)
    (entry,) = stage.journal.find(kind="monitor", release_id=release.id)
    assert entry.decision == "none"
    assert entry.evidence["report"]["uri"] == look.artifact.uri
    assert entry.evidence["signals"]["errors"]["count"] == 60
    assert entry.policy_version == CONFIG.policy.version


def test_only_the_releases_own_traffic_since_its_rollout_counts(stage):
    release, dataset = a_world(stage)
    early = [
        event.model_copy(update={"time": "2020-01-01T00:00:00.000+00:00"}) for event in traffic(release, ELSEWHERE)
    ]
    other = [event.model_copy(update={"release_id": "f" * 64}) for event in traffic(release, ELSEWHERE, seed=8)]
    send(stage, [*early, *other])
    decision = monitor(CONFIG, release, dataset, stage)
    assert decision.outcome == "none"
    assert decision.reasons[0].startswith("The window holds 0 requests of 0 sessions")


def test_a_failing_endpoint_raises_an_alert(stage):
    release, dataset = a_world(stage)
    send(stage, traffic(release, usual(), status=lambda rng: 503 if rng.random() < 0.3 else 200))
    decision = monitor(CONFIG, release, dataset, stage)
    assert decision.outcome == "alert"
    assert "requests failed" in decision.reasons[0]


def test_requests_that_users_or_guardrails_ended_are_no_failures(stage):
    release, dataset = a_world(stage)
    send(stage, traffic(release, usual(), number=80, status=lambda rng: rng.choice([200, 200, 200, 400, 499])))
    assert monitor(CONFIG, release, dataset, stage).outcome == "none"


def test_without_stored_text_and_without_an_evaluation_the_rest_is_judged_and_the_gap_is_said(stage):
    release, dataset = a_world(stage, evaluated=False)
    send(stage, traffic(release, usual(), question=""))
    decision = monitor(CONFIG, release, dataset, stage)
    assert decision.outcome == "none"
    assert set(decision.evidence["signals"]["missing"]) == {"questions", "support", "refusals", "retrieval"}
    assert any("keep_text" in reason for reason in decision.reasons)


def test_expired_promotions_are_reported(stage):
    release, dataset = a_world(stage, text_ends="2020-01-01")
    send(stage, traffic(release, usual()))
    decision = monitor(CONFIG, release, dataset, stage)
    assert decision.evidence["signals"]["index"]["expired_share"] == 1.0
    assert decision.outcome == "none"


def test_requests_of_one_session_count_once_for_drift():
    release = Release(
        model=Part(kind="model", digest="a", uri=""), index=Part(kind="index", digest="a", uri=""),
        data=Part(kind="dataset", digest="a", uri=""), prompt=Prompt(), guardrails={}, serving={}, code_version="",
    )  # fmt: skip
    events = traffic(release, usual(), number=12, session_id=lambda rng: f"s{rng.randrange(3)}")
    questions = one_question_a_session(events)
    assert len(questions) == 3
    assert sorted(one_question_a_session(events[::-1])) == sorted(questions)


def test_the_component_returns_the_outcome_and_the_page(stage, tmp_path):
    from serin.monitor.component import monitor as component

    release, dataset = a_world(stage)
    save_release(stage.store.storage, release)
    send(stage, traffic(release, usual()))
    report = SimpleNamespace(path=str(tmp_path / "html"), metadata={})
    outcome = component.python_func(
        release=SimpleNamespace(metadata={"release_id": release.id}),
        dataset=SimpleNamespace(metadata={"uri": dataset.uri}),
        store_uri=str(tmp_path / "store"),
        tracking_uri="",
        endpoint="assistant",
        lineage_id="run-1",
        config={"permutations": 499.0},
        report=report,
    )
    assert outcome == "none"
    assert "Nothing needs to be done." in (tmp_path / "html").read_text(encoding="utf-8")
