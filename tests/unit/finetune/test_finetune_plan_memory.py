"""The estimate of a step's memory, beside what a training takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from measured_memory import SIZES

from serin.finetune.memory import DEEP, StepCost, StepShape, _built, _extrapolated, _traced, step_cost

# PEFT 0.21 asks transformers 5.23 for an attribute that the latter renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SHAPES: list[dict[str, Any]] = [
    {"method": "lora", "rows": 2, "tokens": 64},
    {"method": "lora", "rows": 8, "tokens": 128, "precision": "fp32"},
    {"method": "full", "rows": 4, "tokens": 128},
    {"method": "full", "rows": 8, "tokens": 128, "precision": "fp32", "activation_checkpointing": True},
]


def cost(**values: Any) -> StepCost:
    from transformers import LlamaConfig

    return step_cost(LlamaConfig(**SIZES), StepShape(**values))


def two_layers(**values: Any) -> StepCost:
    from transformers import LlamaConfig

    return step_cost(LlamaConfig(**{**SIZES, "num_hidden_layers": 2}), StepShape(**values))


@pytest.mark.slow
def test_the_estimate_is_within_a_quarter_of_the_measured_peak() -> None:
    script = Path(__file__).with_name("measured_memory.py")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), json.dumps(SHAPES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = [int(line) for line in done.stdout.split()]
    ratios = [round(cost(**shape).total / peak, 3) for shape, peak in zip(SHAPES, measured, strict=True)]
    assert all(0.75 <= ratio <= 1.25 for ratio in ratios), ratios


def test_every_number_of_weights_is_that_of_the_model() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    plain = LlamaForCausalLM(LlamaConfig(**SIZES))
    full = cost(method="full")
    assert full.num_parameters == full.num_trainable == sum(weight.numel() for weight in plain.parameters())
    assert full.weights == 4 * full.num_parameters
    tuned: Any = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
    trainable, every = tuned.get_nb_trainable_parameters()
    lora = cost(method="lora", lora_rank=16)
    assert (lora.num_trainable, lora.num_parameters) == (trainable, every)
    assert lora.optimizer == 8 * trainable


def test_shared_embeddings_count_once() -> None:
    from transformers import LlamaConfig

    tied = step_cost(LlamaConfig(**SIZES, tie_word_embeddings=True), StepShape(method="full"))
    assert cost(method="full").num_parameters - tied.num_parameters == SIZES["vocab_size"] * SIZES["hidden_size"]


def test_lighter_settings_need_less() -> None:
    totals = [two_layers(method=method, rows=4, tokens=64).total for method in ("full", "lora", "qlora")]
    assert totals == sorted(totals, reverse=True)
    plain = two_layers(method="lora", rows=8, tokens=256)
    assert two_layers(method="lora", rows=8, tokens=256, activation_checkpointing=True).total < plain.total
    assert two_layers(method="lora", rows=8, tokens=256, attention="sdpa").total < plain.total
    assert two_layers(method="lora", rows=8, tokens=256, learned=64).logits < plain.logits / 4
    assert two_layers(method="lora", rows=4, tokens=256).activations < 0.6 * plain.activations


def test_sharding_divides_what_each_worker_holds() -> None:
    alone = cost(method="full", rows=1, tokens=64)
    shared = [cost(method="full", rows=1, tokens=64, strategy="fsdp2", workers=workers) for workers in (2, 4)]
    assert shared[0].optimizer == alone.optimizer // 2
    assert shared[1].optimizer == alone.optimizer // 4
    assert alone.total > shared[0].total > shared[1].total
    assert cost(method="full", rows=1, tokens=64, workers=2).communication > 0


def test_training_takes_six_operations_a_weight_and_adapters_four() -> None:
    """Kaplan et al. 2020, arXiv:2001.08361: 6 N a token, without the base's gradients 4 N; embeddings are looked up."""
    size = cost(method="full").num_parameters - SIZES["vocab_size"] * SIZES["hidden_size"]
    assert cost(method="full", rows=1, tokens=16, learned=15).flops_per_token / size == pytest.approx(6, rel=0.05)
    assert cost(method="lora", lora_rank=1, rows=1, tokens=16).flops_per_token / size == pytest.approx(4, rel=0.05)


def test_a_deep_model_is_extrapolated_to_what_a_trace_of_all_its_layers_says() -> None:
    from transformers import LlamaConfig

    deep = LlamaConfig(**{**SIZES, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": DEEP})
    for values in ({"method": "full", "rows": 4}, {"method": "full", "tokens": 32}, {"method": "lora", "rows": 4}):
        shape = StepShape(**{"tokens": 128, **values})  # type: ignore[arg-type]
        whole, flops = _traced(_built(deep, shape)[0], deep, shape)
        peaks, more_flops = _extrapolated(deep, shape, DEEP)
        assert more_flops == pytest.approx(flops)
        assert max(map(total_of, peaks)) == pytest.approx(max(map(total_of, whole)), rel=0.02)


def total_of(parts: dict[str, int]) -> int:
    return sum(parts.values())


def test_other_architectures_are_traced_too() -> None:
    from transformers import GPT2Config, Qwen3Config

    gpt2 = step_cost(GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=500), StepShape(rows=2, tokens=32))
    sizes = {**SIZES, "num_key_value_heads": 2, "head_dim": 64}
    qwen = step_cost(Qwen3Config(**sizes), StepShape(rows=2, tokens=32, attention="sdpa"))
    assert gpt2.num_trainable > 0
    assert qwen.num_parameters > 10_000_000
