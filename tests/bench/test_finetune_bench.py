"""The arithmetic of the fine-tuning benchmark, its JSON line, and what it does with a contender that fails."""

import json
import sys
from pathlib import Path

import finetune
import pytest
from finetune_process import Contender, ContenderError
from finetune_spec import Spec, batch_size

MIB = 2**20
OURS, TRL = Spec("ours", "ours"), Spec("trl", "trl")
GOOD = (
    "import sys, json\n"
    "print(json.dumps({'attention': 'eager'}), flush=True)\n"
    "for line in sys.stdin:\n"
    "    print(json.dumps({'tokens': 100, 'seconds': 2.0, 'step_seconds': 2.0, 'peak_bytes': 7}), flush=True)\n"
)


def turn(tokens: int, seconds: float, peak_mib: int = 100) -> finetune.Turn:
    return {"tokens": tokens, "seconds": seconds, "step_seconds": seconds, "peak_bytes": peak_mib * MIB}


def command(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def measured() -> finetune.Results:
    return finetune.Results(
        turns={
            "ours": [turn(1000, 1.0), turn(1000, 0.5, 150), turn(1000, 2.0)],
            "trl": [turn(400, 1.0, 300), turn(500, 1.0, 200), turn(100, 1.0, 200)],
        },
        ray_pairs=[(1.0, 1.02), (1.0, 1.5), (1.0, 0.99)],
        ray_cpus=[0.04, 0.05, 0.09],
    )


def test_a_ratio_is_of_the_medians_of_all_turns():
    assert finetune.figures_of(measured())["vs_trl_unpacked"] == 2.5


def test_memory_is_compared_at_its_peaks():
    assert finetune.figures_of(measured())["peak_memory_vs_trl"] == 0.5


def test_the_overhead_of_ray_is_the_median_of_its_rounds():
    figures = finetune.figures_of(measured())
    assert figures["ray_overhead_fraction"] == pytest.approx(0.02)
    assert figures["ray_processes_cpus"] == 0.05


def test_what_was_not_measured_is_null_and_the_rest_stays():
    results = measured()
    results.failures["hf"] = "hf ended: no module"
    figures = json.loads(json.dumps(finetune.figures_of(results)))
    assert figures["vs_hf_trainer"] is None
    assert figures["vs_trl_packed_lora"] is None
    assert figures["vs_trl_unpacked"] == 2.5
    assert figures["failures"] == {"hf": "hf ended: no module"}
    assert "vs_hf_trainer: None (goal at least 1.3): not measured" in finetune.verdicts(figures)


def test_without_any_result_every_figure_is_null():
    figures = finetune.figures_of(finetune.Results())
    assert {figures[name] for name in finetune.PAIRS} == {None}
    assert figures["ray_overhead_fraction"] is None
    assert figures["ray_processes_cpus"] is None
    assert figures["peak_memory_vs_trl"] is None


def test_a_goal_is_met_or_missed():
    lines = finetune.verdicts(finetune.figures_of(measured()))
    assert "vs_trl_unpacked: 2.5 (goal at least 2.3): met" in lines
    assert lines[-1].endswith("(goal below 0.03): met")


def test_peers_get_as_many_samples_as_hold_our_tokens():
    assert batch_size(990.0, 90.0) == 11
    assert batch_size(20.0, 90.0) == 1


def test_a_contender_answers_once_at_its_start_and_once_a_turn(tmp_path: Path):
    with Contender(OURS, tmp_path, command(GOOD)) as contender:
        assert contender.reply() == {"attention": "eager"}
        assert [contender.turn()["tokens"] for _ in range(2)] == [100, 100]


def test_a_contender_that_ends_leaves_its_last_words(tmp_path: Path):
    code = "raise ModuleNotFoundError('No module named trl')"
    with Contender(TRL, tmp_path, command(code)) as contender, pytest.raises(ContenderError) as caught:
        contender.turn()
    assert str(caught.value) == "trl ended: ModuleNotFoundError: No module named trl"


def test_a_silent_contender_is_given_up(tmp_path: Path):
    code = "import sys; sys.stdin.read()"
    with Contender(TRL, tmp_path, command(code)) as contender, pytest.raises(ContenderError, match="said nothing"):
        contender.reply(timeout_s=0.1)
