"""From the launch to the artefacts with the real driver, which trains a tiny model in a process of its own."""

from collections.abc import Callable

import pytest
from cluster_worlds import World
from fake_kuberay import FakeKubeRay, Job, Script

from serin.core.errors import InputError

KubeRay = Callable[[Script], FakeKubeRay]


@pytest.mark.slow
def test_the_driver_trains_and_the_launcher_has_the_model(
    world: World, kuberay: KubeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    api = kuberay(Job.drive)
    made = world.launch()
    assert {"merged/model.safetensors", "adapter/adapter_model.safetensors"} <= set(made.model.manifest.files)
    assert made.model.manifest.lineage_id == "run-1"
    assert made.model.manifest.inputs["base"] == made.base.digest
    assert any("training" in message for message in world.report.messages())
    assert "::serin::" not in capsys.readouterr().out
    assert not api.jobs


@pytest.mark.slow
def test_what_the_stage_refuses_there_is_told_here(world: World, kuberay: KubeRay) -> None:
    kuberay(Job.drive)
    world.dataset = world.documents  # has no conversations
    with pytest.raises(InputError, match=r"train\.jsonl does not exist: run the stage that makes it"):
        world.launch()
