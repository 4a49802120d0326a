"""The model card: Markdown with the YAML front matter that model hubs read."""

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

PURPOSE = (
    "Answers questions from the passages that it is given, in the style of the conversations that it was tuned "
    "on. Without passages it knows little, and it was not tested outside the domain of its data: serve it as part "
    "of a release, behind retrieval and guardrails, after evaluation."
)
LOADING = """## How to load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "merged"  # beside this card
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
```
"""
LOADING_ADAPTER = """
The adapter alone, on the base that it was trained from:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/to/the/base", use_safetensors=True)
model = PeftModel.from_pretrained(base, "adapter")
```
"""
COMPARISON = "How its answers compare with those of another release is in the evaluation of its release."
NOT_STATED = "not stated"
"""What a base's metadata says when its folder names no licence."""
LANGUAGE_MODEL = "text-generation"


def card(
    title: str,
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    licence: str = "",
    evaluation: Mapping[str, float] | None = None,
    code_version: str = "",
    has_adapter: bool | None = None,
    files: Mapping[str, str] | None = None,
) -> str:
    """A model card.

    Args:
        title: its heading.
        facts: what it was made from and how that went (base, digests, counts, losses).
        settings: of the training.
        licence: of the base, an SPDX identifier or a hub's name for it; the tuned model stays under it.
        evaluation: metric to value, where it was evaluated already.
        code_version: of the stage that made it.
        has_adapter: whether there is an ``adapter`` folder; None: the method ``full`` has none.
        files: safetensors file to its SHA-256.
    """
    if has_adapter is None:
        has_adapter = settings.get("method", "full") != "full"
    front = _front_matter(facts, settings, licence, evaluation or {}, has_adapter)
    table = {**facts, **({"code_version": code_version} if code_version else {})}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        PURPOSE,
        _table(table),
        f"## Licence\n\n{_licence_text(licence)}",
        _evaluation_text(evaluation or {}),
        LOADING + (LOADING_ADAPTER if has_adapter else ""),
        f"## Settings\n\n```json\n{json.dumps(dict(settings), indent=2, sort_keys=True)}\n```",
    ]
    if files:
        parts.append("## Digests (SHA-256)\n\n" + _table(files))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _front_matter(
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    licence: str,
    evaluation: Mapping[str, float],
    has_adapter: bool,
) -> dict[str, Any]:
    base = str(facts.get("base_model", ""))
    tags = ["serin", str(settings.get("objective", "sft")), str(settings.get("method", "full"))]
    front: dict[str, Any] = {
        "pipeline_tag": LANGUAGE_MODEL,
        "library_name": "transformers",
        "tags": [*tags, *(["peft"] if has_adapter else [])],
    }
    if re.fullmatch(r"[\w.+-]+", licence):  # a hub takes identifiers only
        front["license"] = licence.lower()
    if base and "://" not in base and not base.startswith(("/", ".")):  # a hub's id, not a place of ours
        front["base_model"] = base.partition("@")[0]
    if evaluation:
        front["model-index"] = [_results(facts, evaluation)]
    return front


def _results(facts: Mapping[str, Any], evaluation: Mapping[str, float]) -> dict[str, Any]:
    dataset = {"name": "held-out samples", "type": str(facts.get("dataset_digest", ""))[:12] or "private"}
    metrics = [{"name": name, "type": name, "value": value} for name, value in sorted(evaluation.items())]
    result = {"task": {"type": LANGUAGE_MODEL}, "dataset": dataset, "metrics": metrics}
    return {"name": "serin", "results": [result]}


def _licence_text(licence: str) -> str:
    if licence and licence != NOT_STATED:
        return f"Of the base: {_cell(licence)}; what is tuned from it stays under the same terms."
    return "The base names no licence: find out under which terms it may be used before this model leaves the house."


def _evaluation_text(evaluation: Mapping[str, float]) -> str:
    if evaluation:
        return f"## Evaluation\n\n{_table(evaluation)}\n\n{COMPARISON}"
    return f"## Evaluation\n\nNot evaluated when this card was written. {COMPARISON}"


def _table(values: Mapping[str, Any]) -> str:
    rows = (f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items() if value != "")
    return "\n".join(["| | |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(sign, entity)
    return text
