"""How a batch is computed does not change what is learned: in parts, packed, with less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import PEFT_WARNING, JobMaker, digest, recorded, weights

from serin.core.errors import UnavailableError
from serin.finetune.loop import Job, _Training, train
from serin.finetune.ranks import Ranks
from serin.finetune.schedule import passes_of

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

BATCH = [0, 1, 2, 5, 9, 11]


@pytest.fixture
def make_job(tmp_path: Path, tiny_folder: Path, tokenizer: Any) -> JobMaker:
    return JobMaker(tmp_path, tiny_folder, tokenizer)


def loss_and_gradients(job: Job, batch: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    training = _Training(job, Ranks(), lambda record: None)
    generator = torch.Generator().manual_seed(0)
    for weight in training.trainee.weights.values():  # fresh adapters are zero, and their gradients too
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    sums = training._passes(training.samples, batch, learns=True)
    return sums, training._gradients()


def assert_same(job: Job, other: Job) -> None:
    (sums, gradients), (other_sums, other_gradients) = loss_and_gradients(job, BATCH), loss_and_gradients(other, BATCH)
    torch.testing.assert_close(sums, other_sums)
    assert sums[1] == other_sums[1] > 0
    for gradient, other_gradient in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(gradient, other_gradient, rtol=1e-4, atol=1e-4)


def test_neighbours_and_padding_do_not_change_a_sample_s_loss(make_job: JobMaker) -> None:
    training = _Training(make_job(), Ranks(), lambda record: None)
    together = training._passes(training.samples, BATCH, learns=False)
    apart = sum(training._passes(training.samples, [index], learns=False) for index in BATCH)
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("lora", [True, False])
def test_accumulated_gradients_are_those_of_the_whole_batch(make_job: JobMaker, lora: bool) -> None:
    changes: dict[str, Any] = {} if lora else {"lora": None}
    assert_same(make_job("a", **changes), make_job("b", micro_batch_tokens=150, **changes))


def test_accumulation_learns_what_whole_batches_learn(make_job: JobMaker) -> None:
    one, two = train(make_job("a")), train(make_job("b", micro_batch_tokens=150))
    for name, weight in weights(one).items():
        torch.testing.assert_close(weight, weights(two)[name], rtol=1e-2, atol=1e-3)


def test_packed_samples_do_not_see_each_other(make_job: JobMaker) -> None:
    """Without positions of their own, a mask or a cache given by mistake, attention would leak from row to row."""
    assert_same(make_job("a", packing="off"), make_job("b", packing="on"))
    assert_same(make_job("c"), make_job("d", packing="on", micro_batch_tokens=200))


def test_packed_samples_would_see_each_other_without_positions(make_job: JobMaker) -> None:
    """The trap that the test above guards against is there."""
    training = _Training(make_job(), Ranks(), lambda record: None)
    ids, labels, positions, _ = training.samples.layout([0, 1], 0, packed=True)
    model, learned = training.trainee.model.eval(), labels[0, 1:] != -100
    with torch.no_grad():
        apart = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, :-1][learned]
        leaked = model(input_ids=ids, use_cache=False).logits[0, :-1][learned]
    assert (apart - leaked).abs().max() > 1e-3


def test_packed_training_ends_where_padded_training_ends(make_job: JobMaker) -> None:
    padded, packed = recorded(make_job("a"))[1], recorded(make_job("b", packing="on"))[1]
    for one, two in zip(padded, packed, strict=True):
        assert one.get("batch") == two.get("batch")
        for name in {"loss", "val_loss"} & one.keys():
            assert one[name] is None or one[name] == pytest.approx(two[name], rel=1e-3)


@pytest.mark.parametrize("lora", [True, False])
def test_activations_computed_again_give_the_same_gradients(make_job: JobMaker, lora: bool) -> None:
    changes: dict[str, Any] = {} if lora else {"lora": None}
    assert_same(make_job("a", **changes), make_job("b", activation_checkpointing=True, **changes))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_a_compiled_decoder_gives_the_same_gradients(make_job: JobMaker) -> None:
    """Compiling takes a minute on a busy machine: torch is told to run what it would compile."""
    with torch.compiler.set_stance("force_eager"):
        assert_same(make_job("a"), make_job("b", compile=True))
    training = _Training(make_job("c", compile=True), Ranks(), lambda record: None)
    assert training.trainee.model.get_base_model().get_decoder()._compiled_call_impl is not None


def test_a_gpu_that_is_not_there_is_refused(make_job: JobMaker) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UnavailableError, match="no GPU that torch can use: set device to auto or cpu"):
        train(make_job(device="cuda"))
    with pytest.raises(UnavailableError, match="Liger's kernels need a GPU"):
        train(make_job(liger="on"))


def test_settings_of_how_do_not_change_the_identity_and_settings_of_what_do(make_job: JobMaker) -> None:
    job = make_job()
    how = {"micro_batch_tokens": 100, "threads": 2, "packing": "on", "strategy": "fsdp2", "validation_interval": 9}
    assert job.model_copy(update=how).identity() == job.identity()
    assert job.model_copy(update={"seed": 1}).identity() != job.identity()
    stopping = job.model_copy(update={"early_stopping_patience": 2})
    assert stopping.model_copy(update=how).identity() != stopping.identity()


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    size=st.integers(1, 4),
    limit=st.one_of(st.none(), st.integers(16, 200)),
    is_packed=st.booleans(),
)
def test_the_passes_of_all_ranks_hold_every_sample_once(
    lengths: list[int], size: int, limit: int | None, is_packed: bool
) -> None:
    every = passes_of(range(len(lengths)), lengths, size, limit, is_packed)
    passes = [rows for rank in every for rows in rank]
    assert len(every) == size
    assert sorted(index for rows in passes for index in rows) == list(range(len(lengths)))
    for rows in passes:
        widths = [lengths[index] for index in rows]
        tokens = sum(widths) if is_packed else max(widths) * len(widths)
        assert limit is None or tokens <= limit or len(rows) == 1


def test_the_same_seed_gives_the_same_digest_in_parts_too(make_job: JobMaker) -> None:
    changes = {"micro_batch_tokens": 150, "activation_checkpointing": True}
    assert digest(train(make_job("a", **changes))) == digest(train(make_job("b", **changes)))
