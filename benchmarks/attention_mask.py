"""How well the motion attention marks what moves, and what output_attention costs.

    python benchmarks/attention_mask.py
    python benchmarks/attention_mask.py --clips 8

Rendered sprite clips have a true mask of the thing. Each clip is encoded, noised to 3 timesteps,
and denoised once at each with its own caption. The attention to the [eot] token of the motion
transformers, and that of the content transformers, is averaged over layers and timesteps and
resized to the latents. The mask is what is bright, dark, or far from the clip's median, beyond a
quantile. Which of these, and the quantile, are chosen on as many other clips, separately for both
kinds of attention. The intersection over union with the true mask is compared with that of a mask
at random places and of one square in the middle, both of the chosen size.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import Clip, draw_clip, render_sprite
from demo_t2v.diffusion.guidance import ContentMotionGuidance
from demo_t2v.models.attention import Attention, KeysValues
from demo_t2v.pipeline import DemoPipeline

LEVELS = (0.25, 0.5, 0.75)
Side = Literal["bright", "dark", "far"]
QUANTILES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class Example:
    """One clip: attention by kind and true mask, each (F, h, w)."""

    attention: dict[str, NDArray[np.float32]]
    mask: NDArray[np.bool_]


def true_mask(clip: Clip, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Positions of the latents that the thing covers by at least a half: (F, h, w)."""
    side, path = clip.frames.shape[1], clip.truth
    poses = zip(path.x, path.y, path.size, path.angle, strict=True)
    alpha = np.stack([render_sprite(clip.thing, *pose, side)[..., 3] for pose in poses])
    covered = F.adaptive_avg_pool2d(torch.from_numpy(alpha / 255.0)[None], size)[0]
    mask: NDArray[np.bool_] = (covered >= 0.5).numpy()
    return mask


class ContentMaps:
    """Collects the [eot] maps of the content transformers, which the network does not return."""

    def __init__(self, pipeline: DemoPipeline, eot_index: Tensor) -> None:
        self.maps: list[Tensor] = []
        self.eot_index = eot_index
        self.hooks = [
            attention.transformer_blocks[0].attn2.register_forward_pre_hook(self.record)
            for block in pipeline.unet.blocks
            for attention in block.attentions
        ]

    def record(self, layer: Attention, inputs: tuple[Tensor, KeysValues]) -> None:
        _, attention = layer.with_map(*inputs, self.eot_index)
        self.maps.append(attention)

    def mean(self, frames: int, size: tuple[int, int]) -> Tensor:
        """(F, h, w): the mean over all layers and timesteps so far."""
        resized = []
        for one in self.maps:
            side = round((one.shape[1] / frames) ** 0.5)
            layer = rearrange(one, "1 (f h w) -> 1 f h w", f=frames, h=side)
            resized.append(F.interpolate(layer, size, mode="bilinear")[0])
        return torch.stack(resized).mean(dim=0)

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def attend(pipeline: DemoPipeline, clip: Clip, seed: int) -> Example:
    """Attention and mask of a clip."""
    pixels = torch.from_numpy(clip.frames).movedim(-1, 1).float() / 127.5 - 1
    latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    latents = rearrange(latents, "f c h w -> 1 c f h w")
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    states, _ = pipeline.encode_prompt(clip.caption)
    motion: list[Tensor] = []
    denoise = pipeline.prepare_denoiser(states, None, ContentMotionGuidance(), attention=motion)
    content = ContentMaps(pipeline, states.eot_index)
    alphas = pipeline.scheduler.alphas_cumprod
    for level in LEVELS:
        timestep = torch.tensor([round(level * (len(alphas) - 1))])
        noisy = alphas[timestep].sqrt() * latents + (1 - alphas[timestep]).sqrt() * noise
        denoise(noisy, timestep)
    content.remove()
    size = (latents.shape[3], latents.shape[4])
    maps = {
        "motion attention": torch.cat(motion).mean(dim=0).numpy(),
        "content attention": content.mean(len(clip.frames), size).numpy(),
    }
    return Example(maps, true_mask(clip, size))


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((first & second).sum() / max((first | second).sum(), 1))


def threshold(attention: NDArray[np.float32], quantile: float, side: Side) -> NDArray[np.bool_]:
    """The positions of a clip that are the brightest, the darkest or farthest from the median."""
    level = {
        "bright": attention,
        "dark": -attention,
        "far": np.abs(attention - np.median(attention)),
    }[side]
    return level >= np.quantile(level, quantile)


def choose(examples: Sequence[Example], kind: str) -> tuple[float, Side]:
    """The quantile and the side with the highest mean IoU."""

    def score(choice: tuple[float, Side]) -> float:
        masks = [(threshold(each.attention[kind], *choice), each.mask) for each in examples]
        return float(np.mean([iou(*pair) for pair in masks]))

    choices = [(quantile, side) for quantile in QUANTILES for side in get_args(Side)]
    return max(choices, key=score)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval by bootstrap."""
    rng = np.random.default_rng(0)
    means = rng.choice(np.array(values), (2000, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{np.mean(values):.3f} ({low:.3f} to {high:.3f})"


def chance(example: Example, quantile: float, rng: np.random.Generator) -> dict[str, float]:
    """IoU of a mask of the same size at random places, and of a square in the middle."""
    frames, height, width = example.mask.shape
    noise = rng.random(example.mask.shape).astype(np.float32)
    rows, columns = np.indices((height, width))
    distance = np.maximum(abs(rows - (height - 1) / 2), abs(columns - (width - 1) / 2))
    middle = np.broadcast_to(-distance.astype(np.float32), (frames, height, width))
    return {
        "random places": iou(threshold(noise, quantile, "bright"), example.mask),
        "square in the middle": iou(threshold(middle, quantile, "bright"), example.mask),
    }


def overhead(pipeline: DemoPipeline, repeats: int) -> dict[str, float]:
    """Seconds of a video of 4 steps without and with output_attention: medians, taken in turn."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(repeats + 1):
        for wanted in (False, True):
            began = time.process_time()
            pipeline(
                "a car falls",
                num_inference_steps=4,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
                output_attention=wanted,
            )
            if number:  # the first call of each kind is slower
                seconds[wanted].append(time.process_time() - began)
    without, with_maps = (float(np.median(seconds[wanted])) for wanted in (False, True))
    return {"without": without, "with": with_maps, "ratio": with_maps / without}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7, help="videos for the overhead")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    pipeline = resolve(options.model).load("cpu")
    pixels = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    rng = np.random.default_rng(0)
    clips = [
        draw_clip(rng, pixels, pipeline.unet.config.sample_frames) for _ in range(2 * options.clips)
    ]
    examples = [attend(pipeline, clip, number) for number, clip in enumerate(clips)]
    chosen_on, measured_on = examples[: options.clips], examples[options.clips :]
    figures: dict[str, Any] = {}
    for kind in ("motion attention", "content attention"):
        quantile, side = choose(chosen_on, kind)
        found = [iou(threshold(e.attention[kind], quantile, side), e.mask) for e in measured_on]
        figures[kind] = {
            "IoU": interval(found),
            "quantile": quantile,
            "side": side,
        }
        others = [chance(example, quantile, rng) for example in measured_on]
        for name in others[0]:
            figures[kind][f"IoU of {name}"] = interval([each[name] for each in others])
    figures["seconds of CPU time"] = overhead(pipeline, options.repeats)
    print(json.dumps(figures, indent=1))
    if options.out:
        with atomic_write(options.out) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
