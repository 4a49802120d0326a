"""What is compared with what, and the sizes that all contenders share."""

from dataclasses import dataclass
from typing import Literal

THREADS = 2
TOKENS_PER_BATCH = 1024
SHORTEST, LONGEST = 42, 124
"""Samples of these lengths, tokens."""
WARMUP_STEPS = 4
TURN_STEPS = 16
NUM_ROUNDS = 3
RAY_ROUNDS = 5
RAY_TURNS = 4
"""Turns of the plain loop against one of Ray's, which is as many times longer."""
NUM_MEGABATCHES = 4
"""Trainer sorts a quarter of a small dataset at a time: this many times ``TURN_STEPS`` batches, so that each turn sees
one of those quarters whole, its long samples and its short ones."""
LORA_RANK, LORA_ALPHA = 32, 64
SEED = 0


@dataclass(frozen=True)
class Spec:
    """One contender."""

    name: str
    kind: Literal["prepare", "ours", "ray", "hf", "trl"]
    lora: bool = False
    packing: bool = False
    """TRL only."""
    checkpointing: bool = True
    """TRL only, whose default is on: activations are computed again for the backward pass."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Ours only; the others run in fp32."""


CONTENDERS = (
    Spec("ours", "ours"),
    Spec("hf", "hf"),
    Spec("trl", "trl"),
    Spec("trl_packed", "trl", packing=True),
    Spec("ours_lora", "ours", lora=True),
    Spec("hf_lora", "hf", lora=True),
    Spec("trl_lora", "trl", lora=True),
    Spec("trl_packed_lora", "trl", lora=True, packing=True),
    Spec("ours_bf16", "ours", precision="bf16"),
    Spec("trl_without_checkpointing", "trl", checkpointing=False),
    Spec("trl_packed_without_checkpointing", "trl", packing=True, checkpointing=False),
)
RAY = Spec("ours_on_ray", "ray")


def batch_size(batch_tokens: float, sample_tokens: float) -> int:
    """Samples per batch that hold as many real tokens, on average, as our batches do."""
    return max(1, round(batch_tokens / sample_tokens))
