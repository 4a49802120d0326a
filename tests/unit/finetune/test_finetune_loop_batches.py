"""How a batch is computed does not change what is learned: in parts, packed, with less memory."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import PEFT_WARNING, JobMaker, digest, recorded, weights
from peft.tuners.lora.layer import Linear

from serin.core.errors import UnavailableError
from serin.finetune.adapters import fuse_adapters
from serin.finetune.loop import Job, _Training, train
from serin.finetune.model import _narrowed
from serin.finetune.narrowing import TokenwiseLayer
from serin.finetune.objectives import chosen_cross_entropy
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
    with pytest.raises(UnavailableError, match=r"'liger' needs a GPU and .*: set finetune.cross_entropy to auto"):
        train(make_job(cross_entropy="liger"))
    with pytest.raises(UnavailableError, match=r"'flash' needs a GPU, .*: set finetune.attention to auto or sdpa"):
        train(make_job(attention="flash"))


def is_fused(module: Linear) -> bool:
    """Whether an adapted layer's own forward is replaced, below what narrows the last block."""
    forward = vars(module).get("forward")
    return getattr(forward, "_forward", forward).__module__ == "serin.finetune.adapters" if forward else False


def take_back(module: Linear) -> None:
    """Give an adapted layer PEFT's forward, below what narrows the last block."""
    forward = vars(module)["forward"]
    if isinstance(forward, TokenwiseLayer):
        forward._forward = partial(Linear.forward, module)
    else:
        del module.forward


class Plain:
    """The loss as transformers computes it: all logits of all tokens, by the model's own forward."""

    def __init__(self, job: Job) -> None:
        from transformers import AutoModelForCausalLM

        self.training = _Training(job, Ranks(), lambda record: None)
        self.model = AutoModelForCausalLM.from_pretrained(job.model, attn_implementation="eager")

    def loss_and_gradients(self, batch: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        ids, labels, _, _ = self.training.samples.layout(batch, 0, packed=False)
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        loss.backward()
        return loss.detach(), {name: weight.grad for name, weight in self.model.named_parameters()}


@pytest.mark.parametrize(
    "more", [{}, {"activation_checkpointing": True}, {"packing": "on"}, {"micro_batch_tokens": 150}]
)
def test_computing_learned_tokens_only_gives_the_loss_and_gradients_of_all_logits(
    make_job: JobMaker, more: dict[str, Any]
) -> None:
    job = make_job("a", lora=None, **more)
    loss, gradients = Plain(job).loss_and_gradients(BATCH)
    training = _Training(job, Ranks(), lambda record: None)
    assert training.trainee.is_split
    assert training.trainee.last is not None, "the last block is computed for every token"
    sums = training._passes(training.samples, BATCH, learns=True)
    torch.testing.assert_close(sums[0], loss)
    for (name, weight), gradient in zip(training.trainee.weights.items(), training._gradients(), strict=True):
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-4)
        assert weight.grad is not None


def test_a_layer_computes_only_the_tokens_that_it_is_asked_for() -> None:
    seen: list[torch.Size] = []

    class FeedForward(torch.nn.Module):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            seen.append(states.shape)
            return states * 2

    module, states = FeedForward(), torch.arange(12.0).view(2, 3, 2)
    last = TokenwiseLayer(module)
    assert torch.equal(module(states), states * 2)
    last.only(torch.tensor([1, 5]))
    wanted = torch.zeros(6, 2)
    wanted[[1, 5]] = 2 * states.view(6, 2)[[1, 5]]
    assert torch.equal(module(states), wanted.view(2, 3, 2))
    assert seen == [(2, 3, 2), (2, 2)]


def test_a_layer_whose_result_is_of_another_width_is_narrowed_too() -> None:
    module, states = torch.nn.Linear(2, 5), torch.arange(12.0).view(2, 3, 2)
    every = module(states).detach()
    last = TokenwiseLayer(module)
    last.only(torch.tensor([4]))
    made = module(states)
    assert made.shape == (2, 3, 5)
    torch.testing.assert_close(made[1, 1], every[1, 1])
    assert made.detach().view(6, 5)[[0, 1, 2, 3, 5]].abs().sum() == 0


