"""The pipeline: prompts in, frames out, whatever the weights are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from demo_t2v.checkpoints.resolve import read_defaults
from demo_t2v.diffusion.guidance import make_guidance
from demo_t2v.pipeline import DemoPipeline
from helpers.pipelines import differ, latents_of, seeded, with_scheduler
from helpers.tiny_networks import tiny_unet

PROMPTS = ["a car falls", "the fish grows"]


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first input of every call of `module`."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    yield seen
    hook.remove()


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def base_pipeline(tiny_pipeline: DemoPipeline) -> DemoPipeline:
    """The same weights without what DEMO adds."""
    unet = tiny_unet(motion=False)
    state = tiny_pipeline.unet.state_dict()
    unet.load_state_dict({name: state[name] for name in unet.state_dict()})
    components = {**tiny_pipeline.components, "unet": unet, "motion_encoder": None}
    base = DemoPipeline(**components, num_inference_steps=3, guidance_scale=3.0)
    base.set_progress_bar_config(disable=True)
    return base


def test_frames_have_the_shape_and_range_that_are_promised(tiny_pipeline: DemoPipeline) -> None:
    frames = tiny_pipeline(PROMPTS, generator=seeded(0, 1)).frames
    assert isinstance(frames, np.ndarray)
    assert frames.dtype == np.float32
    assert frames.shape == (2, 4, 32, 32, 3)
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert frames.std() > 0.01
    tensor = tiny_pipeline(PROMPTS, generator=seeded(0, 1), output_type="pt").frames
    assert isinstance(tensor, Tensor)
    assert np.array_equal(tensor.numpy(), frames)
    latents = latents_of(tiny_pipeline, PROMPTS)
    assert latents.shape == (2, 4, 4, 4, 4)
    assert np.array_equal(tiny_pipeline.decode_latents(latents).numpy(), frames)


def test_save_and_load_give_the_same_frames(tiny_pipeline: DemoPipeline, tiny_folder: Path) -> None:
    loaded = DemoPipeline.from_pretrained(tiny_folder)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.num_inference_steps == 3
    assert loaded.config.guidance_scale == 3.0
    first = tiny_pipeline(PROMPTS, generator=seeded(3, 4)).frames
    assert np.array_equal(loaded(PROMPTS, generator=seeded(3, 4)).frames, first)


def test_a_call_does_not_change_the_saved_tokenizer(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = DemoPipeline.from_pretrained(tiny_folder)
    loaded.set_progress_bar_config(disable=True)
    loaded(PROMPTS, output_type="latent")
    loaded.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is None
    assert saved["padding"] is None


def test_it_runs_in_half_precision(tiny_folder: Path) -> None:
    loaded = DemoPipeline.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.unet.dtype == loaded.vae.dtype == torch.bfloat16
    frames = loaded("a car falls", generator=seeded(0)).frames
    assert frames.dtype == np.float32
    assert np.isfinite(frames).all()


def test_the_base_pipeline_saves_loads_and_runs(
    base_pipeline: DemoPipeline, tmp_path: Path
) -> None:
    base_pipeline.save_pretrained(tmp_path)
    loaded = DemoPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.motion_encoder is None
    assert not (tmp_path / "motion_encoder").exists()
    assert torch.equal(latents_of(loaded), latents_of(base_pipeline))


def test_strength_zero_is_the_base_pipeline(
    tiny_pipeline: DemoPipeline, base_pipeline: DemoPipeline
) -> None:
    base = latents_of(base_pipeline)
    assert torch.equal(latents_of(tiny_pipeline, motion_strength=0.0), base)
    assert differ(latents_of(tiny_pipeline), base)


def test_a_sample_does_not_depend_on_its_batch(tiny_pipeline: DemoPipeline) -> None:
    together = tiny_pipeline(
        [*PROMPTS, "a pear"], motion_prompt=["x", "y", "z"], generator=seeded(7, 8, 9)
    ).frames
    alone = tiny_pipeline(PROMPTS[1], motion_prompt="y", generator=seeded(8)).frames
    np.testing.assert_allclose(together[1:2], alone, atol=1e-4)
    assert np.abs(together[1] - together[0]).max() > 0.01


def test_the_seed_is_the_video(tiny_pipeline: DemoPipeline) -> None:
    first = latents_of(tiny_pipeline, generator=torch.Generator().manual_seed(5))
    assert torch.equal(latents_of(tiny_pipeline, generator=seeded(5)), first)
    assert differ(latents_of(tiny_pipeline, generator=seeded(6)), first)
    noise = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    assert torch.equal(latents_of(tiny_pipeline, latents=noise), first)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_decoding_in_chunks_changes_nothing(tiny_pipeline: DemoPipeline, chunk: int) -> None:
    latents = latents_of(tiny_pipeline, PROMPTS)
    with inputs_of(tiny_pipeline.vae.decoder) as seen:
        part_by_part = tiny_pipeline.decode_latents(latents, chunk)
    assert max(len(batch) for batch in seen) == min(chunk, 8)
    assert sum(len(batch) for batch in seen) == 8
    torch.testing.assert_close(
        part_by_part, tiny_pipeline.decode_latents(latents), rtol=0, atol=1e-5
    )
    frames = tiny_pipeline(PROMPTS, generator=seeded(0, 1), decode_chunk_size=chunk).frames
    np.testing.assert_allclose(frames, part_by_part.numpy(), atol=1e-5)


def test_the_callback_hears_every_step(tiny_pipeline: DemoPipeline) -> None:
    steps: list[tuple[int, int]] = []

    def listen(pipeline: DemoPipeline, step: int, timestep: Tensor, tensors: dict) -> dict:
        assert pipeline is tiny_pipeline
        assert tensors["latents"].shape == (1, 4, 4, 4, 4)
        steps.append((step, int(timestep)))
        return {}

    heard = latents_of(tiny_pipeline, callback_on_step_end=listen)
    assert steps == [(0, 667), (1, 334), (2, 1)]
    assert torch.equal(heard, latents_of(tiny_pipeline))


def test_the_callback_may_change_the_latents(tiny_pipeline: DemoPipeline) -> None:
    def clear(_: DemoPipeline, step: int, __: Tensor, tensors: dict[str, Tensor]) -> dict:
        return {"latents": tensors["latents"] * 0 + 2} if step == 2 else tensors

    assert torch.equal(
        latents_of(tiny_pipeline, callback_on_step_end=clear), torch.full((1, 4, 4, 4, 4), 2.0)
    )


def test_the_callback_sees_clean_latents(
    tiny_pipeline: DemoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are what the scheduler itself takes for the clean latents of a step."""
    scheduler, told, seen = tiny_pipeline.scheduler, list[Tensor](), list[Tensor]()
    step = scheduler.step

    def listening(*inputs: Any, **options: Any) -> Any:
        output = step(*inputs, **options)
        told.append(output.pred_original_sample)
        return output

    def look(_: DemoPipeline, __: int, ___: Tensor, tensors: dict[str, Tensor]) -> dict:
        seen.append(tensors["clean"])
        return {}

    monkeypatch.setattr(scheduler, "step", listening)
    latents_of(
        tiny_pipeline,
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=("latents", "clean"),
    )
    assert len(seen) == 3
    for ours, theirs in zip(seen, told, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_callback_may_interrupt_and_the_next_call_is_whole(
    tiny_pipeline: DemoPipeline,
) -> None:
    kept: list[Tensor] = []

    def stop(pipeline: DemoPipeline, step: int, _: Tensor, tensors: dict[str, Tensor]) -> dict:
        kept.append(tensors["latents"])
        pipeline._interrupt = step == 1
        return tensors

    stopped = latents_of(tiny_pipeline, callback_on_step_end=stop)
    assert len(kept) == 2
    assert tiny_pipeline.interrupt
    assert torch.equal(stopped, kept[-1])
    with inputs_of(tiny_pipeline.unet) as seen:
        latents_of(tiny_pipeline)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("DDIMScheduler", 4),
        ("DPMSolverMultistepScheduler", 4),
        ("EulerDiscreteScheduler", 4),
        ("EulerAncestralDiscreteScheduler", 4),
        ("UniPCMultistepScheduler", 4),
        ("HeunDiscreteScheduler", 7),
    ],
)
def test_diffusers_schedulers_fit(tiny_pipeline: DemoPipeline, name: str, calls: int) -> None:
    scheduler = getattr(diffusers, name).from_config(tiny_pipeline.scheduler.config)
    pipeline = with_scheduler(tiny_pipeline, scheduler)
    with inputs_of(pipeline.unet) as seen:
        frames = pipeline(PROMPTS, generator=seeded(0, 1), num_inference_steps=4).frames
    assert len(seen) == calls
    assert frames.shape == (2, 4, 32, 32, 3)
    assert np.isfinite(frames).all()
    alone = pipeline(PROMPTS[1], generator=seeded(1), num_inference_steps=4).frames
    np.testing.assert_allclose(frames[1:], alone, atol=1e-4)


