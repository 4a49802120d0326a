"""Speed of the fine-tune stage's loop beside Hugging Face Trainer and TRL's SFTTrainer, all in one run.

    make bench-finetune        # .venv/bin/python tests/bench/finetune.py

Every contender is a process of its own with the same model, samples, precision and threads.  It warms up and then waits
for its turns, which go round in alternating order, so that a load that comes and goes meets all of them.  The last line
of stdout is one JSON object; a figure that could not be had is null there, with its reason under ``failures``.
"""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from finetune_process import Contender, ContenderError
from finetune_spec import (
    CONTENDERS,
    NUM_ROUNDS,
    RAY,
    RAY_ROUNDS,
    RAY_TURNS,
    THREADS,
    TOKENS_PER_BATCH,
    TURN_STEPS,
    Spec,
)

PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "datasets", "ray")
MIB = 2**20
PAIRS = {
    "vs_trl_unpacked": ("ours", "trl"),
    "vs_trl_packed": ("ours", "trl_packed"),
    "vs_hf_trainer": ("ours", "hf"),
    "vs_trl_unpacked_lora": ("ours_lora", "trl_lora"),
    "vs_trl_packed_lora": ("ours_lora", "trl_packed_lora"),
    "vs_hf_trainer_lora": ("ours_lora", "hf_lora"),
    "vs_trl_unpacked_without_checkpointing": ("ours", "trl_without_checkpointing"),
    "vs_trl_packed_without_checkpointing": ("ours", "trl_packed_without_checkpointing"),
}
GOALS = {"vs_trl_unpacked": 2.3, "vs_trl_packed": 1.0, "vs_hf_trainer": 1.3}
MAX_RAY_OVERHEAD = 0.03

Turn = dict[str, Any]
"""What a contender answers to a turn: ``tokens``, ``seconds``, ``step_seconds``, ``peak_bytes``."""
Say = Callable[[str], None]


@dataclass
class Results:
    """What was measured, by contender."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    ray_pairs: list[tuple[float, float]] = field(default_factory=list)
    """Seconds per token of a step, plain and on Ray, measured one after the other."""
    ray_cpus: list[float] = field(default_factory=list)
    """Cores that Ray's processes used while their worker trained, the worker left out."""


def main() -> None:
    """Measure, and print the table and the JSON line."""
    start, load = time.monotonic(), os.getloadavg()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:4.0f} s] {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="bench-finetune-") as name:
        results = measure(Path(name), CONTENDERS, RAY, say)
    figures = figures_of(results) | {
        "load_at_start": round(load[0], 2),
        "seconds": round(time.monotonic() - start),
        "machine": machine(),
    }
    print(table(results))
    print("\n".join(verdicts(figures)))
    print(json.dumps(figures))


def measure(work: Path, specs: Sequence[Spec], ray: Spec | None, say: Say) -> Results:
    """Run every contender; one that fails leaves its reason and the others go on."""
    results = Results()
    running: dict[str, Contender] = {}
    try:
        say("making the model and the samples")
        with Contender(Spec(name="prepare", kind="prepare"), work) as prepare:
            results.notes["data"] = prepare.reply()
        for spec in specs:
            say(f"starting {spec.name}")
            running[spec.name] = Contender(spec, work)
            _guarded(results, running, spec.name, say, partial(_start, results, running[spec.name]))
        _rounds(results, running, say)
        plain = running.get("ours")
        for name in [name for name in running if name != "ours"]:
            running.pop(name).close()
        if plain and ray:
            _ray(results, plain, ray, work, say)
    except ContenderError as error:
        results.failures["prepare"] = str(error)
        say(f"FAILED {error}")
    finally:
        for contender in running.values():
            contender.close()
    return results


def _rounds(results: Results, running: dict[str, Contender], say: Say) -> None:
    for number in range(NUM_ROUNDS):
        names = list(running)
        for name in names if number % 2 == 0 else reversed(names):
            _guarded(results, running, name, say, partial(_turn, results, running[name], say))


def _turn(results: Results, contender: Contender, say: Say) -> None:
    turn = contender.turn()
    turns = results.turns.setdefault(contender.name, [])
    turns.append(turn)
    say(f"turn {len(turns)} of {NUM_ROUNDS}: {contender.name} {turn['tokens'] / turn['seconds']:,.0f} tokens/s")


def _start(results: Results, contender: Contender) -> None:
    results.notes[contender.name] = contender.reply()


def _guarded(
    results: Results, running: dict[str, Contender], name: str, say: Say, action: Callable[[], object]
) -> None:
    """Do something with a contender; when it fails, say so and go on without it."""
    try:
        action()
    except ContenderError as error:
        results.failures[name] = str(error)
        results.turns.pop(name, None)
        say(f"FAILED {error}")
        running.pop(name).close()


