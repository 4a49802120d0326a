"""The fine-tune stage: a base and a dataset in, the artefacts 'base' and 'model' out.

The objective decides what is read: ``sft`` the dataset's conversations, ``pretrain`` the documents' text, ``dpo`` the
dataset's ``preferences.jsonl``.

``base`` is a Hugging Face folder: for ``serin://tiny`` pretrained here on the documents and, as plain text, the
training conversations; for any other base a verified copy.  ``model`` holds ``merged/`` (a Hugging Face folder that
serves), ``adapter/`` (PEFT, with LoRA), ``training.json``, ``card.md`` and ``report.html``.

Both are addressed by what decides them, so that an equal base is never pretrained twice, and a killed run continues
from the checkpoints that it left in their scratch folders.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serin.core.artifacts import Artifact, Built, home
from serin.core.context import StageContext
from serin.core.digests import code_version, digest_of_file
from serin.core.prompts import Prompt
from serin.core.records import Conversation, read_jsonl
from serin.core.storage import is_remote, join, local_path
from serin.core.tracking import SystemMetrics, log_model
from serin.finetune.base import SMALL_FILES, TINY, require_positions, resolved
from serin.finetune.card import card
from serin.finetune.config import FinetuneConfig, PhaseConfig, phase_of
from serin.finetune.data import Sample, encode_texts, save_samples
from serin.finetune.documents import public_documents
from serin.finetune.job import ADAPTER, MERGED, PROGRESS, Job, LoraSpec
from serin.finetune.objectives import ObjectiveSpec
from serin.finetune.prepare import COUNTS, TRAIN, VALIDATION, Preparation
from serin.finetune.progress import Heartbeat, PhaseReport, model_flops_per_token
from serin.finetune.publish import publish
from serin.finetune.quantized import require_quantization
from serin.finetune.ray_train import Session, session_for
from serin.finetune.report import Curve, curve_of, page
from serin.finetune.tiny import corpus_of, plain_text, pretraining_samples, train_tokenizer, write_untrained

logger = logging.getLogger(__name__)

PREPARED, START = "prepared", "start"
TRAINING, CARD, REPORT = "training.json", "card.md", "report.html"
BASE_SHARE, END_SHARE = 0.45, 0.98


@dataclass(frozen=True)
class Finetuned:
    """What the stage makes."""

    base: Artifact
    model: Artifact


def finetune(
    config: FinetuneConfig,
    base_model: str,
    prompt: Prompt,
    dataset: Artifact,
    documents: Artifact,
    context: StageContext,
) -> Finetuned:
    """Make, or find, the base and the model that is tuned from it.

    Args:
        config: settings of the stage.
        base_model: ``serin://tiny``, a Hugging Face id, a folder or ``s3://``.
        prompt: the release's prompt; the model is trained on what it renders.
        dataset: conversations, split.
        documents: what ``serin://tiny`` reads before it learns to answer.
        context: store, tracking and progress.

    Raises:
        ConfigError: a setting or the base's name is wrong.
        InputError: the base or the data cannot be used, or the loss is no longer a number.
        UnavailableError: Ray cannot be started, or the hub cannot be reached.
    """
    name = f"finetune-{context.lineage_id or 'alone'}"
    with (
        SystemMetrics(context.tracker),
        Heartbeat(context.progress) as heartbeat,
        session_for(config, name, _shared_folder(context)) as session,
    ):
        heartbeat.say("reading the dataset", 0.0)
        stage = _Stage(config, base_model, prompt, dataset, documents, context, heartbeat, session)
        stage.check()
        base = stage.tiny_base() if base_model == TINY else stage.given_base()
        model = stage.model(base)
        numbers = {name: value for name, value in model.metadata.items() if isinstance(value, str | int | float)}
        log_model(
            context.tracker,
            model.path,
            name=context.endpoint,
            digest=model.digest,
            uri=model.uri,
            params=numbers,
            step=int(model.metadata.get("steps", 0)),
        )
        if place := publish(config.publish, model.path, model.digest):
            context.tracker.tags({"serin.published": place})
        return Finetuned(base, model)


@dataclass
class _Stage:
    """One run of the stage."""

    config: FinetuneConfig
    base_model: str
    prompt: Prompt
    dataset: Artifact
    documents: Artifact
    context: StageContext
    heartbeat: Heartbeat
    session: Session
    done: float = 0.03
    """Fraction of the stage that is done when fine-tuning begins."""

    def check(self) -> None:
        """Refuse what cannot be learned from before anything is started."""
        if self.config.method == "qlora":
            require_quantization()
        self.preparation.check()
        counts = {name: value for name, value in self.dataset.metadata.items() if isinstance(value, int | float)}
        self.context.tracker.dataset("dataset", self.dataset.digest, self.dataset.uri, profile=counts)
        self.context.tracker.params(
            {
                "base_model": self.base_model,
                "dataset_digest": self.dataset.digest,
                "documents_digest": self.documents.digest,
                "prompt_version": self.prompt.version,
                **self.config.identity(),
            }
        )

    @property
    def preparation(self) -> Preparation:
        """What the objective reads."""
        return Preparation(self.config, self.prompt, self.dataset.path, self.documents.path)

    def tiny_base(self) -> Artifact:
        """The base ``serin://tiny``, pretrained on this corpus."""

        def build(output: Path, scratch: Path) -> Built:
            self.session.start()
            self.done = BASE_SHARE
            self.heartbeat.say("training the tokenizer", 0.01)
            prepared = _once(scratch / PREPARED, self._prepare_pretraining)
            job = self._job("pretraining", prepared, prepared / START, scratch, phase_of(self.config.tiny))
            result = self._run(job, (0.03, BASE_SHARE))
            shutil.copytree(result / MERGED, output, dirs_exist_ok=True)
            _copy_tokenizer(prepared / START, output)
            curve = curve_of("pretraining", scratch / PROGRESS)
            _write_json(output / TRAINING, {"settings": self.config.base_identity(), "curve": curve.dump()})
            return Built(
                metadata={
                    "base_model": TINY,
                    "parameters": _num_parameters(output),
                    "licence": "that of the corpus",
                    "numerics": self.config.numerics(),
                    **curve.metrics(),
                },
                content=_contents(output, leave_out=(TRAINING,)),
            )

        return self.context.produce(
            "base",
            build,
            inputs={"documents": self.documents, "dataset": self.dataset},
            config=self.config.base_identity(),
        )

    def given_base(self) -> Artifact:
        """A verified copy of the base that the user names."""
        self.heartbeat.say("checking the base model", 0.01)
        with resolved(self.base_model) as folder:
            require_positions(folder, self.config.max_length)
            about = {"licence": folder.licence, "revision": folder.revision}

            def build(output: Path, scratch: Path) -> Built:
                folder.copy_to(output)
                facts = {"base_model": self.base_model, "parameters": _num_parameters(output), **about}
                return Built(metadata=facts)

            return self.context.produce("base", build, inputs={"source": folder.digest()}, config=about)

    def model(self, base: Artifact) -> Artifact:
        """The model that is tuned from a base."""

        def build(output: Path, scratch: Path) -> Built:
            self.session.start()
            self.heartbeat.say(f"encoding the {self.preparation.noun}", self.done)
            prepared = _once(scratch / PREPARED, lambda folder: self.preparation.write(folder, base.path))
            job = self._job("fine-tuning", prepared, base.path, scratch, phase_of(self.config), base)
            result = self._run(job, (self.done + 0.01, END_SHARE))
            shutil.copytree(result, output, dirs_exist_ok=True)
            _copy_tokenizer(base.path, output / MERGED)
            content = _contents(output)
            metadata = self._describe(output, base, scratch, json.loads((prepared / COUNTS).read_text()))
            return Built(metadata=metadata, content=content)

        inputs: dict[str, Artifact | str] = {"base": base, "dataset": self.dataset, "prompt": self.prompt.version}
        if self.config.objective == "pretrain":
            inputs["documents"] = self.documents
        return self.context.produce(
            "model",
            build,
            inputs=inputs,
            config=self.config.identity(),
        )

    def _prepare_pretraining(self, folder: Path) -> None:
        """The tokenizer, the initial weights and the corpus as samples."""
        texts, config = corpus_of(public_documents(self.documents.path), self._split("train")), self.config
        tokenizer = train_tokenizer(texts, config.tiny)
        write_untrained(folder / START, tokenizer, config.tiny, config.seed)
        validation = [plain_text(conversation) for conversation in self._split("validation")]
        samples = pretraining_samples(tokenizer, texts, config.tiny, config.max_length, config.seed)
        save_samples(folder / TRAIN, samples)
        save_samples(folder / VALIDATION, self._encode_some(tokenizer, validation))

    def _encode_some(self, tokenizer: Any, texts: Sequence[str]) -> list[Sample]:
        wanted = texts[: self.config.validation_samples]
        return encode_texts(tokenizer, wanted, self.config.max_length) if wanted else []

    def _job(
        self,
        phase: Literal["pretraining", "fine-tuning"],
        prepared: Path,
        model: Path,
        scratch: Path,
        optim: PhaseConfig,
        base: Artifact | None = None,
    ) -> Job:
        config = self.config
        lora = None
        if base and config.method != "full":
            # Only where it is asked for: a loop that cannot load a base in 4 bits refuses the word.
            quantized = {"quantized": True} if config.method == "qlora" else {}
            lora = LoraSpec.load({"rank": config.lora_rank, "alpha": config.lora_alpha, **quantized})
        model_digest = base.digest if base else digest_of_file(model / "model.safetensors")
        return Job(
            phase=phase,
            model=str(model),
            base_name=f"serin-base-{base.digest[:12]}" if base else "",
            train=str(prepared / TRAIN),
            validation=str(prepared / VALIDATION),
            folder=str(scratch),
            inputs={"model": model_digest, "train": digest_of_file(prepared / TRAIN)},
            objective=config.objective_spec() if base else ObjectiveSpec(kind="pretrain"),
            optim=optim,
            lora=lora,
            precision=config.precision,
            seed=config.seed,
            threads=config.cpus_per_worker,
            device=config.device,
            strategy=config.strategy,
            micro_batch_tokens=config.micro_batch_tokens,
            packing=config.packing,
            activation_checkpointing=config.activation_checkpointing,
            compile=config.compile,
            liger=config.liger,
            cross_entropy=config.cross_entropy,
            attention=config.attention,
            early_stopping_patience=config.early_stopping_patience if base else None,
            checkpoint_interval_s=config.checkpoint_interval_s,
            checkpoint_uri=self._checkpoint_uri(scratch),
            validation_interval=config.validation_interval,
            validation_samples=config.validation_samples,
        )

    def _checkpoint_uri(self, scratch: Path) -> str:
        """A place of this artefact's own; its workspace is named after what decides it."""
        root = self.config.checkpoint_uri
        if not root and is_remote(self.context.store.uri):
            root = join(self.context.store.uri, "checkpoints")
        return join(root, scratch.parent.name) if root else ""

    def _run(self, job: Job, share: tuple[float, float]) -> Path:
        name = "pretrain" if job.phase == "pretraining" else "finetune"
        self.heartbeat.say(f"{job.phase}: starting", share[0])
        flops = model_flops_per_token(
            Path(job.model),
            _num_parameters(Path(job.model)),
            trains_all=job.lora is None,
            length=self.config.max_length,
        )
        report = PhaseReport(self.heartbeat, self.context.tracker, name, share, flops_per_token=flops)
        result = self.session.run(job, report)
        self.heartbeat.say(f"{job.phase}: done", share[1])
        return result

    def _describe(self, output: Path, base: Artifact, scratch: Path, counts: dict[str, int]) -> dict[str, Any]:
        """Write what people and lineage read about the model; returns its metadata."""
        curve = curve_of("fine-tuning", scratch / PROGRESS)
        facts = {
            "base_model": self.base_model,
            "base_digest": base.digest,
            "base_licence": base.metadata.get("licence", "not stated"),
            "base_revision": base.metadata.get("revision", ""),
            "dataset_digest": self.dataset.digest,
            "prompt_version": self.prompt.version,
            "objective": self.config.objective,
            "method": self.config.method,
            "parameters": _num_parameters(output / MERGED),
            **counts,
            **curve.metrics(),
        }
        settings = self.config.identity()
        title = f"Model tuned from {self.base_model}"
        _write_json(output / TRAINING, {"facts": facts, "settings": settings, "curve": curve.dump()})
        text = card(
            title,
            facts,
            settings,
            licence=base.metadata.get("licence", ""),
            evaluation=curve.evaluation(),
            code_version=code_version("finetune"),
            has_adapter=(output / ADAPTER).is_dir(),
            files={name: digest for name, digest in _contents(output).items() if name.endswith(".safetensors")},
        )
        (output / CARD).write_text(text, encoding="utf-8")
        (output / REPORT).write_text(page(title, facts, [*_base_curves(base), curve]), encoding="utf-8")
        self.context.tracker.artifact(output / REPORT)
        return {**facts, "numerics": self.config.numerics()}

    def _split(self, name: str) -> list[Conversation]:
        return read_jsonl(self.dataset.path / f"{name}.jsonl", Conversation)


def _shared_folder(context: StageContext) -> Path:
    """Where the nodes of a cluster would see what this machine writes, if anywhere: beside the working folders."""
    uri = context.store.uri
    return (home() / "cache" if is_remote(uri) else local_path(uri)) / ".work"


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is made whole, or found from an earlier try."""
    if not folder.exists():
        aside = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        make(aside)
        aside.rename(folder)
    return folder


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy every small file of a model folder that the training did not write itself."""
    for name in SMALL_FILES:
        if (source / name).is_file() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def _contents(folder: Path, leave_out: Sequence[str] = ()) -> dict[str, str]:
    """Digests of the files that are repeatable; the others tell how long things took."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: digest_of_file(path) for name, path in sorted(names.items()) if name not in leave_out}


def _num_parameters(folder: Path) -> int:
    """Numbers in a folder's safetensors files, read from their headers."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


def _base_curves(base: Artifact) -> list[Curve]:
    path = base.path / TRAINING
    return [Curve.parse(json.loads(path.read_text(encoding="utf-8"))["curve"])] if path.is_file() else []


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
