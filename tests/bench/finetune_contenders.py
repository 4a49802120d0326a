"""The contenders of finetune.py, each a process: ``finetune_contenders.py SPEC_AS_JSON WORK_FOLDER``.

A contender trains ``WARMUP_STEPS``, answers with what it wants noted, and then with one line for every turn that it is
given on stdin; it ends when stdin does.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from finetune_spec import (
    LONGEST,
    LORA_ALPHA,
    LORA_RANK,
    NUM_MEGABATCHES,
    RAY_TURNS,
    SEED,
    SHORTEST,
    THREADS,
    TOKENS_PER_BATCH,
    TURN_STEPS,
    WARMUP_STEPS,
    Spec,
    batch_size,
)

NUM_CONVERSATIONS = 3000
ENDLESS = 10**6
SIZES = "sizes.json"


class Turns:
    """Counts steps and stops after each turn until the next is given."""

    def __init__(self, notes: dict[str, Any]) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the libraries print must not mix with the answers
        self.notes = notes
        self._steps = -WARMUP_STEPS
        self._clear()

    def step(self, tokens: int = 0, step_seconds: float = 0.0) -> None:
        """A step ended; at the end of a turn this waits for the next.

        Args:
            tokens: real ones, unless they were counted before.
            step_seconds: what the step took by its own account.
        """
        self._steps += 1
        self.tokens += tokens
        self._step_seconds += step_seconds
        if self._steps == 0:
            self.answer(self.notes)
        elif self._steps == TURN_STEPS:
            seconds = time.perf_counter() - self._started
            cpu = time.process_time() - self._cpu_started
            self.answer(turn(self.tokens, seconds, self._step_seconds) | {"cpu_seconds": cpu})

    def answer(self, values: Mapping[str, Any]) -> None:
        """Say something, then wait for the next turn or end this process."""
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()
        if not sys.stdin.readline():
            raise SystemExit
        self._steps = 0
        self._clear()

    def _clear(self) -> None:
        self.tokens, self._step_seconds = 0, 0.0
        self._started, self._cpu_started = time.perf_counter(), time.process_time()


def turn(tokens: int, seconds: float, step_seconds: float) -> dict[str, Any]:
    """The answer to a turn."""
    return {"tokens": tokens, "seconds": seconds, "step_seconds": step_seconds, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """Highest resident memory of this program; unlike getrusage's it does not begin with the parent's."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("The kernel does not say how much memory this process used at most.")


def prepare(spec: Spec, work: Path) -> None:
    """Write an untrained model of about four million weights and short chats, tokenised once for all contenders."""
    from transformers import AutoModelForCausalLM

    from serin.core.prompts import Prompt
    from serin.finetune.config import TinyConfig
    from serin.finetune.data import IGNORED, encode_conversations, epoch_batches, save_samples
    from serin.finetune.tiny import corpus_of, train_tokenizer, write_untrained
    from serin.samples.generate import make_conversations

    turns = Turns({})
    chats = make_conversations(random.Random(SEED), NUM_CONVERSATIONS)
    config = TinyConfig(
        vocab_size=4096, hidden_size=256, num_heads=4, num_layers=4, intermediate_size=688, copying_start=False
    )
    tokenizer = train_tokenizer(corpus_of([], chats), config)
    write_untrained(work / "model", tokenizer, config, SEED)
    every = encode_conversations(tokenizer, chats, Prompt(), 512).samples
    fitting = [sample for sample in every if SHORTEST <= len(sample.ids) <= LONGEST]
    rows = batch_size(TOKENS_PER_BATCH, fmean(len(sample.ids) for sample in fitting))
    samples = fitting[: rows * TURN_STEPS * NUM_MEGABATCHES]
    lengths = [len(sample.ids) for sample in samples]
    batches = epoch_batches(lengths, TOKENS_PER_BATCH, SEED, 0)
    save_samples(work / "train.safetensors", samples)
    save_samples(work / "validation.safetensors", [])
    labels = [
        [token if flag else IGNORED for token, flag in zip(sample.ids, sample.learned, strict=True)]
        for sample in samples
    ]
    (work / "samples.json").write_text(
        json.dumps([{"input_ids": s.ids, "labels": row} for s, row in zip(samples, labels, strict=True)])
    )
    sizes = {
        "weights": AutoModelForCausalLM.from_pretrained(work / "model").num_parameters(),
        "vocabulary": len(tokenizer),
        "samples": len(samples),
        "mean_length": round(fmean(lengths), 1),
        "learned_fraction": round(sum(sample.num_learned for sample in samples) / sum(lengths), 3),
        "mean_batch_tokens": round(sum(lengths) / len(batches), 1),
        "peers_batch_size": batch_size(sum(lengths) / len(batches), fmean(lengths)),
    }
    (work / SIZES).write_text(json.dumps(sizes))
    turns.answer(sizes)


def ours(spec: Spec, work: Path) -> None:
    """The plain loop, without Ray."""
    from serin.finetune.loop import train

    turns = Turns({"attention": "eager"})

    def report(record: dict[str, Any]) -> None:
        if "tokens" in record:
            turns.step(record["tokens"], record["seconds"])

    train(_job(spec, work, ENDLESS), report=report)


