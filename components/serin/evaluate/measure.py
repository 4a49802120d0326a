"""Declared suites measured: each release's outcomes, found or made.

What a model, an index or an endpoint answers is an artefact keyed by all that decides it, so a release that was
measured before on the same items is not asked again; only clocks are: a latency suite times all releases of an
evaluation anew, in turns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from serin.core.artifacts import Artifact, Built
from serin.core.context import StageContext
from serin.core.digests import code_version, digest_of
from serin.core.embedding import Embedder
from serin.core.generation import Generator
from serin.core.policy import GuardrailPolicy
from serin.core.prompts import render
from serin.core.records import read_jsonl, write_jsonl
from serin.core.release import Release, model_folder, open_part
from serin.core.retrieval import IndexReader, epoch, read_info
from serin.core.serving import ServingConfig, fitting, search_query, today
from serin.evaluate import harness
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.endpoint import LiveEndpoint
from serin.evaluate.items import Item, Loaded, label_set, load_items
from serin.evaluate.likelihood import Row, chat_row, plain_row, row_losses, text_bits
from serin.evaluate.replies import Reply, judged, outcome_of
from serin.evaluate.results import GoldenResult, Outcome, SuiteInfo
from serin.evaluate.retrieval import graded_ndcg, recall, reciprocal_rank
from serin.evaluate.suite_config import (
    ChoicesSuite,
    HarnessSuite,
    IntentsSuite,
    LatencySuite,
    RetrievalSuite,
    Suite,
    TextSuite,
    needs_endpoint,
)
from serin.evaluate.summary import clock_values

OUTCOMES = "outcomes.jsonl"
MAX_ROWS = 64
ORDER = ("baseline", "candidate", "champion")
"""In which the endpoint is asked: the candidate stays loaded beside each of the others."""
CHUNKS_PER_DOCUMENT = 3
"""Hits looked at for each document of a ranking: several may be of one document."""


@dataclass(frozen=True)
class Measured:
    """All declared suites of all releases."""

    outcomes: dict[str, list[Outcome]]
    """Role to outcomes, suite by suite."""
    infos: tuple[SuiteInfo, ...]
    broken: dict[str, str]
    """Suite to what is wrong with it."""
    timed: dict[str, list[Outcome]]
    """Role compared with to the candidate's outcomes of latency suites beside it: only those of one hour compare."""


def load_suites(config: EvaluateConfig) -> list[Loaded]:
    """The items of all declared suites but the harness's, which has its own.

    Raises:
        ConfigError: there is no such built-in suite.
        InputError: a source cannot be used.
    """
    return [load_items(suite, config.seed) for suite in config.suites if not isinstance(suite, HarnessSuite)]


