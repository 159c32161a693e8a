"""DemoPipeline: from prompts to frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
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

# diffusers loads a saved component only if the module of its class is imported.
import demo_t2v.diffusion.schedulers
import demo_t2v.models.tokenizer  # noqa: F401
from demo_t2v.conditioning.motion_words import MotionWordMixin, check_words
from demo_t2v.conditioning.timeline import (
    MotionPrompts,
    as_motion_prompts,
    encode_timelines,
)
from demo_t2v.diffusion.caching import CachingMixin, StepCache
from demo_t2v.diffusion.guidance import (
    ALL_NOISE_LEVELS,
    Condition,
    ContentMotionGuidance,
    Denoiser,
    Interval,
    make_guidance,
)
from demo_t2v.diffusion.noise import latents_and_noise
from demo_t2v.diffusion.schedulers import (
    check_scheduler,
    save_unclipped,
    set_timesteps,
    step_options,
)
from demo_t2v.diffusion.windows import (
    average_windows,
    fuse_windows,
    reschedule_noise,
    split_windows,
)
from demo_t2v.lora import LoraMixin
from demo_t2v.model_folder import FolderMixin, check_fit, register_classes
from demo_t2v.models.text import TextStates
from demo_t2v.models.unet import Conditioning, DemoUNet
from demo_t2v.pipeline_inputs import (
    NO_MOTION_BRANCH,
    as_list,
    check_at_least_one,
    check_choices,
    check_length,
    count_prompts,
    default_to,
)

register_classes()


@dataclass
class DemoPipelineOutput(BaseOutput):
    """Videos, in the form that `output_type` names."""

    frames: NDArray[np.float32] | Tensor | list[list[Image]]
    """numpy or torch (B, F, H, W, 3) in [0, 1], PIL images video by video, or latents
    (B, C, F, h, w)."""
    attention: Tensor | None = None
    """(B, T, F, h, w) in [0, 1], with `output_attention`: attention of the latents' positions to
    the motion prompt's [eot] token (DEMO, eq. 3) at each of T timesteps, on the CPU. It is the mean
    over the heads and the motion transformers, whose maps are resized to h and w."""


class DemoPipeline(FolderMixin, LoraMixin, MotionWordMixin, CachingMixin, DiffusionPipeline):
    """Text to video by DEMO (arXiv 2410.24219), as a diffusers pipeline.

    Without a motion encoder it is the base model, ModelScopeT2V. To save memory it can be loaded
    without `unet` and `vae`, for `encode_prompt` only, or without its text encoders, to be called
    with `prompt_embeds`. `num_inference_steps`, `guidance_scale`, `negative_prompt` and
    `guidance_interval` are the defaults of a call; they are saved in `model_index.json`.
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
        guidance_interval: Interval | list[float] = ALL_NOISE_LEVELS,  # a list from JSON
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
        self.motion_words: dict[str, Tensor] = {}
        self.register_to_config(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            guidance_interval=tuple(guidance_interval),
        )

    @property
    def interrupt(self) -> bool:
        """Whether the loop ends after this step; a callback sets `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def vae_scale_factor(self) -> int:
        """Side of a frame in pixels by that of its latents."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError for a size in frames and pixels that the network cannot generate."""
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
        motion_prompt: MotionPrompts | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_frames: int | None = None,
        motion_crossfade: float = 0.0,
    ) -> tuple[TextStates, TextStates | None]:
        """States of both text encoders: `prompt_embeds` and `negative_prompt_embeds` of a call.

        `negative_prompt` is one for all prompts or one for each; without it the second result is
        None. `motion_prompt` may be a blend or a timeline, as in `__call__`, for clips of
        `num_frames` (default: the model's). Raises ValueError for a pipeline without text encoders,
        and MotionPromptError.
        """
        if self.content_encoder is None:
            raise ValueError("prompt: this pipeline has no text encoders; give prompt_embeds")
        prompts = as_list(prompt)
        motion_prompts = None if motion_prompt is None else as_motion_prompts(motion_prompt)
        negatives = [] if negative_prompt is None else as_list(negative_prompt)
        if isinstance(negative_prompt, str):
            negatives *= len(prompts)
        check_words(prompts + negatives, motion_prompts or (), self.motion_words)
        encode = self.text_conditioner()
        texts = None
        if motion_prompts is not None:
            pairs = zip(prompts, motion_prompts, strict=True)
            texts = negatives + [own if isinstance(own, str) else one for one, own in pairs]
        states = encode(negatives + prompts, texts)
        count = len(negatives)
        positive = states.map(lambda t: t[count:])
        if motion_prompts and not all(isinstance(one, str) for one in motion_prompts):
            length = default_to(num_frames, self.unet and self.unet.config.sample_frames)
            positive = encode_timelines(positive, motion_prompts, encode, length, motion_crossfade)
        return positive, states.map(lambda t: t[:count]) if count else None

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        motion_prompt: MotionPrompts | None = None,
        motion_crossfade: float = 0.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_frames: int | None = None,
        window_frames: int | None = None,
        window_stride: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        content_guidance_scale: float | None = None,
        motion_guidance_scale: float | None = None,
        bypass_guidance_scale: float = 0.0,
        guidance_interval: Interval | None = None,
        guider: ContentMotionGuidance | None = None,
        motion_strength: float = 1.0,
        num_videos_per_prompt: int = 1,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: TextStates | None = None,
        negative_prompt_embeds: TextStates | None = None,
        decode_chunk_size: int | None = None,
        output_type: Literal["np", "pt", "pil", "latent"] = "np",
        output_attention: bool = False,
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DemoPipelineOutput | Any:
        """Generate `num_videos_per_prompt` videos for each prompt; those of a prompt are adjacent.

        `motion_prompt` is the prompt of the motion encoder, by default the prompt itself. It may
        be a timeline, (frame, prompt) pairs such as `[(0, "rises"), (8, "falls")]`: each frame
        then follows the last prompt that has begun, with cross-fades of `motion_crossfade` frames
        (`conditioning.timeline`). Each text may be a blend, such as `falls:0.7 + rises:0.3`
        (`conditioning.blend`). Sizes are frames and pixels; the defaults are those that the
        weights were trained for. More frames than `window_frames` (default: those of the training)
        are denoised in windows, `window_stride` frames apart (default: half a window), whose
        predictions are averaged (`diffusion.windows`).
        `generator` may be a list with one for each video, so that no video depends on its batch.
        `guidance_scale` 1 or less means no guidance; content and motion may have scales of their
        own, and `bypass_guidance_scale` steers away from the network without its motion branch
        (`diffusion.guidance`). The scales of content and motion act at the noise levels of
        `guidance_interval` only, fractions of the training's timesteps. `guider` replaces all
        scales and the interval. `negative_prompt` is the unconditional prompt of both encoders, by
        default the model's own. `motion_strength` scales the motion transformers; 0 is the base
        network. `prompt_embeds` and `negative_prompt_embeds`, made by
        `encode_prompt`, replace the prompts. `decode_chunk_size` frames are decoded at once (None:
        all). `timesteps` and `eta` are options of the scheduler, where it has them.
        `output_attention` adds the motion attention of the same forward passes to the output;
        frames then differ by rounding, since the fused attention of torch gives no maps.
        `return_dict` False returns a tuple. The tensors of a callback are `latents` and `clean`,
        the estimate of the noise-free latents. Raises ValueError for unsuitable sizes, lists of
        wrong length, a prompt given twice or not at all, an unsuitable scheduler, for
        `output_attention` without motion transformers or with a cache, and for a cache that does
        not fit (`CachingMixin.check_cache`).
        """
        side = self.unet.config.sample_size * self.vae_scale_factor
        num_frames = default_to(num_frames, self.unet.config.sample_frames)
        window_frames = default_to(window_frames, self.unet.config.sample_frames)
        window_stride = default_to(window_stride, max(1, window_frames // 2))
        height, width = default_to(height, side), default_to(width, side)
        guider = guider or make_guidance(
            default_to(guidance_scale, self.config.guidance_scale),
            content_guidance_scale,
            motion_guidance_scale,
            bypass_guidance_scale,
            guidance_interval=default_to(guidance_interval, self.config.guidance_interval),
        )
        num_prompts = self.check_inputs(
            prompt=prompt,
            motion_prompt=motion_prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            guider=guider,
            num_videos_per_prompt=num_videos_per_prompt,
            generator=generator,
            output_type=output_type,
            callback_tensors=callback_on_step_end_tensor_inputs,
        )
        windows = split_windows(num_frames, window_frames, window_stride)
        step_kwargs = step_options(self.scheduler, generator, eta)
        steps = default_to(num_inference_steps, self.config.num_inference_steps)
        set_timesteps(self.scheduler, steps, timesteps, self._execution_device)
        cache = self.start_cache(len(self.scheduler.timesteps), output_attention)

        if prompt_embeds is None:
            negative = default_to(negative_prompt, self.config.negative_prompt)
            prompt_embeds, negative_prompt_embeds = self.encode_prompt(
                prompt or "",
                motion_prompt,
                negative if guider.uses_negative else None,
                num_frames=num_frames,
                motion_crossfade=motion_crossfade,
            )
        attention: list[Tensor] | None = [] if output_attention else None
        denoise = self._denoiser_of_windows(
            windows,
            prompt_embeds.repeat(num_videos_per_prompt),
            negative_prompt_embeds and negative_prompt_embeds.repeat(num_videos_per_prompt),
            guider,
            motion_strength,
            attention,
            cache,
        )
        latents = self.prepare_latents(
            num_prompts * num_videos_per_prompt,
            num_frames,
            height,
            width,
            window_frames=window_frames,
            window_stride=window_stride,
            generator=generator,
            latents=latents,
        )

        self._interrupt = False
        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress_bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    break
                if cache is not None:
                    cache.next_step()
                noisy = self.scheduler.scale_model_input(latents, timestep)
                prediction = denoise(noisy, timestep)
                latents = self.scheduler.step(
                    prediction, timestep, latents, **step_kwargs
                ).prev_sample
                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                    if "clean" in tensors:
                        tensors["clean"] = self._clean_latents(prediction, noisy, timestep)
                    changed = callback_on_step_end(self, step, timestep, tensors)
                    latents = changed.pop("latents", latents)
                progress_bar.update()

        frames = self._postprocess(latents, output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        maps = None
        if attention:
            steps_of_windows = [
                attention[first : first + len(windows)]
                for first in range(0, len(attention), len(windows))
            ]
            averages = [average_windows(parts, windows, dim=1) for parts in steps_of_windows]
            maps = torch.stack(averages, dim=1)
        output = DemoPipelineOutput(frames, maps)
        return output if return_dict else output.to_tuple()

    def check_inputs(
        self,
        *,
        prompt: str | Sequence[str] | None,
        motion_prompt: MotionPrompts | None,
        negative_prompt: str | Sequence[str] | None,
        prompt_embeds: TextStates | None,
        negative_prompt_embeds: TextStates | None,
        num_frames: int,
        height: int,
        width: int,
        num_inference_steps: int | None,
        timesteps: Sequence[int] | None,
        guider: ContentMotionGuidance,
        num_videos_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        callback_tensors: Sequence[str],
    ) -> int:
        """The number of prompts. Raises ValueError for inputs of `__call__` that cannot be."""
        self.check_size(num_frames, height, width)
        num_prompts = count_prompts(
            prompt,
            motion_prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            guided=guider.uses_negative,
        )
        if guider.separates and not self.unet.config.motion:
            raise ValueError(NO_MOTION_BRANCH)
        check_length(num_prompts * num_videos_per_prompt, "generator", generator, "videos")
        check_choices("output_type", [output_type], ["np", "pt", "pil", "latent"])
        check_choices("callback tensor", callback_tensors, self._callback_tensor_inputs)
        steps = default_to(num_inference_steps, self.config.num_inference_steps)
        check_at_least_one(num_inference_steps=steps, num_videos_per_prompt=num_videos_per_prompt)
        if timesteps is not None and num_inference_steps is not None:
            raise ValueError("timesteps: must come without num_inference_steps")
        check_scheduler(self.scheduler)
        return num_prompts

    def prepare_latents(
        self,
        batch_size: int,
        num_frames: int,
        height: int,
        width: int,
        *,
        window_frames: int | None = None,
        window_stride: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Standard normal noise or `latents`, (B, C, F, h, w), scaled for the scheduler's start.

        Behind the first `window_frames` (None: all) the noise is that of earlier frames, shuffled
        within units of `window_stride` frames (`diffusion.windows.reschedule_noise`). Raises
        ValueError for `latents` of another shape than that of the video.
        """
        factor, channels = self.vae_scale_factor, self.unet.config.in_channels
        shape = (batch_size, channels, num_frames, height // factor, width // factor)
        device = self._execution_device
        if latents is None:
            drawn = min(num_frames, default_to(window_frames, num_frames))
            latents = randn_tensor(
                (*shape[:2], drawn, *shape[3:]),
                generator=generator,
                device=device,
                dtype=torch.float32,
            )
            if drawn < num_frames:
                latents = reschedule_noise(latents, num_frames, window_stride, generator)
        elif latents.shape != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)}: must be {shape}")
        scaled: Tensor = latents.to(device, torch.float32) * self.scheduler.init_noise_sigma
        return scaled

    def prepare_denoiser(
        self,
        prompt_embeds: TextStates,
        negative_prompt_embeds: TextStates | None,
        guider: ContentMotionGuidance,
        motion_strength: float = 1.0,
        attention: list[Tensor] | None = None,
        cache: StepCache | None = None,
    ) -> Denoiser:
        """The network under guidance. Keys and values are computed when the conditions change.

        Each call appends the motion attention (B, F, h, w) of the prompts to `attention`, if given.
        Raises ValueError for that without motion transformers. `cache` keeps features from step to
        step; the caller begins the steps.
        """
        if attention is not None and not (self.unet.config.motion and motion_strength):
            raise ValueError("output_attention: needs motion transformers, and motion_strength > 0")
        device, dtype = self._execution_device, self.unet.dtype
        num_train_timesteps = self.scheduler.config.num_train_timesteps

        @lru_cache(maxsize=2)  # those with and without the motion branch
        def prepare(conditions: tuple[Condition, ...]) -> tuple[Conditioning, Tensor]:
            states = _conditioned(prompt_embeds, negative_prompt_embeds, conditions)
            motion = None if states.motion is None else states.motion.to(device, dtype)
            content = states.content.to(device, dtype)
            prepared: Conditioning = self.unet.prepare_conditioning(content, motion)
            return prepared, states.eot_index.to(device)

        def run(
            latents: Tensor, timestep: Tensor, conditions: tuple[Condition, ...], strength: float
        ) -> list[Tensor]:
            conditioning, eot_index = prepare(conditions)
            output = self.unet(
                torch.cat([latents] * len(conditions)).to(dtype),
                timestep,
                conditioning=conditioning,
                motion_strength=strength,
                eot_index=eot_index if attention is not None and strength else None,
                cache=cache and cache.next_pass((conditions, strength)),
            )
            if attention is not None and strength:
                maps = output.mean_eot_attention.chunk(len(conditions))
                attention.append(maps[conditions.index(Condition(True, True))].cpu())
            return list(output.sample.float().chunk(len(conditions)))

        def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
            def predict(conditions: Sequence[Condition]) -> list[Tensor]:
                complete = tuple(each for each in conditions if not each.bypass)
                predictions = run(latents, timestep, complete, motion_strength)
                if len(complete) < len(conditions):
                    predictions += run(latents, timestep, (Condition(True, True),), 0.0)
                return predictions

            return guider(predict, float(timestep) / num_train_timesteps)

        return denoise

    def _denoiser_of_windows(
        self,
        windows: Sequence[slice],
        prompt_embeds: TextStates,
        negative_prompt_embeds: TextStates | None,
        *options: Any,
    ) -> Denoiser:
        """The denoiser of all frames. `options` are those of `prepare_denoiser`."""

        def denoiser_of(window: slice) -> Denoiser:
            negative = negative_prompt_embeds and negative_prompt_embeds.frames(window)
            return self.prepare_denoiser(prompt_embeds.frames(window), negative, *options)

        shared = denoiser_of(windows[0])
        if len(windows) == 1:
            return shared
        if prompt_embeds.per_frame:
            return fuse_windows(denoiser_of, windows)
        return fuse_windows(lambda _: shared, windows)  # all have the same keys and values

    def decode_latents(self, latents: Tensor, decode_chunk_size: int | None = None) -> Tensor:
        """Latents (B, C, F, h, w) -> float32 frames (B, F, H, W, 3) in [0, 1].

        `decode_chunk_size` frames are decoded at once (None: all).
        """
        flat = rearrange(latents, "b c f h w -> (b f) c h w") / self.vae.config.scaling_factor
        if flat.device.type == "cpu":  # the fastest layout for convolutions here
            flat = flat.contiguous(memory_format=torch.channels_last)
        decoded = [
            self.vae.decode(chunk.to(self.vae.dtype)).sample
            for chunk in flat.split(decode_chunk_size or len(flat))
        ]
        video = rearrange(torch.cat(decoded), "(b f) c h w -> b f h w c", b=len(latents))
        return (video.float() / 2 + 0.5).clamp(0, 1)

    def _postprocess(self, latents: Tensor, output_type: str, decode_chunk_size: int | None) -> Any:
        """The frames in the form of `output_type`."""
        if output_type == "latent":
            return latents
        video = self.decode_latents(latents, decode_chunk_size)
        if output_type == "pt":
            return video
        frames = video.cpu().numpy()
        return frames if output_type == "np" else [self.numpy_to_pil(one) for one in frames]

    def _clean_latents(self, prediction: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        """The estimate of the clean latents (B, C, F, h, w) in a prediction."""
        clean, _ = latents_and_noise(
            prediction,
            noisy,
            timestep.long().expand(len(noisy)),
            self.scheduler.alphas_cumprod,
            self.scheduler.config.prediction_type,
        )
        return clean


def _conditioned(
    prompt_embeds: TextStates,
    negative_prompt_embeds: TextStates | None,
    conditions: Sequence[Condition],
) -> TextStates:
    """The states of all conditions along the batch axis, in their order."""
    rows = []
    for condition in conditions:
        content = prompt_embeds if condition.content else negative_prompt_embeds
        motion = prompt_embeds if condition.motion else negative_prompt_embeds
        assert content is not None
        assert motion is not None
        rows.append(replace(motion, content=content.content))
    return reduce(TextStates.join, rows)
