"""The forward pass of Llama-shaped models over a slot cache: transformers' weights, without its modules' overhead.

A small model's step costs what its operators cost to call.  Here projections that read the same input are one
product, keys and values are written in place, and the rows of a step share their masks and views from step to step.
The weights are the library's own (its parameters become views of the joined ones), and ``of`` compares both forward
passes before it hands one out.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serin.core.generation.packed import PackedWeights
from serin.core.generation.slots import BLOCK, CacheShape, SlotCache

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from serin.core.generation.lora import Adapter

logger = logging.getLogger(__name__)

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary embedding that do not depend on the text's length."""
PROBE_TOKENS = 12
TOLERANCE = 1e-3
"""Largest difference of log-probabilities to the library's forward pass."""


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one prompt."""

    slot: int
    start: int
    """Tokens of the prompt that the slot holds already."""
    tokens: Sequence[int]


@dataclass(frozen=True)
class Layer:
    """Weights of one layer; products' are (inputs, outputs)."""

    norm: "torch.Tensor"
    qkv: "torch.Tensor"
    qkv_bias: "torch.Tensor | None"
    head_norm: "torch.Tensor | None"
    """(query and key heads, width), where heads are normalised."""
    out: "torch.Tensor"
    out_bias: "torch.Tensor | None"
    mlp_norm: "torch.Tensor"
    gate_up: "torch.Tensor"
    gate_up_bias: "torch.Tensor | None"
    down: "torch.Tensor"
    down_bias: "torch.Tensor | None"


@dataclass(eq=False)
class Step:
    """What the steps of one set of rows share, for as long as their tokens fit the views."""

    positions: "torch.Tensor"  # (rows,): of the tokens to be run next
    index: "torch.Tensor"  # where their keys and values go
    mask: "torch.Tensor"  # (rows * key heads, 1, length): 0 where attended to, -inf elsewhere
    mask_index: "torch.Tensor"  # (rows * key heads,): where the next token's zeros go
    keys: list["torch.Tensor"]  # (rows * key heads, width, length) for each layer
    values: list["torch.Tensor"]  # (rows * key heads, length, width)
    longest: int
    """Position of the row that has most."""
    length: int
    version: int

    def fits(self, cache: SlotCache) -> bool:
        """Whether one more token can be run."""
        return self.longest < self.length and self.version == cache.version


Groups = Sequence[tuple["Adapter", "torch.Tensor | None"]]
"""Adapters, each with the numbers of the tokens that it applies to; None is all of them."""


@dataclass(frozen=True)
class Weights:
    """A model's shape and weights, wherever they come from."""

    num_heads: int
    num_kv_heads: int
    width: int
    """Of one head."""
    scale: float
    """Of queries times keys."""
    epsilon: float
    """Of the norms."""
    activation: Callable[["torch.Tensor"], "torch.Tensor"]
    rotary: Callable[["torch.Tensor"], tuple["torch.Tensor", "torch.Tensor"]]
    """Cosines and sines, (positions, width) each, of (positions,)."""
    embedding: "torch.Tensor"
    """(vocabulary, hidden)."""
    head: "torch.Tensor"
    """(vocabulary, hidden)."""
    norm: "torch.Tensor"
    layers: Sequence["Layer"]