def on_ray(spec: Spec, work: Path) -> None:
    """The same loop in the one worker of a Ray session: a short job to warm up, then one for each turn."""
    from serin.finetune.ray_train import Fleet, RaySession

    turns = Turns({})
    with RaySession(Fleet(num_workers=1, cpus_per_worker=THREADS, device="cpu"), "bench") as session:
        session.run(_job(spec, work, WARMUP_STEPS), lambda record: None)
        turns.answer({})
        while True:
            records: list[dict[str, Any]] = []
            started, before = time.monotonic(), _ray_cpu_seconds()
            session.run(_job(spec, work, WARMUP_STEPS + RAY_TURNS * TURN_STEPS), records.append)
            ray_cpus = (_ray_cpu_seconds() - before) / (time.monotonic() - started)
            steps = [record for record in records if "tokens" in record][WARMUP_STEPS:]
            seconds = sum(record["seconds"] for record in steps)
            answer = turn(sum(record["tokens"] for record in steps), seconds, seconds)
            turns.answer(answer | {"ray_cpus": ray_cpus})


def _ray_cpu_seconds() -> float:
    """What Ray's processes and this driver of theirs used so far; the worker, which trains, left out."""
    import psutil

    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            if "RayTrainWorker" not in " ".join(process.cmdline()):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def _job(spec: Spec, work: Path, steps: int) -> Any:
    from serin.finetune.job import Job, LoraSpec
    from serin.finetune.loop import PhaseConfig

    return Job(
        phase="fine-tuning",
        model=str(work / "model"),
        train=str(work / "train.safetensors"),
        validation=str(work / "validation.safetensors"),
        folder=str(work / f"{spec.name}-{os.getpid()}-{time.monotonic_ns()}"),
        inputs={},
        optim=PhaseConfig(max_steps=steps, tokens_per_batch=TOKENS_PER_BATCH, learning_rate=1e-3),
        lora=LoraSpec(rank=LORA_RANK, alpha=LORA_ALPHA) if spec.lora else None,
        precision=spec.precision,
        threads=THREADS,
        device="cpu",
        checkpoint_interval_s=1e9,
        validation_interval=10**9,
    )


def hf(spec: Spec, work: Path) -> None:
    """Hugging Face Trainer with samples grouped by length and padded by its collator."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    if spec.lora:
        from peft import get_peft_model

        model = get_peft_model(model, _lora_config())
    rows = _sizes(work)["peers_batch_size"]
    args = TrainingArguments(
        per_device_train_batch_size=rows, train_sampling_strategy="group_by_length", **_shared(work, spec)
    )
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    turns = Turns({"batch_size": rows})
    trainer = _counting(Trainer, turns)(
        model=model,
        args=args,
        train_dataset=_dataset(work),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[_callback(turns)],
    )
    turns.notes["attention"] = model.config._attn_implementation
    trainer.train()


def trl(spec: Spec, work: Path) -> None:
    """TRL's SFTTrainer with its defaults but for precision and batch size; packed or padded."""
    import torch
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(THREADS)
    rows = 1 if spec.packing else _sizes(work)["peers_batch_size"]
    args = SFTConfig(
        per_device_train_batch_size=rows,
        packing=spec.packing,
        max_length=TOKENS_PER_BATCH,
        bf16=False,
        model_init_kwargs={"dtype": "float32"},
        **_shared(work, spec),
        **({} if spec.checkpointing else {"gradient_checkpointing": False}),
    )
    turns = Turns({"batch_size": rows, "gradient_checkpointing": args.gradient_checkpointing})
    trainer = _counting(SFTTrainer, turns)(
        model=str(work / "model"),
        args=args,
        train_dataset=_dataset(work),
        callbacks=[_callback(turns)],
        peft_config=_lora_config() if spec.lora else None,
    )
    turns.notes["attention"] = trainer.model.config._attn_implementation
    trainer.train()


def _shared(work: Path, spec: Spec) -> dict[str, Any]:
    return {
        "output_dir": str(work / spec.name),
        "max_steps": ENDLESS,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": SEED,
    }


def _dataset(work: Path) -> Any:
    from datasets import Dataset

    return Dataset.from_list(json.loads((work / "samples.json").read_text()))


def _sizes(work: Path) -> dict[str, Any]:
    return dict(json.loads((work / SIZES).read_text()))


def _lora_config() -> Any:
    from peft import LoraConfig, TaskType

    return LoraConfig(task_type=TaskType.CAUSAL_LM, r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear")


def _callback(turns: Turns) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.step()

    return Steps()


def _counting(kind: Any, turns: Turns) -> Any:
    """A trainer that counts its real tokens and looks once whether packed samples see each other."""

    class Counting(kind):
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if "attention_mask" not in inputs and "samples_see_each_other" not in turns.notes:
                turns.notes["samples_see_each_other"] = leaks(model, inputs)
            mask = inputs.get("attention_mask")
            turns.tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            return super().training_step(model, inputs, *args, **kwargs)

    return Counting


def leaks(model: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether another first sample of a packed row changes what the decoder makes of its last one."""
    import torch

    given = {name: value for name, value in inputs.items() if name != "labels"} | {"use_cache": False}
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    starts = (given["position_ids"][0] == 0).nonzero().flatten().tolist()
    if len(starts) < 2:  # one position after the other over the whole row
        return True
    other = given["input_ids"].clone()
    other[0, : starts[1]] = (other[0, : starts[1]] + 7) % plain.config.vocab_size
    with torch.no_grad():
        before = plain.get_decoder()(**given)[0][0, starts[-1] :]
        after = plain.get_decoder()(**{**given, "input_ids": other})[0][0, starts[-1] :]
    return not torch.allclose(before, after, atol=1e-5)


KINDS: dict[str, Callable[[Spec, Path], None]] = {"prepare": prepare, "ours": ours, "ray": on_ray, "hf": hf, "trl": trl}

if __name__ == "__main__":
    chosen = Spec(**json.loads(sys.argv[1]))
    KINDS[chosen.kind](chosen, Path(sys.argv[2]))