class Measuring:
    """Measures the suites of an evaluation.

    Args:
        config: the suites and how they are asked.
        releases: role to release; 'candidate' is there.
        loaded: the suites' items.
        context: the stage's.
    """

    def __init__(
        self, config: EvaluateConfig, releases: Mapping[str, Release], loaded: Sequence[Loaded], context: StageContext
    ) -> None:
        self._config, self._releases, self._context = config, dict(releases), context
        self._loaded = {one.suite.name: one for one in loaded}
        self._outcomes: dict[str, dict[str, list[Outcome]]] = {role: {} for role in releases}
        self._timed: dict[str, list[Outcome]] = {}
        self._skipped: dict[str, str] = {}
        self._broken: dict[str, str] = {}

    def run(self) -> Measured:
        """Everything, releases in turn; the gateway runs only while something is to be asked of it.

        Raises:
            ConfigError: a harness task is unknown.
            IntegrityError: a part of a release is damaged.
            ServingError: the gateway or an engine does not start.
        """
        roles = [role for role in ORDER if role in self._releases]
        with LiveEndpoint(self._context, self._releases["candidate"], self._config.request_timeout_s) as endpoint:
            for role in roles:
                model = _LazyModel(self._releases[role], self._context, self._config.num_threads)
                for suite in self._config.suites:
                    self._one(suite, role, model, endpoint)
            for loaded in self._loaded.values():
                if isinstance(loaded.suite, LatencySuite):
                    self._latency(loaded, loaded.suite, endpoint)
        self._find_unanswered()
        return Measured(
            outcomes={
                role: [one for suite in self._config.suites for one in found.get(suite.name, ())]
                for role, found in self._outcomes.items()
            },
            infos=tuple(self._info(suite) for suite in self._config.suites),
            broken=self._broken,
            timed=self._timed,
        )

    def _one(self, suite: Suite, role: str, model: "_LazyModel", endpoint: LiveEndpoint) -> None:
        release = self._releases[role]
        if isinstance(suite, HarnessSuite):
            found = harness.outcomes(suite, release, role, model.folder, self._config, self._context)
            if isinstance(found, str):
                self._skipped[suite.name] = found
            else:
                self._outcomes[role][suite.name] = found
            return
        loaded = self._loaded[suite.name]
        if isinstance(suite, LatencySuite):
            return
        if isinstance(suite, RetrievalSuite):
            self._outcomes[role][suite.name] = self._retrieval(suite, loaded, release)
        elif needs_endpoint(suite):
            self._outcomes[role][suite.name] = self._endpoint(loaded, release, role, endpoint)
        else:
            self._outcomes[role][suite.name] = self._model(loaded, release, role, model)

    def _produced(
        self, build: Callable[[], list[Outcome]], inputs: Mapping[str, Artifact | str], settings: Mapping[str, Any]
    ) -> list[Outcome]:
        """Outcomes, found or made; what a clock says is no part of their digest."""

        def made(output: Path, scratch: Path) -> Built:
            outcomes = build()
            write_jsonl(output / OUTCOMES, outcomes)
            return Built({"num_items": len(outcomes)}, content=digest_of([without_clock(one) for one in outcomes]))

        artifact = self._context.produce("outcomes", made, inputs=inputs, config=settings)
        return read_jsonl(artifact.path / OUTCOMES, Outcome)

    def _model(self, loaded: Loaded, release: Release, role: str, model: "_LazyModel") -> list[Outcome]:
        def build() -> list[Outcome]:
            self._context.progress(f"{role}: suite {loaded.suite.name}, {len(loaded.items)} items")
            return _of_model(loaded, release, model.generator)

        settings = {**self._identity(loaded), "prompt": release.prompt.dump(), "serving": release.serving}
        return self._produced(build, {"model": model.artifact}, settings)

    def _endpoint(self, loaded: Loaded, release: Release, role: str, endpoint: LiveEndpoint) -> list[Outcome]:
        def build() -> list[Outcome]:
            self._context.progress(f"{role}: suite {loaded.suite.name}, {len(loaded.items)} items at the endpoint")
            replies = endpoint.ask(release, loaded.items, self._config.concurrency)
            return _judged(loaded, release, replies)

        settings = {**self._identity(loaded), "serve": code_version("serve"), "day": self._day(release)}
        return self._produced(build, {"release": release.id}, settings)

    def _retrieval(self, suite: RetrievalSuite, loaded: Loaded, release: Release) -> list[Outcome]:
        index = open_part(release.index, self._context.store)
        serving = ServingConfig.load(release.serving)

        def build() -> list[Outcome]:
            embedder = Embedder.load(read_info(index.path).embedder, self._config.num_threads)
            reader = IndexReader.open(index.path, embedder)
            return [_found(suite, item, reader, serving) for item in loaded.items]

        settings = {**self._identity(loaded), "day": self._day(release), "turns": serving.history_turns}
        return self._produced(build, {"index": index}, settings)

    def _latency(self, loaded: Loaded, suite: LatencySuite, endpoint: LiveEndpoint) -> None:
        for other in (role for role in ("baseline", "champion") if role in self._releases):
            pair = [self._releases[other], self._releases["candidate"]]

            def build(pair: list[Release] = pair, other: str = other) -> list[Outcome]:
                self._context.progress(f"{other} and candidate: timing {len(loaded.items)} questions each")
                heard = endpoint.time(pair, loaded.items, suite.warm_up)
                return [
                    _timed(suite, item, reply)
                    for of_one in heard
                    for item, reply in zip(loaded.items, of_one, strict=True)
                ]

            inputs = {"other": pair[0].id, "candidate": pair[1].id}
            settings = {**self._identity(loaded), "serve": code_version("serve")}
            found = self._produced(build, inputs, settings)
            half = len(loaded.items)
            self._outcomes[other][suite.name] = found[:half]
            self._outcomes["candidate"][suite.name] = found[half:]
            self._timed.setdefault(other, []).extend(found[half:])

    def _identity(self, loaded: Loaded) -> dict[str, Any]:
        labels = {item.id: item.labels for item in loaded.items}
        return {"suite": loaded.suite.name, "items": loaded.digest, "labels": digest_of(labels)}

    def _day(self, release: Release) -> str:
        """From when on the documents that are valid today are: another day is another set."""
        if not ServingConfig.load(release.serving).check_dates:
            return ""
        day = epoch(open_part(release.index, self._context.store).path, today())
        return day.isoformat() if day else ""

    def _find_unanswered(self) -> None:
        for name in (suite.name for suite in self._config.suites):
            for role, found in self._outcomes.items():
                failed = [one.error for one in found.get(name, ()) if one.error]
                if failed:
                    self._broken[name] = (
                        f"the {role} gave no answer to {len(failed)} of {len(found[name])} items ({failed[0]})."
                    )
            seen = {role: {one.id: one.digest for one in found.get(name, ())} for role, found in self._outcomes.items()}
            if name not in self._broken and any(items != seen["candidate"] for items in seen.values()):
                self._broken[name] = "the releases have not answered the same items."

    def _info(self, suite: Suite) -> SuiteInfo:
        outcomes = self._outcomes["candidate"].get(suite.name, [])
        loaded = self._loaded.get(suite.name)
        names = dict.fromkeys(name for one in outcomes for name in {**one.values, **clock_values(one)})
        return SuiteInfo(
            name=suite.name,
            kind=suite.kind,
            source=suite.source,
            digest=loaded.digest if loaded else digest_of({one.id: one.digest for one in outcomes}) if outcomes else "",
            num_items=len(outcomes),
            num_available=loaded.num_available if loaded else len(outcomes),
            skipped=self._skipped.get(suite.name, ""),
            metrics=tuple(f"{suite.name}.{name}" for name in names),
            labels=tuple(sorted({label for one in outcomes for label in one.labels})),
        )


