"""Settings of data preparation."""

import codecs
from typing import Literal

from pydantic import Field, field_validator, model_validator

from serin.core.config import Section


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
    require_conversations: bool = True
    """Refuse a source without conversations; switch off to prepare documents alone."""

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name
        except LookupError as error:
            raise ValueError("no such encoding; 'utf-8' and 'cp1252' are two") from error

    @model_validator(mode="after")
    def _consistent(self) -> "DataPrepConfig":
        if self.train_fraction + self.validation_fraction >= 1:
            raise ValueError("train_fraction and validation_fraction must leave something for the test split")
        if bool(self.question_column) != bool(self.answer_column):
            raise ValueError("question_column and answer_column go together: set both or neither")
        return self
