"""What DeepSpeed's JSON may say of a generation."""

import json
from pathlib import Path

import pytest

from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.inference.backends.deepspeed import read_settings

ROOT = Path(__file__).parent.parent
CONFIG = InferenceConfig(device="cpu", batch_size=3)


@pytest.mark.parametrize(
    ("name", "stage"), [("inference", 0), ("inference_zero3", 3), ("inference_zero3_offload", 3)]
)
def test_what_ships(name: str, stage: int) -> None:
    settings = read_settings(ROOT / "configs" / "deepspeed" / f"{name}.json", CONFIG)
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["train_micro_batch_size_per_gpu"] == 3
    assert "bf16" not in settings


def test_the_precision_is_the_one_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "plain.json"
    file.write_text('{"bf16": {"enabled": "auto"}, "train_batch_size": "auto"}')
    settings = read_settings(file, CONFIG.model_copy(update={"dtype": "bfloat16"}))
    assert settings["bf16"] == {"enabled": True}
    assert settings["zero_optimization"] == {"stage": 0}
    assert "train_batch_size" not in settings


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "is not valid JSON"),
        ("[]", "should hold a JSON object"),
        (json.dumps({"zero_optimization": {"stage": 2}}), "stage should be 0 or 3"),
        (json.dumps({"optimizer": {"type": "Adam"}}), "optimizer is for a training"),
        (json.dumps({"fp16": {"enabled": True}}), "fp16: say `dtype`"),
        (json.dumps({"bf16": True}), "bf16: should be an object"),
    ],
)
def test_what_cannot_be(tmp_path: Path, content: str, line: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_settings(file, CONFIG)
    assert line in str(error.value)
    assert str(error.value).startswith(str(file))


@pytest.mark.parametrize("change", [{"offload": "model"}, {"max_memory": 1}, {"lora": "a"}])
def test_what_does_not_go_with_it(change: dict[str, object]) -> None:
    file = ROOT / "configs" / "deepspeed" / "inference.json"
    with pytest.raises(ConfigError, match="leave out lora, offload and max_memory"):
        read_settings(file, CONFIG.model_copy(update=change))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "none.json", CONFIG)
