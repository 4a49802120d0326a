"""Champion and candidate as two adapters of one base, in one engine process."""

import asyncio
import os
import shutil
import signal
import time
from contextlib import aclosing
from pathlib import Path

import pytest
from worlds import World, context_of

from serin.core.artifacts import Artifact, Built
from serin.core.release import Part, load_release, save_release
from serin.core.storage import storage_for
from serin.serve.backends.connections import Connections
from serin.serve.engine_client import EngineRequest
from serin.serve.runtime import Loader, Runtime
from serin.serve.supervisor import EngineSettings

# peft asks transformers by a name that the latter will remove
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
ASKED = EngineRequest(({"role": "user", "content": "Can I return the kettle?"},), 12, 0.0, 0, ())


def tuned(world: World, base: Artifact, seed: int) -> Artifact:
    """A model artefact as fine-tuning writes it: an adapter, and the base merged with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def build(output: Path, _: Path) -> Built:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base.path)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        tuned = get_peft_model(model, lora)
        tuned.save_pretrained(output / "adapter")
        tuned.merge_and_unload().save_pretrained(output / "merged")
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (base.path / name).exists():
                shutil.copy(base.path / name, output / "merged" / name)
        return Built()

    return context_of(world.uri, "finetune").produce("model", build, inputs={"base": base}, config={"seed": seed})


@pytest.fixture(scope="module")
def releases(world: World) -> tuple[str, str]:
    storage, ids = storage_for(world.uri), []
    champion = load_release(storage, world.champion)
    for seed in (1, 2):
        release = champion.model_copy(update={"model": Part.of(tuned(world, world.model, seed))})
        release = type(release).model_validate(release.model_dump())  # its id is cached
        save_release(storage, release)
        ids.append(release.id)
    return ids[0], ids[1]


async def answer(runtime: Runtime) -> str:
    async with aclosing(runtime.stream(ASKED)) as pieces:
        return "".join([piece.text async for piece in pieces])


async def loaded(world: World, tmp_path: Path, connections: Connections, *, share: bool) -> Loader:
    from serin.core.artifacts import ArtifactStore

    store = ArtifactStore(world.uri)
    return Loader(store, connections, EngineSettings(), tmp_path / "run", 30.0, share_base=share)


def test_two_adapters_of_one_base_are_served_by_one_process(
    world: World, releases: tuple[str, str], tmp_path: Path
) -> None:
    async def apart(connections: Connections) -> list[str]:
        loader = await loaded(world, tmp_path, connections, share=False)
        runtimes = [await loader.load(release) for release in releases]
        texts = [await answer(runtime) for runtime in runtimes]
        assert runtimes[0].backend.pid != runtimes[1].backend.pid
        for runtime in runtimes:
            await loader.unload(runtime)
        loader.close()
        return texts

    async def test() -> None:
        async with Connections() as connections:
            expected = await apart(connections)
            assert expected[0] != expected[1]
            loader = await loaded(world, tmp_path, connections, share=True)
            champion, candidate = [await loader.load(release) for release in releases]
            assert champion.backend.pid == candidate.backend.pid
            assert champion.backend.state()["adapter"] == champion.release.short_id
            answers = await asyncio.gather(*(answer(one) for one in (champion, candidate, champion, candidate)))
            assert answers == expected * 2, "together as apart, and as merged"

            os.kill(champion.backend.pid or 0, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while champion.backend.alive and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            await loader.restart(champion)
            assert [await answer(champion), await answer(candidate)] == expected
            await loader.unload(candidate)
            assert await answer(champion) == expected[0]
            assert champion.backend.alive
            await loader.unload(champion)
            assert not champion.backend.alive
            loader.close()

    asyncio.run(test())


def test_a_model_without_an_adapter_has_an_engine_of_its_own(world: World, tmp_path: Path) -> None:
    async def test() -> None:
        async with Connections() as connections:
            loader = await loaded(world, tmp_path, connections, share=True)
            runtime = await loader.load(world.champion)
            assert runtime.backend.state() == {"kind": "embedded"}
            await loader.unload(runtime)
            loader.close()

    asyncio.run(test())
