"""The model card."""

import yaml

from serin.finetune.card import card

FACTS = {"base_model": "acme/base@0123abc", "dataset_digest": "d" * 64, "parameters": 1000, "val_loss": 1.23456}
SETTINGS = {"method": "lora", "lora_rank": 8}


def front(text: str) -> dict:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def test_the_front_matter_is_what_a_hub_reads() -> None:
    text = card("A model", FACTS, SETTINGS, licence="Apache-2.0", evaluation={"token_f1": 0.5})
    found = front(text)
    assert (found["license"], found["base_model"], found["library_name"]) == ("apache-2.0", "acme/base", "transformers")
    assert found["tags"] == ["serin", "sft", "lora", "peft"]
    (metric,) = found["model-index"][0]["results"][0]["metrics"]
    assert metric == {"name": "token_f1", "type": "token_f1", "value": 0.5}


def test_the_card_says_what_the_model_was_made_of_and_how_to_load_it() -> None:
    text = card("A model", FACTS, SETTINGS, code_version="c0de", files={"merged/model.safetensors": "f" * 64})
    for part in ("d" * 64, "| val_loss | 1.235 |", "| code_version | c0de |", '"lora_rank": 8', "f" * 64):
        assert part in text
    assert "from_pretrained(folder, use_safetensors=True)" in text
    assert "PeftModel" in text
    assert "PeftModel" not in card("A model", FACTS, {"method": "full"})


def test_a_base_without_a_licence_and_a_model_without_evaluation_are_said() -> None:
    for licence in ("", "not stated"):
        text = card("A model", FACTS, SETTINGS, licence=licence)
        assert "names no licence" in text
        assert "Not evaluated when this card was written" in text
        assert "license" not in front(text)


def test_a_licence_that_is_no_identifier_is_told_in_the_text_alone() -> None:
    text = card("A model", FACTS, SETTINGS, licence="that of the corpus")
    assert "Of the base: that of the corpus;" in text
    assert "license" not in front(text)


def test_places_of_our_own_are_no_base_in_the_front_matter() -> None:
    for base in ("serin://tiny", "s3://bucket/base", "/models/base", "./base"):
        assert "base_model" not in front(card("A model", {"base_model": base}, SETTINGS))


def test_a_value_cannot_break_out_of_its_cell() -> None:
    text = card("A model", {"base_model": "a|b\n# <script>"}, SETTINGS)
    assert "| base_model | a\\|b # &lt;script&gt; |" in text