class _LazyModel:
    """A release's model, loaded when it is first needed."""

    def __init__(self, release: Release, context: StageContext, num_threads: int | None) -> None:
        self._release, self._context, self._num_threads = release, context, num_threads

    @cached_property
    def artifact(self) -> Artifact:
        return open_part(self._release.model, self._context.store)

    @cached_property
    def folder(self) -> Path:
        return model_folder(self._release, self._context.store)

    @cached_property
    def generator(self) -> Generator:
        return Generator.load(self.folder, self._num_threads)


def without_clock(outcome: Outcome) -> dict[str, Any]:
    """An outcome without what a clock said."""
    return outcome.model_dump(mode="json", exclude={"timings"})


def _of_model(loaded: Loaded, release: Release, generator: Generator) -> list[Outcome]:
    suite = loaded.suite
    if isinstance(suite, TextSuite):
        bits = text_bits(generator, [item.text for item in loaded.items])
        return [
            outcome_of(suite, item, Reply(), {"text_bits_per_byte": value}, "")
            for item, value in zip(loaded.items, bits, strict=True)
        ]
    if isinstance(suite, ChoicesSuite):
        return _chosen(loaded, release, generator, as_chat=suite.as_chat)
    if isinstance(suite, IntentsSuite) and suite.by == "likelihood":
        return _chosen(loaded, release, generator, as_chat=True)
    return _judged(loaded, release, _replies(loaded, release, generator))


def _replies(loaded: Loaded, release: Release, generator: Generator) -> list[Reply]:
    serving = ServingConfig.load(release.serving)
    contexts = [tuple(fitting(item.context, release.prompt, serving)) for item in loaded.items]
    prompts = [
        render(release.prompt, item.messages, context) for item, context in zip(loaded.items, contexts, strict=True)
    ]
    generations = generator.generate(
        prompts, max_new_tokens=serving.max_new_tokens, temperature=serving.temperature, seed=0, max_rows=MAX_ROWS
    )
    bits = _reference_bits(loaded, generator, prompts)
    return [
        Reply(one.text.strip(), one.finish_reason, passages=context, reference_bits=bits.get(number))
        for number, (one, context) in enumerate(zip(generations, contexts, strict=True))
    ]


