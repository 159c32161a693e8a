"""DemoPipeline: prompts in, frames out. It writes no file."""

from __future__ import annotations

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
from PIL.Image import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

# diffusers loads a saved part only if the module of its class is imported.
import demo_t2v.diffusion.schedulers
import demo_t2v.models.tokenizer  # noqa: F401
from demo_t2v.diffusion.guidance import Denoiser, classifier_free_guidance
from demo_t2v.diffusion.noise import latents_and_noise
from demo_t2v.diffusion.schedulers import (
    check_scheduler,
    save_unclipped,
    set_timesteps,
    step_options,
)
from demo_t2v.lora import LoraMixin
from demo_t2v.model_folder import FolderMixin, check_fit, register_classes
from demo_t2v.models.text import TextConditioner, TextStates
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline_inputs import (
    as_list,
    check_counts,
    check_known,
    check_length,
    count_prompts,
    default_to,
)

register_classes()


@dataclass
class DemoPipelineOutput(BaseOutput):
    """`frames`: numpy or torch (B, F, H, W, 3) in [0, 1], a list of PIL images for each video, or
    latents (B, C, F, h, w).
    """

    frames: NDArray[np.float32] | Tensor | list[list[Image]]


class DemoPipeline(FolderMixin, LoraMixin, DiffusionPipeline):
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
        check_fit(unet, tokenizer, content_encoder, motion_encoder)
        save_unclipped(scheduler)
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
        negative_prompt: str | Sequence[str] | None = None,
    ) -> tuple[TextStates, TextStates | None]:
        """The `prompt_embeds` and `negative_prompt_embeds` of a call: both encoders' states.

        The second are None without a negative prompt, which is one for all prompts or one for each.
        Raises ValueError where the text encoders were left out.
        """
        if self.content_encoder is None:
            raise ValueError("prompt: this pipeline has no text encoders; give prompt_embeds")
        prompts = as_list(prompt)
        motion_prompts = None if motion_prompt is None else as_list(motion_prompt)
        negatives = [] if negative_prompt is None else as_list(negative_prompt)
        if isinstance(negative_prompt, str):
            negatives *= len(prompts)
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
        negative_prompt: str | Sequence[str] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        motion_strength: float = 1.0,
        num_videos_per_prompt: int = 1,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: TextStates | None = None,
        negative_prompt_embeds: TextStates | None = None,
        decode_chunk_size: int | None = None,
        output_type: Literal["np", "pt", "pil", "latent"] = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DemoPipelineOutput | Any:
        """Make `num_videos_per_prompt` videos for each prompt, those of a prompt side by side.

        `motion_prompt` is the prompt of the motion encoder, by default the prompt itself. Sizes
        are pixels and default to what the weights were trained for. `generator` is one for each
        sample, so that a video does not depend on its batch. `guidance_scale` 1 or less means
        none. `negative_prompt` is the prompt of both encoders on the unconditional side, by
        default the model's own. `motion_strength` scales the motion transformers; 0 is the base
        network. `prompt_embeds` and `negative_prompt_embeds`, from `encode_prompt`, stand for the
        prompts. `decode_chunk_size` frames are decoded at once (None: all). `timesteps` and `eta`
        are the scheduler's, where it has them. `return_dict` False gives the frames in a tuple. A
        callback can ask for the `latents` and for `clean`, what they would be without noise.
        Raises ValueError for sizes that the network cannot take, for lists whose lengths disagree,
        for a prompt that is given twice or not at all, and for a scheduler that does not fit.
        """
        side = self.unet.config.sample_size * self.vae_scale_factor
        length = default_to(num_frames, self.unet.config.sample_frames)
        height, width = default_to(height, side), default_to(width, side)
        steps = default_to(num_inference_steps, self.config.num_inference_steps)
        scale = default_to(guidance_scale, self.config.guidance_scale)
        self.check_size(length, height, width)
        states, negatives = prompt_embeds, negative_prompt_embeds
        texts = (prompt, motion_prompt, negative_prompt)
        each = num_videos_per_prompt
        count = count_prompts(*texts, states, negatives, guided=scale > 1) * each
        check_length(count, "generator", generator, "videos")
        check_known("output_type", [output_type], ["np", "pt", "pil", "latent"])
        watched = callback_on_step_end_tensor_inputs
        check_known("callback tensor", watched, self._callback_tensor_inputs)
        check_counts(num_inference_steps=steps, num_videos_per_prompt=each)
        if timesteps is not None and num_inference_steps is not None:
            raise ValueError("timesteps: must come without num_inference_steps")
        check_scheduler(self.scheduler)
        extra = step_options(self.scheduler, generator, eta)
        set_timesteps(self.scheduler, steps, timesteps, self._execution_device)
        if states is None:
            default = self.config.negative_prompt
            negative = default_to(negative_prompt, default) if scale > 1 else None
            states, negatives = self.encode_prompt(prompt or "", motion_prompt, negative)
        states, negatives = states.repeat(each), negatives and negatives.repeat(each)
        denoise = self._denoiser(states, negatives, scale, motion_strength)
        latents = self._start(latents, (count, length, height, width), generator)
        latents = self._denoise(denoise, latents, extra, callback_on_step_end, watched)
        frames = self._output(latents, output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        return DemoPipelineOutput(frames=frames) if return_dict else (frames,)

    def _denoise(
        self,
        denoise: Denoiser,
        latents: Tensor,
        extra: dict[str, Any],
        callback: Callable[..., dict[str, Any]] | None,
        watched: Sequence[str],
    ) -> Tensor:
        """The latents after the scheduler's steps; `extra` is what its `step` takes."""
        self._interrupt = False
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    break
                scaled = self.scheduler.scale_model_input(latents, timestep)
                prediction = denoise(scaled, timestep)
                latents = self.scheduler.step(prediction, timestep, latents, **extra).prev_sample
                if callback is not None:
                    tensors = dict.fromkeys(watched, latents)
                    self._add_clean(tensors, prediction, scaled, timestep)
                    answer = callback(self, step, timestep, tensors)
                    latents = answer.pop("latents", latents)
                bar.update()
        return latents

    def _output(self, latents: Tensor, output_type: str, chunk: int | None) -> Any:
        """The frames in the form that was asked for."""
        if output_type == "latent":
            return latents
        video = self.decode(latents, chunk)
        if output_type == "pt":
            return video
        frames = video.cpu().numpy()
        return frames if output_type == "np" else [self.numpy_to_pil(one) for one in frames]

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
