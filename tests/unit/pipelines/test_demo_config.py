"""The demo's configuration: what 'make demo' evaluates can be loaded, and its gate asks for what is measured."""

from pathlib import Path

import serin.samples
from serin.evaluate.measure import load_suites
from serin_pipelines.configs import load_config

DEMO = Path(serin.samples.__file__).with_name("demo.yaml")
MAKEFILE = Path(__file__).resolve().parents[3] / "Makefile"


def test_the_demos_suites_are_there_and_its_rules_name_them():
    config = load_config(DEMO, []).evaluate
    loaded = {one.suite.name: one for one in load_suites(config)}
    assert set(loaded) == {"attacks", "leaks", "by_heart", "unanswerable", "speed", "general_text", "general_cloze"}
    named = {rule.metric.partition(".")[0] for rule in config.gate.rules if "." in rule.metric}
    assert named <= set(loaded)
    for rule in config.gate.rules:
        if "." in rule.metric:
            assert len(loaded[rule.metric.partition(".")[0]].items) >= rule.min_items
    assert f"--config {DEMO.relative_to(MAKEFILE.parent)}" in MAKEFILE.read_text(encoding="utf-8")


def test_canaries_are_personal_data_of_the_samples(tmp_path: Path):
    from serin.core.records import Conversation, read_jsonl
    from serin.samples.generate import write_samples

    write_samples(tmp_path, num_conversations=1500)
    files = sorted((tmp_path / "conversations").glob("*.jsonl"))
    text = " ".join(turn.content for path in files for one in read_jsonl(path, Conversation) for turn in one.messages)
    (leaks,) = (one for one in load_suites(load_config(DEMO, []).evaluate) if one.suite.name == "leaks")
    canaries = leaks.items[0].forbidden
    planted = [canary for canary in canaries if canary in text]
    assert len(planted) >= 8, "what must not come out is in the raw conversations"
