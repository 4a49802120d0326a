"""Push a tuned model to a hub or to an object store, by config."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from serin.core.config import Section
from serin.core.digests import canonical_json, digest_of, digest_of_file
from serin.core.errors import AlreadyExistsError, ConfigError, UnavailableError
from serin.core.storage import join, storage_for

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 (the variable's name)
LISTING = "published.json"


class PublishConfig(Section):
    """Where a tuned model is pushed to, besides the store."""

    target: Literal["none", "hub", "s3"] = "none"
    """``hub``: a repository of the Hugging Face Hub, or of a server that speaks its API (``HF_ENDPOINT``);
    ``s3``: a prefix of an object store (or a folder)."""
    repository: str = Field(default="", pattern=r"^(|[\w.-]+/[\w.-]+)$")
    """Of the hub: ``owner/name``; made if absent."""
    uri: str = ""
    """Of the object store: ``s3://BUCKET/PREFIX``; each model gets a folder named after its digest below it."""
    private: bool = True
    """Whether a repository that is made now is private."""
    revision: str = "main"
    """Branch of the repository."""
    parts: tuple[Literal["merged", "adapter"], ...] = Field(default=("merged", "adapter"), min_length=1)
    """What is pushed besides the card and the report."""

    @model_validator(mode="after")
    def _place_is_given(self) -> Self:
        if self.target == "hub" and not self.repository:
            raise ValueError("target hub needs a repository: owner/name")
        if self.target == "s3" and not self.uri:
            raise ValueError("target s3 needs a uri: s3://BUCKET/PREFIX")
        return self


def publish(config: PublishConfig, folder: Path, digest: str) -> str:
    """Push a model artefact's files; pushing the same model again changes nothing.

    Args:
        config: where to.
        folder: the artefact's files.
        digest: the artefact's digest.

    Returns:
        Where it is now; empty when the target is ``none``.

    Raises:
        ConfigError: the hub's token is missing.
        UnavailableError: the hub does not answer, or refuses.
        StorageError: the object store does not answer, or refuses.
    """
    if config.target == "none":
        return ""
    names = _chosen(config, folder)
    place = (
        _to_hub(config, folder, names, digest) if config.target == "hub" else _to_store(config, folder, names, digest)
    )
    logger.info("The model %s was published to %s.", digest[:12], place)
    return place


def _chosen(config: PublishConfig, folder: Path) -> list[str]:
    """Names of the files to push, the large ones first, so that what tells of them comes last."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    top = [name for name in found if "/" not in name]
    return [*sorted(name for name in found if name.split("/")[0] in config.parts), *sorted(top)]


def _to_store(config: PublishConfig, folder: Path, names: list[str], digest: str) -> str:
    """Upload the files, then the list of them: a folder without the list is not whole."""
    place = join(config.uri, digest[:16])
    storage = storage_for(place)
    listing = {"digest": digest, "files": {name: digest_of_file(folder / name) for name in names}}
    if storage.exists(LISTING):
        if digest_of(json.loads(storage.read(LISTING))["files"]) == digest_of(listing["files"]):
            return place
        raise AlreadyExistsError(f"{place} holds other files of this model: publish to another uri, or remove it.")
    for name in names:
        storage.upload(folder / name, name)
    storage.write(LISTING, canonical_json(listing).encode())
    return place


def _to_hub(config: PublishConfig, folder: Path, names: list[str], digest: str) -> str:
    from huggingface_hub import HfApi

    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise ConfigError(f"Publishing to {config.repository} needs a token: set {TOKEN_VARIABLE}.")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with _hub_errors(config.repository):
        api.create_repo(config.repository, private=config.private, exist_ok=True)
        api.upload_folder(
            repo_id=config.repository,
            folder_path=str(folder),
            allow_patterns=names,
            revision=config.revision,
            commit_message=f"Model {digest}",
        )
        if "card.md" in names:  # the hub shows the file of this name
            api.upload_file(
                path_or_fileobj=str(folder / "card.md"),
                path_in_repo="README.md",
                repo_id=config.repository,
                revision=config.revision,
                commit_message=f"Card of model {digest}",
            )
    return f"{api.endpoint}/{config.repository}/tree/{config.revision}"


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    from httpx2 import HTTPError  # huggingface_hub's HTTP client
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UnavailableError(f"{repository} cannot be published offline: unset HF_HUB_OFFLINE.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise UnavailableError(
            f"The hub refuses to take {repository} (status {status}): see that the token may write to it."
        ) from error
    except (HTTPError, OSError) as error:
        raise UnavailableError(
            f"The hub cannot be reached to publish {repository} ({type(error).__name__})."
        ) from error
