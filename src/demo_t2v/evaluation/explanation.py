"""What moves in a video, and what the motion prompt has to do with it.

The attention is that of DEMO's motion transformers to the [eot] token of the motion prompt (arXiv
2410.24219, eq. 3), averaged over layers and timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from demo_t2v.checkpoints.resolve import ResolvedModel
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.core.atomic_io import reason
from demo_t2v.data.video import Sampling, VideoError, sample_video
from demo_t2v.diffusion.guidance import ContentMotionGuidance, Denoiser
from demo_t2v.diffusion.noise import latents_and_noise
from demo_t2v.inference.jobs import Job
from demo_t2v.inference.prompt_embeds import check_motion, prompt_arguments
from demo_t2v.inference.runner import OnProgress, Runner
from demo_t2v.model_folder import ModelError

LEVELS: Final = (0.25, 0.5, 0.75)
"""Timesteps at which a given video is noised, as fractions of the noise process."""

Frames = NDArray[np.uint8]
"""(F, H, W, 3) RGB."""


@dataclass(frozen=True)
class Explanation:
    """A video of F frames, two or more, and what is known of its motion."""

    frames: Frames
    attention: NDArray[np.float32]
    """(F, h, w) in [0, 1]."""
    difference: NDArray[np.float32]
    """(F, h', w'), at least 0: how much a second motion prompt changes."""
    other_frames: Frames | None
    """The video with the second motion prompt; None where the video was given."""


def check_explainable(
    model: ResolvedModel, config: InferenceConfig, job: Job, against: str | None, given: bool
) -> None:
    """Raise ModelError, ConfigError or TimelineError for what cannot be explained.

    `config` has the model's own number of frames. `given` says that there is a video already.
    """
    assert config.num_frames is not None
    if not model.has_motion:
        raise ModelError(f"{model.name}: has no motion branch, whose attention this shows")
    if config.motion_strength == 0:
        raise ConfigError("motion_strength: 0 switches the motion branch off; give more")
    if config.num_frames < 2:
        raise ConfigError(f"num_frames: should be at least 2, not {config.num_frames}")
    window = config.window_frames or model.defaults.frames
    if given and config.num_frames > window:
        raise ConfigError(f"num_frames: a given video is one window; write at most {window}")
    check_motion(
        [job, replace(job, id="--against", motion=against or "")], config, model.speed_calibration
    )


def read_clip(file: Path, config: InferenceConfig) -> Frames:
    """A clip of a video file in the size and length of the model's videos, `fps` frames a second.

    A longer video gives a clip at a place that the seed selects, a shorter one repeats frames.
    Raises VideoError.
    """
    assert config.num_frames is not None
    assert config.height is not None
    sampling = Sampling(config.num_frames, config.fps, config.height, repeat_frames=True)
    try:
        return sample_video(file, sampling, np.random.default_rng(config.seed))
    except VideoError as error:
        raise VideoError(f"{file}: {error}") from None
    except OSError as error:
        raise VideoError(f"{file}: cannot be read ({reason(error, file)})") from None


def explain_prompt(
    runner: Runner, job: Job, against: str | None, on_progress: OnProgress | None = None
) -> Explanation:
    """Make the job's video, and that of the same prompt and seed with the motion prompt `against`.

    `against` may be a timeline as one text; None is the negative prompt. The difference is that of
    the frames, as a mean over the colours in [0, 1]. Raises the error of a video that fails.
    """
    frames, attention = _make(runner, job, on_progress)
    other, _ = _make(*with_motion(runner, job, against), on_progress)
    difference = np.abs(frames.astype(np.float32) - other).mean(axis=-1) / 255
    return Explanation(frames, attention, difference, other)


def explain_video(runner: Runner, frames: Frames, job: Job, against: str | None) -> Explanation:
    """The attention in a given video, (F, H, W, 3), whose prompt is the job's.

    The video's latents are noised to LEVELS, with one forward pass at each. The difference is that
    of the clean latents that the network predicts with either motion prompt, as a mean over the
    channels.
    """
    pipeline = runner.pipeline
    alphas = pipeline.scheduler.alphas_cumprod
    kind = pipeline.scheduler.config.prediction_type
    maps: list[Tensor] = []
    differences = []
    with torch.no_grad():
        latents = _encode(runner, frames)
        generator = torch.Generator("cpu").manual_seed(job.seed)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        own = _denoiser(runner, job, len(frames), maps)
        other = _denoiser(*with_motion(runner, job, against), len(frames))
        for level in LEVELS:
            timestep = torch.tensor([round(level * (len(alphas) - 1))], device=latents.device)
            alpha_bar = alphas.to(latents)[timestep]
            noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
            first, second = (
                latents_and_noise(denoise(noisy, timestep), noisy, timestep, alphas, kind)[0]
                for denoise in (own, other)
            )
            differences.append((first - second).abs().mean(dim=(0, 1)).cpu())
    attention = torch.cat(maps).mean(dim=0).numpy()
    return Explanation(frames, attention, torch.stack(differences).mean(dim=0).numpy(), None)


def with_motion(runner: Runner, job: Job, against: str | None) -> tuple[Runner, Job]:
    """Runner and job with another motion prompt; None is the negative prompt, often empty.

    The negative prompt and an empty one have no speed.
    """
    if against:
        return runner, replace(job, motion=against)
    # An empty motion of a job means none of its own, so the configuration has it.
    empty = runner.config.negative_prompt if against is None else against
    motion = {"motion": None, "motion_prompt": empty, "speed": None}
    return replace(runner, config=runner.config.model_copy(update=motion)), replace(job, motion="")


def _make(
    runner: Runner, job: Job, on_progress: OnProgress | None
) -> tuple[Frames, NDArray[np.float32]]:
    """The job's frames, and its attention (F, h, w)."""
    done = runner.denoise([job], on_progress, output_attention=True)
    if done.error is not None:
        raise done.error
    assert done.latents is not None
    assert done.attention is not None
    attention: NDArray[np.float32] = done.attention[0].mean(dim=0).numpy()
    (frames,) = runner.decode(done.latents)
    if isinstance(frames, ArithmeticError):
        raise frames
    return frames, attention


def _encode(runner: Runner, frames: Frames) -> Tensor:
    """The latents (1, C, F, h, w) of a video."""
    vae = runner.pipeline.vae
    pixels = torch.from_numpy(frames).to(vae.device, vae.dtype).movedim(-1, 1) / 127.5 - 1
    size = runner.config.decode_chunk_size
    chunks = (pixels[start : start + size] for start in range(0, len(pixels), size))
    means = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in chunks])
    latents: Tensor = rearrange(means.float(), "f c h w -> 1 c f h w") * vae.config.scaling_factor
    return latents


def _denoiser(
    runner: Runner, job: Job, num_frames: int, attention: list[Tensor] | None = None
) -> Denoiser:
    """The network with the job's prompts, without guidance."""
    arguments = prompt_arguments([job], runner.config, {}, runner.pipeline.speed_calibration)
    texts = arguments | {"negative_prompt": None}
    states, _ = runner.pipeline.encode_prompt(**texts, num_frames=num_frames)
    return runner.pipeline.prepare_denoiser(
        states, None, ContentMotionGuidance(), runner.config.motion_strength, attention
    )