@pytest.mark.parametrize(("name", "total"), [("DDIMScheduler", 4), ("HeunDiscreteScheduler", 7)])
def test_the_progress_bar_comes_to_its_end(
    tiny_pipeline: DemoPipeline, name: str, total: int, capfd: pytest.CaptureFixture[str]
) -> None:
    scheduler = getattr(diffusers, name).from_config(tiny_pipeline.scheduler.config)
    pipeline = with_scheduler(tiny_pipeline, scheduler)
    pipeline.set_progress_bar_config(disable=False)
    latents_of(pipeline, num_inference_steps=4)
    written = capfd.readouterr().err
    assert f"{total}/{total}" in written
    assert f"0/{total}" in written


def test_sizes_are_honoured(tiny_pipeline: DemoPipeline) -> None:
    frames = tiny_pipeline("a car", num_frames=3, height=16, width=48, generator=seeded(0)).frames
    assert frames.shape == (1, 3, 16, 48, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 40}, "height 40: must be a multiple of 16, such as 32 or 48"),
        ({"width": 15}, "width 15: must be a multiple of 16, such as 16 or 32"),
        ({"height": 0}, "height 0: must be a multiple of 16, such as 16 or 32"),
        ({"num_frames": 0}, "num_frames 0: must be at least 1"),
        ({"num_inference_steps": 0}, "num_inference_steps 0: must be at least 1"),
        ({"motion_prompt": ["a", "b"]}, "motion_prompt: 2 given for 1 prompts"),
        ({"generator": seeded(1, 2)}, "generator: 2 given for 1 videos"),
        ({"prompt": []}, "prompt: none given"),
        ({"latents": torch.zeros(1, 4, 4, 4, 8)}, "must be (1, 4, 4, 4, 4)"),
        ({"output_type": "gif"}, "output_type 'gif': must be np or pt or pil or latent"),
        (
            {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
            "callback tensor 'prompt_embeds': must be latents or clean",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tiny_pipeline: DemoPipeline, options: dict[str, Any], message: str
) -> None:
    with inputs_of(tiny_pipeline.unet) as seen, pytest.raises(ValueError) as error:  # noqa: PT011
        tiny_pipeline(**{"prompt": "a car", **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not seen


@pytest.mark.parametrize(("scale", "batch"), [(0.0, 2), (1.0, 2), (1.1, 4), (9.0, 4)])
def test_guidance_runs_the_network_once_a_step(
    tiny_pipeline: DemoPipeline, scale: float, batch: int
) -> None:
    with inputs_of(tiny_pipeline.unet) as seen:
        latents_of(tiny_pipeline, PROMPTS, guidance_scale=scale)
    assert [len(latents) for latents in seen] == [batch] * 3


@pytest.mark.parametrize(
    ("scales", "batches"),
    [
        ({"content_guidance_scale": 3.0}, [4]),
        ({"motion_guidance_scale": 5.0}, [6]),
        ({"content_guidance_scale": 1.0}, [4]),
        ({"bypass_guidance_scale": 0.5}, [4, 2]),
        ({"guidance_scale": 1.0, "bypass_guidance_scale": 0.5}, [2, 2]),
    ],
)
def test_samples_in_each_run_of_the_network(
    tiny_pipeline: DemoPipeline, scales: dict[str, float], batches: list[int]
) -> None:
    with inputs_of(tiny_pipeline.unet) as seen:
        latents_of(tiny_pipeline, PROMPTS, **scales)
    assert [len(latents) for latents in seen] == batches * 3


def test_equal_scales_are_plain_guidance(tiny_pipeline: DemoPipeline) -> None:
    plain = latents_of(tiny_pipeline, PROMPTS, guidance_scale=4.0)
    equal = latents_of(
        tiny_pipeline, PROMPTS, content_guidance_scale=4.0, motion_guidance_scale=4.0
    )
    assert torch.equal(equal, plain)
    nearly = latents_of(
        tiny_pipeline, PROMPTS, content_guidance_scale=4.0, motion_guidance_scale=4.0 + 1e-6
    )
    torch.testing.assert_close(nearly, plain, rtol=0, atol=1e-4)
    assert differ(
        latents_of(tiny_pipeline, PROMPTS, guidance_scale=4.0, motion_guidance_scale=6.0), plain
    )


def test_a_motion_scale_of_zero_ignores_the_motion_prompt(tiny_pipeline: DemoPipeline) -> None:
    falls, grows = (
        latents_of(tiny_pipeline, motion_prompt=motion, motion_guidance_scale=0.0)
        for motion in ("a car falls", "a car grows")
    )
    torch.testing.assert_close(falls, grows)


def test_bypass_guidance_steers_away_from_the_base_network(
    tiny_pipeline: DemoPipeline, base_pipeline: DemoPipeline
) -> None:
    """In one step from the same noise, the prediction is c + 2 (c - base)."""
    tiny_pipeline.scheduler.set_timesteps(3)
    positive, _ = tiny_pipeline.encode_prompt("a car falls")
    noise, timestep = torch.randn(1, 4, 4, 8, 8, generator=seeded(0)[0]), torch.tensor(500)

    def predict(pipeline: DemoPipeline, **scales: float) -> Tensor:
        states = replace(positive, motion=positive.motion if pipeline.motion_encoder else None)
        guider = make_guidance(1.0, **scales)
        return pipeline.prepare_denoiser(states, None, guider)(noise, timestep)

    complete, base = predict(tiny_pipeline), predict(base_pipeline)
    assert differ(complete, base)
    guided = predict(tiny_pipeline, bypass_guidance_scale=2.0)
    torch.testing.assert_close(guided, complete + 2 * (complete - base), rtol=1e-4, atol=1e-5)


def test_a_base_model_has_no_motion_to_guide(base_pipeline: DemoPipeline) -> None:
    for scales in ({"motion_guidance_scale": 5.0}, {"bypass_guidance_scale": 1.0}):
        with pytest.raises(ValueError, match="the model has no motion branch"):
            latents_of(base_pipeline, **scales)


def test_the_guidance_scale_matters(tiny_pipeline: DemoPipeline) -> None:
    default = latents_of(tiny_pipeline)
    assert torch.equal(latents_of(tiny_pipeline, guidance_scale=3.0), default)
    assert differ(latents_of(tiny_pipeline, guidance_scale=6.0), default)
    conditional = latents_of(tiny_pipeline, guidance_scale=1.0)
    close_to_one = latents_of(tiny_pipeline, guidance_scale=1 + 1e-7)
    torch.testing.assert_close(close_to_one, conditional, rtol=0, atol=1e-3)


def test_both_encoders_hear_the_negative_prompt(tiny_pipeline: DemoPipeline) -> None:
    """With one prompt everywhere, guidance has nothing to guide from."""
    plain = latents_of(tiny_pipeline, guidance_scale=1.0)
    same = latents_of(tiny_pipeline, guidance_scale=9.0, negative_prompt="a car falls")
    torch.testing.assert_close(same, plain, rtol=1e-3, atol=1e-3)
    assert differ(latents_of(tiny_pipeline, negative_prompt="snow"), latents_of(tiny_pipeline))
    with (
        inputs_of(tiny_pipeline.content_encoder.final_layer_norm) as content,
        inputs_of(tiny_pipeline.motion_encoder.final_layer_norm) as motion,
    ):
        latents_of(tiny_pipeline, PROMPTS, negative_prompt="snow", motion_prompt=["a", "b"])
    for heard in (content, motion):
        unconditional = heard[-1][:2]
        torch.testing.assert_close(unconditional[0], unconditional[1])
        assert differ(heard[-1][2], heard[-1][3])
        assert differ(heard[-1][0], heard[-1][2])


def test_the_saved_negative_prompt_is_the_default(
    tiny_pipeline: DemoPipeline, tmp_path: Path
) -> None:
    asked = latents_of(tiny_pipeline, PROMPTS, negative_prompt="snow")
    empty = latents_of(tiny_pipeline, PROMPTS)
    assert differ(asked, empty)
    told = DemoPipeline(
        **tiny_pipeline.components,
        num_inference_steps=3,
        guidance_scale=3.0,
        negative_prompt="snow",
    )
    told.save_pretrained(tmp_path)
    loaded = DemoPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.negative_prompt == "snow"
    assert torch.equal(latents_of(loaded, PROMPTS), asked)
    assert torch.equal(latents_of(loaded, PROMPTS, negative_prompt=""), empty)


def test_a_pipeline_saved_without_a_negative_prompt_has_the_empty_one(
    tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "before")
    file = tmp_path / "before/model_index.json"
    index = json.loads(file.read_text())
    del index["negative_prompt"]
    file.write_text(json.dumps(index))
    assert DemoPipeline.from_pretrained(tmp_path / "before").config.negative_prompt == ""
    assert read_defaults(tmp_path / "before").negative_prompt == ""


def test_the_motion_prompt_changes_the_video(tiny_pipeline: DemoPipeline) -> None:
    plain = latents_of(tiny_pipeline)
    assert torch.equal(latents_of(tiny_pipeline, motion_prompt="a car falls"), plain)
    assert differ(latents_of(tiny_pipeline, motion_prompt="a car grows slowly"), plain)


def test_the_base_pipeline_does_not_hear_the_motion_prompt(base_pipeline: DemoPipeline) -> None:
    assert torch.equal(latents_of(base_pipeline, motion_prompt="snow"), latents_of(base_pipeline))


def test_a_long_prompt_is_warned_of_once(
    tiny_pipeline: DemoPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    latents_of(tiny_pipeline, "slowly " * 15)
    assert caplog.messages == ["the prompt is longer than 14 tokens; dropped: 'slowly'"]


def test_keys_and_values_are_computed_once_for_all_steps(tiny_pipeline: DemoPipeline) -> None:
    block = tiny_pipeline.unet.mid_block
    with (
        inputs_of(block.attentions[0].transformer_blocks[0].attn2.to_k) as content,
        inputs_of(block.motion_attentions[0].transformer_blocks[0].attn2.to_v) as motion,
    ):
        latents_of(tiny_pipeline, PROMPTS, num_inference_steps=5)
    assert [tuple(states.shape) for states in content + motion] == [(4, 16, 24)] * 2
