"""Weights that are laid out for few rows give the products of the plain ones."""

import pytest
import torch

from serin.core.generation import packed
from serin.core.generation.packed import MIN_ROWS, PackedWeights

INPUTS, OUTPUTS = 96, 160


@pytest.fixture(params=[True, False], ids=["wide", "transposed"])
def weight(request: pytest.FixtureRequest) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(INPUTS, OUTPUTS) if request.param else torch.randn(OUTPUTS, INPUTS).t()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 16, 130])
def test_products_are_those_of_the_plain_weights(
    weight: torch.Tensor, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MIN_BYTES", 0)
    with torch.inference_mode():
        weights, plain = PackedWeights([weight]), PackedWeights()
        x, bias, before = torch.randn(rows, INPUTS), torch.randn(OUTPUTS), torch.randn(rows, OUTPUTS)
        kept = before.clone()
        for found, expected in (
            (weights.product(x, weight), x @ weight),
            (weights.product(x, weight, bias), x @ weight + bias),
            (weights.added(before, x, weight), before + x @ weight),
        ):
            assert torch.allclose(found, expected, atol=1e-4)
        assert torch.equal(before, kept), "what was before is not written over"
        if rows < MIN_ROWS:
            assert torch.equal(weights.product(x, weight), plain.product(x, weight)), "one row takes the plain weights"


@pytest.mark.parametrize(
    ("limits", "dtype", "expected"),
    [((0, 1 << 20), torch.float32, True), ((1 << 20, 2 << 20), torch.float32, False), ((0, 1), torch.float32, False),
     ((0, 1 << 20), torch.bfloat16, False)],
)  # fmt: skip
def test_only_what_gains_by_it_and_is_not_large_is_copied(
    limits: tuple[int, int], dtype: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MIN_BYTES", limits[0])
    monkeypatch.setattr(packed, "MAX_BYTES", limits[1])
    weight = torch.randn(INPUTS, OUTPUTS).to(dtype)
    assert PackedWeights([weight]).is_empty is not expected
