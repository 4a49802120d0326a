"""A model as MLflow shows it: its card, signature, input example and settings; the weights stay in our store."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serin.core.tracking.tracker import Tracker

MAX_FILE_BYTES = 4 * 2**20
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
EXAMPLE = "input_example.json"
QUESTION = {"messages": [{"role": "user", "content": "What does delivery cost?"}], "max_tokens": 128}


def log_model(
    tracker: Tracker,
    folder: Path,
    *,
    name: str,
    digest: str,
    uri: str,
    params: Mapping[str, Any],
    example: Mapping[str, Any] = QUESTION,
    step: int = 0,
) -> None:
    """Log a chat model as a LoggedModel of the stage's run, with signature and input example.

    Its weights are not copied: the tag ``serin.uri`` says where they lie.  Other files of at most 4 MiB each are.

    Args:
        tracker: the stage's.
        folder: the model artefact's files.
        name: of the LoggedModel; letters, digits, dots, dashes and underscores.
        digest: the model artefact's digest; the same model is logged once in a run.
        uri: the model artefact's URI.
        params: its settings.
        example: a request as the endpoint takes it.
        step: the optimizer step that it is of.
    """
    if not tracker.enabled:
        return
    with tempfile.TemporaryDirectory(prefix="serin-model-") as scratch:
        bundle = Path(scratch) / "model"
        _copy_small(folder, bundle)
        _write_description(bundle, name, uri, digest, example)
        tracker.logged_model(bundle, name, digest, tags={"serin.uri": uri}, params=params, step=step)


def _copy_small(folder: Path, bundle: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix not in WEIGHTS and path.stat().st_size <= MAX_FILE_BYTES:
            target = bundle / "files" / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _write_description(bundle: Path, name: str, uri: str, digest: str, example: Mapping[str, Any]) -> None:
    """MLflow's own ``MLmodel`` file, which its pages read the signature and the example from."""
    from mlflow.models import Model, ModelSignature

    bundle.mkdir(exist_ok=True)
    (bundle / EXAMPLE).write_text(json.dumps(example, indent=1), encoding="utf-8")
    inputs, outputs = _schemas()
    model = Model(
        signature=ModelSignature(inputs=inputs, outputs=outputs),
        saved_input_example_info={"artifact_path": EXAMPLE, "type": "json_object"},
        metadata={"serin.uri": uri, "serin.digest": digest, "name": name},
    )
    model.save(str(bundle / "MLmodel"))


def _schemas() -> tuple[Any, Any]:
    """Chat completions, as the endpoint serves them: messages in, choices out."""
    from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema, TensorSpec

    message = Object([Property("role", DataType.string), Property("content", DataType.string)])
    choice = Object([Property("message", message), Property("finish_reason", DataType.string)])
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(Array(message), "messages"),
        ColSpec(DataType.long, "max_tokens", required=False),
    ]
    return Schema(inputs), Schema([ColSpec(Array(choice), "choices")])
