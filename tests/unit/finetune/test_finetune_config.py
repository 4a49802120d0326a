"""Settings that fit together, and what of them decides the model."""

from typing import Any

import pytest

from serin.core.errors import ConfigError, UnavailableError
from serin.finetune.config import FinetuneConfig
from serin.finetune.objectives import ObjectiveSpec
from serin.finetune.quantized import require_quantization


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "qlora", "strategy": "fsdp2"}, "a base in 4 bits cannot be sharded"),
        ({"method": "qlora", "device": "cpu"}, "method qlora needs a gpu"),
        ({"objective": "ppo"}, "'objective' is 'ppo'"),
        ({"dpo_beta": 0}, "'dpo_beta' is 0"),
        ({"prices": {"lamp": {"usd_per_hour": 1}}}, "'prices.lamp.memory_gib' is"),
        ({"prices": {"lamp": {"memory_gib": 1, "gpu": "x"}}}, "'prices.lamp.gpu' is not a setting"),
        ({"micro_batch_tokens": 3}, "'micro_batch_tokens' is 3"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        FinetuneConfig.load(values)


def test_the_objective_is_a_setting_of_the_model_and_the_machine_is_not() -> None:
    plain = FinetuneConfig()
    assert plain.model_copy(update={"objective": "dpo"}).identity() != plain.identity()
    how: dict[str, Any] = {"strategy": "fsdp2", "micro_batch_tokens": 64, "prices": {"a": {"memory_gib": 1}}}
    assert FinetuneConfig.load(how).identity() == plain.identity()
    stopping = FinetuneConfig(early_stopping_patience=2)
    assert stopping.identity() != stopping.model_copy(update={"validation_interval": 7}).identity()


def test_beta_decides_only_with_dpo() -> None:
    assert FinetuneConfig(dpo_beta=0.3).identity() == FinetuneConfig().identity()
    dpo = FinetuneConfig(objective="dpo", dpo_beta=0.3)
    assert dpo.objective_spec() == ObjectiveSpec(kind="dpo", beta=0.3)
    assert dpo.identity() != FinetuneConfig(objective="dpo").identity()


def test_a_price_table_survives_kfp() -> None:
    config = FinetuneConfig.load({"prices": {"lamp": {"memory_gib": 80, "usd_per_hour": 2, "tflops": 300}}})
    assert FinetuneConfig.load(config.parameters()) == config


def test_four_bits_without_a_gpu_are_refused_with_the_way_out() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UnavailableError, match=r"needs a GPU and this machine has none: set finetune\.method to lora"):
        require_quantization()
