"""The task of a motion word: textual inversion (arXiv 2208.01618) of DEMO's motion encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demo_t2v.conditioning.motion_words import WEIGHT_NAME, MotionWord, MotionWordError, null_state
from demo_t2v.diffusion.noise import shifted_timesteps
from demo_t2v.diffusion.schedulers import make_scheduler
from demo_t2v.losses.objective import DenoiserBatch, DenoiserOutput, Objective
from demo_t2v.models.text import TextConditioner
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.config.motion_word import MotionWordTraining
from demo_t2v.training.data.seeds import sample_seed


class WordVectors(nn.Module):
    """The vectors (K, D) of one motion word."""

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(initial)


class MotionWordTask:
    """Learns a motion word from the latents of N clips, (N, C, F, h, w).

    The loss is DEMO's diffusion loss (arXiv 2410.24219, eq. 2). The content encoder reads the
    content prompt, so that the word need not tell the looks. Raises MotionWordError for a model
    without a motion branch.
    """

    samples = None

    def __init__(self, config: MotionWordTraining, pipeline: DemoPipeline, clips: Tensor) -> None:
        encoder = pipeline.motion_encoder
        if encoder is None or not pipeline.unet.config.motion:
            raise MotionWordError(
                "this model has no motion branch to learn a motion word for; use a DEMO model"
            )
        for network in (pipeline.unet, pipeline.content_encoder, encoder):
            network.requires_grad_(False).eval()
        self.config, self.clips, self.unet = config, clips, pipeline.unet
        null_text = pipeline.config.negative_prompt
        states, _ = pipeline.encode_prompt(config.content or null_text)
        self.content = states.content  # (1, L, D)
        self.model = WordVectors(_initial_vectors(pipeline, config))
        self.encode = TextConditioner(
            pipeline.tokenizer,
            pipeline.content_encoder,
            encoder,
            motion_words={config.name: self.model.vectors},
        )
        self.null_state = null_state(self.encode)
        self.motion_ids = self.encode.motion_tokens([f"<{config.name}>"])  # (1, L)
        self.noise_scheduler = make_scheduler("ddpm", pipeline.scheduler.config)
        self.objective = Objective(self.noise_scheduler)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.model.vectors]}]

    def batch(self, numbers: range) -> DenoiserBatch:
        """The samples with these numbers; the timesteps of a step are spread evenly."""
        size, count = self.config.batch_size, self.noise_scheduler.config.num_train_timesteps
        noises, draws = [], []
        for number in numbers:
            rng = torch.Generator().manual_seed(sample_seed(self.config.seed, number))
            noises.append(torch.randn(self.clips.shape[1:], generator=rng))
            draws.append((number % size + torch.rand((), generator=rng)) / size)
        # Each clip meets all parts of the noise, also where its number divides the batch size.
        rows = torch.tensor([(number + number // size) % len(self.clips) for number in numbers])
        ids = self.motion_ids.expand(len(rows), -1)
        return DenoiserBatch(
            latents=self.clips[rows],
            noise=torch.stack(noises),
            timesteps=shifted_timesteps(torch.stack(draws), self.config.timestep_shift, count),
            content_ids=ids,
            motion_ids=ids,
            has_motion_prompt=torch.ones(len(rows), dtype=torch.bool),
        )

    def loss(self, batch: DenoiserBatch) -> tuple[Tensor, dict[str, float]]:
        """The diffusion loss of the samples (eq. 2)."""
        noisy = self.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        content = self.content.expand(len(noisy), -1, -1)
        motion = self.encode.motion_states(self.motion_ids).expand(len(noisy), -1, -1)
        prediction = self.unet(noisy, batch.timesteps, content, motion).sample
        return self.objective(batch, noisy, DenoiserOutput(prediction))

    def export(self, folder: Path) -> None:
        """Save the word as `motion_word.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        word = MotionWord(self.config.name, self.model.vectors.detach(), self.null_state)
        word.save(folder / WEIGHT_NAME)


def _initial_vectors(pipeline: DemoPipeline, config: MotionWordTraining) -> Tensor:
    """The vectors (K, D) of the content prompt's first tokens, then the vocabulary's mean.

    So the motion encoder begins with a text of a known kind that has no motion.
    """
    embeddings = pipeline.motion_encoder.embeddings.token_embedding.weight.detach().float().cpu()
    ids = pipeline.tokenizer(config.content or "", add_special_tokens=False).input_ids
    mean = embeddings.mean(dim=0).expand(config.num_vectors, -1)
    return torch.cat([embeddings[ids], mean])[: config.num_vectors].clone()
