"""DemoPipeline: prompts in, frames out. It writes no file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from demo_t2v.adapters import LoraMixin
from demo_t2v.diffusion.guidance import Denoiser, classifier_free_guidance
from demo_t2v.diffusion.noise import latents_and_noise
from demo_t2v.models.text import TextConditioner, TextStates
from demo_t2v.models.unet import DemoUNet


@dataclass
class DemoPipelineOutput(BaseOutput):
    """`frames`: numpy or torch (B, F, H, W, 3) in [0, 1], or latents (B, C, F, h, w)."""

    frames: NDArray[np.float32] | Tensor


class DemoPipeline(LoraMixin, DiffusionPipeline):
    """Text to video by DEMO (arXiv 2410.24219); a diffusers pipeline like any other.

    Without a motion encoder it is the base model, ModelScopeT2V. To save memory it can be loaded
    without `unet` and `vae`, only to `encode_prompt`, and without its text encoders, to be called
    with `prompt_embeds`. `num_inference_steps`, `guidance_scale` and `negative_prompt` are saved
    in `model_index.json`: what the model is called with by default.
    """

    model_cpu_offload_seq = "content_encoder->motion_encoder->unet->vae"
    _optional_components = ["motion_encoder"]  # noqa: RUF012 (diffusers' own name and type)
    _callback_tensor_inputs = ["latents", "clean"]  # noqa: RUF012

    def __init__(
        self,
        unet: DemoUNet | None,
        vae: AutoencoderKL | None,
        content_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
        motion_encoder: CLIPTextModel | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 9.0,
        negative_prompt: str = "",
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            vae=vae,
            content_encoder=content_encoder,
            motion_encoder=motion_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
        )
        self._interrupt = False
        self.register_to_config(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
        )

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked, by `pipe._interrupt = True`, for no further steps."""
        return self._interrupt

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side of a frame for each latent."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError, saying what would be right, for a size that the network cannot take."""
        step = self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        for name, side in (("height", height), ("width", width)):
            if side < step or side % step:
                below = max(step, side // step * step)
                right = f"a multiple of {step}, such as {below} or {below + step}"
                raise ValueError(f"{name} {side}: must be {right}")
        if num_frames < 1:
            raise ValueError(f"num_frames {num_frames}: must be at least 1")

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        motion_prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
    ) -> tuple[TextStates, TextStates | None]:
        """The `prompt_embeds` and `negative_prompt_embeds` of a call: both encoders' states.

        The second are None without a negative prompt, which has as many rows as there are prompts.
        Raises ValueError where the text encoders were left out.
        """
        if self.content_encoder is None:
            raise ValueError("prompt: this pipeline has no text encoders; give prompt_embeds")
        prompts = _as_list(prompt)
        motion_prompts = None if motion_prompt is None else _as_list(motion_prompt)
        negatives = [] if negative_prompt is None else [negative_prompt] * len(prompts)
        encode = TextConditioner(
            self.tokenizer, self.content_encoder, self.motion_encoder, self._execution_device
        )
        states = encode(
            negatives + prompts, None if motion_prompts is None else negatives + motion_prompts
        )
        count = len(negatives)
        return states.map(lambda t: t[count:]), states.map(lambda t: t[:count]) if count else None

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        motion_prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        motion_strength: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: TextStates | None = None,
        negative_prompt_embeds: TextStates | None = None,
        decode_chunk_size: int | None = None,
        output_type: Literal["np", "pt", "latent"] = "np",
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DemoPipelineOutput:
        """Make one video for each prompt.

        `motion_prompt` is what the motion encoder hears, by default the prompt itself. Sizes are
        pixels and default to what the weights were trained for; `generator` is one for each
        sample, so that a video does not depend on the batch it rides in. `guidance_scale` 1 or
        less means none; `negative_prompt` is by default the model's. `motion_strength` scales
        the motion transformers; 0 is the base network. `prompt_embeds` and
        `negative_prompt_embeds` are what `encode_prompt` gave. `decode_chunk_size` frames are
        decoded at once (None: all). A callback can ask for the `latents` and for `clean`, what
        they would be without noise.
        Raises ValueError for sizes that the network cannot take, for lists whose lengths disagree,
        and for a prompt that is given twice or not at all.
        """
        side = self.unet.config.sample_size * self.vae_scale_factor
        frames = _default(num_frames, self.unet.config.sample_frames)
        height, width = _default(height, side), _default(width, side)
        steps = _default(num_inference_steps, self.config.num_inference_steps)
        scale = _default(guidance_scale, self.config.guidance_scale)
        self.check_size(frames, height, width)
        states, negatives = prompt_embeds, negative_prompt_embeds
        count = _count(prompt, motion_prompt, negative_prompt, states, negatives, guided=scale > 1)
        _check_length(count, "generator", generator)
        _check_known("output_type", [output_type], ["np", "pt", "latent"])
        watched = callback_on_step_end_tensor_inputs
        _check_known("callback tensor", watched, self._callback_tensor_inputs)
        _check_steps(steps)
        if states is None:
            negative = _default(negative_prompt, self.config.negative_prompt) if scale > 1 else None
            states, negatives = self.encode_prompt(prompt or "", motion_prompt, negative)
        denoise = self._denoiser(states, negatives, scale, motion_strength)
        self.scheduler.set_timesteps(steps, device=self._execution_device)
        latents = self._start(latents, (count, frames, height, width), generator)
        extra = {"generator": generator} if _takes_generator(self.scheduler) else {}
        self._interrupt = False
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    break
                scaled = self.scheduler.scale_model_input(latents, timestep)
                prediction = denoise(scaled, timestep)
                latents = self.scheduler.step(prediction, timestep, latents, **extra).prev_sample
                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(watched, latents)
                    self._add_clean(tensors, prediction, scaled, timestep)
                    answer = callback_on_step_end(self, step, timestep, tensors)
                    latents = answer.pop("latents", latents)
                bar.update()
        video: Any = latents if output_type == "latent" else self.decode(latents, decode_chunk_size)
        self.maybe_free_model_hooks()
        return DemoPipelineOutput(frames=video.cpu().numpy() if output_type == "np" else video)

    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Latents (B, C, F, h, w) -> float32 (B, F, H, W, 3) in [0, 1], `chunk` frames at once."""
        flat = rearrange(latents, "b c f h w -> (b f) c h w") / self.vae.config.scaling_factor
        pictures = [
            self.vae.decode(part.to(self.vae.dtype)).sample
            for part in flat.split(chunk or len(flat))
        ]
        video = rearrange(torch.cat(pictures), "(b f) c h w -> b f h w c", b=len(latents))
        return (video.float() / 2 + 0.5).clamp(0, 1)

    def _denoiser(
        self,
        states: TextStates,
        negatives: TextStates | None,
        scale: float,
        motion_strength: float,
    ) -> Denoiser:
        """The network with its keys and values prepared once, under guidance if `scale` > 1."""
        guided = scale > 1
        if guided and negatives is not None:
            states = negatives.join(states)  # the order that guidance takes apart
        device, dtype = self._execution_device, self.unet.dtype
        motion = None if states.motion is None else states.motion.to(device, dtype)
        conditioning = self.unet.prepare_conditioning(states.content.to(device, dtype), motion)

        def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
            output = self.unet(
                latents.to(dtype),
                timestep,
                conditioning=conditioning,
                motion_strength=motion_strength,
            )
            prediction: Tensor = output.sample.float()
            return prediction

        return classifier_free_guidance(denoise, scale) if guided else denoise

    def _add_clean(
        self, tensors: dict[str, Any], prediction: Tensor, noisy: Tensor, timestep: Tensor
    ) -> None:
        """Where `clean` is asked for: the clean latents (B, C, F, h, w) that a prediction means."""
        if "clean" not in tensors:
            return
        scheduler = self.scheduler
        tensors["clean"], _ = latents_and_noise(
            prediction,
            noisy,
            timestep.long().expand(len(noisy)),
            scheduler.alphas_cumprod,
            scheduler.config.prediction_type,
        )

    def _start(
        self,
        latents: Tensor | None,
        size: tuple[int, int, int, int],
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor:
        """Noise for (B, F, H, W) pixels, or the caller's own, scaled as the scheduler wants it."""
        batch, frames, height, width = size
        factor = self.vae_scale_factor
        channels = self.unet.config.in_channels
        shape = (batch, channels, frames, height // factor, width // factor)
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)}: must be {shape}")
        start: Tensor = latents.to(device, torch.float32) * self.scheduler.init_noise_sigma
        return start


