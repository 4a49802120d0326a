"""Copy models from the store to the cache volume, each whole or not at all; what is there already is left alone.

MODELS holds NAME=URI pairs, separated by spaces; CACHE is the folder to fill.
"""

import os
import shutil
from pathlib import Path

from serin.core.storage import storage_for

cache = Path(os.environ["CACHE"])
for pair in os.environ["MODELS"].split():
    name, _, uri = pair.partition("=")
    if (cache / name).exists():
        continue
    aside, source = cache / f".{name}.partial", storage_for(uri)
    shutil.rmtree(aside, ignore_errors=True)
    keys = source.keys()
    if not keys:
        raise SystemExit(f"There is no model at {uri}: upload it, or correct MODELS.")
    for key in keys:
        source.fetch(key, aside / key)
    aside.rename(cache / name)
