"""What a model may learn from."""

from pathlib import Path

from serin.core.records import Document, write_jsonl
from serin.finetune.documents import public_documents


def test_what_only_some_may_read_is_not_learned_from(tmp_path: Path) -> None:
    labels = {"open": {}, "blank": {"access": " "}, "staff": {"access": "staff"}, "two": {"access": "staff,finance"}}
    documents = [
        Document(id=name, title=name, text=f"The {name} price is 12.", source=f"{name}.md", metadata=metadata)
        for name, metadata in labels.items()
    ]
    write_jsonl(tmp_path / "documents.jsonl", documents)
    assert [document.id for document in public_documents(tmp_path)] == ["open", "blank"]
