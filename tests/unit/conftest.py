"""Fixtures that several stages' tests share."""

from pathlib import Path

import pytest
from worlds import World, make_world

LINES = (
    "Answer the customer from the passages.",
    "Where is my order? Your order left the warehouse and arrives in two days.",
    "Can I return the kettle? You can return it within 30 days for a full refund.",
    "Où est ma commande ? Elle arrive demain, à midi. Ça coûte 12,50 €.",
    "The copper kettle costs 39.90 euros and is in stock. Write to us or call a colleague.",
)
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tiny_model(folder: Path, seed: int = 0, max_context: int = 512) -> Path:
    """A Llama of 2 layers with random weights and a byte-level BPE of its own, as a Hugging Face folder."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(LINES, vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max_context,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model; it answers nonsense, always the same."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    """A store with a champion and a candidate."""
    return make_world(tmp_path_factory.mktemp("store"), tiny_model)
