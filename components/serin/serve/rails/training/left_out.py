"""How well the injection rail finds kinds of attacks that it never learned: a third of the kinds left out, in turn.

Run: python -m serin.serve.rails.training.left_out --data DIR   (eight minutes on one core)
Each time the rail is trained and calibrated as the shipped one, but for the texts that hold a kind that is left out.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from serin.core.transformer import Array
from serin.serve.rails.training import data as sets
from serin.serve.rails.training import linear
from serin.serve.rails.training.grammar import vary
from serin.serve.rails.training.injection import (
    SETTINGS,
    Examples,
    attack_grammar,
    calibration_texts,
    calibration_turns,
    features,
    turn_examples,
)

GROUPS = 3
TEXTS = 100
"""Drawn of each kind, to be found."""
AMID = 25
"""Of these, that are also put amid a passage of MTRAG's Wikipedia part (1,000 characters or so)."""
SEED = 41


def main() -> None:
    """Print one JSON line: kind -> share found when its group was left out of training."""
    parser = argparse.ArgumentParser(description="Judge the injection rail on kinds of attacks left out of training.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    data = parser.parse_args().data
    examples = turn_examples(data)
    found = shares_found(data, examples, features(examples))
    sys.stdout.write(f"{json.dumps(found)}\n")


def shares_found(data: Path, examples: Examples, seen: Array) -> dict[str, float]:
    """Kind -> share of its texts found without it, their ``mean``, and Giskard's prompts by the same networks."""
    attacks, rng = attack_grammar(), sets.seeded(SEED)
    names = sorted(attacks.groups["categories"])
    labels = np.array(examples.labels)
    turns = [linear.read(texts) for texts in calibration_turns(data)]
    long_texts = [linear.read(texts) for texts in calibration_texts(data)]
    prompts = linear.read(row["prompt"] for row in sets.giskard(data))
    pages = [text for name, text in sets.mtrag_passages(data) if name.endswith("clapnq")]
    found: dict[str, float] = {}
    for first in range(GROUPS):
        left_out = names[first::GROUPS]
        kept = np.array([kinds.isdisjoint(left_out) for kinds in examples.kinds])
        weights = linear.fit_steps(seen[kept], labels[kept], SETTINGS)
        linear.calibrate(weights, turns, long_texts, SETTINGS)
        for name in left_out:
            texts = [vary(attacks.draw("categories", name, rng), rng) for _ in range(TEXTS)]
            amid = [sets.poison(rng.choice(pages), text, "middle") for text in texts[:AMID]]
            found[name] = float((linear.logits(linear.read(texts), weights) > 0).mean())
            found[f"{name} amid a page"] = float((linear.logits(linear.read(amid), weights) > 0).mean())
        found[f"giskard without {', '.join(left_out)}"] = float((linear.logits(prompts, weights) > 0).mean())
        sys.stderr.write(f"{json.dumps(found)}\n")
    return found | {
        f"mean{where}": float(np.mean([found[f"{name}{where}"] for name in names])) for where in ("", " amid a page")
    }


if __name__ == "__main__":
    main()
