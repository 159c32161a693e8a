"""The stages of training, in order, tiny: real clips, real files."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training import sources
from demo_t2v.training.config import AnyTraining
from demo_t2v.training.encoded import encode
from demo_t2v.training.loop import train
from demo_t2v.training.tasks import make_task

ROOT = Path(__file__).parent.parent
SHARED = {"resolution": 32, "max_frames": 4, "log_interval": 2, "save_ckp_interval": 4}
SHARED |= {"warmup_steps": 2, "threads": 1}
AUTOENCODER = {
    "task": "autoencoder", "num_steps": 40, "batch_size": 4, "lr": 3e-3,
    "model": {
        "down_block_types": ["DownEncoderBlock2D"] * 3, "layers_per_block": 1,
        "up_block_types": ["UpDecoderBlock2D"] * 3, "block_out_channels": [8, 8, 8],
        "latent_channels": 4, "norm_num_groups": 4,
    },
}  # fmt: skip
TOWER = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 2}
CLIP = {
    "task": "clip", "num_steps": 8, "batch_size": 8, "lr": 1e-3, "vocab_size": 600,
    "model": {
        "projection_dim": 24,
        "text_config": {**TOWER, "max_position_embeddings": 24},
        "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
    },
}  # fmt: skip
DENOISER = {
    "task": "denoiser", "num_steps": 8, "batch_size": 2, "lr": 2e-3,
    "train_dataset": {"type": "sprites", "clips": 12},
    "model": {
        "block_out_channels": [8, 16], "attention": [True, True], "layers_per_block": 1,
        "cross_attention_dim": 24, "attention_head_dim": 8, "num_input_heads": 1,
        "norm_num_groups": 4, "dropout": 0.1, "motion": False,
    },
}  # fmt: skip


def load(folder: Path, stage: dict[str, Any], log_dir: str, *overrides: str) -> Any:
    """A configuration, written as YAML into `folder` and read back."""
    inside = {"log_dir": str(folder / log_dir)}
    if stage["task"] == "denoiser":
        inside |= {
            "autoencoder": str(folder / "autoencoder/final"),
            "clip": str(folder / "clip/final"),
        }
        inside |= {"latents": str(folder / "latents")}
    file = folder / f"{log_dir}.yaml"
    file.write_text(yaml.safe_dump({**SHARED, **stage, **inside}))
    return configs.load(AnyTraining, file, overrides)


def run(config: Any) -> list[dict[str, float]]:
    return list(train(make_task(config), config))


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of the log without what a clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds_per_step"} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every exported tensor below `folder`."""
    return {
        f"{file.relative_to(folder)}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module", autouse=True)