def _reference_bits(loaded: Loaded, generator: Generator, prompts: Sequence[list[dict[str, str]]]) -> dict[int, float]:
    if loaded.suite.kind != "answers":
        return {}
    rows: dict[int, Row] = {}
    for number, item in enumerate(loaded.items):
        if item.references and (row := chat_row(generator, prompts[number], item.references[0])):
            rows[number] = row
    losses = row_losses(generator, list(rows.values()))
    return {number: _bits(loss) for number, (loss, _) in zip(rows, losses, strict=True)}


def _bits(nats: float) -> float:
    return float(nats / 0.6931471805599453)


def _judged(loaded: Loaded, release: Release, replies: Sequence[Reply]) -> list[Outcome]:
    suite = loaded.suite
    labels = label_set(suite, loaded.items) if isinstance(suite, IntentsSuite) else ()
    policy = GuardrailPolicy.load(release.guardrails)
    refusals = [policy.safe_answer, policy.refusal.text]
    return [
        judged(suite, item, reply, labels=labels, refusals=refusals)
        for item, reply in zip(loaded.items, replies, strict=True)
    ]


def _chosen(loaded: Loaded, release: Release, generator: Generator, *, as_chat: bool) -> list[Outcome]:
    """The choice with the least loss for its length in bytes, as lm-evaluation-harness's ``acc_norm``."""
    suite = loaded.suite
    labels = label_set(suite, loaded.items) if isinstance(suite, IntentsSuite) else ()
    rows: dict[tuple[int, str], Row | None] = {}
    for number, item in enumerate(loaded.items):
        prompt = render(release.prompt, item.messages, item.context) if as_chat else []
        for choice in labels or item.choices:
            rows[number, choice] = (
                chat_row(generator, prompt, choice) if as_chat else plain_row(generator, item.question, f" {choice}")
            )
    usable = {key: row for key, row in rows.items() if row is not None}
    losses = dict(zip(usable, row_losses(generator, list(usable.values())), strict=True))
    outcomes = []
    for number, item in enumerate(loaded.items):
        scores = {
            choice: losses[number, choice][0] / len(choice.encode()) if (number, choice) in losses else None
            for choice in labels or item.choices
        }
        outcomes.append(_choice(suite, item, scores))
    return outcomes


def _choice(suite: Suite, item: Item, scores: Mapping[str, float | None]) -> Outcome:
    known = {choice: score for choice, score in scores.items() if score is not None}
    if len(known) < len(scores):
        return outcome_of(suite, item, Reply(error="it does not fit the model's context"), {}, item.references[0])
    best = min(known, key=lambda choice: known[choice])
    name = "intent_accuracy" if isinstance(suite, IntentsSuite) else "choice_accuracy"
    return outcome_of(suite, item, Reply(best), {name: float(best == item.references[0])}, item.references[0])


def _found(suite: RetrievalSuite, item: Item, reader: IndexReader, serving: ServingConfig) -> Outcome:
    query = search_query(item.messages, serving.history_turns)
    day = today() if serving.check_dates else None
    hits = reader.search(query, max_passages=suite.depth * CHUNKS_PER_DOCUMENT, at=day)
    documents = tuple(dict.fromkeys(hit.document_id for hit in hits))[: suite.depth]
    grades = {name: grade for name, grade in item.relevant.items() if grade > 0}
    result = GoldenResult(
        id=item.id, question=item.question, language="", document_ids=tuple(grades), found_ids=documents
    )
    shallow = min(5, suite.depth)
    values = {
        f"recall_at_{shallow}": recall(result, shallow),
        f"recall_at_{suite.depth}": recall(result, suite.depth),
        f"ndcg_at_{suite.depth}": graded_ndcg(grades, documents, suite.depth),
        "reciprocal_rank": reciprocal_rank(result),
    }
    return outcome_of(suite, item, Reply(", ".join(documents)), values, ", ".join(grades))


def _timed(suite: LatencySuite, item: Item, reply: Reply) -> Outcome:
    timings = dict(reply.timings)
    prompt, completion = timings.pop("prompt_tokens", 0.0), timings.pop("completion_tokens", 0.0)
    if suite.has_prices and "latency_s" in timings:
        timings["cost"] = (
            prompt / 1000 * suite.prompt_per_1k_tokens
            + completion / 1000 * suite.completion_per_1k_tokens
            + timings["latency_s"] / 3600 * suite.machine_per_hour
        )
    one = outcome_of(suite, item, reply, {}, "")
    return one.model_copy(update={"timings": timings})