def _ray(results: Results, plain: Contender, ray: Spec, work: Path, say: Say) -> None:
    """The loop on Ray and without it in turns; Ray is not there while the plain loop runs."""

    def alone() -> float:
        return _seconds_per_token([plain.turn() for _ in range(RAY_TURNS)])

    def on_ray() -> float:
        with Contender(ray, work) as contender:
            contender.reply()
            turn = contender.turn()
        results.ray_cpus.append(turn["ray_cpus"])
        return _seconds_per_token([turn])

    try:
        for number in range(RAY_ROUNDS):
            say(f"starting Ray, round {number + 1} of {RAY_ROUNDS}")
            if number % 2:
                there, here = on_ray(), alone()
            else:
                here, there = alone(), on_ray()
            results.ray_pairs.append((here, there))
            say(f"one step's token takes {here * 1e6:.1f} us, on Ray {there * 1e6:.1f} us")
    except ContenderError as error:
        results.failures[ray.name] = str(error)
        say(f"FAILED {error}")


def _seconds_per_token(turns: Sequence[Turn]) -> float:
    return sum(turn["step_seconds"] for turn in turns) / sum(turn["tokens"] for turn in turns)


def rates_of(results: Results) -> dict[str, list[float]]:
    """Real tokens per second of every turn."""
    return {name: [turn["tokens"] / turn["seconds"] for turn in turns] for name, turns in results.turns.items()}


def peaks_of(results: Results) -> dict[str, int]:
    """Highest resident memory of every contender's process, bytes."""
    return {name: max(turn["peak_bytes"] for turn in turns) for name, turns in results.turns.items()}


def figures_of(results: Results) -> dict[str, Any]:
    """The JSON line: ratios of medians (above 1: we are faster), overhead, memory (below 1: we need less)."""
    rates, peaks = rates_of(results), peaks_of(results)
    medians = {name: median(values) for name, values in rates.items()}
    figures: dict[str, Any] = {name: ratio(medians, *pair) for name, pair in PAIRS.items()}
    overheads = [there / here - 1 for here, there in results.ray_pairs]
    others = [turn["others_cpus"] for turns in results.turns.values() for turn in turns if "others_cpus" in turn]
    return figures | {
        "ray_overhead_fraction": round(median(overheads), 4) if overheads else None,
        "ray_overhead_each": [round(overhead, 4) for overhead in overheads],
        "ray_processes_cpus": round(median(results.ray_cpus), 4) if results.ray_cpus else None,
        "peak_memory_vs_trl": ratio(peaks, "ours", "trl"),
        "tokens_per_s": {name: round(value) for name, value in medians.items()},
        "spread": {name: round((max(v) - min(v)) / median(v), 3) for name, v in rates.items()},
        "peak_mib": {name: round(value / MIB) for name, value in peaks.items()},
        "others_cpus": round(sum(others) / len(others), 2) if others else None,
        "notes": results.notes,
        "failures": results.failures,
        "setting": {
            "threads": THREADS,
            "tokens_per_batch": TOKENS_PER_BATCH,
            "turn_steps": TURN_STEPS,
            "rounds": NUM_ROUNDS,
            "contenders": {spec.name: asdict(spec) for spec in CONTENDERS},
        },
    }


def ratio(values: Mapping[str, float], ours: str, theirs: str) -> float | None:
    """Ours as a multiple of theirs, None when either is missing."""
    if not values.get(ours) or not values.get(theirs):
        return None
    return round(values[ours] / values[theirs], 3)


def verdicts(figures: Mapping[str, Any]) -> list[str]:
    """A line for each goal: met, missed or not measured."""
    lines = []
    for name, goal in GOALS.items():
        value = figures[name]
        word = "not measured" if value is None else "met" if value >= goal else "MISSED"
        lines.append(f"{name}: {value} (goal at least {goal}): {word}")
    overhead = figures["ray_overhead_fraction"]
    word = "not measured" if overhead is None else "met" if overhead < MAX_RAY_OVERHEAD else "MISSED"
    lines.append(f"ray_overhead_fraction: {overhead} (goal below {MAX_RAY_OVERHEAD}): {word}")
    return lines


def table(results: Results) -> str:
    """A Markdown table of every contender."""
    rates, peaks = rates_of(results), peaks_of(results)
    lines = ["| contender | tokens/s, median | lowest to highest | peak memory |", "|---|---|---|---|"]
    for name, values in rates.items():
        span = f"{min(values):,.0f} to {max(values):,.0f}"
        lines.append(f"| {name} | {median(values):,.0f} | {span} | {peaks[name] / MIB:,.0f} MiB |")
    lines += [f"| {name} | failed | {reason} | |" for name, reason in results.failures.items()]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where this runs: processor, cores, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
