"""The linter on Kubeflow's own compiled pipelines: nothing false on the valid ones, each invalid one refused."""

import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serin_pipelines.lint import lint_file, rule_names


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    archive = Path(__file__).resolve().parents[2].parent / "shared/data/kfp_golden_ir/kfp_test_data_yaml.tar.gz"
    if not archive.is_file():
        pytest.skip("needs the public data set kfp_golden_ir in ../shared/data, which is not here")
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return sorted((folder / "sdk_compiled_pipelines").rglob("*.yaml"))


def test_nothing_is_raised_on_the_valid_files_but_house_rules(golden: list[Path]) -> None:
    valid = [path for path in golden if "invalid" not in path.parts]
    assert len(valid) == 151
    found = {path.name: lint_file(path, off=rule_names("house")) for path in valid}
    assert {name: findings for name, findings in found.items() if findings} == {}


def test_no_secret_is_seen_where_there_is_none(golden: list[Path]) -> None:
    others = [name for name in rule_names("house") if not name.startswith("secret-")]
    mentioning = [path for path in golden if "secret" in path.name or "env" in path.name]
    assert len(mentioning) > 5
    assert [one for path in mentioning for one in lint_file(path, off=others)] == []


def test_each_invalid_file_is_refused(golden: list[Path]) -> None:
    invalid = [path for path in golden if "invalid" in path.parts]
    assert len(invalid) == 3
    assert all(any(finding.kind == "error" for finding in lint_file(path)) for path in invalid)


REFERENCES = {
    "producerTask",
    "producerSubtask",
    "outputParameterKey",
    "outputArtifactKey",
    "componentInputParameter",
    "componentInputArtifact",
    "executorLabel",
    "itemInput",
    "inputParameter",
    "inputArtifact",
}


def references(value: Any, above: str = "") -> Iterator[tuple[Any, Any]]:
    """Where a file names another part of it: (mapping or list, key)."""
    if isinstance(value, dict):
        for key, inside in value.items():
            if (key in REFERENCES and isinstance(inside, str)) or (above, key) == ("componentRef", "name"):
                yield value, key
            elif key == "dependentTasks":
                yield inside, 0
            else:
                yield from references(inside, key)
    elif isinstance(value, list):
        for inside in value:
            yield from references(inside, above)


def test_one_broken_reference_in_any_valid_file_is_found(golden: list[Path], tmp_path: Path) -> None:
    draw = random.Random(7)
    broken = tmp_path / "broken.yaml"
    for path in golden:
        if "invalid" in path.parts:
            continue
        documents = list(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
        holder, key = draw.choice(list(references(documents)))
        holder[key] = "gone"
        broken.write_text(yaml.dump_all(documents, Dumper=yaml.CSafeDumper))
        assert lint_file(broken, off=rule_names("house")), (path.name, key)
