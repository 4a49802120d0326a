import gzip
import json

import pytest

from serin.core.errors import ConfigError, InputError
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.items import built_in_names, load_items
from serin.evaluate.suite_config import KINDS


def suite(kind, source, **more):
    return EvaluateConfig.load({"suites": [{"kind": kind, "name": "s", "source": str(source), **more}]}).suites[0]


def written(folder, *rows):
    path = folder / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


QUESTION = {"question": "How much?", "reference": "12"}


def test_an_item_keeps_its_source_labels_and_a_digest_of_what_decides_its_value(tmp_path):
    path = written(tmp_path, {**QUESTION, "id": "a", "channel": "web", "note": "x" * 65}, {**QUESTION, "id": "b"})
    one, other = sorted(load_items(suite("answers", path), 0).items, key=lambda item: item.id)
    assert (one.source, one.labels) == (f"{path}#1", {"channel": "web"})
    moved = tmp_path / "moved.jsonl.gz"
    moved.write_bytes(gzip.compress(path.read_bytes()))
    again = load_items(suite("answers", moved), 0)
    assert {item.id: item.digest for item in again.items} == {"a": one.digest, "b": other.digest}
    changed = written(tmp_path, {**QUESTION, "id": "a", "channel": "web"}, {**QUESTION, "id": "b", "reference": "13"})
    digests = {item.id: item.digest for item in load_items(suite("answers", changed), 0).items}
    assert digests["a"] == one.digest
    assert digests["b"] != other.digest


def test_a_suites_digest_depends_on_its_items_and_settings_and_not_on_their_order(tmp_path):
    rows = [{**QUESTION, "id": name} for name in "abc"]
    first = load_items(suite("answers", written(tmp_path, *rows)), 0)
    assert load_items(suite("answers", written(tmp_path, *rows[::-1])), 0).digest == first.digest
    asked_otherwise = suite("answers", tmp_path / "s.jsonl", template="Briefly: {question}")
    assert load_items(asked_otherwise, 0).digest != first.digest
    assert load_items(asked_otherwise, 0).items[0].question == "Briefly: How much?"
    fewer = load_items(suite("answers", tmp_path / "s.jsonl", num_items=2), 0)
    assert (len(fewer.items), fewer.num_available) == (2, 3)
    assert fewer.digest != first.digest


def test_chosen_labels_alone_make_slices(tmp_path):
    path = written(tmp_path, {**QUESTION, "channel": "web", "region": "north"}, {**QUESTION, "labels": {"region": "s"}})
    labels = [item.labels for item in load_items(suite("answers", path, labels=["region"]), 0).items]
    assert sorted(one["region"] for one in labels) == ["north", "s"]
    assert all(set(one) == {"region"} for one in labels)


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("answers", {"question": "a"}, "has no 'reference'"),
        ("answers", {"reference": "a"}, "has no 'question'"),
        (
            "latency",
            {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]},
            "has a system turn, and the release brings its own instruction",
        ),
        ("intents", {"question": "a"}, "has no 'label'"),
        (
            "choices",
            {"question": "a", "choices": ["x", "y"], "answer": "z"},
            "has no 'choices' and an 'answer' among them",
        ),
        ("text", {"question": "a"}, "has no 'text'"),
        ("retrieval", {"question": "a", "relevant": {"d": 0}}, "has no 'relevant'"),
        ("abstention", {"question": "a"}, "has no 'answerable'"),
        ("attacks", {"question": "a"}, "has no 'attack'"),
        ("leaks", {"question": "a", "canaries": []}, "has no 'canaries'"),
        ("attacks", {"question": "a", "attack": "maybe"}, "'attack' is 'maybe'"),
    ],
)
def test_a_row_that_its_kind_cannot_use_is_named(tmp_path, kind, row, words):
    path = written(tmp_path, row)
    with pytest.raises(InputError) as caught:
        load_items(suite(kind, path), 0)
    assert words in str(caught.value)
    assert f"{path}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "row 1, is not JSON"),
        ("[1]", "row 1, is no JSON object"),
        (json.dumps(QUESTION), "holds 1 items"),
        ("", "holds 0"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path, text, words):
    path = tmp_path / "s.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        load_items(suite("answers", path), 0)


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read .* name a file of JSON lines"):
        load_items(suite("answers", tmp_path / "none.jsonl"), 0)
    with pytest.raises(ConfigError, match=r"serin://none does not ship with Serin: there are .*attacks"):
        load_items(suite("answers", "serin://none"), 0)
    twice = written(tmp_path, {**QUESTION, "id": "a"}, {**QUESTION, "id": "a"})
    with pytest.raises(InputError, match="repeats the id 'a'"):
        load_items(suite("answers", twice), 0)


