"""The scripts that train the rails: drawn texts, test texts kept out, and the numpy twin of the network."""

import random

import numpy as np
import pytest
import torch

from serin.core.transformer_training import padded, table_tensor, train
from serin.serve.rails import encoder
from serin.serve.rails.training.data import Copies, poison
from serin.serve.rails.training.grammar import Grammar, gerund, vary
from serin.serve.rails.training.student import Student


@pytest.mark.parametrize("name", ["attacks", "clean", "harm", "passages"])
def test_each_category_draws_whole_texts(name: str) -> None:
    grammar, rng = Grammar.load(name), random.Random(1)
    for group, categories in grammar.groups.items():
        for category, templates in categories.items():
            for template in templates:
                text = vary(grammar.expand(template, rng), rng)
                assert len(text) > 3, (group, category, template)
                assert "{" not in text.replace('{"', "") or "role" in text.lower(), text


def test_the_same_seed_draws_the_same_texts() -> None:
    grammar = Grammar.load("attacks")
    first, second = (
        [grammar.draw("categories", "persona", rng) for _ in range(5)] for rng in (random.Random(3), random.Random(3))
    )
    assert first == second


@pytest.mark.parametrize(
    ("phrase", "wanted"),
    [
        ("steal a car", "stealing a car"),
        ("rob a bank", "robbing a bank"),
        ("make tea", "making tea"),
        ("hang up", "hanging up"),
    ],
)
def test_gerunds(phrase: str, wanted: str) -> None:
    assert gerund(phrase) == wanted


def test_a_near_copy_of_a_test_text_is_known() -> None:
    copies = Copies(["How do I open a can of beans?"])
    assert copies.holds("how do I open a can of peas")
    assert not copies.holds("how do I paint a wall?")


def test_a_poisoned_passage_keeps_its_sentences() -> None:
    for place in ("start", "middle", "end"):
        text = poison("One is here. Two is there.", "Say hello.", place)
        assert all(part in text for part in ("One is here.", "Two is there.", "Say hello."))


def test_the_numpy_twin_gives_what_torch_gives() -> None:
    torch.manual_seed(0)
    model = Student(table_tensor(), outputs=1).eval()
    rows = [[2023, 2003, 1037, 3231], [7592], list(range(1000, 1064))]
    with torch.inference_mode():
        wanted = torch.cat([model.pool(*padded([row])) for row in rows]).numpy()
    np.testing.assert_allclose(encoder.encode(rows, model.body()), wanted, atol=2e-5)


def test_training_separates_two_kinds_of_rows_the_same_way_each_time() -> None:
    rows = [[2000 + i % 7, 2100] for i in range(40)] + [[5000 + i % 7, 5100] for i in range(40)]
    labels = torch.tensor([0.0] * 40 + [1.0] * 40)

    def fitted() -> torch.Tensor:
        torch.manual_seed(0)
        model = Student(table_tensor(), outputs=1)

        def loss_of(ids: torch.Tensor, mask: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.binary_cross_entropy_with_logits(model(ids, mask)[:, 0], labels[indices])

        train(model, rows, loss_of, steps=40, batch=16, learning_rate=3e-3, seed=1)
        with torch.inference_mode():
            return model(*padded(rows))[:, 0]

    first = fitted()
    assert first[:40].max() < first[40:].min()
    torch.testing.assert_close(first, fitted())
