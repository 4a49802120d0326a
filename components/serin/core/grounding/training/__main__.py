"""``python -m serin.core.grounding.training --data DIR --output FILE``."""

import argparse
from pathlib import Path

from serin.core.grounding.model import WEIGHTS
from serin.core.grounding.training.examples import examples
from serin.core.grounding.training.fit import fit


def main() -> None:
    """Fit on everything, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with begin_groundedness and mtrag_rag")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="safetensors file")
    options = parser.parse_args()
    about = {
        "data": "BEGIN dev tc (CDLA-Sharing-1.0) and wow (CC BY 4.0); MTRAG dev (Apache-2.0) and changes made of it",
        "seed": "0",
    }
    fit(examples(options.data)).save(options.output, about)


if __name__ == "__main__":
    main()
