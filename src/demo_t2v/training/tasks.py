"""What one step of each stage computes, on clips of the sprite world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from einops import rearrange
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from demo_t2v.config import AnyTraining, AutoencoderTraining, ClipTraining, DenoiserTraining
from demo_t2v.data.sprites import Clip, draw_clip
from demo_t2v.models.text import TextConditioner, penultimate_states
from demo_t2v.models.unet import DemoUNet
from demo_t2v.motion.losses import diffusion
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.latents import encoded_clips
from demo_t2v.training.loop import Task


def draw_stills(seed: int, step: int, count: int, resolution: int) -> list[Clip]:
    """`count` still frames; the same for the same (seed, step)."""
    rng = np.random.default_rng([seed, step])
    return [draw_clip(rng, resolution, still=True) for _ in range(count)]


def to_pixels(clips: list[Clip]) -> Tensor:
    """All frames of all clips, one after another: (B*F, 3, H, W) in [-1, 1]."""
    frames = torch.from_numpy(np.concatenate([clip.frames for clip in clips]))
    return rearrange(frames, "n h w c -> n c h w").float() / 127.5 - 1.0


def crop_to_things(pixels: Tensor, clips: list[Clip], side: int) -> Tensor:
    """Squares (B, 3, side, side) round the things of still clips, a little off their centres."""
    resolution = pixels.shape[-1]
    squares = []
    for picture, clip in zip(pixels, clips, strict=True):
        centre = torch.tensor([clip.truth.y[0], clip.truth.x[0]]) * resolution
        corner = centre + torch.empty(2).uniform_(-side / 4, side / 4) - side / 2
        top, left = corner.round().long().clamp(0, resolution - side).tolist()
        squares.append(picture[:, top : top + side, left : left + side])
    return torch.stack(squares)


class AutoencoderTask:
    """Stage 1: an AutoencoderKL that rebuilds single frames (squared error and a light KL).

    The background is most of a frame and soon learned; so the first steps see only squares round
    the thing, which is faster too. The last ones see whole frames, as the network will.
    """

    def __init__(self, config: AutoencoderTraining) -> None:
        self.config = config
        sizes = {"sample_size": config.resolution, **config.model}
        self.model = AutoencoderKL(**sizes).to(memory_format=torch.channels_last)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters())}]

    def batch(self, step: int) -> Tensor:
        clips = draw_stills(self.config.seed, step, self.config.batch_size, self.config.resolution)
        pixels = to_pixels(clips)
        if self.config.crop and step < self.config.crop_steps:
            pixels = crop_to_things(pixels, clips, self.config.crop)
        return pixels.to(memory_format=torch.channels_last)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        posterior = self.model.encode(batch).latent_dist
        rebuilt = self.model.decode(posterior.sample()).sample
        error = F.mse_loss(rebuilt, batch)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = -10 * torch.log10(error / 4).item()  # the pixels' range is 2
        figures = {"kl": divergence.item(), "psnr": psnr}
        return error + self.config.kl_weight * divergence, figures

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Save the autoencoder, with the scale that gives its latents unit variance."""
        latents = self.model.encode(self.batch(self.config.num_steps)).latent_dist.mean
        self.model.register_to_config(scaling_factor=1.0 / latents.std().item())
        self.model.save_pretrained(folder / "vae")


class ClipTask:
    """Stage 2: CLIP on still frames, so that, as with the real one, verbs mean little to it."""

    def __init__(self, config: ClipTraining) -> None:
        self.config = config
        captions = [c.caption for c in draw_stills(config.seed, 0, 4000, 8)]
        length = config.model["text_config"]["max_position_embeddings"]
        self.tokenizer = train_tokenizer(captions, config.vocab_size, length)
        tokens = {
            "vocab_size": len(self.tokenizer),
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        sizes = dict(config.model)
        sizes["text_config"] = sizes["text_config"] | tokens
        self.model = CLIPModel(CLIPConfig(**sizes))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters())}]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        clips = draw_stills(
            self.config.seed, step + 1, self.config.batch_size, self.config.resolution
        )
        return self.tokens([clip.caption for clip in clips]), to_pixels(clips)

    def tokens(self, captions: list[str]) -> Tensor:
        ids: Tensor = self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        ids, pixels = batch
        output = self.model(input_ids=ids, pixel_values=pixels, return_loss=True)
        right = output.logits_per_image.argmax(1) == torch.arange(len(ids))
        return output.loss, {"accuracy": right.float().mean().item()}

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder / "clip")
        CLIPTextModel.from_pretrained(folder / "clip").save_pretrained(folder / "content_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")


