"""The same pipeline on data that we did not write: public support conversations and retail policies."""

import shutil
from pathlib import Path

import pytest

from .conftest import Serin, small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def real_source(serin: Serin) -> Path:
    shared = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not shared.is_dir():
        pytest.skip("needs the public data sets in ../shared/data, which are not here")
    source = serin.folder / "real"
    source.mkdir()
    for path in (
        "bitext_customer_support/dev/sft_dev.csv.gz",
        "abcd_retail_guidelines/policy_docs.jsonl",
        "taubench_retail/store/return_policy_wiki.md",
    ):
        shutil.copyfile(shared / path, source / Path(path).name)
    return source


def test_real_conversations_and_policies_become_a_judged_release(serin: Serin, real_source: Path) -> None:
    run = serin.json("run", "--source", str(real_source), *small("evaluate.num_golden=0"), code=None)
    assert run["status"] in ("succeeded", "rejected"), run["error"] + serin.logs()
    stages = {stage["name"]: stage for stage in run["stages"]}
    prepared = stages["data_prep"]["summary"]
    assert prepared
    metrics = stages["evaluate"]["summary"]["metrics"]
    assert metrics["candidate"]["bits_per_byte"] < metrics["baseline"]["bits_per_byte"]
    if run["status"] == "succeeded":
        assert run["decision"] in ("promote", "hold", "rollback")
        assert stages["monitor"]["summary"]["outcome"] in ("none", "alert", "reindex", "retrain")
