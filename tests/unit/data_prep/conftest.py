"""A small source with every kind of file, and the stage around it."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.data_prep.builders import chat, write_lines

from serin.core.context import stage_context
from serin.data_prep.config import DataPrepConfig
from serin.data_prep.prepare import Prepared, prepare

MARKDOWN = """---
title: Garden Week
language: en
valid_from: 2025-03-14
valid_until: 2025-03-28
---
# Garden Week

20 percent off everything that grows. Questions? Write to help@shop.example.
"""
HTML = """<!doctype html><html lang="fr"><head><title>Magasin de Lille</title></head><body>
<nav><a href="/">Accueil</a></nav><main><h1>Magasin de Lille</h1><p>Ouvert de 9 h à 19 h, fermé le dimanche.</p></main>
</body></html>"""
PAIRS = [
    ("How do I cancel order 4711?", "Call {{Support Phone}} and give the order number."),
    ("How do I cancel order 4712?", "Write to help@shop.example and name order 4712, we cancel it."),
    ("Where is my refund? I am jo@mail.example", "It is on its way and arrives within 5 days."),
    ("Is the kettle in stock?", ""),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one file of each format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "source"
    (folder / "documents").mkdir(parents=True)
    (folder / "documents" / "garden-week.md").write_text(MARKDOWN, encoding="utf-8")
    (folder / "documents" / "lille.html").write_text(HTML, encoding="utf-8")
    (folder / "documents" / "returns.txt").write_text("Lamps can be returned within 30 days.\n", encoding="utf-8")
    rows = [{"doc_id": "kettle", "title": "Merle kettle", "text": "The Merle kettle costs 39 EUR and it whistles."}]
    with gzip.open(folder / "catalogue.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("instruction", "response"), *PAIRS])
    things = ["lamp", "tent", "rug", "chair", "bench", "desk", "stove", "trellis", "pillow", "hammock"]
    chats = [
        chat(i, f"What does the {thing} cost in colour {i}?", f"The {thing} costs {i * 3} EUR.", f"price/{i}")
        for i, thing in enumerate(things * 2)
    ]
    write_lines(folder / "chats.jsonl", chats)
    more = [chat(100, "Do you ship to Geneva?", "Yes, within 4 days, for 12 EUR.", "ship")]
    pq.write_table(pa.Table.from_pylist(more), folder / "more.parquet")
    golden = [{"question": "Price of the Merle kettle?", "document_ids": ["catalogue.jsonl.gz#kettle"]}]
    write_lines(folder / "golden.jsonl", golden)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Prepared]:
    """Calls the stage on a source, with settings, in a store of this test."""

    def call(source: object, store: str = "", **config: object) -> Prepared:
        with stage_context("data_prep", store_uri=store or str(tmp_path / "store")) as context:
            return prepare(DataPrepConfig.load(config), str(source), context)

    return call
