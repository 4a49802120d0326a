"""Settings of data preparation."""

import codecs
import re
from datetime import date, timedelta
from typing import Literal

from pydantic import Field, field_validator, model_validator

from serin.core.config import Section
from serin.core.errors import ConfigError


class DataPrepConfig(Section):
    """How a folder of files becomes a dataset and documents."""

    encoding: str = "utf-8"
    """How text files are encoded; a file that is not is refused by name, never guessed."""
    exclude: tuple[str, ...] = ()
    """Files to leave out: shell patterns of paths below the source, such as 'drafts/*' or '*/README.md'."""
    question_column: str = ""
    """Column of the question; with ``answer_column`` it comes before the pairs that are known (see ``records``)."""
    answer_column: str = ""
    """Column of the answer."""
    group_column: str = "group"
    """Column whose value ties conversations together: one group never straddles two splits."""
    default_language: str = "en"
    """ISO 639-1 language of texts that are too short to tell."""
    mask_pii: Literal["conversations", "all", "none"] = "conversations"
    """Where personal data becomes <EMAIL> and so on.  In 'conversations', what the documents publish (the service's
    own phone number) stays."""
    placeholders: Literal["words", "keep", "reject"] = "words"
    """An unfilled {{Order Number}} in a conversation: write its words ('order number'), keep it, or reject the row."""
    near_duplicate_similarity: float = Field(0.7, gt=0, le=1)
    """Conversations with the same numbers whose word 3-grams have this Jaccard similarity count once; 1: exact only."""
    document_similarity: float = Field(0.9, gt=0, le=1)
    """The same for documents, which must also share their title: pages about two products may differ in few words."""
    train_fraction: float = Field(0.8, gt=0, lt=1)
    """Share of the groups for training; what is left after ``validation_fraction`` is for the test."""
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the groups for validation."""
    window_start: str = ""
    """Learn only from conversations of this day or later: 2026-03-01, or 90d for the last 90 days; empty: all."""
    window_end: str = ""
    """And only from those before this day (the same two forms)."""
    require_conversations: bool = True
    """Refuse a source without conversations; switch off to prepare documents alone."""

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name
        except LookupError as error:
            raise ValueError("no such encoding; 'utf-8' and 'cp1252' are two") from error

    @field_validator("window_start", "window_end")
    @classmethod
    def _day(cls, value: str) -> str:
        day_of(value, date(2000, 1, 1))
        return value

    def on(self, today: date) -> "DataPrepConfig":
        """The same settings with the window's ends as dates, so that a day's run can be found again.

        Raises:
            ConfigError: the window is empty.
        """
        days = {name: day_of(getattr(self, name), today) for name in ("window_start", "window_end")}
        start, end = days["window_start"], days["window_end"]
        if start and end and start >= end:
            raise ConfigError(f"The data window from {start} to {end} is empty: let window_start be before window_end.")
        return self.model_copy(update={name: day.isoformat() if day else "" for name, day in days.items()})

    @model_validator(mode="after")
    def _consistent(self) -> "DataPrepConfig":
        if self.train_fraction + self.validation_fraction >= 1:
            raise ValueError("train_fraction and validation_fraction must leave something for the test split")
        if bool(self.question_column) != bool(self.answer_column):
            raise ValueError("question_column and answer_column go together: set both or neither")
        return self


def day_of(text: str, today: date) -> date | None:
    """The day that a window's end names: an ISO date, or so many days (``90d``) before today; None when empty.

    Raises:
        ValueError: it is neither.
    """
    if not text:
        return None
    if ago := re.fullmatch(r"(\d{1,5})d", text):
        return today - timedelta(days=int(ago.group(1)))
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither a date such as 2026-03-01 nor a number of days such as 90d") from error
