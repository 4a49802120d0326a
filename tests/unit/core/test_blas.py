"""How many threads numpy's products take."""

import subprocess
import sys

import pytest

CODE = """
from threading import Thread
from threadpoolctl import ThreadpoolController

{use}

def num_threads():
    return {{one["num_threads"] for one in ThreadpoolController().info() if "numpy" in one["filepath"]}}

seen = [num_threads()]
thread = Thread(target=lambda: seen.append(num_threads()))
thread.start()
thread.join()
raise SystemExit(seen != [{{1}}, {{1}}])
"""


@pytest.mark.parametrize(
    "use",
    [
        "from serin.core.embedding import Embedder; Embedder.load()",
        "from serin.serve.rails import harm; harm.score('Where is my order?')",
    ],
)
def test_who_embeds_or_judges_holds_the_process_to_one_thread(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    code = [sys.executable, "-c", CODE.format(use=use)]
    assert subprocess.run(code, check=False).returncode == 0
    code[-1] = CODE.format(use="import numpy")
    assert subprocess.run(code, check=False).returncode == 1
