"""What 10 and 1,000 times the traffic, data and model size need: the figures of manifests/CAPACITY.md.

    make bench-capacity        # .venv/bin/python tests/bench/capacity.py

Everything simulated is seeded.  What is measured on the machine itself (events, embedding) says so in its heading.
"""

import math
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from queueing import (
    Engine,
    Gpu,
    Lengths,
    Workload,
    gpu_engine,
    largest_rate,
    measured_engine,
    renewal,
    simulate,
    trace,
)
from synthetic import Words

TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "azure_llm_trace_2023" / "dev"
DAY_S = 86_400
FACTORS = (1, 10, 1000)

# Medians and spread of the conversation trace of Azure 2023 (github.com/Azure/AzurePublicDataset, CC BY 4.0).
CHAT = Lengths(prompt_median=1035, completion_median=140, prompt_sigma=0.97, completion_sigma=0.91)
MEAN_COMPLETION = 140 * math.exp(0.91**2 / 2)
# The demo's: prompts are part of the measured rates, answers are of a sentence or two.
DEMO = Lengths(prompt_median=1, completion_median=40, prompt_sigma=0.1, completion_sigma=0.5)

# Data sheets: dense bf16 operations, memory bandwidth, memory.
H100 = Gpu("H100", flops=989e12, bytes_per_s=3.35e12, memory_bytes=80e9)
H200 = Gpu("H200", flops=989e12, bytes_per_s=4.8e12, memory_bytes=141e9)

# vLLM's own continuous benchmark, buildkite.com/vllm/performance-benchmark/builds/9515: batch 8, 32 tokens in, 128 out.
PUBLISHED_8B_S = 0.833421
PUBLISHED_70B_TP4_S = 2.07753
# The same page: 200 ShareGPT prompts at once.
PUBLISHED_8B_REQUESTS_PER_S = 22.5674

# On demand, USD a GPU-hour, H100 SXM 80 GB, read 2026-11-09 by github.com/datareceipts/data-receipts (109-gpu-pricing).
PRICES = {"RunPod Secure": 3.99, "AWS p5.48xlarge": 6.88}


@dataclass(frozen=True)
class Goal:
    """95% of the answers begin in time, and 95% then keep a pace."""

    ttft_s: float
    token_s: float
    """Seconds a token after the first, on average over an answer."""

    @property
    def name(self) -> str:
        """For a table."""
        return f"{self.ttft_s:g} s, {1 / self.token_s:.0f} tok/s"


BRISK = Goal(1.0, 0.05)
PATIENT = Goal(5.0, 0.1)
"""Its first token is the monitor's default service level (MonitorPolicy.max_p95_ttft_ms)."""
REQUESTS = 4000

# Measured when this project was designed, on 2 cores of an EPYC: tokens a second by number of clients, a 1.3M model.
OURS_CPU = measured_engine("our engine, 2 cores, 1.3M", {1: 219.0, 4: 532.0, 16: 609.0})
VLLM_CPU = measured_engine("vLLM's CPU build, 2 cores, 1.3M", {1: 220.0, 4: 770.0, 16: 1188.0})
TRACES_PER_S = (60, 99)
# components/serin/serve/SPEED.md: rails off, and all of them on.
GATEWAY_CPU_S_PER_TOKEN = (0.000078, 0.000203)
INDEX_BUILD_S = {"hnswlib": 28, "LanceDB HNSW_SQ": 53}
INDEX_VECTORS = 100_000


@dataclass(frozen=True)
class Model:
    """A model size; the cache per token is that of a known model of the kind (an assumption)."""

    name: str
    parameters: float
    kv_bytes_per_token: float
    gpus: int = 1
    weight_bytes: float = 2.0

    def engine(self, gpu: Gpu = H100) -> Engine:
        """The model on its GPUs with chat-sized contexts."""
        return gpu_engine(
            gpu,
            self.parameters,
            gpus=self.gpus,
            weight_bytes=self.weight_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            context_tokens=CHAT.prompt_median * math.exp(CHAT.prompt_sigma**2 / 2) + MEAN_COMPLETION / 2,
            overhead_s=overhead_s(self.gpus > 1),
        )


MODELS = (
    Model("0.5B (1x)", 0.5e9, 12_288),
    Model("5B (10x)", 5e9, 131_072),
    Model("500B in FP8 (1000x)", 500e9, 516_096, gpus=8, weight_bytes=1.0),
)


