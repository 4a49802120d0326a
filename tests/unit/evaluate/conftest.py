"""A small world to evaluate in: a dataset, a real index, a model that learnt its answers and one that did not."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from serin.core.artifacts import Artifact, Built
from serin.core.context import StageContext, stage_context
from serin.core.generation import Generator
from serin.core.prompts import Prompt, render
from serin.core.records import Conversation, Document, GoldenQuestion, Message, write_jsonl
from serin.core.release import Part, Release
from serin.core.serving import ServingConfig
from serin.index.build import build_index
from serin.index.config import IndexConfig

ANSWERS = ("It costs 12 euros.", "It arrives in two days.")
QUESTIONS = ("What does the {} cost?", "When does the {} come?")
THINGS = ("kettle", "lamp", "tent", "rug", "chair", "bench", "desk", "stove")
PROMPT = Prompt(system="Answer.", max_context_chars=120)
SERVING = ServingConfig(max_new_tokens=16, min_score=0.0)


@dataclass(frozen=True)
class World:
    """Artefacts in one store, which tests only read."""

    store_uri: str
    dataset: Artifact
    bare_dataset: Artifact
    """Without golden questions."""
    candidate: Release
    baseline: Release
    better: Release
    """The candidate's model with another prompt: a champion that differs."""

    def stage(self, store_uri: str | None = None):
        return stage_context("evaluate", store_uri=store_uri or self.store_uri, lineage_id="run-1")


@pytest.fixture(scope="session")
def shared_world(tiny_model, tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    with stage_context("evaluate", store_uri=str(folder)) as context:
        documents = _artifact(context, "documents", lambda out: write_jsonl(out / "documents.jsonl", _documents()))
        index = build_index(IndexConfig(), documents, context)
        dataset = _artifact(context, "dataset", lambda out: _write_dataset(out, golden=True))
        bare = _artifact(context, "dataset", lambda out: _write_dataset(out, golden=False), name="bare")
        base = _artifact(context, "base", lambda out: shutil.copytree(tiny_model, out, dirs_exist_ok=True))
        model = _artifact(context, "model", lambda out: _train(tiny_model, out / "merged"))
        shared = {
            "index": Part.of(index),
            "data": Part.of(dataset),
            "guardrails": {},
            "serving": SERVING.dump(),
            "code_version": "test",
        }
        candidate = Release(model=Part.of(model), prompt=PROMPT, **shared)
        baseline = Release(model=Part.of(base), prompt=PROMPT, **shared)
        better = Release(model=Part.of(model), prompt=Prompt(system="Answer now.", max_context_chars=120), **shared)
    return World(folder.as_uri(), dataset, bare, candidate, baseline, better)


@pytest.fixture
def world(shared_world, tmp_path) -> World:
    """The shared artefacts, an empty journal and no evaluation; answers asked for before stay, to save time."""
    yield shared_world
    for kind in ("evaluation", "endpoints", "releases"):
        shutil.rmtree(Path(shared_world.dataset.path.parents[1]) / kind, ignore_errors=True)


def conversations(number: int, start: int = 0) -> list[Conversation]:
    """Questions about things, each a group of its own; every fifth is French by its label."""
    made = []
    for i in range(start, start + number):
        thing, kind = f"{THINGS[i % len(THINGS)]} {i}", i % 2
        made.append(
            Conversation(
                id=f"c{i}",
                messages=(
                    Message(role="user", content=QUESTIONS[kind].format(thing)),
                    Message(role="assistant", content=ANSWERS[kind]),
                ),
                context=("It costs 12 euros and arrives in two days.",),
                language="fr" if i % 5 == 0 else "en",
                group=f"g{i}",
            )
        )
    return made


def _documents() -> list[Document]:
    return [
        Document(
            id=f"{thing}.md",
            title=thing.capitalize(),
            text=f"# {thing.capitalize()}\n\nThe {thing} costs 12 euros and arrives in two days. We love the {thing}.",
            source=f"{thing}.md",
        )
        for thing in THINGS
    ]


def _write_dataset(output: Path, golden: bool) -> None:
    write_jsonl(output / "train.jsonl", conversations(40, start=100))
    write_jsonl(output / "validation.jsonl", conversations(4, start=200))
    write_jsonl(output / "test.jsonl", conversations(40))
    if golden:
        questions = [
            GoldenQuestion(
                id=f"golden-{i}", question=f"price of the {THINGS[i % 8]}", document_ids=(f"{THINGS[i % 8]}.md",)
            )
            for i in range(12)
        ]
        write_jsonl(output / "golden.jsonl", questions)


def _artifact(context: StageContext, kind: str, write, name: str = "") -> Artifact:
    def build(output: Path, scratch: Path) -> Built:
        write(output)
        return Built()

    return context.produce(kind, build, inputs={"name": name or kind}, config={})


def _train(base: Path, output: Path) -> None:
    """Teach the two answers: a minute's work for a GPU, two seconds for this."""
    import torch

    torch.manual_seed(0)
    generator = Generator.load(base)
    model, tokenizer = generator.model.train(), generator.tokenizer
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(0.2)  # the base's random weights are wide; from narrow ones it learns in seconds
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = []
    for one in conversations(40, start=100):
        prompt = render(PROMPT, one.messages, one.context)
        opening = generator.encode(prompt[:-1])
        whole = tokenizer.apply_chat_template(prompt, tokenize=True, return_dict=False)
        rows.append((whole, len(opening)))
    width = max(len(ids) for ids, _ in rows)
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([[-100] * at + ids[at:] + [-100] * (width - len(ids)) for ids, at in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    for _ in range(80):
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
