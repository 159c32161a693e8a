"""Motion attention as an output of the pipeline."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from demo_t2v.models.unet import DemoUNet, DemoUNetOutput
from demo_t2v.pipeline import DemoPipeline
from helpers.pipelines import with_effective_motion

PROMPTS = ["a car falls", "a pear grows"]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline: DemoPipeline) -> DemoPipeline:
    return with_effective_motion(tiny_pipeline)


def call(pipeline: DemoPipeline, **options: object) -> object:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    start = {"generator": generators, "num_inference_steps": 2, "output_type": "latent"}
    return pipeline(PROMPTS, **{**start, **options})


def attention(pipeline: DemoPipeline, **options: object) -> Tensor:
    return call(pipeline, output_attention=True, **options).attention


def test_the_mean_of_the_layers() -> None:
    coarse = torch.tensor([[[[0.2, 0.6]]]])  # (B, h, w, F): one position, two frames
    fine = torch.zeros(1, 2, 2, 2)
    fine[0, 0, 0] = torch.tensor([0.8, 0.0])
    output = DemoUNetOutput(torch.zeros(1, 4, 2, 2, 2), (coarse, fine))
    expected = [[[0.5, 0.1], [0.1, 0.1]], [[0.3, 0.3], [0.3, 0.3]]]
    assert torch.allclose(output.mean_eot_attention, torch.tensor([expected]))
    with pytest.raises(ValueError, match="eot_attention: the forward pass had none"):
        DemoUNetOutput(torch.zeros(1, 4, 2, 2, 2)).mean_eot_attention  # noqa: B018


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_map_for_each_video_step_and_frame(pipeline: DemoPipeline, guidance_scale: float) -> None:
    output = call(pipeline, output_attention=True, guidance_scale=guidance_scale)
    batch, _, frames, height, width = output.frames.shape
    assert output.attention.shape == (batch, 2, frames, height, width)
    assert output.attention.min() >= 0
    assert output.attention.max() <= 1
    plain = call(pipeline, guidance_scale=guidance_scale)
    assert plain.attention is None
    torch.testing.assert_close(output.frames, plain.frames, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "guidance",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0},
        {"content_guidance_scale": 2.0, "motion_guidance_scale": 4.0},
        {"guidance_scale": 3.0, "bypass_guidance_scale": 1.0},
    ],
)
def test_it_is_that_of_the_prompt(pipeline: DemoPipeline, guidance: dict[str, float]) -> None:
    """The first step's is that of one forward pass on the initial noise, without guidance."""
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    found = attention(pipeline, negative_prompt="snow", **guidance)
    side = pipeline.unet.config.sample_size
    frames = pipeline.unet.config.sample_frames
    noise = pipeline.prepare_latents(
        2, frames, side * pipeline.vae_scale_factor, side * pipeline.vae_scale_factor,
        generator=generators,
    )  # fmt: skip
    timestep = pipeline.scheduler.timesteps[0]
    states, _ = pipeline.encode_prompt(PROMPTS)
    with torch.no_grad():
        output = pipeline.unet(
            pipeline.scheduler.scale_model_input(noise, timestep),
            timestep,
            states.content,
            states.motion,
            eot_index=states.eot_index,
        )
    torch.testing.assert_close(found[:, 0], output.mean_eot_attention, atol=1e-5, rtol=1e-4)


def test_timelines_and_tuples(pipeline: DemoPipeline) -> None:
    timeline = [[(0, "a car falls"), (2, "a car grows and grows")], "a pear grows"]
    found = attention(pipeline, motion_prompt=timeline)
    plain = attention(pipeline)
    assert (found[0, 0, :2] - plain[0, 0, :2]).abs().max() < 1e-5
    assert (found[0, 0, 2:] - plain[0, 0, 2:]).abs().max() > 1e-5
    frames, maps = call(pipeline, output_attention=True, return_dict=False)
    assert len(frames) == len(maps) == 2
    assert len(call(pipeline, return_dict=False)) == 1


def test_what_is_refused(pipeline: DemoPipeline) -> None:
    with pytest.raises(ValueError, match="needs motion transformers, and motion_strength > 0"):
        attention(pipeline, motion_strength=0.0)
    parts = {**pipeline.components, "motion_encoder": None}
    parts["unet"] = DemoUNet.from_config({**pipeline.unet.config, "motion": False})
    with pytest.raises(ValueError, match="output_attention: needs motion transformers"):
        attention(DemoPipeline(**parts))
