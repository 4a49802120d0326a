"""lm-evaluation-harness: what it writes is read; where it is not installed, that is said."""

import json
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from worlds import context_of

from serin.core.errors import InputError
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.harness import outcomes

RELEASE = SimpleNamespace(id="0" * 64)


def suite(source="lm_eval", tasks=("arc_easy",)):
    return EvaluateConfig.load(
        {"suites": [{"kind": "harness", "name": "lm", "source": source, "tasks": tasks}]}
    ).suites[0]


def sample(doc_id, **more):
    """A line as ``lm_eval --log_samples`` (0.4.13) writes it, cut short."""
    return {
        "doc_id": doc_id, "doc": {"question": f"Q{doc_id}", "answerKey": "A"}, "target": "0", "arguments": {},
        "resps": [[["-1.5", "False"]]], "filtered_resps": [["-1.5", "False"]], "filter": "none",
        "metrics": ["acc", "acc_norm"], "doc_hash": f"d{doc_id}", "prompt_hash": "p", "target_hash": "t",
        "acc": 1.0, "acc_norm": 0.0, **more,
    }  # fmt: skip


def write(folder, task, rows, date="2026-11-01T10-00-00.000001"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples_{task}_{date}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(found, tmp_path):
    config = EvaluateConfig(suites=())
    return outcomes(found, RELEASE, "candidate", tmp_path, config, context_of(str(tmp_path), "evaluate"))


def test_samples_of_the_latest_run_become_items(tmp_path):
    folder = tmp_path / RELEASE.id / "my__model"
    write(folder, "arc_easy", [sample(0, acc=0.0)], date="2026-10-01T10-00-00.000001")
    write(folder, "arc_easy", [sample(0), sample(1, acc=0.0, acc_norm=1.0)])
    write(folder, "wikitext", [sample(0, metrics=["word_perplexity", "bits_per_byte"], word_perplexity=[-30.0, 10],
                                      bits_per_byte=[-70.0, 100])])  # fmt: skip
    write(folder, "gsm8k", [sample(0, metrics=["exact_match"], exact_match=1.0, filter="strict-match")])
    found = read(suite(f"{tmp_path}/{{release}}", ("arc_easy", "wikitext", "gsm8k")), tmp_path)
    by_id = {one.id: one for one in found}
    assert list(by_id) == ["arc_easy/0", "arc_easy/1", "gsm8k/0_strict-match", "wikitext/0"]
    assert by_id["arc_easy/1"].values == {"arc_easy.acc": 0.0, "arc_easy.acc_norm": 1.0}
    assert by_id["wikitext/0"].values["wikitext.bits_per_byte"] == pytest.approx(0.7 / 0.693147, rel=1e-4)
    assert by_id["gsm8k/0_strict-match"].values == {"gsm8k.exact_match_strict-match": 1.0}
    assert by_id["arc_easy/0"].labels == {"task": "arc_easy"}
    assert by_id["arc_easy/0"].source.endswith("#1")
    write(folder, "arc_easy", [sample(0, doc_hash="another"), sample(1)], date="2026-12-01T10-00-00.000001")
    again = {one.id: one for one in read(suite(f"{tmp_path}/{{release}}"), tmp_path)}
    assert again["arc_easy/0"].digest != by_id["arc_easy/0"].digest
    assert again["arc_easy/1"].digest == by_id["arc_easy/1"].digest


def test_a_folder_without_the_task_or_with_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no samples of arc_easy: run lm_eval with --log_samples"):
        read(suite(str(tmp_path)), tmp_path)
    write(tmp_path, "arc_easy", [{"id": 1}])
    with pytest.raises(InputError, match="line 1, is no sample of lm-evaluation-harness"):
        read(suite(str(tmp_path)), tmp_path)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed here")
def test_without_the_package_the_suite_says_so(tmp_path):
    assert "is not installed: 'pip install lm_eval'" in read(suite(), tmp_path)
