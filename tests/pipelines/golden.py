"""The committed IR of every pipeline for production; ``make golden`` writes it anew.

Two things are left out, because they change with every edit and say nothing of the pipeline: the code version that
pure components take as an input, and the version of the SDK.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from serin_pipelines.compiling import compile_pipeline, pipelines
from serin_pipelines.environments import load_environment

FOLDER = Path(__file__).parent / "golden"
ENVIRONMENT = "prod"


def compiled(name: str, folder: Path) -> list[dict[str, Any]]:
    """A pipeline's two documents (spec, platform) as compiled now."""
    path = compile_pipeline(name, folder, load_environment(ENVIRONMENT))
    return [_plain(document) for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def committed(name: str) -> list[dict[str, Any]]:
    """The same as committed."""
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: {"runtimeValue": {"constant": "<code version>"}} if key == "code_version" and "runtimeValue" in one
            else _plain(one)
            for key, one in value.items()
            if key != "sdkVersion"
        }  # fmt: skip
    return [_plain(one) for one in value] if isinstance(value, list) else value


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in pipelines():
            text = yaml.safe_dump_all(compiled(name, Path(folder)), sort_keys=True, width=120)
            (FOLDER / f"{name}.yaml").write_text(text, encoding="utf-8")
    sys.stdout.write(f"Wrote {FOLDER}\n")


if __name__ == "__main__":
    main()
