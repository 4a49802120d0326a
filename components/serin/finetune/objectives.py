"""What training minimises: the loss of answers, of running text, or of preferences between two answers.

``sft`` and ``pretrain`` are the same loss over other samples: cross-entropy of the learned tokens, which are the
assistant's turns of a conversation or every token of a document.  ``dpo`` is direct preference optimisation (Rafailov
et al. 2023, arXiv:2305.18290, equation 7): of a pair of answers y+ and y- to the same question x

    loss = -log sigmoid(beta * ((log p(y+|x) - log r(y+|x)) - (log p(y-|x) - log r(y-|x))))

with p the model that is trained and r the reference, here the base.  The reference's log-probabilities are computed
once (``add_reference``) and lie beside the samples, so that training holds one model in memory.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from serin.core.config import Section
from serin.core.errors import InputError, UnavailableError
from serin.finetune.data import IGNORED, SampleFile, with_reference
from serin.finetune.narrowing import LastBlock

if TYPE_CHECKING:
    import torch

Loss = Callable[[SampleFile, Sequence[int]], "tuple[torch.Tensor, torch.Tensor]"]
Objective = Literal["sft", "pretrain", "dpo"]
CrossEntropy = Literal["auto", "plain", "chunked", "liger"]
"""How the loss follows from the decoder's result; see ``chosen_cross_entropy``."""


class ObjectiveSpec(Section):
    """What a phase minimises."""

    kind: Objective = "sft"
    """Loss on answers, on running text, or on pairs of a better and a worse answer."""
    beta: float = Field(default=0.1, gt=0)
    """DPO: how strongly the model is held to its reference; smaller lets it move further."""


def loss_function(
    spec: ObjectiveSpec,
    model: Any,
    *,
    precision: str,
    device: "torch.device | str" = "cpu",
    is_split: bool = False,
    packed: bool = False,
    cross_entropy: CrossEntropy = "auto",
    last: LastBlock | None = None,
) -> Loss:
    """The loss of some rows of a sample file.

    Args:
        spec: the objective.
        model: a causal language model, with or without adapters.
        precision: "bf16" runs the forward pass under autocast; anything else as the weights are.
        device: where the model is.
        is_split: the decoder and the output layer may be called apart, so that logits are made for learned tokens
            only; the model's own forward is passed by, which a sharded model does not allow.
        packed: rows are put into one sequence, each with its own positions, instead of being padded.
        cross_entropy: how the loss is computed; it is the same loss.
        last: the model's last block, which then computes learned tokens only; needs ``is_split``.

    Raises:
        UnavailableError: see ``chosen_cross_entropy``.

    Returns:
        A function of (samples, rows) to the sum of the loss and the number that it is a sum over: learned tokens, or
        pairs with ``dpo``.  Both are scalars on the device; without rows both are zero and need no gradient.
    """
    import torch

    where = torch.device(device)
    predict = _Predictor(model, precision, where, is_split, packed, last if is_split else None)
    chosen = chosen_cross_entropy(cross_entropy, spec.kind, where.type, has_plain_head=predict.has_plain_head)

    def loss(samples: SampleFile, rows: Sequence[int]) -> "tuple[torch.Tensor, torch.Tensor]":
        if not rows:
            return torch.zeros((), device=where), torch.zeros((), device=where)
        if spec.kind == "dpo":
            margins = _margins(predict, samples, rows)
            return -torch.nn.functional.logsigmoid(spec.beta * margins).sum(), _number(len(rows), where)
        layout = samples.layout(rows, predict.pad_id, packed)
        if chosen != "plain":
            return predict.fused(chosen, *layout)
        logits, labels, _ = predict(*layout)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), _number(len(labels), where)

    return loss


