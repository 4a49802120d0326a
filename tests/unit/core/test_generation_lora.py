"""Adapters: each row of a batch gets its own, and what it would get from PEFT."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from serin.core.errors import InputError
from serin.core.generation import Decoder, Generator, Row
from serin.core.generation.lora import WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def generator(tiny_model: Path) -> Generator:
    return Generator.load(tiny_model)


def make_adapter(model_dir: Path, folder: Path, seed: int, **config) -> Path:
    """An adapter with random weights, written by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 16, "target_modules": ALL, "init_lora_weights": False} | config
    get_peft_model(Generator.load(model_dir).model, LoraConfig(task_type="CAUSAL_LM", **options)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(tiny_model, home / "all", 1),
        make_adapter(tiny_model, home / "some", 2, target_modules=["q_proj", "v_proj"], r=2, use_rslora=True),
        make_adapter(tiny_model, home / "ranks", 3, rank_pattern={"k_proj": 6}, alpha_pattern={"k_proj": 3}),
    ]


def rows_of(generator: Generator, adapter) -> list[Row]:
    texts = ("Hello", "Where is my order?", "Can I return the kettle that I bought three weeks ago?")
    return [
        generator.row([{"role": "user", "content": text}], max_new_tokens=16, adapter=adapter, logprobs=0)
        for text in texts
    ]


def decoded(generator: Generator, rows: list[Row]) -> list[list[int]]:
    decoder = Decoder(generator, prefix_cache_bytes=1 << 20)
    decoder.join(rows)
    while decoder.rows:
        decoder.step()
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.tokens for row in rows]


def test_a_mixed_batch_gives_every_row_what_peft_gives_its_adapter(generator, folders, tiny_model):
    from peft import PeftModel

    adapters = [generator.adapter(folder.name, folder) for folder in folders]
    mixed = [rows_of(generator, adapter) for adapter in [None, *adapters]]
    shuffled = [row for group in zip(*mixed, strict=True) for row in group]
    decoded(generator, shuffled)
    assert len({tuple(row.tokens) for row in shuffled}) == len(shuffled), "some adapter changed nothing"
    for folder, rows in zip([None, *folders], mixed, strict=True):
        model = Generator.load(tiny_model).model
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
        expected = rows_of(generator, None)
        decoded(Generator(model, generator.tokenizer), expected)
        assert [row.tokens for row in rows] == [row.tokens for row in expected]
        for row, other in zip(rows, expected, strict=True):
            assert [s.chosen for s in row.scores] == pytest.approx([s.chosen for s in other.scores], abs=1e-3)


def test_other_adapters_in_the_batch_change_scores_by_rounding_only(generator, folders):
    first, second = (generator.adapter(folder.name, folder) for folder in folders[:2])
    alone, mixed = rows_of(generator, first), rows_of(generator, first)
    decoded(generator, alone)
    decoded(generator, [*rows_of(generator, second), *mixed, *rows_of(generator, None)])
    assert [row.tokens for row in mixed] == [row.tokens for row in alone]
    for row, other in zip(mixed, alone, strict=True):
        assert [s.chosen for s in row.scores] == pytest.approx([s.chosen for s in other.scores], abs=1e-4)


def test_prompts_run_under_one_adapter_are_not_reused_under_another(generator, folders):
    adapters = [None, *(generator.adapter(folder.name, folder) for folder in folders[:2])]
    expected = [decoded(generator, rows_of(generator, adapter)) for adapter in adapters]
    decoder = Decoder(generator, prefix_cache_bytes=1 << 20)
    for _ in range(2):
        for adapter, tokens in zip(adapters, expected, strict=True):
            rows = rows_of(generator, adapter)
            decoder.join(rows)
            while decoder.rows:
                decoder.step()
            assert [row.tokens for row in rows] == tokens


def test_what_cannot_be_applied_is_refused_by_name(generator, folders, tiny_model, tmp_path):
    dora = make_adapter(tiny_model, tmp_path / "dora", 4, use_dora=True)
    with pytest.raises(InputError, match="use_dora"):
        generator.adapter("dora", dora)
    head = make_adapter(tiny_model, tmp_path / "head", 5)
    weights = load_file(head / WEIGHTS)
    save_file({**weights, "base_model.model.lm_head.lora_A.weight": weights[min(weights)].clone()}, head / WEIGHTS)
    with pytest.raises(InputError, match="lm_head"):
        generator.adapter("head", head)
    with pytest.raises(InputError, match="cannot be read"):
        generator.adapter("none", tmp_path)


def test_an_adapter_of_another_model_is_refused(generator, folders, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {key: value.repeat(2, 2) for key, value in load_file(folders[0] / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(InputError, match="does not fit"):
        generator.adapter("other", folder)