def overhead_s(split: bool) -> float:
    """What an iteration takes beside the roofline: the rest of the published latency, on one GPU or split over four."""
    parameters, gpus, kv, seconds = (
        (70.6e9, 4, 327_680, PUBLISHED_70B_TP4_S) if split else (8.03e9, 1, 131_072, PUBLISHED_8B_S)
    )
    bare = gpu_engine(H200, parameters, gpus=gpus, kv_bytes_per_token=kv, context_tokens=96, overhead_s=0.0)
    return (seconds - 8 * 32 * bare.prefill_s_per_token) / 128 - bare.step_s(8)


# serving


def meets_goal(workload: Workload, engine: Engine, replicas: int = 1, goal: Goal = BRISK) -> bool:
    """Whether a fleet keeps to a goal."""
    outcome = simulate(workload, engine, replicas)
    gaps = (outcome.latency_s - outcome.ttft_s) / np.maximum(1, workload.completion_tokens - 1)
    return outcome.percentile("ttft_s", 95) <= goal.ttft_s and float(np.percentile(gaps, 95)) <= goal.token_s


def replica_rate(engine: Engine, lengths: Lengths = CHAT, cv: float = 1.0, goal: Goal = BRISK) -> float:
    """Requests a second that one engine serves within the goal; 0 if it never does."""

    def holds(rate: float) -> bool:
        return meets_goal(renewal(rate, REQUESTS, lengths, cv=cv), engine, goal=goal)

    return largest_rate(holds, 0.02, 200.0)


@cache
def model_rate(index: int, cv: float, goal: Goal = BRISK) -> float:
    """``replica_rate`` of ``MODELS[index]``."""
    return replica_rate(MODELS[index].engine(), cv=cv, goal=goal)


def replicas_for(rate: float, each: float) -> int:
    """Engines for a rate, one of them to spare."""
    return math.ceil(rate / each) + 1


def cost_per_1k(rate: float, gpus: int, usd_per_gpu_hour: float) -> float:
    """USD for 1,000 answers with the GPUs running all the time."""
    return gpus * usd_per_gpu_hour / 3600 / rate * 1000


def engines() -> list[list[str]]:
    rows = []
    for engine in (OURS_CPU, VLLM_CPU, *(model.engine() for model in MODELS)):
        speeds = [
            f"{engine.tokens_per_s(batch):,.0f}" if batch <= engine.max_batch else "–" for batch in (1, 16, 64, 256)
        ]
        rows.append([engine.name, f"{engine.max_batch}", *speeds])
    return rows


def published() -> list[list[str]]:
    """The model of an engine against a figure that it was not fitted to: 200 ShareGPT requests at once on an H200.

    The page does not say how long those requests are: means of 161 tokens in and 338 out, their spread and the longest
    answer, on which the last requests depend, are assumptions.
    """
    engine = gpu_engine(H200, 8.03e9, kv_bytes_per_token=131_072, context_tokens=330, overhead_s=overhead_s(False))
    rows = []
    for longest in (1024, 2048):
        lengths = Lengths(161 * math.exp(-0.5), 338 * math.exp(-0.5), 1.0, 1.0, longest)
        outcome = simulate(renewal(1e6, 200, lengths, cv=1.0), engine)
        rows.append(
            [f"{longest:,}", f"{200 / float(outcome.latency_s.max()):.1f}", f"{PUBLISHED_8B_REQUESTS_PER_S:.1f}"]
        )
    return rows


def one_replica() -> list[list[str]]:
    """A 5B model on one H100 under rising traffic."""
    engine, rows = MODELS[1].engine(), []
    for rate in (0.5, 1, 2, 4, 6, 8, 10, 12):
        row = [f"{rate:g}"]
        for cv in (1.0, 3.0):
            outcome = simulate(renewal(rate, REQUESTS, CHAT, cv=cv), engine)
            row += [f"{outcome.percentile('ttft_s', 50):.2f} / {outcome.percentile('ttft_s', 95):.2f}"]
            row += [f"{outcome.percentile('latency_s', 50):.1f} / {outcome.percentile('latency_s', 95):.1f}"]
        rows.append(row)
    return rows


def pooling() -> list[list[str]]:
    """The same load on each replica, more replicas behind one door."""
    each, engine, rows = 0.9 * model_rate(1, 3.0), MODELS[1].engine(), []
    for replicas in (1, 2, 4, 8, 16):
        outcome = simulate(renewal(each * replicas, REQUESTS * replicas, CHAT, cv=3.0), engine, replicas)
        p50, p95, p99 = (outcome.percentile("ttft_s", percent) for percent in (50, 95, 99))
        rows.append(
            [
                f"{replicas}",
                f"{each * replicas:.1f}",
                f"{p50:.2f}",
                f"{p95:.2f}",
                f"{p99:.2f}",
            ]
        )
    return rows


