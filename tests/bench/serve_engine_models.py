"""Models of the engine's benchmark: random weights, a tokenizer trained on this repository's own prose."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 2048


@dataclass(frozen=True)
class Size:
    """A Llama's shape."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int


SIZES = {
    "1.3M": Size(vocabulary=4096, hidden=128, layers=4, heads=4, kv_heads=2, intermediate=352),
    "26M": Size(vocabulary=8192, hidden=512, layers=7, heads=8, kv_heads=4, intermediate=1408),
}


def make_model(folder: Path, size: Size, seed: int = 0) -> Path:
    """A model folder whose greedy answers never end by themselves: the end token's embedding is zero."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(size.vocabulary)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=CONTEXT,
        initializer_range=0.1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.eos_token_id] = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(vocabulary: int) -> "PreTrainedTokenizerFast":
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    files = sorted(ROOT.glob("components/serin/**/*.py")) + sorted(ROOT.glob("*.md"))
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        (file.read_text(encoding="utf-8") for file in files),
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
