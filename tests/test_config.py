"""Configurations: precedence, and one clear line for each mistake."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.evaluation.protocol import EvaluationProtocol
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
        {"batch_size": 2, "num_inference_steps": 30, "infer_dataset.repeat_times": 5},
    )
    assert config.format == "mp4"  # the default
    assert config.fps == 10  # the file
    assert config.batch_size == 2  # the option
    assert config.num_inference_steps == 40  # the override
    assert config.infer_dataset.repeat_times == 5
    assert config.infer_dataset.csv_path == Path("a.csv")


def test_the_names_of_the_release_are_aliases(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "pretrained: mine\nddim_timesteps: 20\nguide_scale: 5\nmax_frames: 8\ndecoder_bs: 2\n"
        "inference_seed: 7\nresolution: [64, 96]\n",
    )
    config = load(InferenceConfig, file, ["ddim_timesteps=40", "width=128"], {"num_frames": 4})
    assert config.model == "mine"
    assert config.num_inference_steps == 40  # by either name an override counts more
    assert config.guidance_scale == 5
    assert config.num_frames == 4
    assert (config.decode_chunk_size, config.seed) == (2, 7)
    assert (config.height, config.width) == (64, 128)
    assert InferenceConfig(pretrained="mine", resolution=(64, 96)).width == 96


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "max_frames: 4\nnum_frames: 4",
            "max_frames and num_frames are two names of one key; keep",
        ),
        ("model: a\npretrained: a", "model and pretrained are two names of one key; keep model"),
        ("resolution: [64, 64]\nheight: 64", "resolution and height are two names of one key"),
    ],
)
def test_two_names_of_one_key(tmp_path: Path, text: str, line: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=f"{re.escape(str(file))}: {line}"):
        load(InferenceConfig, file)
    with pytest.raises(ConfigError, match="the command line: max_frames and num_frames are two"):
        load(InferenceConfig, None, ["max_frames=4", "num_frames=4"])


def test_overrides_are_yaml() -> None:
    config = load(InferenceConfig, None, ["resolution=[64, 96]", "negative_prompt='a: b=c'"])
    assert (config.height, config.width) == (64, 96)
    assert config.negative_prompt == "a: b=c"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("guide_scal: 3", "unknown key guide_scal; did you mean guide_scale?"),
        ("xyz: 3", "unknown key xyz; known are infer_dataset.type, infer_dataset.csv_path, infer"),
        ("infer_dataset: {csv: a}", "infer_dataset.csv; did you mean infer_dataset.csv_path?"),
        ("fps: fast", "fps: should be a whole number, not fast"),
        ("fps: 0", "fps: should be at least 1, not 0"),
        ("guide_scale: .inf", "guide_scale: should be a number, not .inf"),
        ("format: avi", "format: should be one of mp4, webm, gif or png, not avi"),
        ("resolution: 64", "resolution: should be [height, width], not 64"),
        ("resolution: [64, 4]", "resolution: should be at least 8, not 4"),
        ("- a\n- b", "should hold `key: value` lines, not a list"),
        ("fps: [1\nformat: x", "line 2: is not valid YAML"),
        ("guide_scale: inf", "guide_scale: should be a finite number, not inf"),
        ("lora_strength: nan", "lora_strength: should be a finite number, not nan"),
        ("fps: yes", "fps: should be a whole number, not yes"),
        ("fps: 2026-11-28", "fps: should be a whole number, not 2026-11-28"),
        ("fps: '8'x", "is not valid YAML"),
        ("fps: {a: 1}", "fps: should be a whole number, not {'a': '1'}"),
        ("fps:", "fps: should be a whole number, not nothing"),
        ("guide_scale: much", "guide_scale: should be a number, not much"),
        ("max_frames: 257", "max_frames: should be at most 256, not 257"),
        ("inference_seed: 9223372036854775808", "should be less than 9223372036854775808"),
        ("resolution: [64]", "resolution: should be [height, width], not [64]"),
        ("resolution: [8, 8, 8]", "resolution: should be [height, width], not [8, 8, 8]"),
        ("infer_dataset: no", "infer_dataset: should be keys of its own, as in {key: value}"),
        ("negative_prompt: [a]", "negative_prompt: should be a text, not ['a']"),
        ("out: [a]", "out: should be a text, not ['a']"),
        ("out: ''", "out: should not be empty, not ''"),
        ("infer_dataset: {csv_path: [a]}", "infer_dataset.csv_path: should be a path, not ['a']"),
        ("max_memory: lots", "max_memory: should be a size such as 8GB, 512MB or 7.5GiB, not lots"),
        ("fps: 8\nout: a\nfps: 9", "line 3: has the key fps twice"),
        ("infer_dataset:\n  type: csv\n  type: csv", "line 3: has the key type twice"),
        ("no", "should hold `key: value` lines, not a text"),
        (f"resolution: {'[' * 1500}", "is not valid YAML"),
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
        (["resolution=[1: 2"], {}, "resolution=[1: 2: the value is not valid YAML"),
        (["out="], {}, "the command line: out: should not be empty"),
        (["fps=no"], {}, "the command line: fps: should be a whole number, not no"),
        (["fps.a=1"], {}, "fps.a: fps is a value"),
        (["=1"], {}, "'=1' is not an override; write key=value"),
    ],
)
def test_a_bad_command_line(
    tmp_path: Path, overrides: list[str], options: dict[str, Any], line: str
) -> None:
    file = write(tmp_path, "fps: 8")
    with pytest.raises(ConfigError) as error:
        load(InferenceConfig, file, overrides, options)
    assert str(error.value).startswith(line)


TEXTS = [
    "no",
    "off",
    "true",
    "null",
    "2026-11-28",
    "2024-02-30",
    "123",
    "1e3",
    "0x1F",
    "1:30",
    ".5",
]


@pytest.mark.parametrize("typed", TEXTS)
def test_a_text_is_what_was_typed(tmp_path: Path, typed: str) -> None:
    quoted = f"'{typed}'" if typed == "null" else typed
    keys = ("out", "model", "negative_prompt", "motion_prompt")
    file = write(tmp_path, "".join(f"{key}: {quoted}\n" for key in keys))
    for config in (
        load(InferenceConfig, file),
        load(InferenceConfig, None, [f"{key}={quoted}" for key in keys]),
    ):
        assert [getattr(config, key) for key in keys] == [typed] * 4
    sources = [f"infer_dataset.csv_path={typed}", f"negative_prompt= {quoted} "]
    config = load(InferenceConfig, None, sources)
    if typed in ("no", "off", "null"):
        assert config.infer_dataset.csv_path is None
    else:
        assert config.infer_dataset.csv_path == Path(typed)
    assert config.negative_prompt == typed


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("red #1 car: [fast]", "red #1 car: [fast]"),
        ("[a", "[a"),
        ("@ 50%", "@ 50%"),
        ("'tis ugly", "'tis ugly"),
        ('"ugly" or blurry', '"ugly" or blurry'),
        ('"null"', "null"),
        ("~", "~"),
        ("", ""),
    ],
)
def test_an_override_of_a_text_needs_no_yaml(typed: str, text: str) -> None:
    for key in ("negative_prompt", "motion_prompt"):
        assert getattr(load(InferenceConfig, None, [f"{key}={typed}"]), key) == text


DENOISER = """
task: denoiser
log_dir: 2026-11-28
num_steps: 1_000
batch_size: 1
lr: 1e-4
autoencoder: 1
clip: 2
"""


def test_words_and_places_of_a_training(tmp_path: Path) -> None:
    text = (
        "mixed_precision: no\nwandb: no\ntensorboard: off\nstills: yes\nencode_text: 'off'\n"
        "preview_prompts: [no, 1]\nmodel: {motion: no, layers_per_block: 2, name: a}\n"
        "train_dataset:\n  type: custom\n  class: a:B\n"
        "  args: {1: on, day: 2024-02-30, q: 'no', deep: [{2: 0.5}]}\n"
    )
    config = load(AnyTraining, write(tmp_path, DENOISER + text))
    assert config.mixed_precision == "no"
    assert config.wandb is None
    assert config.tensorboard is None
    assert config.stills is True
    assert config.encode_text is False
    assert config.preview_prompts == ("no", "1")
    assert config.model == {"motion": False, "layers_per_block": 2, "name": "a"}
    args = {"1": True, "day": "2024-02-30", "q": "no", "deep": [{2: 0.5}]}
    assert config.train_dataset.args == args
    assert config.log_dir == Path("2026-11-28")
    assert config.autoencoder == Path("1")
    assert (config.num_steps, config.lr) == (1000, 1e-4)


@pytest.mark.parametrize("word", ["no", "off", "Off", "false", "none", "null", ""])
def test_what_is_switched_off(tmp_path: Path, word: str) -> None:
    keys = {"tensorboard": None, "wandb": None, "deepspeed_config": None, "base": None}
    lines = "".join(f"{key}: {word}\n" for key in keys)
    file = write(tmp_path, DENOISER + "train_dataset: {type: sprites}\n" + lines)
    assert load(AnyTraining, file).model_dump(include=set(keys)) == keys
    file = write(tmp_path, DENOISER + "train_dataset: {type: sprites}")
    overrides = [f"{key}={word}" for key in keys]
    assert load(AnyTraining, file, overrides).model_dump(include=set(keys)) == keys
    assert load(InferenceConfig, None, [f"lora={word}"]).lora is None


def test_quoted_words_are_names(tmp_path: Path) -> None:
    text = "train_dataset: {type: sprites}\ntensorboard: 'off'\nwandb: \"no\"\n"
    config = load(AnyTraining, write(tmp_path, DENOISER + text))
    assert (config.tensorboard, config.wandb) == (Path("off"), "no")


def test_home_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    file = write(
        tmp_path, "out: ~/videos\nlora: ~/a.safetensors\ninfer_dataset: {csv_path: ~/p.csv}"
    )
    config = load(InferenceConfig, file, ["pretrained=~/model", "deepspeed_config=~/d.json"])
    assert config.out == "/home/ada/videos"
    assert config.lora == "/home/ada/a.safetensors"
    assert config.model == "/home/ada/model"
    assert config.infer_dataset.csv_path == Path("/home/ada/p.csv")
    assert config.deepspeed_config == Path("/home/ada/d.json")
    assert load(InferenceConfig, None, ["out=~"]).out == "/home/ada"
    assert load(InferenceConfig, None, (), {"out": "~/x"}).out == "/home/ada/x"
    for text in ("motion_prompt=~/x", "negative_prompt=~/x"):
        assert "~/x" in str(load(InferenceConfig, None, [text]))
    data = "train_dataset: {type: webvid, csv_path: ~/c.csv, video_dir: ~/v}\nlatents: ~/l\n"
    training = load(AnyTraining, write(tmp_path, DENOISER + data), ["log_dir=~/run", "base=~/b"])
    assert training.log_dir == Path("/home/ada/run")
    assert training.base == Path("/home/ada/b")
    assert training.latents == Path("/home/ada/l")
    assert training.train_dataset.csv_path == Path("/home/ada/c.csv")
    assert training.train_dataset.video_dir == Path("/home/ada/v")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "train_dataset: {type: films}",
            "train_dataset.type: should be one of sprites, webvid, sh",
        ),
        ("train_dataset: {clips: 3}", "train_dataset.type is missing"),
        (
            "train_dataset: no",
            "train_dataset: should be keys of its own, as in {key: value}, not no",
        ),
        (
            "train_dataset: {type: custom, class: a}",
            "train_dataset.class: should be package.module",
        ),
        (
            "train_dataset: {type: sprites, emphasis: {fly: 2}}",
            "there is no thing or motion 'fly'; there",
        ),
        ("train_dataset: {type: sprites}\nlr: inf", "lr: should be a finite number, not inf"),
        ("train_dataset: {type: sprites}\nlr: 0", "lr: should be more than 0, not 0"),
        ("train_dataset: {type: sprites}\nstills: 3", "stills: should be true or false, not 3"),
        ("train_dataset: {type: sprites}\nema_decay: 1", "ema_decay: should be less than 1, not 1"),
        (
            "train_dataset: {type: sprites}\npreview_prompts: a",
            "should be a list, as in [a, b], no",
        ),
        (
            "train_dataset: {type: sprites}\nmodel: 3",
            "model: should be keys of its own, as in {key",
        ),
    ],
)
def test_a_bad_training(tmp_path: Path, text: str, line: str) -> None:
    file = write(
        tmp_path, (DENOISER + text).replace("lr: 1e-4\n", "" if "lr:" in text else "lr: 1\n")
    )
    with pytest.raises(ConfigError) as error:
        load(AnyTraining, file)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_training_configuration_names_its_own_keys(tmp_path: Path) -> None:
    file = write(tmp_path, "task: clip\nlog_dir: a\nnum_steps: 1\nbatch_size: 1\nlr: 1\nlrr: 2")
    with pytest.raises(ConfigError, match="unknown key lrr; did you mean lr"):
        load(AnyTraining, file)
    with pytest.raises(ConfigError, match="num_steps is missing"):
        load(AnyTraining, write(tmp_path, "task: clip\nlog_dir: a"))
    with pytest.raises(ConfigError, match="task: should be one of autoencoder, student, cl"):
        load(AnyTraining, write(tmp_path, "task: sleep"))


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda f: f.stem)
def test_every_configuration_that_ships_loads(file: Path) -> None:
    if file.parent.name == "evaluation":
        kind = EvaluationProtocol
    else:
        kind = AnyTraining if "task" in yaml.safe_load(file.read_text()) else InferenceConfig
    load(kind, file)