def test_a_layer_that_looks_across_tokens_is_not_narrowed(tiny_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager").eval()
    layer = model.get_decoder().layers[-1].mlp
    own = layer.forward
    layer.forward = lambda states: own(states) + states.mean()
    assert _narrowed(model, is_low=False) is None
    layer.forward = own
    assert _narrowed(model, is_low=False) is not None


def test_where_queries_look_across_tokens_the_feed_forward_layer_alone_is_narrowed(tiny_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager").eval()
    layer = model.get_decoder().layers[-1]
    own = layer.self_attn.q_proj.forward
    layer.self_attn.q_proj.forward = lambda states: own(states) + states.mean() * 9
    last = _narrowed(model, is_low=False)
    assert last is not None
    kinds = [type(vars(part).get("forward")) for part in (layer.mlp, layer.self_attn.q_proj, layer.self_attn.o_proj)]
    assert [kind is TokenwiseLayer for kind in kinds] == [True, False, False]


@pytest.mark.parametrize("more", [{}, {"activation_checkpointing": True}, {"packing": "on"}])
def test_fused_adapters_give_the_loss_and_gradients_of_peft(make_job: JobMaker, more: dict[str, Any]) -> None:
    def measured(fuses: bool) -> list[torch.Tensor]:
        training = _Training(make_job("a", **more), Ranks(), lambda record: None)
        adapted = [module for module in training.trainee.model.modules() if type(module) is Linear]
        assert len(adapted) == 14
        assert all(is_fused(module) for module in adapted), "PEFT's own forward is computed"
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for weight in training.trainee.weights.values():
                weight.normal_(std=0.05, generator=generator)
        if not fuses:
            for module in adapted:
                take_back(module)
        sums = training._passes(training.samples, BATCH, learns=True)
        return [sums[0], *training._gradients()]

    for fused, plain in zip(measured(True), measured(False), strict=True):
        largest = float(plain.abs().max())
        assert largest > 0
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=3e-5 * largest)


def test_adapters_in_bf16_and_with_dropout_are_left_to_peft(make_job: JobMaker) -> None:
    model = _Training(make_job("a", precision="bf16"), Ranks(), lambda record: None).trainee.model
    adapted = [module for module in model.modules() if type(module) is Linear]
    assert not any(is_fused(module) for module in adapted)
    adapted[0].lora_dropout["default"] = torch.nn.Dropout(0.1)
    adapted[1].base_layer.bfloat16()
    assert fuse_adapters(model) == 12
    assert not is_fused(adapted[0])
    assert not is_fused(adapted[1])


@pytest.mark.parametrize("lora", [True, False])
def test_cross_entropy_in_chunks_gives_the_same_loss_and_gradients(make_job: JobMaker, lora: bool) -> None:
    changes: dict[str, Any] = {} if lora else {"lora": None}
    assert_same(make_job("a", **changes), make_job("b", cross_entropy="chunked", packing="on", **changes))


def test_fused_attention_gives_the_same_loss_and_gradients(make_job: JobMaker) -> None:
    assert_same(make_job("a"), make_job("b", attention="sdpa", packing="on"))


@pytest.mark.parametrize(
    ("choice", "objective", "device", "has_plain_head", "chosen"),
    [
        ("auto", "sft", "cpu", True, "plain"),
        ("auto", "dpo", "cuda", True, "plain"),
        ("auto", "sft", "cuda", False, "plain"),
        ("plain", "dpo", "cpu", False, "plain"),
        ("chunked", "pretrain", "cpu", True, "chunked"),
        ("chunked", "sft", "cuda", True, "chunked"),
        ("chunked", "dpo", "cpu", True, "dpo needs"),
        ("chunked", "sft", "cpu", False, "one linear layer"),
        ("liger", "sft", "cpu", True, "needs a GPU and the package liger-kernel"),
    ],
)
def test_cross_entropy_is_chosen_or_refused_by_name(
    choice: Any, objective: Any, device: str, has_plain_head: bool, chosen: str
) -> None:
    if chosen in ("plain", "chunked"):
        assert chosen_cross_entropy(choice, objective, device, has_plain_head=has_plain_head) == chosen
        return
    with pytest.raises(UnavailableError, match=chosen):
        chosen_cross_entropy(choice, objective, device, has_plain_head=has_plain_head)


def test_auto_is_liger_s_where_a_gpu_and_the_package_are() -> None:
    wanted = "liger" if find_spec("liger_kernel") else "plain"
    assert chosen_cross_entropy("auto", "sft", "cuda", has_plain_head=True) == wanted


def test_every_step_says_what_it_used(make_job: JobMaker) -> None:
    steps = [record for record in recorded(make_job())[1] if "loss" in record]
    assert {(step["device"], step["num_devices"]) for step in steps} == {("cpu", 1)}
    assert all(step["memory_bytes"] > 50 * 2**20 for step in steps)
    assert not any("cuda_memory_bytes" in step for step in steps)


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