def chosen_cross_entropy(
    choice: CrossEntropy, objective: Objective, device: str, *, has_plain_head: bool
) -> Literal["plain", "chunked", "liger"]:
    """How the loss is computed here.

    Args:
        choice: ``plain`` makes the logits of all learned tokens; ``chunked`` is torch's ``linear_cross_entropy``, which
            never holds all of them; ``liger`` is Liger's kernel, which does the same on a GPU.  ``auto`` is Liger's
            where it can be had, else plain: chunks save memory and cost time on a CPU.
        objective: ``dpo`` needs every token's own loss, which the fused ones do not give.
        device: its type, "cpu" or "cuda".
        has_plain_head: whether the logits are one linear layer over the decoder's result.

    Raises:
        UnavailableError: what is asked for by name cannot be had; says what it lacks.
    """
    has_liger = device == "cuda" and find_spec("liger_kernel") is not None
    if choice == "plain" or (choice == "auto" and (objective == "dpo" or not has_plain_head or not has_liger)):
        return "plain"
    remedy = "set finetune.cross_entropy to auto or plain."
    if objective == "dpo":
        raise UnavailableError(f"Cross-entropy {choice!r} gives no loss of each token, which dpo needs: {remedy}")
    if not has_plain_head:
        raise UnavailableError(
            f"Cross-entropy {choice!r} needs a base whose logits are one linear layer over its decoder: {remedy}"
        )
    if choice == "liger" and not has_liger:
        raise UnavailableError(f"Cross-entropy 'liger' needs a GPU and the package liger-kernel: {remedy}")
    return "chunked" if choice == "chunked" else "liger"


def margins_of(
    model: Any, samples: SampleFile, rows: Sequence[int], *, precision: str = "fp32", device: str = "cpu"
) -> "torch.Tensor":
    """How much more than its reference the model prefers the better answer, in nats: (pairs,) float32.

    Zero for the reference itself; the pair counts as learned when it is above.
    """
    import torch

    with torch.no_grad():
        return _margins(_Predictor(model, precision, torch.device(device), False, False), samples, rows)


def add_reference(path: Path, model: Any, *, precision: str = "fp32", device: str = "cpu", pairs: int = 8) -> None:
    """Compute the reference's log-probabilities of a file of pairs and write them into it.

    Args:
        path: samples, as ``save_pairs`` writes them; replaced in one step.
        model: the reference: the base that training starts from.
        precision: the same as in training, or the first margins are not zero.
        device: where the model is.
        pairs: pairs at a time.

    Raises:
        InputError: a log-probability is not a number.
    """
    import torch

    samples = SampleFile(path)
    predict = _Predictor(model, precision, torch.device(device), False, False)
    was_training = bool(model.training)
    model.eval()
    parts = [torch.zeros(0, 2)]
    with torch.no_grad():
        for start in range(0, len(samples), pairs):
            rows = range(start, min(start + pairs, len(samples)))
            parts.append(_log_probabilities(predict, samples, rows).cpu())
    model.train(was_training)
    reference = torch.cat(parts)
    if not torch.isfinite(reference).all():
        raise InputError("The base gives a pair of answers no finite probability: use precision fp32 or another base.")
    with_reference(path, reference)


def _margins(predict: "_Predictor", samples: SampleFile, rows: Sequence[int]) -> "torch.Tensor":
    """(pairs,): the policy's log-ratio of the answers minus the reference's."""
    reference = samples.reference(rows).to(predict.device)
    moved = _log_probabilities(predict, samples, rows) - reference
    return moved[:, 0] - moved[:, 1]


def _log_probabilities(predict: "_Predictor", samples: SampleFile, rows: Sequence[int]) -> "torch.Tensor":
    """(pairs, 2): log-probability of each answer, summed over its learned tokens; the better answer first."""
    import torch

    sequences = [sequence for row in rows for sequence in (2 * row, 2 * row + 1)]
    logits, labels, owners = predict(*samples.layout(sequences, predict.pad_id, predict.packed, is_pairs=True))
    tokens = -torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    sums = torch.zeros(len(sequences), device=predict.device).index_add(0, owners, tokens)
    return sums.view(-1, 2)