def _as_list(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_known(name: str, given: Sequence[str], known: list[str]) -> None:
    for value in given:
        if value not in known:
            raise ValueError(f"{name} {value!r}: must be {' or '.join(known)}")


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"num_inference_steps {steps}: must be at least 1")


def _check_length(count: int, name: str, values: Any) -> None:
    if isinstance(values, list) and len(values) != count:
        raise ValueError(f"{name}: {len(values)} given for {count} prompts")


def _count(
    prompt: str | Sequence[str] | None,
    motion_prompt: str | Sequence[str] | None,
    negative_prompt: str | None,
    states: TextStates | None,
    negatives: TextStates | None,
    guided: bool,
) -> int:
    """How many videos are asked for: by prompts, or by what `encode_prompt` made of them."""
    if states is None:
        prompts = [] if prompt is None else _as_list(prompt)
        if not prompts:
            raise ValueError("prompt: none given")
        if negatives is not None:
            raise ValueError("negative_prompt_embeds: must come with prompt_embeds")
        if motion_prompt is not None:
            _check_length(len(prompts), "motion_prompt", _as_list(motion_prompt))
        return len(prompts)
    if prompt is not None or motion_prompt is not None or negative_prompt:
        raise ValueError("prompt_embeds: must come without prompt, motion_prompt, negative_prompt")
    count = len(states.content)
    if guided and negatives is None:
        raise ValueError("prompt_embeds: guidance needs negative_prompt_embeds beside them")
    if negatives is not None and len(negatives.content) != count:
        raise ValueError(
            f"negative_prompt_embeds: {len(negatives.content)} given for {count} prompts"
        )
    return count


def _takes_generator(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler draws noise of its own in a step."""
    return "generator" in inspect.signature(scheduler.step).parameters