def fleets() -> list[list[str]]:
    rows = []
    for index, model in enumerate(MODELS):
        for goal in (BRISK, PATIENT):
            rates = [model_rate(index, cv, goal) for cv in (1.0, 3.0)]
            row = [model.name, goal.name, *(f"{rate:.2f}" if rate else "never" for rate in rates)]
            for factor in FACTORS:
                gpus = replicas_for(factor, rates[1]) * model.gpus if rates[1] else 0
                costs = " / ".join(f"{cost_per_1k(factor, gpus, price):.2f}" for price in PRICES.values())
                row.append(f"{gpus:,} ({costs})" if gpus else "–")
            rows.append(row)
    return rows


def cpu_fleets() -> list[list[str]]:
    rows = []
    for engine in (OURS_CPU, VLLM_CPU):
        each = replica_rate(engine, DEMO)
        rows.append([engine.name, f"{each:.1f}", *(f"{replicas_for(factor, each):,}" for factor in FACTORS)])
    return rows


def recorded() -> list[list[str]]:
    """Azure's half hours, as they were and sped up, on 5B engines."""
    engine, rows = MODELS[1].engine(), []
    for name in ("conv", "code"):
        for speedup in (1, 10):
            workload = trace(TRACES / f"{name}.csv.gz", speedup)
            for replicas in (1, 2, 4, 8, 16, 32):
                if meets_goal(workload, engine, replicas):
                    break
            outcome = simulate(workload, engine, replicas)
            mean = math.ceil(workload.rate_per_s / model_rate(1, 1.0))
            rows.append(
                [
                    name,
                    f"{workload.rate_per_s:.1f}",
                    f"{mean}",
                    f"{replicas}",
                    f"{outcome.percentile('ttft_s', 95):.2f}",
                    f"{outcome.busy_fraction:.0%}",
                ]
            )
    return rows


# training


def train_hours(parameters: float, tokens: float, per_token: float = 6.0, reached: float = 0.45) -> float:
    """H100-hours, by operations a parameter and token (6; about 4 with LoRA) and the share of the rate reached."""
    return per_token * parameters * tokens / (H100.flops * reached) / 3600


def training() -> list[list[str]]:
    rows = []
    for parameters, name in ((0.5e9, "0.5B"), (5e9, "5B"), (500e9, "500B")):
        for tokens, data in ((10e6, "10M (1x)"), (100e6, "100M (10x)"), (10e9, "10B (1000x)")):
            full, lora = train_hours(parameters, tokens), train_hours(parameters, tokens, 4.0)
            memory = (math.ceil(size * parameters / (0.8 * H100.memory_bytes)) for size in (16.0, 2.2))
            usd = " / ".join(
                f"{lora * price:,.2f}" if lora < 100 else f"{lora * price:,.0f}" for price in PRICES.values()
            )
            rows.append([name, data, _short(full), _short(lora), " / ".join(map(str, memory)), usd])
    return rows


# data


def index() -> list[list[str]]:
    """Vectors of 384 dimensions; build time grows as n log n from what was measured at 100,000."""
    rows = []
    for factor in FACTORS:
        vectors = INDEX_VECTORS * factor
        growth = factor * math.log(vectors) / math.log(INDEX_VECTORS)
        graph = vectors * (384 * 4 + 2 * 16 * 4)
        builds = " / ".join(f"{seconds * growth / 3600:.2g}" for seconds in INDEX_BUILD_S.values())
        rows.append(
            [
                f"{vectors:,} ({factor:,}x)",
                f"{vectors * 800 / 1e9:,.3g}",
                f"{graph / 1e9:,.3g}",
                f"{vectors * (384 * 2 + 128) / 1e9:,.3g}",
                builds,
            ]
        )
    return rows


def embedding(texts: int = 96) -> list[list[str]]:
    """Measured: chunks of 800 characters through MiniLM on this machine, and what that makes of an index."""
    from serin.core.embedding import BULK_TEXTS, Embedder

    embedder = Embedder.load(num_threads=1)
    words = Words(seed=1)
    chunks = [words.text(800) for _ in range(texts)]
    embedder.encode(chunks[:BULK_TEXTS])
    start = time.process_time()
    embedder.encode(chunks)
    cpu_s = (time.process_time() - start) / texts
    return [
        [f"{INDEX_VECTORS * factor:,}", f"{1 / cpu_s:.0f}", f"{INDEX_VECTORS * factor * cpu_s / 3600:,.1f}"]
        for factor in FACTORS
    ]


