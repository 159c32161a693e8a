"""Configurations: precedence, and one clear line for each mistake."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.training.config import AnyTraining

ROOT = Path(__file__).parent.parent


def write(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_order_of_precedence(tmp_path: Path) -> None:
    file = write(tmp_path, "fps: 10\nbatch_size: 3\nddim_timesteps: 20\ninfer_dataset:\n")
    config = load(
        InferenceConfig,
        file,
        ["ddim_timesteps=40", "infer_dataset.csv_path=a.csv"],
        {"batch_size": 2, "ddim_timesteps": 30, "infer_dataset.repeat_times": 5},
    )
    assert config.format == "mp4"  # the default
    assert config.fps == 10  # the file
    assert config.batch_size == 2  # the option
    assert config.ddim_timesteps == 40  # the override
    assert config.infer_dataset.repeat_times == 5
    assert config.infer_dataset.csv_path == Path("a.csv")


def test_overrides_are_yaml() -> None:
    config = load(InferenceConfig, None, ["resolution=[64, 96]", "negative_prompt='a: b=c'"])
    assert config.resolution == (64, 96)
    assert config.negative_prompt == "a: b=c"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("guide_scal: 3", "unknown key guide_scal; did you mean guide_scale?"),
        ("xyz: 3", "unknown key xyz; known are infer_dataset.type, infer_dataset.csv_path, infer"),
        ("infer_dataset: {csv: a}", "infer_dataset.csv; did you mean infer_dataset.csv_path?"),
        ("fps: fast", "fps: input should be a valid integer"),
        ("fps: 0", "fps: input should be greater than or equal to 1, got 0"),
        ("guide_scale: .inf", "guide_scale: input should be a finite number"),
        ("format: avi", "format: input should be 'mp4', 'webm', 'gif' or 'png', got 'avi'"),
        ("resolution: 64", "resolution: input should be a valid tuple, got 64"),
        ("resolution: [64, 4]", "resolution: input should be greater than or equal to 8, got 4"),
        ("- a\n- b", "should hold `key: value` lines, not a list"),
        ("fps: [1\nformat: x", "line 2: is not valid YAML"),
        ("out: 2024-02-30", ": is not valid YAML"),  # a date that is none
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, line: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load(InferenceConfig, file)
    message = str(error.value)
    assert message.startswith(str(file))
    assert line in message
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("negative_prompt: schön".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: is not UTF-8"):
        load(InferenceConfig, tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read \(No such file"):
        load(InferenceConfig, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("overrides", "options", "line"),
    [
        (["fsp=3"], {}, "the command line: unknown key fsp; did you mean fps?"),
        (["fps=0"], {}, "the command line: fps: "),
        ([], {"fps": 0}, "the command line: fps: "),
        (["resolution=[1,2]"], {}, "the command line: resolution: "),
        (["fps=[1"], {}, "fps=[1: the value is not valid YAML"),
        (["out=2024-02-30"], {}, "out=2024-02-30: the value is not valid YAML"),
        (["fps.a=1"], {}, "fps.a: fps is a value"),
        (["=1"], {}, "'=1' is no override: write key=value"),
    ],
)
def test_a_bad_command_line(
    tmp_path: Path, overrides: list[str], options: dict[str, Any], line: str
) -> None:
    file = write(tmp_path, "fps: 8")
    with pytest.raises(ConfigError) as error:
        load(InferenceConfig, file, overrides, options)
    assert str(error.value).startswith(line)


def test_a_training_configuration_names_its_own_keys(tmp_path: Path) -> None:
    file = write(tmp_path, "task: clip\nlog_dir: a\nnum_steps: 1\nbatch_size: 1\nlr: 1\nlrr: 2")
    with pytest.raises(ConfigError, match="unknown key lrr; did you mean lr"):
        load(AnyTraining, file)
    with pytest.raises(ConfigError, match="num_steps is missing"):
        load(AnyTraining, write(tmp_path, "task: clip\nlog_dir: a"))
    with pytest.raises(ConfigError, match="'autoencoder', 'clip', 'denoiser'"):
        load(AnyTraining, write(tmp_path, "task: sleep"))


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda f: f.stem)
def test_every_configuration_that_ships_loads(file: Path) -> None:
    kind = AnyTraining if "task" in yaml.safe_load(file.read_text()) else InferenceConfig
    load(kind, file)
