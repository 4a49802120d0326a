"""Files that are one document each: Markdown with front matter, plain text, HTML."""

import re
from collections.abc import Mapping
from datetime import date
from pathlib import PurePosixPath
from typing import Any

import yaml

from serin.core.errors import InputError
from serin.data_prep.html import read_page
from serin.data_prep.rows import Raw, access_of
from serin.data_prep.sources import SourceFile

DATES = ("valid_from", "valid_until")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)


def read_document(file: SourceFile, text: str) -> Raw:
    """The raw document of a file.

    Raises:
        InputError: the front matter of a Markdown file is not YAML.
    """
    raw = Raw(kind="document", source=file.name, row=0, id="")
    if file.format == "html":
        page = read_page(text)
        raw.text, raw.title, raw.language, raw.metadata = page.text, page.title, page.language, dict(page.metadata)
        raw.metadata |= _access(raw, raw.metadata)
    else:
        raw.text = text
        if file.format == "markdown":
            _take_front_matter(raw, text)
    raw.title = raw.title or title_of(raw.text) or _name_as_title(file.plain_name)
    return raw


def title_of(text: str) -> str:
    """The first Markdown heading; empty when there is none."""
    heading = _TITLE.search(text)
    return heading[1] if heading else ""


def check_dates(raw: Raw) -> None:
    """Validity dates must be usable, or a promotion that has ended would be told as news.

    Raises:
        InputError: one is not an ISO date, or the last day is before the first.
    """
    where = f"{raw.source}, row {raw.row}" if raw.row else raw.source
    days = {}
    for name in DATES:
        if value := raw.metadata.get(name, ""):
            try:
                days[name] = date.fromisoformat(value[:10] if "T" in value else value)
            except ValueError as error:
                raise InputError(f"{where}: {name} is {value!r}, not a date like 2025-12-31.") from error
            raw.metadata[name] = days[name].isoformat()
    if len(days) == 2 and days["valid_until"] < days["valid_from"]:
        raise InputError(f"{where}: valid_until ({days['valid_until']}) is before valid_from ({days['valid_from']}).")


def _take_front_matter(raw: Raw, text: str) -> None:
    match = _FRONT_MATTER.match(text)
    if not match:
        return
    try:
        fields: Any = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that the calendar lacks
        raise InputError(f"The front matter of {raw.source} is not YAML ({_one_line(error)}): mend it.") from error
    if not isinstance(fields, dict):
        return  # a rule between two lines of dashes, not front matter
    raw.text = text[match.end() :]
    plain = {str(name): value for name, value in fields.items() if not isinstance(value, (list, dict, type(None)))}
    texts = {name: value.isoformat() if hasattr(value, "isoformat") else str(value) for name, value in plain.items()}
    raw.title = texts.pop("title", "")
    raw.language = (texts.pop("language", "") or texts.pop("lang", ""))[:2].lower()
    raw.metadata = texts | _access(raw, fields)


def _access(raw: Raw, fields: Mapping[str, Any]) -> dict[str, str]:
    try:
        return access_of(fields)
    except ValueError as error:
        raise InputError(f"{raw.source}: {error}: a page that was to be restricted must not become public.") from error


def _name_as_title(name: str) -> str:
    return re.sub(r"[_\-\s]+", " ", PurePosixPath(name).stem).strip()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
