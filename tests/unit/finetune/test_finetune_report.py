"""The page about a training."""

import json
from pathlib import Path

from pages import stands_alone

from serin.finetune.report import Curve, curve_of, page


def progress_file(folder: Path) -> Path:
    path = folder / "progress.jsonl"
    lines = [{"step": 0, "steps": 40, "val_loss": 3.0}]
    for step in range(1, 41):
        line = {"step": step, "steps": 40, "loss": 3.0 - step / 20, "lr": 0.1 / step, "tokens": 100, "seconds": 0.1}
        lines.append({**line, "grad_norm": 1 + 1 / step, **({"val_loss": 2.0} if step % 20 == 0 else {})})
        if step == 25:
            lines.append({"step": 20, "steps": 40, "resumed": True})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "ste')
    return path


def test_a_curve_holds_everything_that_the_loop_said(tmp_path: Path) -> None:
    curve = curve_of("fine-tuning", progress_file(tmp_path))
    assert sorted(curve.loss) == sorted(curve.lr) == sorted(curve.grad_norm) == sorted(curve.speed) == [*range(1, 41)]
    assert (curve.resumed_at, curve.num_resumed) == ([20], 1)
    assert curve.speed[7] == 1000.0
    assert curve.metrics()["val_loss"] == 2.0
    assert Curve.parse(json.loads(json.dumps(curve.dump()))).dump() == curve.dump()


def test_the_best_validation_of_early_stopping_is_among_the_metrics(tmp_path: Path) -> None:
    path = progress_file(tmp_path)
    assert "best_val_loss" not in curve_of("fine-tuning", path).metrics()
    best = {"step": 30, "steps": 40, "stopped_early": True, "best_step": 20, "best_val_loss": 1.5}
    path.write_text(path.read_text() + "\n" + json.dumps(best) + "\n")
    curve = Curve.parse(json.loads(json.dumps(curve_of("fine-tuning", path).dump())))
    assert (curve.metrics()["best_val_loss"], curve.metrics()["best_step"]) == (1.5, 20)
    assert curve.evaluation() == {"validation_loss": 1.5, "validation_loss_of_the_base": 3.0}


def test_without_validation_there_is_no_evaluation(tmp_path: Path) -> None:
    assert Curve("fine-tuning").evaluation() == {}
    assert curve_of("fine-tuning", progress_file(tmp_path)).evaluation()["validation_loss"] == 2.0


def test_a_curve_of_an_older_base_is_read() -> None:
    old = {"phase": "p", "steps": 1, "loss": [[1, 2.0]], "val_loss": [], "tokens": 1, "seconds": 1.0, "resumed": 0}
    assert Curve.parse(old).lr == {}


def test_the_page_shows_loss_rate_norm_speed_validations_and_resumes(tmp_path: Path) -> None:
    curve = curve_of("fine-tuning", progress_file(tmp_path))
    text = page("Model & co", {"base": "<b>", "loss": 1.23456789}, [curve])
    assert stands_alone(text).pictures == 4
    assert text.count('class="mark"') == 3 + 2, "three validations, and two in the legend"
    assert text.count('class="limit"') == 4, "a mark in each chart where it went on"
    assert "went on after a kill (1)" in text
    assert "<b>" not in text
    assert "Model &amp; co" in text
    for name in ("Learning rate", "Gradient norm", "Tokens per second"):
        assert name in text


def test_what_is_not_known_is_left_out() -> None:
    curve = Curve("fine-tuning", 2, loss={1: 1.0, 2: 1.0})
    assert stands_alone(page("t", {}, [curve])).pictures == 1
    assert "No step was run." in page("t", {}, [Curve("fine-tuning")])