class DenoiserTask:
    """Stages 3 to 5: images, the base denoiser, DEMO on top of it (arXiv 2410.24219, eq. 1 and 2).

    The base network (`motion: false`) hears the content encoder alone. DEMO starts from it, with
    motion transformers and a motion encoder that are copies of their content neighbours.
    """

    def __init__(self, config: DenoiserTraining) -> None:
        self.config = config
        self.latents, self.captions = encoded_clips(config)
        self.unet = make_denoiser(config, self.latents.shape)
        content = load_encoder(config.clip / "content_encoder")
        motion = None
        if self.unet.config.motion:
            trained = config.base / "motion_encoder" if config.base else None
            motion = load_encoder(
                trained if trained and trained.exists() else config.clip / "content_encoder"
            )
        tokenizer = CLIPTokenizer.from_pretrained(config.clip / "tokenizer")
        content.requires_grad_(False).eval()  # type: ignore[no-untyped-call]
        self.condition = TextConditioner(tokenizer, content, motion)
        self.tokens = self.condition.tokens([*self.captions, ""])  # (N + 1, L)
        with torch.no_grad():  # frozen, so heard once: (N + 1, L, D)
            rows = [penultimate_states(content, ids) for ids in torch.split(self.tokens, 500)]
        self.content = torch.cat(rows)
        self.model = nn.ModuleDict({"unet": self.unet})
        if motion is not None:
            self.model["motion_encoder"] = motion
        self.noise = DDPMScheduler(
            beta_start=0.00085,
            beta_end=config.beta_end,
            beta_schedule="scaled_linear",
            prediction_type=config.prediction_type,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": list(self.unet.parameters())}]
        if self.condition.motion_encoder is not None:
            lr = self.config.motion_lr or self.config.lr
            groups.append({"params": list(self.model["motion_encoder"].parameters()), "lr": lr})
        return groups

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Latents (B, C, F, h, w) and rows of the captions (B,), N for the empty one.

        Every epoch has an order of its own.
        """
        count, size = len(self.captions), self.config.batch_size
        places = range(step * size, (step + 1) * size)
        chosen = [self._order(place // count)[place % count] for place in places]
        latents = self.latents[chosen]
        if self.config.stills:
            frame = torch.randint(self.latents.shape[2], (size,))
            latents = latents[torch.arange(size), :, frame].unsqueeze(2)  # (B, C, 1, h, w)
        dropped = torch.rand(size) < self.config.p_zero
        rows = torch.tensor(chosen).masked_fill(dropped, count)
        return latents.float(), rows

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        latents, rows = batch
        noise = torch.randn_like(latents)
        timesteps = self.timesteps(torch.rand(len(latents)))
        noisy = self.noise.add_noise(latents, noise, timesteps)
        motion = None
        if self.condition.motion_encoder is not None:
            motion = penultimate_states(self.condition.motion_encoder, self.tokens[rows])
        prediction = self.unet(noisy, timesteps, self.content[rows], motion).sample
        target = noise
        if self.config.prediction_type == "v_prediction":
            target = self.noise.get_velocity(latents, noise, timesteps)
        return diffusion(prediction, target), {}

    def timesteps(self, share: Tensor) -> Tensor:
        """Timesteps (B,) for uniform draws (B,) in [0, 1), shifted towards the noise."""
        shift = self.config.timestep_shift
        shifted = shift * share / (1 + (shift - 1) * share)
        count: int = self.noise.config.num_train_timesteps
        return (shifted * count).long().clamp(max=count - 1)

    def export(self, folder: Path) -> None:
        """Save the whole pipeline: `DemoPipeline.from_pretrained(folder)`."""
        sampler = DPMSolverMultistepScheduler.from_config(
            self.noise.config, algorithm_type="dpmsolver++", timestep_spacing="trailing"
        )
        DemoPipeline(
            unet=self.unet,
            vae=AutoencoderKL.from_pretrained(self.config.autoencoder / "vae", dtype=torch.float32),
            content_encoder=self.condition.content_encoder,
            motion_encoder=self.condition.motion_encoder,
            tokenizer=self.condition.tokenizer,
            scheduler=sampler,
            num_inference_steps=self.config.ddim_timesteps,
            guidance_scale=self.config.guide_scale,
        ).save_pretrained(folder)

    def _order(self, epoch: int) -> Sequence[int]:
        """The shuffled clips of an epoch."""
        if self._epoch[0] != epoch:
            rng = np.random.default_rng([self.config.seed, epoch])
            self._epoch = epoch, rng.permutation(len(self.captions)).tolist()
        return self._epoch[1]

    _epoch: tuple[int, Sequence[int]] = (-1, ())


def load_encoder(folder: Path) -> CLIPTextModel:
    """A text encoder in full precision, however it was saved."""
    encoder: CLIPTextModel = CLIPTextModel.from_pretrained(folder, dtype=torch.float32)
    return encoder


def make_denoiser(config: DenoiserTraining, latents: Sequence[int]) -> DemoUNet:
    """A new denoiser for latents (N, C, F, h, w), or one that starts from `config.base`."""
    _, channels, frames, side, _ = latents
    if config.base is None:
        new: DemoUNet = DemoUNet(
            sample_size=side,
            sample_frames=frames,
            in_channels=channels,
            out_channels=channels,
            **config.model,
        )
        return new
    base = DemoUNet.from_pretrained(config.base / "unet", dtype=torch.float32)
    # Without diffusers' own entries: one of them says which sizes to leave at their defaults.
    sizes = {name: size for name, size in base.config.items() if not name.startswith("_")}
    unet: DemoUNet = DemoUNet(**{**sizes, **config.model})
    unet.load_state_dict(base.state_dict(), strict=False)
    if unet.config.motion and not base.config.motion:
        unet.init_motion_from_content()
    return unet


def make_task(config: AnyTraining) -> Task:
    """The task that a training configuration names; new weights are drawn from its seed."""
    torch.manual_seed(config.seed)
    match config:
        case AutoencoderTraining():
            return AutoencoderTask(config)
        case ClipTraining():
            return ClipTask(config)
        case DenoiserTraining():
            return DenoiserTask(config)


def train_tokenizer(captions: list[str], vocab_size: int, length: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges are learned from `captions`.

    As in CLIP's own vocabulary, every byte is a token inside and at the end of a word, so no
    word is unknown, and the end-of-text token has the highest number.
    """
    end = "</w>"
    learned = CLIPTokenizer().train_new_from_iterator(captions, vocab_size)  # type: ignore[no-untyped-call]
    model = json.loads(learned.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [letter + end for letter in letters] + ["".join(pair) for pair in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)  # type: ignore[arg-type]