def _small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", 5)
        yield


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four stages in order; the folder has a run for each."""
    folder = tmp_path_factory.mktemp("runs")
    base = f"base={folder}/base/final"
    run(load(folder, AUTOENCODER, "autoencoder"))
    run(load(folder, CLIP, "clip"))
    run(load(folder, DENOISER, "base"))
    run(load(folder, DENOISER, "demo", base, "model={motion: true}", "motion_lr=1e-5"))
    return folder


@pytest.mark.parametrize("stage", ["autoencoder", "clip", "base", "demo"])
def test_every_stage_leaves_its_files(stages: Path, stage: str) -> None:
    names = {file.name for file in (stages / stage).iterdir()}
    assert names == {"checkpoints", "final", "metrics.jsonl"}
    config = yaml.safe_load((stages / f"{stage}.yaml").read_text())
    lines = metrics(stages / stage)
    assert [line["step"] for line in lines] == list(range(2, config["num_steps"] + 1, 2))
    assert all(np.isfinite(value) for line in lines for value in line.values())


def test_a_few_dozen_steps_make_a_better_autoencoder(stages: Path) -> None:
    task = make_task(load(stages, AUTOENCODER, "autoencoder"))
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
    clips = encode(load(stages, DENOISER, "base"))
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
    ids = make_task(config).tokens(["a car falls"])
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


def test_demo_starts_as_copies_of_the_base(stages: Path) -> None:
    base = DemoUNet.from_pretrained(stages / "base/final/unet")
    config = load(stages, DENOISER, "fresh", f"base={stages}/base/final", "model={motion: true}")
    task = make_task(config)
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
        assert weight.requires_grad == (".layers.1." not in name)  # the last layer is not heard
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
    stopped = train(make_task(parts), parts)
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
    stopped = train(make_task(config), config)
    next(stopped)
    stopped.close()
    with (config.log_dir / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    run(config)
    assert [line["step"] for line in metrics(config.log_dir)] == [2, 4]


def test_every_epoch_has_each_clip_once_and_an_order_of_its_own(stages: Path) -> None:
    config = load(stages, DENOISER, "base", "batch_size=3", "p_zero=0")
    task, clips = make_task(config), encode(config)
    assert len(clips) == 12
    seen = [task.batch(range(3 * step, 3 * step + 3)) for step in range(8)]
    latents, tokens = [batch.latents for batch in seen], [batch.content_ids for batch in seen]
    epochs = [torch.cat(latents[:4]), torch.cat(latents[4:])]
    known = {
        parts["latents"].float().numpy().tobytes(): words
        for words, parts in map(clips.__getitem__, range(12))
    }
    for epoch in epochs:
        assert {clip.numpy().tobytes() for clip in epoch} == set(known)
    assert not torch.equal(*epochs)
    for clip, ids in zip(torch.cat(latents), torch.cat(tokens), strict=True):
        assert torch.equal(task.condition.tokens([known[clip.numpy().tobytes()]])[0], ids)


@pytest.mark.parametrize("kept", [True, False])
def test_a_caption_is_heard_as_the_content_encoder_says_it(stages: Path, kept: bool) -> None:
    config = load(stages, DENOISER, "base", f"encode_text={kept}", "p_zero=0.5", "batch_size=6")
    task = make_task(config)
    batch = task.batch(range(6))
    assert (batch.content is not None) is kept
    heard = task.condition.states(batch.content_ids).content
    assert torch.allclose(task.content(batch), heard, atol=2e-3 if kept else 1e-6)


def test_prompts_are_dropped_together_and_apart(stages: Path) -> None:
    shares = "p_zero=0.25", "p_zero_content=0.4", "p_zero_motion=0.1"
    task = make_task(load(stages, DENOISER, "base", "batch_size=12", *shares))
    batch = task.batch(range(2000))
    empty = task.condition.tokens([""])
    no_content, no_motion = ((ids == empty).all(1) for ids in (batch.content_ids, batch.motion_ids))
    assert torch.equal(batch.heard, ~no_motion)
    # 0.25 + 0.75 * 0.4, 0.25 + 0.75 * 0.1 and 0.25 + 0.75 * 0.4 * 0.1
    for dropped, share in ((no_content, 0.55), (no_motion, 0.325), (no_content & no_motion, 0.28)):
        assert abs(dropped.float().mean().item() - share) < 0.04
    always = make_task(load(stages, DENOISER, "base", "p_zero=1")).batch(range(2))
    assert torch.equal(always.content_ids, empty.expand(2, -1))
    assert not always.heard.any()


def test_a_sample_is_the_same_in_any_batch(stages: Path) -> None:
    task = make_task(load(stages, DENOISER, "base", "p_zero=0.5", "noise_strength=0.2"))
    whole, odd = task.batch(range(10, 16)), task.batch(range(11, 16, 2))
    for name in ("latents", "noise", "timesteps", "content_ids", "motion_ids", "heard"):
        assert torch.equal(getattr(whole, name)[1::2], getattr(odd, name)), name


def test_offset_noise_is_shared_by_the_places_of_a_frame(stages: Path) -> None:
    plain, offset = (
        make_task(load(stages, DENOISER, "base", f"noise_strength={strength}")).batch(range(4))
        for strength in (0, 0.5)
    )
    difference = offset.noise - plain.noise  # (B, C, F, h, w)
    assert difference.std(dim=(3, 4)).max() < 1e-6
    assert 0.35 < difference.std() < 0.65


def test_what_is_frozen_is_not_trained(stages: Path) -> None:
    overrides = f"base={stages}/base/final", "model={motion: true}", "freeze_unet=true"
    task = make_task(load(stages, DENOISER, "frozen", *overrides, "stop_grad_index=1"))
    trained = {name for name, weight in task.model.named_parameters() if weight.requires_grad}
    unet = {name for name in trained if name.startswith("unet.")}
    assert unet
    assert all(".motion_attentions." in name for name in unet)
    # Two layers: the first is below stop_grad_index, what comes behind the second is not heard.
    assert trained - unet == {
        "motion_encoder.final_layer_norm.weight", "motion_encoder.final_layer_norm.bias"
    }  # fmt: skip
    groups = [weight for group in task.parameter_groups() for weight in group["params"]]
    assert len(groups) == len(trained)


def test_demo_is_trained_with_the_motion_losses_that_have_a_weight(stages: Path) -> None:
    overrides = f"base={stages}/base/final", "model={motion: true}", "text_motion_weight=0"
    task = make_task(load(stages, DENOISER, "losses", *overrides))
    loss, figures = task.loss(task.batch(range(2)))
    assert figures.keys() == {"diffusion", "video_motion", "regularization"}
    total = figures["diffusion"] + 0.1 * (figures["video_motion"] + figures["regularization"])
    assert loss.item() == pytest.approx(total, rel=1e-5)
    base = make_task(load(stages, DENOISER, "base"))
    assert base.loss(base.batch(range(2)))[1].keys() == {"diffusion"}


def test_the_first_autoencoder_steps_see_squares_round_the_thing(tmp_path: Path) -> None:
    task = make_task(load(tmp_path, AUTOENCODER, "ae", "crop=16", "crop_steps=3", "batch_size=8"))
    squares, whole = task.batch(range(16, 24)), task.batch(range(24, 32))
    assert squares.shape == (8, 3, 16, 16)
    assert whole.shape == (8, 3, 32, 32)
    # A quarter of the area holds the thing, so it varies more than the whole does.
    frames, crops = task.batch(range(24, 72)), task.batch(range(48))
    assert crops.std(dim=(2, 3)).mean() > 1.2 * frames.std(dim=(2, 3)).mean()


def test_an_image_denoiser_sees_single_frames_and_the_base_starts_from_it(stages: Path) -> None:
    still = "stills=true", "model.temporal=false", "batch_size=6", "p_zero=0"
    task = make_task(load(stages, DENOISER, "stills", *still))
    batch = task.batch(range(24, 30))
    frames = batch.latents
    assert frames.shape == (6, 4, 1, 8, 8)
    for frame, place in zip(frames[:, :, 0], range(24, 30), strict=True):
        clip = task.items.item(place).latents
        assert any(torch.equal(frame, seen) for seen in clip.unbind(dim=1))
    for _ in train(task, load(stages, DENOISER, "stills", *still)):
        pass
    overrides = f"base={stages}/stills/final", "model={temporal: true}"
    base = make_task(load(stages, DENOISER, "on-stills", *overrides)).unet
    assert base.config.temporal is True
    learned = task.unet.state_dict()
    for name, tensor in base.state_dict().items():
        assert ("temp" in name or "transformer_in" in name) == (name not in learned), name
        if name in learned:
            assert torch.equal(tensor, learned[name]), name


def test_a_network_goes_on_with_what_its_configuration_adds(stages: Path) -> None:
    overrides = f"base={stages}/demo/final", "model={frame_embedding: true}"
    trained = DemoPipeline.from_pretrained(stages / "demo/final").unet
    unet = make_task(load(stages, DENOISER, "told", *overrides)).unet
    assert unet.config.motion is True
    learned = trained.state_dict()
    for name, tensor in unet.state_dict().items():
        assert name.startswith("place_embedding.") == (name not in learned)
        if name in learned:
            assert torch.equal(tensor, learned[name]), name


def test_a_timestep_shift_draws_noisy_timesteps_more_often(stages: Path) -> None:
    share = torch.tensor([0.0, 0.25, 0.5, 0.9999])
    plain = make_task(load(stages, DENOISER, "base"))
    assert plain.timesteps(share).tolist() == [0, 250, 500, 999]
    shifted = make_task(load(stages, DENOISER, "base", "timestep_shift=3"))
    # 3 * 0.25 / 1.5 and 3 * 0.5 / 2
    assert shifted.timesteps(share).tolist() == [0, 500, 750, 999]


def test_demo_can_go_on_from_demo_saved_in_half_precision(stages: Path, tmp_path: Path) -> None:
    half = DemoPipeline.from_pretrained(stages / "demo/final", dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    task = make_task(load(stages, DENOISER, "base", f"base={tmp_path}/half", "model={}"))
    assert task.unet.config.motion is True
    for network in (task.unet, task.condition.motion_encoder):
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    trained = half.motion_encoder.state_dict()
    for name, tensor in task.condition.motion_encoder.state_dict().items():
        assert torch.equal(tensor.half(), trained[name]), name


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("configs/sprites/*.yaml")), ids=lambda file: file.stem
)
def test_the_shipped_stages_load(file: Path) -> None:
    config = configs.load(AnyTraining, file)
    assert config.log_dir == Path("runs/sprites") / file.stem


def test_the_full_size_training_loads() -> None:
    config = configs.load(AnyTraining, ROOT / "configs/train.yaml")
    assert config.train_dataset.type == "webvid"
    assert config.deepspeed_config is not None
    assert (ROOT / config.deepspeed_config).is_file()
