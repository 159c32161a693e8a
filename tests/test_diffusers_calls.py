"""The pipeline called as diffusers' users call theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from diffusers.utils import export_to_gif
from PIL import Image

from demo_t2v.pipeline import DemoPipeline
from helpers.pipelines import latents_of, seeded, with_scheduler

PROMPTS = ["a car falls", "the fish grows"]


def test_a_negative_prompt_for_each_prompt(tiny_pipeline: DemoPipeline) -> None:
    both = latents_of(tiny_pipeline, PROMPTS, negative_prompt=["snow", "a pear"])
    for place, (prompt, negative) in enumerate(zip(PROMPTS, ["snow", "a pear"], strict=True)):
        alone = tiny_pipeline(
            prompt, negative_prompt=negative, generator=seeded(place), output_type="latent"
        ).frames
        torch.testing.assert_close(both[place : place + 1], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(both, latents_of(tiny_pipeline, PROMPTS), atol=1e-3)


def test_several_videos_for_each_prompt(tiny_pipeline: DemoPipeline) -> None:
    """Those of a prompt side by side, each of a generator of its own."""
    wanted = [prompt for prompt in PROMPTS for _ in range(3)]
    right = latents_of(tiny_pipeline, wanted, generator=seeded(*range(6)))
    told = {"num_videos_per_prompt": 3, "generator": seeded(*range(6))}
    assert torch.equal(latents_of(tiny_pipeline, PROMPTS, **told), right)
    states, negatives = tiny_pipeline.encode_prompt(PROMPTS, negative_prompt="")
    embeds = {"prompt_embeds": states, "negative_prompt_embeds": negatives}
    told["generator"] = seeded(*range(6))
    result = tiny_pipeline(**embeds, **told, output_type="latent").frames
    torch.testing.assert_close(result, right, rtol=0, atol=1e-5)


def test_without_a_dict(tiny_pipeline: DemoPipeline) -> None:
    made = tiny_pipeline("a car", generator=seeded(0), return_dict=False)
    assert isinstance(made, tuple)
    assert len(made) == 1
    assert np.array_equal(made[0], tiny_pipeline("a car", generator=seeded(0)).frames)


def test_pictures(tiny_pipeline: DemoPipeline, tmp_path: Any) -> None:
    frames = tiny_pipeline(PROMPTS, generator=seeded(0, 1)).frames
    videos = tiny_pipeline(PROMPTS, generator=seeded(0, 1), output_type="pil").frames
    assert [len(video) for video in videos] == [4, 4]
    assert np.array_equal(np.asarray(videos[1][2]), (frames[1, 2] * 255).round().astype(np.uint8))
    export_to_gif(videos[0], str(tmp_path / "a.gif"))
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.size == (32, 32)


def test_export_to_video(tiny_pipeline: DemoPipeline, tmp_path: Any) -> None:
    """diffusers' own, where the packages are that it needs."""
    pytest.importorskip("imageio_ffmpeg")
    from diffusers.utils import export_to_video

    from demo_t2v.data.video import read_video

    frames = tiny_pipeline("a car", generator=seeded(0)).frames
    export_to_video(frames[0], str(tmp_path / "a.mp4"), fps=8)
    assert read_video(tmp_path / "a.mp4")[0].shape == (4, 32, 32, 3)


def test_eta_is_ddims(tiny_pipeline: DemoPipeline) -> None:
    plain = latents_of(tiny_pipeline)
    assert torch.equal(latents_of(tiny_pipeline, eta=0.0), plain)
    noisy = latents_of(tiny_pipeline, eta=1.0)
    assert not torch.allclose(noisy, plain, atol=1e-3)
    assert torch.equal(latents_of(tiny_pipeline, eta=1.0), noisy)  # of the same generator


def test_timesteps(tiny_pipeline: DemoPipeline) -> None:
    known = EulerDiscreteScheduler.from_config(tiny_pipeline.scheduler.config)
    pipeline = with_scheduler(tiny_pipeline, known)
    steps: list[int] = []

    def look(_: Any, __: int, timestep: Any, ___: Any) -> dict[str, Any]:
        steps.append(int(timestep))
        return {}

    latents_of(pipeline, timesteps=[900, 500, 20], callback_on_step_end=look)
    assert steps == [900, 500, 20]


@pytest.mark.parametrize(
    ("scheduler", "options", "line"),
    [
        (DDIMScheduler, {"timesteps": [900, 5]}, "timesteps: DDIMScheduler takes num_inference"),
        (EulerDiscreteScheduler, {"eta": 0.5}, "eta 0.5: EulerDiscreteScheduler has none; DDIM"),
        (DDIMScheduler, {"eta": 2.0}, "eta 2.0: must be between 0 and 1"),
        (EulerDiscreteScheduler, {"timesteps": [5, 900]}, "timesteps [5, 900]: must fall, from"),
        (EulerDiscreteScheduler, {"timesteps": [1000, 1]}, "from 999 at most to 0 at least"),
        (EulerDiscreteScheduler, {"timesteps": []}, "timesteps []: must fall"),
        (
            EulerDiscreteScheduler,
            {"timesteps": [9, 1], "num_inference_steps": 2},
            "timesteps: must come without num_inference_steps",
        ),
        (
            DDIMScheduler,
            {"num_videos_per_prompt": 0},
            "num_videos_per_prompt 0: must be at least 1",
        ),
        (DDIMScheduler, {"negative_prompt": ["a", "b"]}, "negative_prompt: 2 given for 1 prompts"),
        (
            DDIMScheduler,
            {"num_videos_per_prompt": 2, "generator": seeded(1)},
            "generator: 1 given for 2 videos",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    scheduler: Any, options: dict[str, Any], line: str, tiny_pipeline: DemoPipeline
) -> None:
    pipeline = with_scheduler(tiny_pipeline, scheduler.from_config(tiny_pipeline.scheduler.config))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        pipeline("a car", **options)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
