"""Rows and files for the tests of data preparation."""

import json
from pathlib import Path


def chat(number: int, question: str, answer: str, group: str) -> dict[str, object]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"chat-{number}", "messages": turns, "group": group, "language": "en"}


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
