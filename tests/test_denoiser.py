"""What the denoiser's training sees of a sample, and what of the network it trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file

from demo_t2v.checkpoints.original.importer import modelscope_scheduler
from demo_t2v.checkpoints.resolve import read_defaults
from demo_t2v.config import ConfigError
from demo_t2v.data.sprites import motion_phrase
from demo_t2v.diffusion.schedulers import ModelScopeDDIMScheduler
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.data.feature_cache import encode_clips
from demo_t2v.training.tasks.pretrained import make_noise_scheduler
from demo_t2v.training.trainer import train
from helpers.stages import (
    DENOISER,
    load,
    prepared_task,
)

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_every_epoch_has_each_clip_once_and_an_order_of_its_own(stages: Path) -> None:
    config = load(stages, DENOISER, "base", "batch_size=3", "p_zero=0")
    task, clips = prepared_task(config), encode_clips(config)
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
def test_the_content_states_are_those_of_the_content_encoder(stages: Path, kept: bool) -> None:
    config = load(stages, DENOISER, "base", f"encode_text={kept}", "p_zero=0.5", "batch_size=6")
    task = prepared_task(config)
    batch = task.batch(range(6))
    assert (batch.content is not None) is kept
    expected = task.condition.states(batch.content_ids).content
    assert torch.allclose(task.content_states(batch), expected, atol=2e-3 if kept else 1e-6)


@pytest.mark.parametrize(
    ("motion", "share", "both"), [("null", 0.3, 0.3), ("0", 0.0, 0.0), ("0.2", 0.2, 0.06)]
)
def test_prompts_are_dropped_together_or_apart(
    stages: Path, motion: str, share: float, both: float
) -> None:
    null = "a car spins"
    given = "p_zero=0.3", f"p_zero_motion={motion}", f"negative_prompt={null}"
    task = prepared_task(load(stages, DENOISER, "base", "batch_size=12", *given))
    batch = task.batch(range(2000))
    tokens = task.condition.tokens([null])
    no_content, no_motion = (
        (ids == tokens).all(1) for ids in (batch.content_ids, batch.motion_ids)
    )
    assert torch.equal(batch.has_motion_prompt, ~no_motion)
    found = [d.float().mean().item() for d in (no_content, no_motion, no_content & no_motion)]
    assert found == pytest.approx([0.3, share, both], abs=0.04)
    assert (found[1] == 0) == (share == 0)
    always = prepared_task(load(stages, DENOISER, "base", "p_zero=1")).batch(range(2))
    empty = task.condition.tokens([""])
    assert torch.equal(always.content_ids, empty.expand(2, -1))
    assert not always.has_motion_prompt.any()


def test_the_motion_encoder_reads_the_bare_phrase_in_a_share_of_the_samples(stages: Path) -> None:
    share = "p_zero=0", "p_motion_phrase=0.3"
    task = prepared_task(load(stages, DENOISER, "base", *share))
    batch = task.batch(range(400))
    bare = (batch.content_ids != batch.motion_ids).any(1)
    assert abs(bare.float().mean().item() - 0.3) < 0.07
    words = task.condition.tokenizer.batch_decode(batch.motion_ids, skip_special_tokens=True)
    whole = task.condition.tokenizer.batch_decode(batch.content_ids, skip_special_tokens=True)
    for phrase, caption, short in zip(words, whole, bare.tolist(), strict=True):
        caption = caption.strip().replace(" ,", ",")
        read = phrase.strip().replace(" ,", ",")
        assert read == (motion_phrase(caption) if short else caption)


def test_the_motion_encoder_starts_from_the_tower_that_is_named(stages: Path) -> None:
    keys = f"base={stages}/base/final", f"motion_clip={stages}/demo/final", "model={motion: true}"
    with pytest.raises(ConfigError, match=r"motion_clip: .*content_encoder is no folder"):
        prepared_task(load(stages, DENOISER, "own", *keys[:1], "motion_clip=/nowhere", keys[2]))
    task = prepared_task(load(stages, DENOISER, "own", *keys))
    begun = task.condition.motion_encoder.state_dict()
    for name, tensor in load_file(stages / "demo/final/content_encoder/model.safetensors").items():
        assert torch.equal(begun[name.removeprefix("text_model.")], tensor), name


def test_frames_and_side_of_the_data_go_into_the_networks_sizes(stages: Path) -> None:
    keys = f"base={stages}/base/final", "num_frames=2", f"latents={stages}/two", "stills=true"
    assert prepared_task(load(stages, DENOISER, "two", *keys)).unet.config.sample_frames == 2


@pytest.mark.parametrize("kept", [True, False])
def test_the_states_of_a_dropped_sample_are_the_null_text_s(stages: Path, kept: bool) -> None:
    given = "p_zero=1", "p_zero_motion=0", "negative_prompt=a car spins", f"encode_text={kept}"
    overrides = f"base={stages}/base/final", "model={motion: true}"
    task = prepared_task(load(stages, DENOISER, "null", *overrides, *given))
    batch = task.batch(range(3))
    (null,) = task.condition(["a car spins"]).content
    for states in task.content_states(batch):
        assert torch.allclose(states, null, atol=1e-6)
    captions = [task.samples.sample(place).caption for place in range(3)]
    assert torch.equal(batch.motion_ids, task.condition.tokens(captions))


def test_the_null_text_goes_from_a_training_to_its_model_and_on(
    stages: Path, tmp_path: Path
) -> None:
    defaults = "negative_prompt=ugly", "guidance_interval=0.5-1"
    told = load(stages, DENOISER, "null", *defaults, f"log_dir={tmp_path}")
    prepared_task(told).export(tmp_path / "final")
    assert read_defaults(tmp_path / "final").negative_prompt == "ugly"
    assert read_defaults(tmp_path / "final").guidance_interval == (0.5, 1.0)
    for overrides, null in (
        ((f"base={tmp_path}/final",), "ugly"),
        ((f"base={tmp_path}/final", "negative_prompt=''"), ""),
        ((f"base={stages}/base/final",), ""),
        ((), ""),
        ((f"base={tmp_path}/final", "lora={target: all}"), "ugly"),
    ):
        config = load(stages, DENOISER, "next", *overrides)
        assert prepared_task(config).pipeline().config.negative_prompt == null, overrides
    adapter = load(
        stages, DENOISER, "next", f"base={tmp_path}/final", "lora={target: all}",
        "negative_prompt=static",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="negative_prompt: 'static' is not the base's, 'ugly'"):
        prepared_task(adapter)


def test_a_sample_is_the_same_in_any_batch(stages: Path) -> None:
    task = prepared_task(load(stages, DENOISER, "base", "p_zero=0.5", "noise_strength=0.2"))
    whole, odd = task.batch(range(10, 16)), task.batch(range(11, 16, 2))
    for name in ("latents", "noise", "timesteps", "content_ids", "motion_ids", "has_motion_prompt"):
        assert torch.equal(getattr(whole, name)[1::2], getattr(odd, name)), name


def test_offset_noise_is_shared_by_the_places_of_a_frame(stages: Path) -> None:
    plain, offset = (
        prepared_task(load(stages, DENOISER, "base", f"noise_strength={strength}")).batch(range(4))
        for strength in (0, 0.5)
    )
    difference = offset.noise - plain.noise  # (B, C, F, h, w)
    assert difference.std(dim=(3, 4)).max() < 1e-6
    assert 0.35 < difference.std() < 0.65


def test_what_is_frozen_is_not_trained(stages: Path) -> None:
    overrides = f"base={stages}/base/final", "model={motion: true}", "freeze_unet=true"
    task = prepared_task(load(stages, DENOISER, "frozen", *overrides, "stop_grad_index=1"))
    trained = {name for name, weight in task.model.named_parameters() if weight.requires_grad}
    unet = {name for name in trained if name.startswith("unet.")}
    assert unet
    assert all(".motion_attentions." in name for name in unet)
    # Two layers: the first is below stop_grad_index, the states after the second are not read.
    assert trained == unet
    (group,) = task.parameter_groups()
    assert len(group["params"]) == len(trained)
    whole = prepared_task(load(stages, DENOISER, "whole", *overrides))
    assert whole.condition.motion_encoder.final_layer_norm.weight.requires_grad
    assert [group.get("rate") for group in whole.parameter_groups()] == [None, "motion_lr"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("freeze_unet=true",), "freeze_unet: without motion transformers nothing is left"),
        (("stills=true", "model={motion: true}"), "video_motion_weight: single frames do not move"),
    ],
)
def test_what_cannot_be_trained_is_said_at_once(
    stages: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared_task(load(stages, DENOISER, "nothing", f"base={stages}/base/final", *overrides))


def test_the_noise_is_as_the_base_was_trained_with(stages: Path, tmp_path: Path) -> None:
    new = DENOISER | {"train_dataset": {"type": "sprites", "clips": 1}}
    assert noise(load(stages, new, "new")) == ("v_prediction", 0.012)
    base = tmp_path / "base"
    shutil.copytree(stages / "base/final", base)
    file = base / "scheduler/scheduler_config.json"
    other = {"prediction_type": "epsilon", "beta_end": 0.04}
    file.write_text(json.dumps(json.loads(file.read_text()) | other))
    on = f"base={base}"
    assert noise(load(stages, new, "new", on)) == ("epsilon", 0.04)
    assert noise(load(stages, new, "new", on, "beta_end=0.02")) == ("epsilon", 0.02)
    adapter = (on, "lora={target: all}")
    assert noise(load(stages, new, "new", *adapter, "beta_end=0.04")) == ("epsilon", 0.04)
    with pytest.raises(ConfigError, match=r"beta_end: 0\.02 is not the base's, 0\.04"):
        noise(load(stages, new, "new", *adapter, "beta_end=0.02"))


@pytest.mark.parametrize(
    "kind", [DDIMScheduler, ModelScopeDDIMScheduler, DPMSolverMultistepScheduler]
)
def test_the_final_model_has_the_base_s_sampler(stages: Path, tmp_path: Path, kind: Any) -> None:
    base = tmp_path / "base"
    shutil.copytree(stages / "base/final", base)
    own = DemoPipeline.from_pretrained(base)
    spacing = {"timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "epsilon"}
    own.scheduler = kind.from_config(modelscope_scheduler().config, **spacing)
    own.save_pretrained(base)
    task = prepared_task(load(stages, DENOISER, "sampler", f"base={base}", "beta_end=0.02"))
    task.export(tmp_path / "final")
    sampler = DemoPipeline.from_pretrained(tmp_path / "final").scheduler
    assert type(sampler) is kind
    known = {"beta_end": 0.02, "beta_start": 0.00085, "clip_sample": False, **spacing}
    found = {key: sampler.config[key] for key in known if key in own.scheduler.config}
    assert found == {key: known[key] for key in found}
    assert {"beta_end", "prediction_type", "steps_offset"} <= found.keys()


def noise(config: Any) -> tuple[str, float]:
    made = make_noise_scheduler(config).config
    return made.prediction_type, made.beta_end


def test_demo_is_trained_with_the_motion_losses_that_have_a_weight(stages: Path) -> None:
    overrides = f"base={stages}/base/final", "model={motion: true}", "text_motion_weight=0"
    task = prepared_task(load(stages, DENOISER, "losses", *overrides))
    loss, figures = task.loss(task.batch(range(2)))
    assert figures.keys() == {"diffusion", "video_motion", "regularization"}
    total = figures["diffusion"] + 0.1 * (figures["video_motion"] + figures["regularization"])
    assert loss.item() == pytest.approx(total, rel=1e-5)
    base = prepared_task(load(stages, DENOISER, "base"))
    assert base.loss(base.batch(range(2)))[1].keys() == {"diffusion"}


def test_an_image_denoiser_sees_single_frames_and_the_base_starts_from_it(stages: Path) -> None:
    still = "stills=true", "model.temporal=false", "batch_size=6", "p_zero=0"
    task = prepared_task(load(stages, DENOISER, "stills", *still))
    batch = task.batch(range(24, 30))
    frames = batch.latents
    assert frames.shape == (6, 4, 1, 8, 8)
    for frame, place in zip(frames[:, :, 0], range(24, 30), strict=True):
        clip = task.samples.sample(place).latents
        assert any(torch.equal(frame, seen) for seen in clip.unbind(dim=1))
    for _ in train(task, load(stages, DENOISER, "stills", *still)):
        pass
    overrides = f"base={stages}/stills/final", "model={temporal: true}"
    base = prepared_task(load(stages, DENOISER, "on-stills", *overrides)).unet
    assert base.config.temporal is True
    learned = task.unet.state_dict()
    for name, tensor in base.state_dict().items():
        assert ("temp" in name or "transformer_in" in name) == (name not in learned), name
        if name in learned:
            assert torch.equal(tensor, learned[name]), name


def test_a_network_goes_on_with_what_its_configuration_adds(stages: Path) -> None:
    overrides = f"base={stages}/demo/final", "model={frame_embedding: true}"
    trained = DemoPipeline.from_pretrained(stages / "demo/final").unet
    unet = prepared_task(load(stages, DENOISER, "told", *overrides)).unet
    assert unet.config.motion is True
    learned = trained.state_dict()
    for name, tensor in unet.state_dict().items():
        assert name.startswith("place_embedding.") == (name not in learned)
        if name in learned:
            assert torch.equal(tensor, learned[name]), name


def test_a_timestep_shift_draws_noisy_timesteps_more_often(stages: Path) -> None:
    share = torch.tensor([0.0, 0.25, 0.5, 0.9999])
    plain = prepared_task(load(stages, DENOISER, "base"))
    assert plain.timesteps(share).tolist() == [0, 250, 500, 999]
    shifted = prepared_task(load(stages, DENOISER, "base", "timestep_shift=3"))
    # 3 * 0.25 / 1.5 and 3 * 0.5 / 2
    assert shifted.timesteps(share).tolist() == [0, 500, 750, 999]


def test_demo_can_go_on_from_demo_saved_in_half_precision(stages: Path, tmp_path: Path) -> None:
    half = DemoPipeline.from_pretrained(stages / "demo/final", dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    task = prepared_task(load(stages, DENOISER, "base", f"base={tmp_path}/half", "model={}"))
    assert task.unet.config.motion is True
    for network in (task.unet, task.condition.motion_encoder):
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    trained = half.motion_encoder.state_dict()
    for name, tensor in task.condition.motion_encoder.state_dict().items():
        assert torch.equal(tensor.half(), trained[name]), name
