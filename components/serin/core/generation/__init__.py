"""Decoding with a causal language model on this machine: batches for evaluation, streams for the endpoint.

One ``Decoder`` does both: its rows decode together, one token each per step, and join and leave at any step, so that
evaluation keeps its batch full and the endpoint takes new requests in while others are being answered.

- ``generator``: a model with its tokenizer; ``rows``: what is decoded, and what comes of it
- ``decoder``: which rows run when; ``sampling``: the next token of each; ``text``: tokens into text
- ``llama``, ``slots``, ``lora``: the fast forward pass, its cache and adapters; ``library``: any other architecture
- ``constraints``: answers that are JSON of a schema
"""

from serin.core.generation.decoder import Decoder
from serin.core.generation.generator import MAX_ROWS, Generator
from serin.core.generation.rows import UNLIMITED, Delta, Generation, Row
from serin.core.generation.text import INCOMPLETE, TextStream

__all__ = ["INCOMPLETE", "MAX_ROWS", "UNLIMITED", "Decoder", "Delta", "Generation", "Generator", "Row", "TextStream"]
