"""The script of the model cache's warm-up Job, run as the Job runs it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.manifests.building import MANIFESTS, Object, build, one

SCRIPT = MANIFESTS / "kserve" / "cache" / "warm.py"


def _warm(cache: Path, models: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "CACHE": str(cache), "MODELS": models}
    return subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def _model(folder: Path) -> str:
    (folder / "nested").mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "nested" / "model.safetensors").write_bytes(b"weights")
    return folder.as_uri()


def test_models_are_copied_whole_under_their_names(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    done = _warm(cache, f"base={_model(tmp_path / 'a')} champion={_model(tmp_path / 'b')}")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in cache.iterdir()) == ["base", "champion"]
    assert (cache / "champion" / "nested" / "model.safetensors").read_bytes() == b"weights"


def test_a_model_that_is_there_is_left_alone_and_half_a_copy_is_made_anew(tmp_path: Path) -> None:
    cache, uri = tmp_path / "cache", _model(tmp_path / "a")
    (cache / "base").mkdir(parents=True)
    (cache / ".champion.partial").mkdir()
    (cache / ".champion.partial" / "stale").touch()
    assert _warm(cache, f"base={uri} champion={uri}").returncode == 0
    assert list((cache / "base").iterdir()) == []
    assert sorted(path.name for path in (cache / "champion").iterdir()) == ["config.json", "nested"]


def test_a_model_that_is_nowhere_fails_with_one_sentence(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "empty").mkdir()
    done = _warm(cache, f"base={(tmp_path / 'empty').as_uri()}")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("There is no model at file://")
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(cache.iterdir()) == []


def test_the_job_runs_this_script(scratch: Path) -> None:
    objects = build("prod + kserve/llm", scratch)
    job = one(objects, "Job", "model-cache")["spec"]["template"]["spec"]
    settings = one(objects, "ConfigMap", job["volumes"][2]["configMap"]["name"])
    mounted: Object = job["containers"][0]["volumeMounts"][2]
    assert settings["data"]["warm.py"] == SCRIPT.read_text(encoding="utf-8")
    assert job["containers"][0]["command"] == ["python", f"{mounted['mountPath']}/{SCRIPT.name}"]
    names = {pair.partition("=")[0] for pair in settings["data"]["MODELS"].split()}
    model = one(objects, "LLMInferenceService", "assistant")["spec"]["model"]
    uris = [model["uri"], *(adapter["uri"] for adapter in model["lora"]["adapters"])]
    assert {uri.rpartition("/")[2] for uri in uris} == names
