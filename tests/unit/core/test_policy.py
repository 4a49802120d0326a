from pathlib import Path

import pytest

from serin.core.errors import ConfigError, InputError
from serin.core.policy import GuardrailPolicy, default_policy, read_policy, written_policy

OLD = {
    "version": "1", "max_input_chars": 4000, "pii": {"input": "mask", "retrieval": "off", "output": "mask"},
    "secrets": "mask", "banned": {"phrases": [], "action": "block"},
    "injection": {"input": "block", "retrieval": "block", "patterns": ["ignore all"]}, "hold_back_chars": 64,
    "keep_text": "redacted",
}  # fmt: skip


def policy_in(folder: Path, text: str) -> GuardrailPolicy:
    path = folder / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path)


def test_a_policy_from_before_the_newer_rails_still_loads():
    loaded = GuardrailPolicy.load(OLD)
    assert loaded.injection.patterns == ("ignore all",)
    assert loaded.groundedness.action == "flag"


def test_new_rails_are_safe_by_default():
    policy = default_policy()
    assert (policy.injection.classifier, policy.injection.input) == (True, "block")
    assert (policy.harm.input, policy.groundedness.action, policy.groundedness.numbers) == ("flag", "flag", "flag")
    assert (policy.topic.input, policy.language.input, policy.format.action, policy.refusal.action) == ("off",) * 4
    assert policy.judge.url == ""


def test_the_written_policy_reads_back_and_explains_every_setting(tmp_path: Path):
    policy = GuardrailPolicy.load(
        {"banned": {"phrases": ["a: b", "#1"]}, "format": {"json_schema": {"type": "object"}}}
    )
    text = written_policy(policy)
    assert policy_in(tmp_path, text) == policy
    lines = text.splitlines()
    settings = [number for number, line in enumerate(lines) if ":" in line and not line.lstrip().startswith(("#", "-"))]
    assert all(lines[number - 1].lstrip().startswith("#") for number in settings)


def test_off_is_an_action_in_yaml_and_true_a_truth_value(tmp_path: Path):
    policy = policy_in(tmp_path, "secrets: off\nharm:\n  input: off\nhold_whole_answer: true\n")
    assert (policy.secrets, policy.harm.input, policy.hold_whole_answer) == ("off", "off", True)


def test_json_is_read_too_and_an_empty_file_is_the_default(tmp_path: Path):
    assert policy_in(tmp_path, '{"max_input_chars": 10}').max_input_chars == 10
    assert policy_in(tmp_path, "") == default_policy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("harms: {}", "'harms' is not a setting"),
        ("harm: {input: mask}", r"harm\.input"),
        ("topic: {input: block}", "examples of questions"),
        ("refusal: {action: rewrite}", "text of a refusal"),
        ("format: {action: block}", "json_schema"),
        ("judge: {url: judge}", "http"),
        ("judge: {url: 'http://j/v1', model: m, checks: [policy]}", "rules"),
        ("- a", "holds a list"),
        ("injection: {threshold: 2}", r"injection\.threshold"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        policy_in(tmp_path, text)


def test_a_file_that_is_none_is_one_sentence(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        read_policy(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="neither YAML nor JSON"):
        policy_in(tmp_path, "a: [")


def test_any_changed_rail_changes_the_digest():
    changed = GuardrailPolicy.load({"groundedness": {"action": "block"}})
    assert changed.digest != default_policy().digest
    assert GuardrailPolicy.load(default_policy().dump()).digest == default_policy().digest