class _Predictor:
    """Logits of the learned tokens, or their loss without logits."""

    def __init__(
        self,
        model: Any,
        precision: str,
        device: "torch.device",
        is_split: bool,
        packed: bool,
        last: LastBlock | None = None,
    ) -> None:
        self.model, self.device, self.is_split, self.packed, self.last = model, device, is_split, packed, last
        self.is_bf16 = precision == "bf16"
        self.plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.pad_id = int(getattr(self.plain.config, "pad_token_id", None) or 0)

    def __call__(
        self, ids: "torch.Tensor", labels: "torch.Tensor", positions: "torch.Tensor | None", owners: "torch.Tensor"
    ) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Predictions of the learned tokens.

        Args:
            ids: (rows, tokens); padding is on the right, where causal attention does not look, so no mask is needed.
            labels: (rows, tokens), ``IGNORED`` where nothing is learned.
            positions: (rows, tokens) where a row holds several samples: transformers keeps them apart only with
                these, without a mask and without a cache.
            owners: (rows, tokens): the sample that a token belongs to.

        Returns:
            (learned, vocabulary) float32, (learned,) labels and (learned,) owners.
        """
        labels, owners = labels.to(self.device), owners.to(self.device)
        counted = labels[:, 1:] != IGNORED
        with self._autocast():
            if self.is_split:  # the vocabulary is the widest layer: it is computed for learned tokens only
                logits = self.plain.get_output_embeddings()(self._states(ids, positions, counted))
            else:
                logits = self.model(**self._given(ids, positions)).logits[:, :-1][counted]
        return logits.float(), labels[:, 1:][counted], owners[:, 1:][counted]

    @property
    def has_plain_head(self) -> bool:
        """Whether the logits are one linear layer over the decoder's result, called apart."""
        import torch

        return self.is_split and type(self.plain.get_output_embeddings()) is torch.nn.Linear

    def fused(
        self,
        kind: Literal["chunked", "liger"],
        ids: "torch.Tensor",
        labels: "torch.Tensor",
        positions: "torch.Tensor | None",
        owners: "torch.Tensor",
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Sum of the cross-entropy of the learned tokens, and their number, without all their logits at once."""
        head = self.plain.get_output_embeddings()
        labels = labels.to(self.device)
        counted = labels[:, 1:] != IGNORED
        with self._autocast():
            hidden, wanted = self._states(ids, positions, counted), labels[:, 1:][counted]
            loss = _FUSED[kind](hidden, head.weight, head.bias, wanted)
        return loss.float(), _number(len(wanted), self.device)

    def _states(self, ids: "torch.Tensor", positions: "torch.Tensor | None", counted: "torch.Tensor") -> "torch.Tensor":
        """The decoder's result for tokens whose next one is learned: (learned, width)."""
        import torch

        tokens = torch.nn.functional.pad(counted, (0, 1)).flatten().nonzero().flatten()
        if self.last is not None:
            self.last.only(tokens)
        states: torch.Tensor = self.plain.get_decoder()(**self._given(ids, positions))[0]
        return states.flatten(0, 1).index_select(0, tokens)

    def _given(self, ids: "torch.Tensor", positions: "torch.Tensor | None") -> dict[str, Any]:
        given: dict[str, Any] = {"input_ids": ids.to(self.device), "use_cache": False}
        return given if positions is None else {**given, "position_ids": positions.to(self.device)}

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16)


def _chunked(hidden: Any, weight: Any, bias: Any, labels: Any) -> Any:
    import torch

    return torch.nn.functional.linear_cross_entropy(
        hidden, weight, labels, linear_bias=bias, reduction="sum", options=torch.nn.LinearCrossEntropyOptions()
    )


def _liger(hidden: Any, weight: Any, bias: Any, labels: Any) -> Any:
    functional = import_module("liger_kernel.transformers.functional")
    return functional.liger_fused_linear_cross_entropy(hidden, weight, labels, bias=bias, reduction="sum")


_FUSED: dict[str, Callable[[Any, Any, Any, Any], Any]] = {"chunked": _chunked, "liger": _liger}


def _number(value: int, device: "torch.device") -> "torch.Tensor":
    import torch

    return torch.tensor(float(value), device=device)
