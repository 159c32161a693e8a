"""Configuration files of the published code: used, named once, or refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.config.release import is_release
from demo_t2v.training.config import AnyTraining, DenoiserTraining
from helpers.released_checkout import DEEPSPEED, INFERENCE, NEGATIVE, TRAINING, write_configurations

ROOT = Path(__file__).parent.parent
CLIP = "models/modelscopet2v/open_clip_pytorch_model.bin"
VAE = "models/modelscopet2v/VQGAN_autoencoder.pth"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The two published configurations; the first process of none reads them."""
    monkeypatch.chdir(tmp_path)
    inference, training = write_configurations(tmp_path)
    return inference.relative_to(tmp_path), training.relative_to(tmp_path)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_published_inference(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    config = load(InferenceConfig, files[0])
    assert config == InferenceConfig(
        pretrained=f"models/demo/demo.pth,{VAE},{CLIP},models/demo/motion_encoder.pth",
        out="inference/DEMO_InferenceDatasetRepeat",
        infer_dataset={"csv_path": "prompts/test_prompt.csv", "repeat_times": 5},
        batch_size=16,
        decoder_bs=16,
        max_frames=16,
        resolution=(256, 256),
        guide_scale=9.0,
        ddim_timesteps=50,
        negative_prompt=NEGATIVE,
        inference_seed=42,
        dtype="auto",  # float16 on a GPU
    )
    (message,) = messages(caplog)
    told = f"{files[0]}: without a counterpart, and not used: "
    assert message.startswith(told)
    named = message.removeprefix(told).split(", ")
    assert len(named) == len(set(named)) == 20
    assert {"num_workers", "prefetch_factor", "max_words", "use_ema", "sample_fps"} <= set(named)
    assert {"deepspeed_config", "UNet.text_reweight", "Diffusion.var_type"} <= set(named)


def test_the_published_training(files: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    config = load(AnyTraining, files[1])
    assert isinstance(config, DenoiserTraining)
    model = Path(f"models/modelscopet2v/text2video_pytorch_model.pth,{VAE},{CLIP}")
    assert (config.base, config.clip, config.autoencoder) == (model, model, model)
    asked = {"type", "csv_path", "video_dir", "repeat_frames"}
    assert config.train_dataset.model_dump(include=asked) == {
        "type": "webvid",
        "csv_path": Path("data/webvid/train_sample.csv"),
        "video_dir": Path("data/webvid/videos"),
        "repeat_frames": True,
    }
    expected = {
        "log_dir": Path("workspace"), "seed": 8888, "deepspeed_config": Path(
            "ds_configs/ds_config_train.json"
        ),
        "batch_size": 16, "gradient_accumulation": 4, "lr": 5e-5, "motion_lr": 1e-6,
        "weight_decay": 0, "grad_clip": 1, "ema_decay": None, "mixed_precision": "fp16",
        "gradient_checkpointing": True, "model": {"motion": True, "dropout": 0.1},
        "resolution": 256, "num_frames": 16, "prediction_type": "epsilon",
        "p_zero": 0.1, "p_zero_motion": 0, "negative_prompt": NEGATIVE,
        "noise_strength": 0, "freeze_unet": True,
        "stop_grad_index": 10, "flow": "raft", "video_motion_space": "eps",
        "video_motion_weight": 0.1, "text_motion_weight": 0.1, "regularization_weight": 0.1,
        "num_steps": 250_000, "save_ckp_interval": 500, "log_interval": 25,
        "num_inference_steps": 50, "guidance_scale": 9,
    }  # fmt: skip
    assert config.model_dump(include=set(expected)) == expected
    unused, counted = messages(caplog)
    assert unused.startswith(f"{files[1]}: without a counterpart, and not used: noise_strength, ")
    assert {"num_workers", "use_zero_infer", "resume_step"} <= set(unused.split(", "))
    assert counted == (
        f"{files[1]}: counted in steps, of 4 micro-batches: num_steps 250000 for 1000000, "
        "save_ckp_interval 500 for 2000, log_interval 25 for 100"
    )


def test_each_process_adds_to_the_batch_and_the_first_warns(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert load(AnyTraining, files[1]).batch_size == 4 * 4 * 8
    assert messages(caplog) == []


def test_overrides_take_the_keys_of_both(files: tuple[Path, Path]) -> None:
    config = load(
        InferenceConfig,
        files[0],
        ["Pretrain.resume_checkpoint=a.pth", "use_fp16=false", "log_dir=b", "ddim_timesteps=3"],
        {"batch_size": 2, "infer_dataset.csv_path": "c.csv"},
    )
    assert config.model == f"a.pth,{VAE},{CLIP},models/demo/motion_encoder.pth"
    assert (config.out, config.dtype) == ("b/DEMO_InferenceDatasetRepeat", "float32")
    assert (config.num_inference_steps, config.batch_size) == (3, 2)
    assert (config.infer_dataset.csv_path, config.infer_dataset.repeat_times) == (Path("c.csv"), 5)
    config = load(InferenceConfig, files[0], ["pretrained=sprites", "out=d", "dtype=bfloat16"])
    assert (config.model, config.out, config.dtype) == ("sprites", "d", "bfloat16")
    config = load(
        AnyTraining,
        files[1],
        ["num_steps=2", "train_dataset.video_folder=v", "train_dataset.sample_fps=4", "flow=raft"],
    )
    assert config.num_steps == 2  # in steps: the key is this project's too
    assert (config.train_dataset.video_dir, config.train_dataset.sample_fps) == (Path("v"), 4)


def test_a_training_goes_on_from_demo(files: tuple[Path, Path]) -> None:
    config = load(
        AnyTraining,
        files[1],
        [
            "Pretrain.from_modelscope=false",
            "Pretrain.resume_checkpoint=models/demo/demo.pth",
            "motion_encoder.pretrained=models/demo/motion_encoder.pth",
        ],
    )
    name = f"models/demo/demo.pth,{VAE},{CLIP},models/demo/motion_encoder.pth"
    assert (config.base, config.clip) == (Path(name), Path(name))


def test_without_the_json_the_training_is_told_what_it_says(files: tuple[Path, Path]) -> None:
    config = load(AnyTraining, files[1], ["deepspeed_config=null"])
    assert config.deepspeed_config is None
    assert (config.lr, config.batch_size) == (5e-5, 16)  # the file says it still
    Path("ds_configs/ds_config_train.json").unlink()
    with pytest.raises(ConfigError, match=r"ds_config_train\.json: cannot be read \(No such file"):
        load(AnyTraining, files[1])
    with pytest.raises(ConfigError, match="batch_size is missing"):
        load(AnyTraining, files[1], ["deepspeed_config=null"])
    config = load(AnyTraining, files[1], ["deepspeed_config=null", "batch_size=2", "lr=0.1"])
    assert (config.batch_size, config.gradient_accumulation) == (2, 1)


def test_without_deepspeed_it_is_said_what_the_json_no_longer_sets(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    load(AnyTraining, files[1])
    assert "without DeepSpeed" not in caplog.text
    load(AnyTraining, files[1], ["deepspeed_config=null"])
    (note,) = [text for text in caplog.messages if "without DeepSpeed" in text]
    assert "not used of ds_configs/ds_config_train.json: " in note
    for key in ("optimizer.params.betas", "scheduler.type", "scheduler.params.cycle_max_lr"):
        assert key in note
    assert "optimizer.params.lr" not in note


def test_the_json_s_other_forms(files: tuple[Path, Path]) -> None:
    file = Path("ds_configs/ds_config_train.json")
    plain = {k: v for k, v in DEEPSPEED.items() if k not in ("scheduler", "gradient_clipping")}
    adam = {"type": "Adam", "params": {"lr": 1e-4, "weight_decay": 0.1}}
    file.write_text(json.dumps(plain | {"gradient_accumulation_steps": "auto", "optimizer": adam}))
    config = load(AnyTraining, files[1])
    assert (config.gradient_accumulation, config.batch_size, config.num_steps) == (1, 4, 1_000_000)
    assert (config.lr, config.weight_decay, config.grad_clip) == (1e-4, 0.1, 1.0)
    assert (config.lr_schedule, config.warmup_steps) == ("constant", 0)
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"ds_config_train\.json: is not valid JSON"):
        load(AnyTraining, files[1])
    file.write_text("[]")
    with pytest.raises(ConfigError, match="batch_size is missing"):
        load(AnyTraining, files[1])


def changed(tree: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    place, *parents, last = tree, *dotted.split(".")
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return tree


REFUSED = [
    ("Diffusion.schedule", "cosine", '"cosine" is not what DEMO was published with, "linear_sd"'),
    ("Diffusion.schedule_param.last_beta", 0.02, "0.02 is not what DEMO was published with, 0.012"),
    ("Diffusion.schedule_param.num_timesteps", 500, "results would differ"),
    ("Diffusion.schedule_param.zero_terminal_snr", True, "true is not what DEMO"),
    ("Diffusion.mean_type", "v", '"v" is not what DEMO was published with, "eps"'),
    ("Diffusion.type", "DiffusionDPM", "results would differ"),
    ("UNet.type", "UNetSD_I2VGen", '"UNetSD_I2VGen" is not what DEMO was published with'),
    ("UNet.dim_mult", [1, 2, 4], "[1, 2, 4] is not what DEMO was published with, [1, 2, 4, 4]"),
    ("UNet.head_dim", 32, "results would differ"),
    ("UNet.use_fps_condition", True, "results would differ"),
    ("UNet.temporal_attention", False, "results would differ"),
    ("embedder.layer", "last", '"last" is not what DEMO was published with, "penultimate"'),
    ("motion_encoder.layer", "last", "results would differ"),
    ("auto_encoder.embed_dim", 8, "results would differ"),
    ("scale_factor", 0.2, "0.2 is not what DEMO was published with, 0.18215"),
]


@pytest.mark.parametrize(("key", "value", "line"), REFUSED)
def test_what_would_change_results_is_refused(
    files: tuple[Path, Path], key: str, value: Any, line: str
) -> None:
    pairs = ((InferenceConfig, INFERENCE), (AnyTraining, TRAINING))
    for file, (kind, tree) in zip(files, pairs, strict=True):
        file.write_text(yaml.safe_dump(changed(tree, key, value)))
        with pytest.raises(ConfigError) as error:
            load(kind, file)
        assert str(error.value).startswith(f"{file}: {key}: ")
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("scale", 16, "scale: 16 is not what DEMO was published with, 8"),
        ("TASK_TYPE", "train_t2v_deepspeed", "is for `demo-t2v train`"),
        ("TASK_TYPE", "inference_i2v", "TASK_TYPE: inference_i2v is no task of DEMO's"),
        ("infer_dataset.type", "Other", 'infer_dataset.type: "Other" is not what'),
        ("Pretrain.from_modelscope", True, "true begins a training"),
        ("Pretrain.resume_checkpoint", None, "Pretrain.resume_checkpoint: is missing"),
        ("batch_sise", 3, "unknown key batch_sise; did you mean batch_size?"),
        ("batch_size", 0, "batch_size: "),
    ],
)
def test_a_bad_inference(files: tuple[Path, Path], key: str, value: Any, line: str) -> None:
    files[0].write_text(yaml.safe_dump(changed(INFERENCE, key, value)))
    assert_refused(InferenceConfig, files[0], line)


def assert_refused(kind: Any, file: Path, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(kind, file)
    assert str(error.value).startswith(f"{file}: ")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("TASK_TYPE", "inference_t2v_deepspeed", "is for `demo-t2v generate`"),
        ("train_dataset.type", "Other", 'train_dataset.type: "Other" is not what'),
        ("train_dataset.is_image", True, "train_dataset.is_image: true is not what"),
        ("train_dataset.resolution", [256, 448], "should be a square, as in [256, 256], got [256,"),
        ("train_dataset.csv_path", None, "csv_path is missing"),
        ("use_div_loss", True, "use_div_loss: true is not what"),
        ("clip_visual.pretrained", "a.bin", f"should be embedder.pretrained, {CLIP}"),
        ("motion_encoder.pretrained", "a.bin", f"should be embedder.pretrained, {CLIP}, because"),
    ],
)
def test_a_bad_training(files: tuple[Path, Path], key: str, value: Any, line: str) -> None:
    files[1].write_text(yaml.safe_dump(changed(TRAINING, key, value)))
    assert_refused(AnyTraining, files[1], line)


def test_what_a_file_leaves_out_is_as_in_the_published_code(tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text(
        "Pretrain: {resume_checkpoint: a.pth}\ninfer_dataset: {csv_path: a.csv}\nlog_dir: b\n"
    )
    config = load(InferenceConfig, file)
    assert (config.guidance_scale, config.infer_dataset.repeat_times) == (3.0, 5)
    assert (config.model, config.out) == ("a.pth", "b")


def test_keys_of_this_project_may_stand_among_them(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text(yaml.safe_dump(INFERENCE | {"format": "webm", "motion_strength": 0.5}))
    config = load(InferenceConfig, file)
    assert (config.format, config.motion_strength) == ("webm", 0.5)


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda f: f.stem)
def test_what_ships_is_not_taken_for_them(file: Path) -> None:
    assert not is_release(yaml.safe_load(file.read_text(encoding="utf-8")))
