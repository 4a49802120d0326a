"""Make a release again from its recorded inputs, in a store of its own, and compare every digest.

Each artefact's manifest says what it was made from and with which settings; the stages that made it are run again on
the same source.  Nothing of the release's own store is used but the records, and nothing there is changed.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serin.core.artifacts import Artifact, ArtifactStore, Manifest, home
from serin.core.context import stage_context
from serin.core.digests import code_version
from serin.core.errors import InputError
from serin.core.release import Part, Release, load_release
from serin.core.retrieval import read_info
from serin.core.verification import manifests_behind
from serin_pipelines.configs import RunConfig

TINY = "serin://tiny"
STAGES = {"dataset": "data_prep", "documents": "data_prep", "base": "finetune", "model": "finetune", "index": "index"}
ORDER = ("dataset", "documents", "base", "model", "index")


@dataclass(frozen=True)
class Compared:
    """One artefact, as recorded and as made again."""

    kind: str
    recorded: str
    found: str
    code: str
    """Code version of its stage then."""
    same_code: bool

    @property
    def equal(self) -> bool:
        """Whether the content came out the same."""
        return self.recorded == self.found

    def dump(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": self.kind,
            "recorded": self.recorded,
            "found": self.found,
            "equal": self.equal,
            "code_version": self.code,
            "same_code": self.same_code,
        }


@dataclass(frozen=True)
class Reproduction:
    """What came out."""

    release: str
    found: str
    """Id of the release that the new parts make with the recorded prompt, guardrails, settings and code version."""
    artifacts: tuple[Compared, ...]

    @property
    def equal(self) -> bool:
        """Whether the release came out the same."""
        return self.release == self.found and all(one.equal for one in self.artifacts)

    def dump(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "release": self.release,
            "found": self.found,
            "equal": self.equal,
            "artifacts": [one.dump() for one in self.artifacts],
        }


def reproduce(
    release_id: str,
    store_uri: str,
    settings: RunConfig,
    *,
    source: str = "",
    tell: Callable[[str], None] = lambda text: None,
) -> Reproduction:
    """Make a release again.

    Killed and started again, it continues from what it had finished; when all is made, its store is removed.

    Args:
        release_id: id, or its first 8 digits at least.
        store_uri: where the release is.
        settings: for what leaves no trace in the result (prices, checkpoints); the rest comes from the records.
        source: where the source is now; empty: where it was.
        tell: told what is being made.

    Raises:
        InputError: the release, a record behind it or its source is gone, or the source has changed since.
    """
    store = ArtifactStore(store_uri)
    release = load_release(store.storage, release_id)
    folder = home() / "reproduce" / release.short_id
    again = _Again(release, _recorded(release, store), settings, source, folder, tell)
    again.check_sources()
    made = {uri: again.make(uri) for uri in again.recorded}
    compared = [
        Compared(
            kind=manifest.kind,
            recorded=manifest.digest,
            found=made[uri].digest,
            code=manifest.code_version,
            same_code=manifest.code_version == code_version(STAGES[manifest.kind]),
        )
        for uri, manifest in again.recorded.items()
    ]
    parts = {name: Part.of(made[getattr(release, name).uri]).model_dump() for name in ("model", "index", "data")}
    found = Release.model_validate({**release.model_dump(), **parts})
    shutil.rmtree(folder, ignore_errors=True)
    ordered = sorted(compared, key=lambda one: (ORDER.index(one.kind), one.recorded))
    return Reproduction(release.id, found.id, tuple(ordered))


def _recorded(release: Release, store: ArtifactStore) -> dict[str, Manifest]:
    """Every artefact behind a release that a stage can make again, by URI."""
    found: dict[str, Manifest] = {}
    for uri, manifest in manifests_behind([release.model.uri, release.index.uri, release.data.uri]):
        if manifest is None:
            raise InputError(
                f"{uri} is behind release {release.short_id} and is gone: what it was made from is unknown."
            )
        if manifest.kind not in STAGES:
            raise InputError(f"{uri} is a {manifest.kind}, which no stage can make again.")
        found[uri] = manifest
    return found


@dataclass
class _Again:
    """Makes artefacts again, each once."""

    release: Release
    recorded: Mapping[str, Manifest]
    settings: RunConfig
    source: str
    folder: Path
    tell: Callable[[str], None]
    made: dict[str, Artifact] = field(default_factory=dict)

    def check_sources(self) -> None:
        """Refuse before anything is made when a source is not what it was."""
        from serin.data_prep.sources import open_source

        for manifest in self.recorded.values():
            if "source" not in manifest.inputs or manifest.kind == "base":
                continue
            uri = self._source_of(manifest)
            with open_source(uri, self._data_prep(manifest).exclude) as source:
                if source.digest != manifest.inputs["source"]:
                    raise InputError(
                        f"The source {uri} has changed since this release was made: give the one of then with --source."
                    )

    def make(self, uri: str) -> Artifact:
        """The artefact that stands for a recorded one."""
        if uri not in self.made:
            manifest = self.recorded[uri]
            if manifest.kind in ("dataset", "documents"):
                self._prepare(manifest)
            elif manifest.kind == "index":
                self.made[uri] = self._index(uri, manifest)
            elif manifest.kind == "base":
                self.made[uri] = self._tuned(self._model_of(uri)).base
            else:
                tuned = self._tuned(manifest)
                self.made[uri], self.made[manifest.sources["base"]] = tuned.model, tuned.base
        return self.made[uri]

    def _prepare(self, manifest: Manifest) -> None:
        from serin.data_prep.prepare import prepare

        self.tell("the dataset and the documents")
        with self._stage("data_prep") as context:
            prepared = prepare(self._data_prep(manifest), self._source_of(manifest), context)
        for uri, one in self.recorded.items():
            same = one.inputs.get("source") == manifest.inputs["source"] and one.config == manifest.config
            if same and one.kind in ("dataset", "documents"):
                self.made[uri] = prepared.dataset if one.kind == "dataset" else prepared.documents

    def _index(self, uri: str, manifest: Manifest) -> Artifact:
        from serin.index.build import build_index
        from serin.index.config import IndexConfig

        documents = self.make(manifest.sources["documents"])
        self.tell("the index")
        embedder = read_info(ArtifactStore(self.release.index.uri).open(uri).path).embedder
        with self._stage("index") as context:
            return build_index(IndexConfig.load({**manifest.config, "embedder": embedder}), documents, context)

    def _tuned(self, manifest: Manifest) -> Any:
        from serin.finetune.config import FinetuneConfig
        from serin.finetune.train import finetune

        base = self.recorded[manifest.sources["base"]]
        dataset = self.make(manifest.sources["dataset"])
        documents = self._documents_for(manifest, base)
        self.tell("the model")
        tiny = {"tiny": base.config["tiny"]} if isinstance(base.config, dict) and "tiny" in base.config else {}
        how = manifest.metadata.get("numerics") or {}
        config = FinetuneConfig.load({**self.settings.finetune.dump(), **how, **manifest.config, **tiny})
        with self._stage("finetune") as context:
            name = str(base.metadata.get("base_model", TINY))
            return finetune(config, name, self.release.prompt, dataset, documents, context)

    def _documents_for(self, manifest: Manifest, base: Manifest) -> Artifact:
        uri = manifest.sources.get("documents") or base.sources.get("documents")
        if uri is None:  # a given base reads none; the stage wants some all the same
            uri = next(uri for uri, one in self.recorded.items() if one.kind == "documents")
        return self.make(uri)

    def _model_of(self, base_uri: str) -> Manifest:
        for manifest in self.recorded.values():
            if manifest.kind == "model" and manifest.sources.get("base") == base_uri:
                return manifest
        raise InputError("This release serves a base model as it is: reproduce a release that was tuned from it.")

    def _data_prep(self, manifest: Manifest) -> Any:
        from serin.data_prep.config import DataPrepConfig

        return DataPrepConfig.load(manifest.config)

    def _source_of(self, manifest: Manifest) -> str:
        uri = self.source or str(manifest.metadata.get("source_uri", ""))
        if not uri:
            raise InputError("The records do not say where the source was: give it with --source.")
        return uri

    def _stage(self, stage: str) -> Any:
        return stage_context(
            stage, store_uri=(self.folder / "store").as_uri(), lineage_id=f"again-{self.release.short_id}"
        )