def events() -> list[list[str]]:
    """Measured: bytes of an event in Parquet batches, and how fast one process reads them back."""
    from serin.core.events import EndpointEvent, read_events, write_events
    from serin.core.storage import storage_for

    rows = []
    for kept in (False, True):
        words = Words(seed=2)
        made = [
            EndpointEvent.model_validate(
                words.event(number, 120 if kept else 0, round(MEAN_COMPLETION * 4) if kept else 0)
            )
            for number in range(4000)
        ]
        with tempfile.TemporaryDirectory() as folder:
            storage = storage_for(Path(folder).as_uri())
            for start in range(0, len(made), 200):
                write_events(storage, "assistant", made[start : start + 200])
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet")) / len(made)
            tracemalloc.start()
            read = read_events(storage, "assistant")
            memory = tracemalloc.get_traced_memory()[0] / len(read)
            tracemalloc.stop()
            begun = time.process_time()
            assert len(read_events(storage, "assistant")) == len(made)
            speed = len(made) / (time.process_time() - begun)
        for factor in FACTORS:
            daily = factor * DAY_S
            objects = daily / min(200, max(1, 5 * factor))
            rows.append(
                [
                    "kept" if kept else "none",
                    f"{factor:,}",
                    f"{size:.0f}",
                    f"{daily * size / 1e9:,.3g}",
                    f"{objects:,.0f}",
                    f"{speed:,.0f}",
                    f"{daily / speed / 60:,.1f}",
                    f"{daily * memory / 1e9:,.3g}",
                ]
            )
    return rows


def platform() -> list[list[str]]:
    rows = []
    for factor in FACTORS:
        low, high = (factor * MEAN_COMPLETION * cpu for cpu in GATEWAY_CPU_S_PER_TOKEN)
        share = [min(1.0, limit / factor) for limit in TRACES_PER_S]
        rows.append(
            [
                f"{factor:,}",
                f"{factor * MEAN_COMPLETION:,.0f}",
                f"{low:.2f} to {high:.2f}",
                f"{factor / high:.0f} to {factor / low:.0f}",
                f"{share[0]:.0%} to {share[1]:.0%}",
            ]
        )
    return rows


def _short(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table under a bold title."""
    lines = [f"**{title}**", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def report() -> Iterable[str]:
    """The tables, one after another."""
    yield table(
        "Engines, tokens/s by batch (`engines`)", ["engine", "largest batch", "1", "16", "64", "256"], engines()
    )
    yield table(
        "The model of an engine, checked (`published`): req/s",
        ["longest answer", "simulated", "published"],
        published(),
    )
    yield table(
        "One 5B engine on an H100 (`one_replica`): p50 / p95 seconds",
        ["req/s", "first token, Poisson", "answer, Poisson", "first token, bursts", "answer, bursts"],
        one_replica(),
    )
    yield table(
        "Pooling at 90% of a replica's rate in bursts (`pooling`): seconds to the first token",
        ["replicas", "req/s", "p50", "p95", "p99"],
        pooling(),
    )
    yield table(
        "Fleets (`fleets`): GPUs with one replica to spare (USD for 1,000 answers at "
        + " and ".join(map(str, PRICES.values()))
        + " a GPU-hour)",
        ["model", "goal", "replica, Poisson, req/s", "in bursts", "1 req/s", "10 req/s", "1,000 req/s"],
        fleets(),
    )
    yield table(
        "CPU engines, answers of 45 tokens (`cpu_fleets`): replicas",
        ["engine", "each, req/s", "1", "10", "1,000"],
        cpu_fleets(),
    )
    if TRACES.is_dir():
        yield table(
            "Azure's recorded half hours on 5B engines (`recorded`)",
            ["trace", "req/s", "replicas by the mean", "replicas simulated", "p95 first token, s", "busy"],
            recorded(),
        )
    yield table(
        "Fine-tuning, H100-hours (`training`)",
        [
            "model",
            "tokens",
            "in full",
            "LoRA",
            "GPUs for memory, full / LoRA",
            "USD, LoRA, at " + " / ".join(map(str, PRICES.values())),
        ],
        training(),
    )
    yield table(
        "Index of 384 dimensions (`index`), GB and CPU-hours",
        ["vectors", "text", "in-memory graph, float32", "pgvector halfvec", "build, " + " / ".join(INDEX_BUILD_S)],
        index(),
    )
    yield table("Embedding, measured here (`embedding`)", ["chunks", "chunks/s of a core", "core-hours"], embedding())
    yield table(
        "Endpoint events, measured here (`events`)",
        [
            "text",
            "req/s",
            "bytes each",
            "GB a day",
            "objects a day",
            "read/s of a core",
            "core-minutes to read a day",
            "GB in memory",
        ],
        events(),
    )
    yield table(
        "Gateway and traces (`platform`)",
        ["req/s", "tokens/s", "gateway cores", "req/s of one gateway process", "share of traces a server takes"],
        platform(),
    )


def main() -> None:
    """Print the tables as they are ready."""
    for part in report():
        sys.stdout.write(part + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
