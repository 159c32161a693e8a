"""The stages of training, in order, tiny: real clips, real files."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from demo_t2v import config as configs
from demo_t2v.config import ConfigError
from demo_t2v.data.sprites import draw_clip
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.config import AnyTraining
from demo_t2v.training.data.feature_cache import encode_clips
from demo_t2v.training.optimizers import rate_factor
from demo_t2v.training.trainer import train
from helpers.published_layout import NEGATIVE_PROMPT
from helpers.stages import (
    AUTOENCODER,
    CLIP,
    DENOISER,
    assert_same_weights,
    load,
    metrics,
    prepared_task,
    run,
    weights,
)

pytestmark = pytest.mark.usefixtures("small_chunks")
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("stage", ["autoencoder", "clip", "base", "demo"])
def test_every_stage_leaves_its_files(stages: Path, stage: str) -> None:
    names = {file.name for file in (stages / stage).iterdir()}
    assert names == {"checkpoints", "final", "metrics.jsonl"}
    config = yaml.safe_load((stages / f"{stage}.yaml").read_text())
    lines = metrics(stages / stage)
    assert [line["step"] for line in lines] == list(range(2, config["num_steps"] + 1, 2))
    assert all(np.isfinite(value) for line in lines for value in line.values())


def test_a_few_dozen_steps_make_a_better_autoencoder(stages: Path) -> None:
    task = prepared_task(load(stages, AUTOENCODER, "autoencoder"))
    unseen = task.batch(range(4000, 4016))
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(task.loss(unseen)[0].item())
        trained = AutoencoderKL.from_pretrained(stages / "autoencoder/final/vae")
        task.model.load_state_dict(trained.state_dict())
    assert losses[1] < 0.8 * losses[0]


def test_the_autoencoder_scales_its_latents_to_unit_variance(stages: Path) -> None:
    vae = AutoencoderKL.from_pretrained(stages / "autoencoder/final/vae")
    assert vae.config.sample_size == 32
    clips = encode_clips(load(stages, DENOISER, "base"))
    latents = torch.stack([clips[index][1]["latents"] for index in range(len(clips))])
    assert 0.5 < latents.float().std() < 2


def test_clip_leaves_an_encoder_and_its_tokenizer(stages: Path) -> None:
    final = stages / "clip/final"
    tokenizer = CLIPTokenizer.from_pretrained(final / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(final / "content_encoder")
    assert encoder.config.vocab_size == len(tokenizer)
    assert encoder.config.eos_token_id == tokenizer.eos_token_id != 2
    whole = load_file(final / "clip/model.safetensors")
    for name, tensor in encoder.state_dict().items():
        matches = [w for key, w in whole.items() if key in (name, f"text_model.{name}")]
        assert any(torch.equal(tensor, match) for match in matches), name


def test_an_image_tower_can_be_learned_for_a_text_tower_that_stays(stages: Path) -> None:
    sizes = {"model": {"vision_config": CLIP["model"]["vision_config"]}, "lr": 1e-2}
    config = load(stages, CLIP | sizes, "image", f"text={stages}/clip/final", "num_steps=30")
    lines = run(config)
    assert lines[-1]["loss"] < lines[0]["loss"]
    final = config.log_dir / "final"
    assert_same_weights(final / "content_encoder", stages / "clip/final/content_encoder")
    model = CLIPModel.from_pretrained(final / "clip")
    ids = prepared_task(config).tokens(["a car falls"])
    states = model.text_model(input_ids=ids).pooler_output
    assert torch.allclose(model.get_text_features(input_ids=ids).pooler_output, states)


@pytest.mark.parametrize(("stage", "motion"), [("base", False), ("demo", True)])
def test_the_trained_folder_is_a_pipeline(stages: Path, stage: str, motion: bool) -> None:
    pipeline = DemoPipeline.from_pretrained(stages / stage / "final")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.motion is motion
    assert (pipeline.motion_encoder is not None) is motion
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    frames = pipeline("a car falls in the snow", num_inference_steps=3).frames
    assert frames.shape == (1, 4, 32, 32, 3)
    assert np.isfinite(frames).all()


def test_the_defaults_of_the_base_stay_unless_others_are_given(
    stages: Path, tmp_path: Path
) -> None:
    def defaults(*words: str) -> tuple[object, ...]:
        made = prepared_task(load(stages, DENOISER, "defaults", *words)).pipeline().config
        interval = made.guidance_interval
        return made.num_inference_steps, made.guidance_scale, tuple(interval)

    base = tmp_path / "base"
    shutil.copytree(stages / "base/final", base)
    file = base / "model_index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    index |= {"num_inference_steps": 7, "guidance_scale": 3.5, "guidance_interval": [0.25, 0.75]}
    file.write_text(json.dumps(index), encoding="utf-8")
    assert defaults() == (20, 4.0, (0.0, 1.0))
    assert defaults(f"base={base}") == (7, 3.5, (0.25, 0.75))
    words = "num_inference_steps=9", "guidance_interval=[0.5, 1]"
    assert defaults(f"base={base}", *words) == (9, 3.5, (0.5, 1.0))


def test_demo_starts_as_copies_of_the_base(stages: Path) -> None:
    base = DemoUNet.from_pretrained(stages / "base/final/unet")
    config = load(stages, DENOISER, "fresh", f"base={stages}/base/final", "model={motion: true}")
    task = prepared_task(config)
    assert task.unet.config.motion is True
    state = task.unet.state_dict()
    for name, tensor in base.state_dict().items():
        assert torch.equal(state[name], tensor), name
        if ".attentions." in name:
            assert torch.equal(state[name.replace("attentions", "motion_attentions")], tensor), name
    content, motion = task.condition.content_encoder, task.condition.motion_encoder
    assert motion is not content
    theirs = content.state_dict()
    for name, weight in motion.named_parameters():
        assert torch.equal(weight, theirs[name])
        assert weight.requires_grad == (".layers.1." not in name)  # the penultimate states are used
    assert not any(weight.requires_grad for weight in content.parameters())


def test_demo_trains_the_motion_encoder_and_leaves_the_content_encoder(stages: Path) -> None:
    before = weights(stages / "clip/final/content_encoder")
    assert_same_weights(
        stages / "demo/final/content_encoder", stages / "clip/final/content_encoder"
    )
    moved = weights(stages / "demo/final/motion_encoder")
    assert any(not torch.equal(moved[name], before[name]) for name in before)
    steps = [(moved[name] - before[name]).abs().max().item() for name in before]
    assert max(steps) < 1e-3  # eight steps of its own, lower rate


@pytest.mark.parametrize(
    ("stage", "steps", "interval"),
    [(AUTOENCODER, 8, 1), (AUTOENCODER, 8, 3), (CLIP, 5, 1), (DENOISER, 6, 3)],
    ids=["autoencoder-1", "autoencoder-3", "clip-1", "denoiser-3"],
)
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(
    stages: Path, tmp_path: Path, stage: dict[str, Any], steps: int, interval: int
) -> None:
    """Stopped between two checkpoints; with interval 3 the checkpoints lie between log lines."""
    times = (f"num_steps={steps}", f"log_interval={interval}", "save_ckp_interval=2")
    for name in ("autoencoder", "clip", "latents"):
        (tmp_path / name).symlink_to(stages / name)
    whole, parts = (load(tmp_path, stage, name, *times) for name in ("whole", "parts"))
    run(whole)
    stopped = train(prepared_task(parts), parts)
    assert len(list(islice(stopped, 3 // interval))) == 3 // interval
    stopped.close()
    assert [place.name for place in (parts.log_dir / "checkpoints").iterdir()] == ["00000002"]
    assert not (parts.log_dir / "final").exists()
    torch.manual_seed(99)  # whatever was drawn in between
    run(parts)
    assert_same_weights(parts.log_dir / "final", whole.log_dir / "final")
    assert metrics(parts.log_dir) == metrics(whole.log_dir)
    assert len(metrics(whole.log_dir)) == steps // interval


def test_the_seed_decides(tmp_path: Path) -> None:
    runs = [
        load(tmp_path, AUTOENCODER, f"run{number}", "num_steps=2", f"seed={seed}")
        for number, seed in enumerate((1, 1, 2))
    ]
    for config in runs:
        run(config)
    first, again, other = (config.log_dir / "final" for config in runs)
    assert_same_weights(first, again)
    ours, theirs = weights(first), weights(other)
    assert all(not torch.equal(ours[n], theirs[n]) for n in ours if n.endswith("conv1.weight"))


def test_a_finished_training_is_only_exported_again(tmp_path: Path) -> None:
    config = load(tmp_path, AUTOENCODER, "short", "num_steps=2")
    run(config)
    first, lines = weights(config.log_dir / "final"), metrics(config.log_dir)
    assert run(config) == []
    again = weights(config.log_dir / "final")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert metrics(config.log_dir) == lines


def test_a_log_line_that_was_cut_short_is_dropped(tmp_path: Path) -> None:
    config = load(tmp_path, AUTOENCODER, "cut", "num_steps=4", "save_ckp_interval=2")
    stopped = train(prepared_task(config), config)
    next(stopped)
    stopped.close()
    with (config.log_dir / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    run(config)
    assert [line["step"] for line in metrics(config.log_dir)] == [2, 4]


def test_the_first_autoencoder_steps_see_squares_round_the_thing(tmp_path: Path) -> None:
    task = prepared_task(
        load(tmp_path, AUTOENCODER, "ae", "crop=16", "crop_steps=3", "batch_size=8")
    )
    squares, whole = task.batch(range(16, 24)), task.batch(range(24, 32))
    assert squares.shape == (8, 3, 16, 16)
    assert whole.shape == (8, 3, 32, 32)
    # A quarter of the area holds the thing, so it varies more than the whole does.
    frames, crops = task.batch(range(24, 72)), task.batch(range(48))
    assert crops.std(dim=(2, 3)).mean() > 1.2 * frames.std(dim=(2, 3)).mean()


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("configs/sprites/*.yaml")), ids=lambda file: file.stem
)
def test_the_shipped_stages_load(file: Path) -> None:
    config = configs.load(AnyTraining, file)
    assert config.log_dir == Path("runs/sprites") / file.stem


def test_the_release_s_keys_are_aliases(tmp_path: Path) -> None:
    plain = load(tmp_path, DENOISER, "run")
    words = "max_frames=8", "ddim_timesteps=30", "guide_scale=3"
    named = {"num_frames": 8, "num_inference_steps": 30, "guidance_scale": 3.0}
    assert load(tmp_path, DENOISER, "run", *words) == plain.model_copy(update=named)
    with pytest.raises(ConfigError, match="max_frames and num_frames are two names of one key"):
        load(tmp_path, DENOISER, "run", "max_frames=8", "num_frames=8")


def test_the_full_size_training_loads() -> None:
    config = configs.load(AnyTraining, ROOT / "configs/train.yaml")
    assert config.train_dataset.type == "webvid"
    assert config.deepspeed_config is not None
    assert (ROOT / config.deepspeed_config).is_file()
    assert (config.p_zero, config.p_zero_motion) == (0.1, 0)
    assert (config.noise_strength, config.stop_grad_index) == (0, 10)
    assert (config.video_motion_space, config.flow) == ("eps", "raft")
    assert (config.weight_decay, config.betas, config.eps) == (0, (0.9, 0.999), 1e-8)
    assert config.train_dataset.repeat_frames
    peak, floor = config.lr, config.lr * config.lr_floor
    assert (peak, floor) == pytest.approx((5e-5, 1e-5))
    assert [rate_factor(config, step) for step in (0, 2000, 4000)] == pytest.approx([0.2, 1, 0.2])
    assert config.negative_prompt == NEGATIVE_PROMPT


def test_a_text_tower_goes_on_with_sheets_of_frames(stages: Path) -> None:
    sizes = {"model": {"vision_config": CLIP["model"]["vision_config"]}, "lr": 1e-2}
    keys = f"text={stages}/clip/final", "freeze_text=false", "frames_per_side=2", "num_steps=30"
    config = load(stages, CLIP | sizes, "sheets", *keys)
    task = prepared_task(config)
    ids, sheets = task.batch(range(3))
    assert sheets.shape == (3, 3, 32, 32)
    for number, sheet in enumerate(sheets):
        clip = draw_clip(np.random.default_rng([config.seed, number]), 16, 4)
        assert torch.equal(task.tokens([clip.caption])[0], ids[number])
        last = torch.from_numpy(clip.frames[3]).permute(2, 0, 1).float() / 127.5 - 1
        assert torch.equal(sheet[:, 16:, 16:], last)
    lines = run(config)
    assert lines[-1]["loss"] < lines[0]["loss"]
    before = CLIPTextModel.from_pretrained(stages / "clip/final/content_encoder").state_dict()
    after = CLIPTextModel.from_pretrained(config.log_dir / "final/content_encoder").state_dict()
    assert not torch.equal(*(w["encoder.layers.0.mlp.fc1.weight"] for w in (before, after)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("resolution=64",), "resolution: 64 should be the vision_config's image_size, 32"),
        (("frames_per_side=3",), "frames_per_side: 3 frames do not divide 32 pixels evenly"),
    ],
)
def test_images_that_do_not_fit_the_image_tower_are_refused(
    stages: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared_task(load(stages, CLIP, "unfit", *words))


def test_bare_phrases_are_for_sprites_alone(stages: Path) -> None:
    videos = {"train_dataset": {"type": "webvid", "csv_path": "a.csv", "video_dir": "b"}}
    config = load(stages, DENOISER | videos, "unfit", "p_motion_phrase=0.1")
    with pytest.raises(ConfigError, match="p_motion_phrase: works only for captions of sprites"):
        prepared_task(config)
