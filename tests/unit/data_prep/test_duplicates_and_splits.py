"""Duplicates that go, facts that stay, and splits that do not leak."""

from serin.core.records import SPLITS, Conversation, Message
from serin.data_prep.config import DataPrepConfig
from serin.data_prep.duplicates import Duplicate, find_duplicates
from serin.data_prep.splits import leaked, split, template_of

LONG = "You can return the lamp within 30 days in its box, with the bulbs, and get the money back in 5 days"


def conversation(id_: str, question: str, group: str = "") -> Conversation:
    turns = (Message(role="user", content=question), Message(role="assistant", content="Yes."))
    return Conversation(id=id_, messages=turns, group=group or id_)


def test_repetitions_count_once_whatever_their_case_and_punctuation() -> None:
    texts = [LONG, "Something else entirely", LONG.upper() + "!!", LONG.replace("the lamp", "lamps")]
    assert find_duplicates(texts, 0.7) == {2: Duplicate(0, exact=True), 3: Duplicate(0, exact=False)}
    assert find_duplicates(texts, 1) == {2: Duplicate(0, exact=True)}


def test_texts_with_other_numbers_or_marks_are_other_facts() -> None:
    assert find_duplicates([LONG, LONG.replace("30", "45")], 0.5) == {}
    changed = LONG.replace("box", "bag")
    assert find_duplicates([LONG, changed], 0.7, ["Lamps", "Rugs"]) == {}
    assert find_duplicates([LONG, changed], 0.7, ["Lamps", "Lamps"]) == {1: Duplicate(0, exact=False)}


def test_the_original_of_a_pair_is_kept() -> None:
    texts = [f"{LONG} {word}" for word in ("this", "that", "it")] * 3
    kept = set(range(len(texts))) - set(find_duplicates(texts, 0.7))
    assert kept == {0}


def test_questions_of_one_template_have_one_group() -> None:
    same = ["How do I cancel order 4711?", "how do I cancel order A-99/B?", 'how do I cancel order "blue"?']
    assert len({template_of(question) for question in same}) <= 2
    assert template_of(same[0]) == template_of("How do I cancel order 12?") == "how do i cancel order x"
    assert template_of("Is the Merle kettle sold?") == template_of("Is the Phare kettle sold?")
    assert template_of("Where is my refund?") != template_of("Where is my parcel?")


def test_a_group_keeps_its_split_when_data_is_added() -> None:
    config = DataPrepConfig()
    rows = [conversation(f"c{i}", f"q {i}", f"group {i % 60}") for i in range(300)]
    before = {row.group: name for name, part in split(rows, config).items() for row in part}
    more = split([*rows, *(conversation(f"d{i}", f"q {i}", f"new {i}") for i in range(100))], config)
    after = {row.group: name for name, part in more.items() for row in part}
    assert before.items() <= after.items()
    assert 0.6 < len([name for name in after.values() if name == "train"]) / len(after) < 0.95


def test_each_split_gets_a_group_where_there_are_three() -> None:
    for seed in range(20):
        rows = [conversation(f"c{i}", f"q {i}", f"{seed}-{i % 3}") for i in range(9)]
        assert {name: len(part) for name, part in split(rows, DataPrepConfig()).items()} == dict.fromkeys(SPLITS, 3)
    one = split([conversation("c", "q")], DataPrepConfig())
    assert sum(len(part) for part in one.values()) == 1


def test_two_groups_give_training_and_test() -> None:
    parts = split([conversation("a", "q"), conversation("b", "r")], DataPrepConfig())
    assert (len(parts["train"]), len(parts["test"])) == (1, 1)


def test_questions_of_the_test_are_kept_out_of_the_rest() -> None:
    splits = {
        "train": [conversation("t1", "Where is it?"), conversation("t2", "where IS it"), conversation("t3", "Other")],
        "validation": [conversation("v1", "Where is it?"), conversation("v2", "Other")],
        "test": [conversation("x1", "Where is it ?")],
    }
    assert leaked(splits) == {"v1": "test", "t1": "test", "t2": "test", "t3": "validation"}