def test_items_are_read_from_an_object_store(s3_bucket):
    from serin.core.storage import storage_for

    rows = "".join(json.dumps({**QUESTION, "id": name}) + "\n" for name in "ab")
    storage_for(f"s3://{s3_bucket}/evals").write("s.jsonl", rows.encode())
    assert len(load_items(suite("answers", f"s3://{s3_bucket}/evals/s.jsonl"), 0).items) == 2


BUILT_IN = {"attacks": "attacks", "general_text": "text", "general_cloze": "choices", "shop_unanswerable": "abstention",
            "shop_leaks": "leaks"}  # fmt: skip


def test_the_built_in_suites_are_whole():
    assert built_in_names() == sorted(BUILT_IN)
    for name, kind in BUILT_IN.items():
        loaded = load_items(suite(kind, f"serin://{name}"), 0)
        assert len(loaded.items) == loaded.num_available >= 14
    attacks = load_items(suite("attacks", "serin://attacks"), 0).items
    twins = {item.group: {other.attack for other in attacks if other.group == item.group} for item in attacks}
    assert all(kinds == {True, False} for kinds in twins.values()), "each attack has a harmless twin"
    cloze = load_items(suite("choices", "serin://general_cloze"), 0).items
    first = sum(item.choices[0] == item.references[0] for item in cloze)
    assert 0.4 < first / len(cloze) < 0.6, "the place of a choice says nothing"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([{"kind": "attacks", "name": "a", "source": "x", "depth": 3}], "'suites.0.attacks.depth' is not a setting"),
        ([{"kind": "attack", "name": "a", "source": "x"}], "does not match any of the expected tags"),
        ([{"kind": "text", "name": "a", "source": "x"}] * 2, "two suites are called 'a'"),
        ([{"kind": "text", "name": "golden", "source": "x"}], "may not be called 'golden'"),
        ([{"kind": "text", "name": "a.b", "source": "x"}], "suites.0.text.name"),
        ([{"kind": "text", "name": "a", "source": " "}], "name a file"),
        ([{"kind": "answers", "name": "a", "source": "x", "template": "q"}], "it must hold {question}"),
        ([{"kind": "abstention", "name": "a", "source": "x", "patterns": ["("]}], "is no regular expression"),
        ([{"kind": "intents", "name": "a", "source": "x", "by": "likelihood", "through": "endpoint"}], "no likelihood"),
    ],
)
def test_a_setting_of_another_kind_or_a_name_that_is_taken_is_refused(settings, words):
    with pytest.raises(ConfigError) as caught:
        EvaluateConfig.load({"suites": settings})
    assert words.lower() in str(caught.value).lower()


def test_suites_come_back_whole_from_a_pipelines_parameter():
    config = EvaluateConfig.load({"suites": [{"kind": "latency", "name": "l", "source": "x", "num_items": 5.0}]})
    assert EvaluateConfig.load(config.parameters()) == config
    assert EvaluateConfig.load(EvaluateConfig().parameters()) == EvaluateConfig()
    assert len(KINDS) == 10
