"""What a stage is given on a cluster."""

from pathlib import Path

import pytest

from serin.core.context import RUN_VARIABLE, stage_context
from serin.core.digests import code_version
from serin.core.errors import ConfigError
from serin.core.tracking import LINEAGE_TAG, RUN_ID_VARIABLE, STAGE_TAG, Tracker, prepare_database


def test_without_a_lineage_id_the_kubeflow_run_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_VARIABLE, "0f3c-run")
    with stage_context("index", store_uri=str(tmp_path)) as context:
        assert context.lineage_id == "0f3c-run"
    with stage_context("index", store_uri=str(tmp_path), lineage_id="mine") as context:
        assert context.lineage_id == "mine"


def test_a_pipeline_compiled_from_other_code_is_refused(tmp_path: Path) -> None:
    with stage_context("index", store_uri=str(tmp_path), compiled_for=code_version("index")):
        pass
    with (
        pytest.raises(ConfigError, match="compile it again with the image of the same version"),
        stage_context("index", store_uri=str(tmp_path), compiled_for="0123456789abcdef"),
    ):
        pass


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own use of SQLAlchemy
def test_a_run_that_kubeflow_made_for_the_task_is_used_and_tagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    prepare_database(uri)
    plain = Tracker(uri, "assistant", "run-1", "index")
    given = plain.client.create_run(plain._experiment_id).info.run_id
    monkeypatch.setenv(RUN_ID_VARIABLE, given)
    tracker = Tracker(uri, "assistant", "run-1", "index")
    assert tracker.run_id == given
    tags = tracker.client.get_run(given).data.tags
    assert (tags[STAGE_TAG], tags[LINEAGE_TAG]) == ("index", "run-1")
