"""What becomes of the loop's records: progress for people, metrics for MLflow."""

import json
from pathlib import Path
from typing import Any

import pytest
from lamps import SMALL, Inputs

from serin.core.tracking import Tracker
from serin.core.tracking.spool import folder_of
from serin.finetune.progress import (
    PEAK_FLOPS,
    Heartbeat,
    PhaseReport,
    flops_per_token,
    model_flops_per_token,
    peak_flops,
)
from serin.finetune.train import finetune

NOBODY = "http://127.0.0.1:9"


def logged(records: list[dict[str, Any]], **options: Any) -> dict[int, dict[str, float]]:
    """What MLflow would be sent for these records: step to metrics."""
    tracker = Tracker(NOBODY, "assistant", "run", "finetune")
    said: list[str] = []
    with Heartbeat(lambda message, _: said.append(message)) as heartbeat:
        report = PhaseReport(heartbeat, tracker, "finetune", (0.0, 1.0), interval_s=0.0, **options)
        for record in records:
            report({"phase": "fine-tuning", "steps": 4, **record})
    spools = sorted(folder_of(NOBODY).glob("*.jsonl"))[-1:]
    lines = [json.loads(line) for spool in spools for line in spool.read_text().splitlines()[1:]]
    return {line["step"]: line["metrics"] for line in lines}


def test_every_number_of_a_step_becomes_a_metric() -> None:
    record = {"step": 1, "loss": 2.0, "lr": 0.1, "grad_norm": 3.0, "tokens": 100, "seconds": 0.5}
    found = logged([{**record, "memory_bytes": 2**30, "cuda_memory_bytes": 2**31}])
    assert found[1] == {
        "finetune.loss": 2.0,
        "finetune.lr": 0.1,
        "finetune.grad_norm": 3.0,
        "finetune.tokens": 100.0,
        "finetune.tokens_per_s": 200.0,
        "finetune.memory_mib": 1024.0,
        "finetune.cuda_memory_mib": 2048.0,
    }


def test_speed_is_that_of_the_steps_since_the_last_time() -> None:
    steps = [{"step": step, "loss": 1.0, "tokens": 100, "seconds": 1.0 / step} for step in (1, 2)]
    found = logged(steps)
    assert (found[1]["finetune.tokens_per_s"], found[2]["finetune.tokens_per_s"]) == (100.0, 200.0)
    assert found[2]["finetune.tokens"] == 200.0


def test_a_record_without_numbers_logs_none() -> None:
    assert logged([{"step": 0, "val_loss": None}, {"step": 0, "resumed": True}]) == {}


def test_the_best_validation_of_early_stopping_is_logged_when_it_is_known() -> None:
    best = {"step": 3, "stopped_early": True, "best_step": 1, "best_val_loss": 1.5}
    assert logged([best])[3] == {"finetune.best_val_loss": 1.5, "finetune.best_step": 1.0}


def test_mfu_is_the_part_of_the_peak_that_is_used() -> None:
    steps = [{"step": 1, "loss": 1.0, "tokens": 1000, "seconds": 1.0}]
    assert logged(steps, flops_per_token=4e9, peak=1e13)[1]["finetune.mfu"] == pytest.approx(0.4)


def test_the_records_may_name_the_devices_themselves() -> None:
    steps = [{"step": 1, "loss": 1.0, "tokens": 1000, "seconds": 1.0, "device": "NVIDIA L4", "num_devices": 2}]
    assert logged(steps, flops_per_token=121e9)[1]["finetune.mfu"] == pytest.approx(0.5)
    assert "finetune.mfu" not in logged([{**steps[0], "device": "cpu"}], flops_per_token=1e9)[1]


def test_a_models_operations_follow_from_its_folder(tiny_folder: Path) -> None:
    shape = json.loads((tiny_folder / "config.json").read_text())
    embedding = shape["vocab_size"] * shape["hidden_size"]
    full = model_flops_per_token(tiny_folder, 100_000, trains_all=True, length=0)
    met = 100_000 if shape["tie_word_embeddings"] else 100_000 - embedding
    assert full == 6 * met
    assert model_flops_per_token(tiny_folder, 100_000, trains_all=False, length=0) == 4 * met


def test_there_is_no_mfu_on_a_cpu() -> None:
    steps = [{"step": 1, "loss": 1.0, "tokens": 1000, "seconds": 1.0}]
    assert "finetune.mfu" not in logged(steps, flops_per_token=4e9, peak=peak_flops("cpu"))[1]


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("An abacus", 0.0),
    ],
)
def test_gpus_are_known_by_the_names_that_they_give(device: str, peak: float) -> None:
    assert peak_flops(device) == peak


def test_all_weights_trained_cost_six_operations_each_and_frozen_ones_four() -> None:
    assert flops_per_token(1000, 1000, 0, 0, 0) == 6000
    assert flops_per_token(1000, 10, 0, 0, 0) == 4020
    assert flops_per_token(0, 0, 2, 64, 128) == 12 * 2 * 64 * 128
    assert all(peak > 1e13 for peak in PEAK_FLOPS.values())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's
def test_a_stage_trains_to_its_end_while_mlflow_is_away(inputs: Inputs, tiny_folder: Path) -> None:
    context = inputs.context(NOBODY)
    made = finetune(SMALL, str(tiny_folder), inputs.prompt, inputs.dataset, inputs.documents, context)
    assert (made.model.path / "merged" / "model.safetensors").is_file()
    assert made.model.manifest.mlflow_run_id == ""
    (spool,) = folder_of(NOBODY).glob("*.jsonl")
    lines = [json.loads(line) for line in spool.read_text().splitlines()[1:]]
    losses = [line["step"] for line in lines if "finetune.val_loss" in line.get("metrics", {})]
    assert losses == [0, 3, 6]


def test_a_heartbeat_repeats_what_goes_on(tmp_path: Path) -> None:
    said: list[tuple[str, float | None]] = []
    with Heartbeat(lambda message, fraction: said.append((message, fraction))) as heartbeat:
        heartbeat.say("reading", 0.25)
    assert said == [("reading", 0.25)]
