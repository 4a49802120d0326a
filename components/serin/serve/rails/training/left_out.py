"""How well the injection rail finds kinds of attacks that it never learned, three groups of five categories in turn.

Run: python -m serin.serve.rails.training.left_out --data DIR
Each network learns from a third of the texts for a third of the steps; its threshold leaves 0.7% of CLINC150's train
part above it.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from serin.serve.rails.training import data as sets
from serin.serve.rails.training.grammar import Grammar, vary
from serin.serve.rails.training.injection import QUANTILE, STEPS, train_turn, turn_logits

GROUPS = 3
TEXTS = 100
SHARE = 0.35
"""Of the texts and of the steps."""
SEED = 41


def main() -> None:
    """Print one JSON line: category -> share found when its group was left out of training."""
    parser = argparse.ArgumentParser(description="Judge the injection rail on kinds of attacks left out of training.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    attacks, rng = Grammar.load("attacks"), sets.seeded(SEED)
    names = sorted(attacks.groups["categories"])
    clean = sets.sample([text for text, _ in sets.clinc(arguments.data, "train")], 1000, rng)
    found: dict[str, float] = {}
    for first in range(GROUPS):
        left_out = names[first::GROUPS]
        weights = train_turn(arguments.data, left_out, steps=int(SHARE * STEPS), share=SHARE)
        limit = np.quantile(turn_logits(clean, weights), QUANTILE)
        for name in left_out:
            texts = [vary(attacks.draw("categories", name, rng), rng) for _ in range(TEXTS)]
            found[name] = float((turn_logits(texts, weights) > limit).mean())
        prompts = [row["prompt"] for row in sets.giskard(arguments.data)]
        found[f"giskard without {', '.join(left_out)}"] = float((turn_logits(prompts, weights) > limit).mean())
        sys.stderr.write(f"{json.dumps(found)}\n")
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