class LlamaForward:
    """Runs prompts and steps; make one with ``of``, or from a folder with ``bare``."""

    def __init__(self, weights: Weights) -> None:
        import torch

        self.num_heads, self.num_kv_heads = weights.num_heads, weights.num_kv_heads
        self.width, self.scale, self.layers = weights.width, weights.scale, weights.layers
        self.shape = CacheShape(len(weights.layers), weights.num_kv_heads, weights.width)
        self.embedding, self._head, self._norm = weights.embedding, weights.head.t(), weights.norm
        self.vocab_size = int(self.embedding.shape[0])
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self._rotary, self._table = weights.rotary, torch.empty(0)
        self._activation = weights.activation
        hidden = int(self.embedding.shape[1])
        options: Any = {"dtype": self.dtype, "device": self.device}
        self._epsilon = torch.full((1, 1), weights.epsilon, **options)
        self._inverse_hidden = 1.0 / hidden
        self._packed = PackedWeights()

    def pack(self) -> None:
        """Lay the weights out for few rows too, where that is faster and takes little memory."""
        layers = [weight for layer in self.layers for weight in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        self._packed = PackedWeights([*layers, self._head])

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "LlamaForward | None":
        """The model's fast forward pass, or None where it has none or another result than the library's."""
        if not _is_known(model):
            logger.info("This %s decodes by the library's own forward pass, which is slower.", type(model).__name__)
            return None
        forward = cls(_weights(model))
        difference = forward._difference(model)
        if not difference < TOLERANCE:
            logger.warning("The fast forward pass differs by %g and is not used.", difference)
            return None
        return forward

    def new_cache(self) -> SlotCache:
        """An empty cache for this model."""
        return SlotCache(self.shape, self.dtype, self.device)

    def prompts(self, cache: SlotCache, segments: Sequence[Segment], groups: Groups = ()) -> "torch.Tensor":
        """Run parts of prompts, all of them in the same products.

        Args:
            cache: with room for them; their keys and values are stored there.
            segments: of different slots.
            groups: adapters, by numbers of tokens in the segments' order.

        Returns:
            Logits after each segment's last token, (segments, vocabulary) in float32.
        """
        import torch

        tokens = torch.tensor([token for segment in segments for token in segment.tokens], device=self.device)
        places = [(s.slot, s.start + at) for s in segments for at in range(len(s.tokens))]
        slots, positions = torch.tensor(places, device=self.device).t()
        index = cache.index_of(slots, positions)
        masks = [self._prompt_mask(segment) for segment in segments]
        ends, end = [], 0
        for segment in segments:
            end += len(segment.tokens)
            ends.append(end)

        def attend(layer: int, heads: torch.Tensor) -> torch.Tensor:
            cache.write(layer, index, heads[:, self.num_heads :])
            parts, start = [], 0
            for segment, mask, end in zip(segments, masks, ends, strict=True):
                parts.append(self._attend_prompt(cache, layer, heads[start:end, : self.num_heads], segment, mask))
                start = end
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        rotary = self._rotations(positions, max(segment.start + len(segment.tokens) for segment in segments) - 1)
        x = self._layers(self.embedding[tokens], rotary, attend, groups)
        return self._logits(x[[end - 1 for end in ends]])

    def plan(self, cache: SlotCache, positions: Sequence[int]) -> Step:
        """Prepare steps of the rows in the first slots.

        Args:
            cache: holds the rows.
            positions: of each row's next token: how many tokens its slot holds.
        """
        import torch

        longest, rows = max(positions), len(positions)
        length = (longest // BLOCK + 1) * BLOCK
        cache.reserve(rows, length)
        at = torch.tensor(list(positions), device=self.device)
        of_heads = at.repeat_interleave(self.num_kv_heads)
        hidden = torch.arange(length, device=self.device) > of_heads[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))
        heads = rows * self.num_kv_heads
        shape = (heads, cache.length, self.width)
        return Step(
            positions=at,
            index=cache.index_of(torch.arange(rows, device=self.device), at),
            mask=mask[:, None],
            mask_index=torch.arange(heads, device=self.device) * length + of_heads,
            keys=[layer[0, :rows].view(shape)[:, :length].transpose(1, 2) for layer in cache.data],
            values=[layer[1, :rows].view(shape)[:, :length] for layer in cache.data],
            longest=longest,
            length=length,
            version=cache.version,
        )

    def step(self, cache: SlotCache, step: Step, tokens: Sequence[int], groups: Groups = ()) -> "torch.Tensor":
        """Run one more token of each row; the step moves on by one.

        Returns:
            Logits, (rows, vocabulary) in float32.
        """
        import torch

        queries = (-1, self.num_heads // self.num_kv_heads, self.width)
        step.mask.view(-1).index_fill_(0, step.mask_index, 0.0)

        def attend(layer: int, heads: torch.Tensor) -> torch.Tensor:
            cache.write(layer, step.index, heads[:, self.num_heads :])
            q = heads[:, : self.num_heads].reshape(queries)
            weights = torch.baddbmm(step.mask, q, step.keys[layer], alpha=self.scale).softmax(-1)
            return torch.bmm(weights, step.values[layer]).view(len(tokens), -1)

        x = self.embedding.index_select(0, torch.tensor(tokens, device=self.device))
        logits = self._logits(self._layers(x, self._rotations(step.positions, step.longest), attend, groups))
        for moved in (step.positions, step.index, step.mask_index):
            moved.add_(1)
        step.longest += 1
        return logits

    def _layers(
        self,
        x: "torch.Tensor",
        rotary: "torch.Tensor",
        attend: Callable[[int, "torch.Tensor"], "torch.Tensor"],
        groups: Groups,
    ) -> "torch.Tensor":
        """Hidden states after all layers, (tokens, hidden).

        Args:
            x: embeddings.
            rotary: as ``_rotations`` gives it.
            attend: takes a layer's number and the heads of its tokens.
            groups: adapters.
        """
        import torch

        packed = self._packed
        cos, sin = rotary[:, 0, None], rotary[:, 1, None]  # (tokens, 1, width)
        rotated, half = self.num_heads + self.num_kv_heads, self.width // 2
        for number, layer in enumerate(self.layers):
            h = self._normed(x, layer.norm)
            qkv = packed.product(h, layer.qkv, layer.qkv_bias)
            _adapt(qkv, h, groups, number, "qkv")
            heads = qkv.view(len(x), -1, self.width)
            qk = heads[:, :rotated]
            if layer.head_norm is not None:
                qk.copy_(self._normed_heads(qk, layer.head_norm))
            torch.addcmul(qk * cos, qk.roll(half, -1), sin, out=qk)  # the sine's first half is negated
            attended = attend(number, heads)
            x = packed.added(x, attended, layer.out, layer.out_bias)
            _adapt(x, attended, groups, number, "out")
            h = self._normed(x, layer.mlp_norm)
            gate_up = packed.product(h, layer.gate_up, layer.gate_up_bias)
            _adapt(gate_up, h, groups, number, "gate_up")
            gate, up = gate_up.chunk(2, -1)
            h = self._activation(gate).mul_(up)
            x = packed.added(x, h, layer.down, layer.down_bias)
            _adapt(x, h, groups, number, "down")
        return x

    def _logits(self, x: "torch.Tensor") -> "torch.Tensor":
        return self._packed.product(self._normed(x, self._norm), self._head).float()

    def _normed(self, x: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
        """Root-mean-square norm, from the vector's length, which takes half the operators."""
        import torch

        length = torch.linalg.vector_norm(x, 2, -1, True)
        inverse = torch.addcmul(self._epsilon, length, length, value=self._inverse_hidden).rsqrt_()
        return (x * inverse).mul_(weight)

    def _normed_heads(self, heads: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
        import torch

        length = torch.linalg.vector_norm(heads, 2, -1, True)
        inverse = torch.addcmul(self._epsilon[None], length, length, value=1.0 / self.width).rsqrt_()
        return (heads * inverse).mul_(weight)

    def _rotations(self, positions: "torch.Tensor", longest: int) -> "torch.Tensor":
        """Cosines and sines, (tokens, 2, width)."""
        import torch

        if longest >= len(self._table):
            cos, sin = self._rotary(torch.arange(max(256, 1 << longest.bit_length()), device=self.device))
            sin = torch.cat((-sin[:, : self.width // 2], sin[:, self.width // 2 :]), -1)
            self._table = torch.stack((cos, sin), 1)
        return self._table.index_select(0, positions)

    def _prompt_mask(self, segment: Segment) -> "torch.Tensor | None":
        """(tokens, tokens before and in the segment); None where plain causal attention does."""
        import torch

        if segment.start == 0 or len(segment.tokens) == 1:
            return None
        end = segment.start + len(segment.tokens)
        rows = torch.arange(segment.start, end, device=self.device)
        hidden = torch.arange(end, device=self.device) > rows[:, None]
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))

    def _attend_prompt(
        self, cache: SlotCache, layer: int, q: "torch.Tensor", segment: Segment, mask: "torch.Tensor | None"
    ) -> "torch.Tensor":
        import torch

        length = segment.start + len(q)
        keys, values = cache.data[layer, :, segment.slot, :, :length]
        attended = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=mask is None and len(q) > 1,
            scale=self.scale,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return attended[0].transpose(0, 1).reshape(len(q), -1)

    def _difference(self, model: "PreTrainedModel") -> float:
        """Largest difference to the library's log-probabilities, over a prompt in two parts and one step."""
        import torch

        tokens = [(7 * number + 3) % self.vocab_size for number in range(PROBE_TOKENS)]
        with torch.inference_mode():
            output: Any = model(input_ids=torch.tensor([tokens], device=self.device), use_cache=False)
            expected = output.logits[0].float().log_softmax(-1)
            cache = self.new_cache()
            cache.reserve(1, PROBE_TOKENS)
            middle, last = PROBE_TOKENS // 2, PROBE_TOKENS - 1
            first = self.prompts(cache, [Segment(0, 0, tokens[:middle])])
            second = self.prompts(cache, [Segment(0, middle, tokens[middle:last])])
            third = self.step(cache, self.plan(cache, [last]), tokens[last:])
            found = torch.cat((first, second, third)).log_softmax(-1)
            return float((found - expected[[middle - 1, last - 1, last]]).abs().max())


def _is_known(model: "PreTrainedModel") -> bool:
    """Whether the model's layers are what ``LlamaForward`` computes: plain floating-point weights, full attention."""
    import torch

    config: Any = model.config
    if config.model_type not in MODEL_TYPES or not hasattr(model, "model") or model.get_output_embeddings() is None:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if rope.get("rope_type", "default") not in STATIC_ROPE or (
        window is not None and window < config.max_position_embeddings
    ):
        return False
    linears = [module for name, module in model.named_modules() if name.endswith(("_proj", "lm_head"))]
    return (
        all(type(module) is torch.nn.Linear for module in linears)
        and len({parameter.dtype for parameter in model.parameters()}) == 1
        and model.get_output_embeddings().bias is None
    )


def _weights(model: "PreTrainedModel") -> Weights:
    import torch

    config: Any = model.config
    body: Any = model.model
    head: Any = model.get_output_embeddings()
    attention = body.layers[0].self_attn
    num_heads, num_kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
    embedding = body.embed_tokens.weight.detach()

    def rotary(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = body.rotary_emb(embedding[:0], positions[None])
        return cos[0], sin[0]

    with torch.no_grad():
        layers = [_joined(layer, num_heads, num_kv_heads) for layer in body.layers]
    return Weights(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        width=int(attention.head_dim),
        scale=float(attention.scaling),
        epsilon=float(config.rms_norm_eps),
        activation=body.layers[0].mlp.act_fn,
        rotary=rotary,
        embedding=embedding,
        head=head.weight.detach(),
        norm=body.norm.weight.detach(),
        layers=layers,
    )


def _joined(layer: Any, num_heads: int, num_kv_heads: int) -> Layer:
    """A layer's weights; the library's own become views of the joined ones, so that no memory is taken twice."""

    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    norms = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None
    return Layer(
        norm=layer.input_layernorm.weight.detach(),
        qkv=_join(projections).t(),
        qkv_bias=_joined_bias(projections),
        head_norm=None if norms is None else joined_head_norms(norms[0], norms[1], num_heads, num_kv_heads),
        out=attention.o_proj.weight.detach().t(),
        out_bias=_joined_bias([attention.o_proj]),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=_join((mlp.gate_proj, mlp.up_proj)).t(),
        gate_up_bias=_joined_bias((mlp.gate_proj, mlp.up_proj)),
        down=mlp.down_proj.weight.detach().t(),
        down_bias=_joined_bias([mlp.down_proj]),
    )


def _joined_bias(linears: Sequence[Any]) -> "torch.Tensor | None":
    import torch

    return None if linears[0].bias is None else torch.cat([linear.bias.detach() for linear in linears])


def joined_head_norms(query: "torch.Tensor", key: "torch.Tensor", num_heads: int, num_kv_heads: int) -> "torch.Tensor":
    """(query and key heads, width) from one norm's weight of each kind."""
    import torch

    return torch.cat((query.detach().expand(num_heads, -1), key.detach().expand(num_kv_heads, -1)))


def _join(linears: Sequence[Any]) -> "torch.Tensor":
    import torch

    joined = torch.cat([linear.weight.detach() for linear in linears])
    start = 0
    for linear in linears:
        linear.weight.data = joined[start : start + linear.out_features]
        start += linear.out_features
    return joined


def _adapt(y: "torch.Tensor", x: "torch.Tensor", groups: Groups, layer: int, product: str) -> None:
    """Add adapters' shares to a product, in place: (tokens, outputs) from (tokens, inputs)."""
    for adapter, numbers in groups:
        pair = adapter.layers[layer].get(product)
        if pair is None:
            continue
        down, up = pair
        if numbers is None:
            y.addmm_(x @ down, up)
        else:
            y.index_add_(0, numbers, x.index_select(0, numbers) @ down @ up)
