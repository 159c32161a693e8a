"""The task of a student: a denoiser that needs a few steps and no guidance."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from demo_t2v.checkpoints.adapted import save_adapted
from demo_t2v.config import ConfigError
from demo_t2v.diffusion.distillation import (
    clean_target,
    distillation_loss,
    next_alpha_bar,
    solve,
    student_scheduler,
)
from demo_t2v.diffusion.guidance import Denoiser, make_guidance
from demo_t2v.diffusion.noise import latents_and_noise
from demo_t2v.diffusion.schedulers import make_scheduler
from demo_t2v.lora import add_lora
from demo_t2v.losses.motion import video_motion
from demo_t2v.losses.objective import DenoiserBatch
from demo_t2v.models.text import TextStates, penultimate_states
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.config import DenoiserTraining, Distillation
from demo_t2v.training.tasks.denoiser import DenoiserTask


class DistillationTask(DenoiserTask):
    """Distils a student from a model (`demo_t2v.diffusion.distillation`).

    A clip takes all of the student's steps in one training step. Its noisy latents are those of the
    real clip, or those that the student's own steps lead to from noise alone, so that the student
    learns to correct its own errors (backward simulation, arXiv 2405.14867, sec. 4.5). What a frame
    shows is distilled; motion is also taught by real clips, as far as the noise shows them
    (MCM, arXiv 2406.06890, teaches both apart, too).

    Only the denoiser is trained: the student has the encoders of its teacher.
    """

    def __init__(self, config: DenoiserTraining) -> None:
        assert config.distillation is not None
        assert config.base is not None
        self.options: Distillation = config.distillation
        super().__init__(config)
        self.teacher = DemoPipeline.from_pretrained(config.base, dtype=torch.float32)
        for network in (self.teacher.unet, self.teacher.content_encoder, self.teacher.vae):
            network.requires_grad_(False).eval()
        scale, defaults = self.options.guidance_scale, self.teacher.config
        self.guider = make_guidance(
            defaults.guidance_scale if scale is None else scale,
            guidance_interval=defaults.guidance_interval,
        )
        assert config.num_inference_steps is not None
        self.steps = steps = config.num_inference_steps
        noise = self.noise_scheduler.config
        try:
            self.scheduler = student_scheduler(noise, self.options.highest_noise_level)
        except ValueError as error:
            raise ConfigError(f"base: {error}") from None
        if steps * self.options.solver_steps > self.scheduler.config.num_train_timesteps:
            raise ConfigError(
                f"num_inference_steps: {steps} steps of {self.options.solver_steps} solver_steps "
                f"are more than the {self.scheduler.config.num_train_timesteps} timesteps"
            )
        self.scheduler.set_timesteps(steps)
        self.solver = make_scheduler("dpm++", self.scheduler.config)
        self.solver.set_timesteps(steps * self.options.solver_steps)

    def _freeze(self) -> None:
        """Freeze the motion encoder; with `lora` the denoiser has an adapter."""
        lora = self.config.lora
        if lora is not None:
            add_lora(self.unet, None, lora.target, lora.rank, lora.alpha)
        if self.condition.motion_encoder is not None:
            self.condition.motion_encoder.requires_grad_(False)

    def loss(self, batch: DenoiserBatch) -> tuple[Tensor, dict[str, float]]:
        """The mean over the student's steps of the distillation loss and of the motion loss.

        The motion loss compares the clean latents at a step with the real clip's, where the noisy
        latents are its own (DEMO, eq. 7 to 9). It is weighed by alpha_bar: where noise hides the
        clip, many motions are possible, and a squared error would teach their mean.
        """
        batch = self.with_latents(batch)
        other, real, strength = self._draw_conditions(len(batch.latents), batch.latents.device)
        states = self._states(batch, other)
        teach, study = self._teacher(states, strength), self._student(states, strength)
        latents, weight = batch.noise, self.config.video_motion_weight
        distilled, moved = [], []
        for step, timestep in enumerate(self.scheduler.timesteps):
            timesteps = timestep.to(latents.device).expand(len(latents))
            noised = self.noise_scheduler.add_noise(batch.latents, batch.noise, timesteps)
            latents = torch.where(real[:, None, None, None, None], noised, latents)
            prediction = study(latents, timestep).float()
            clean, _ = latents_and_noise(
                prediction,
                latents,
                timesteps,
                self.scheduler.alphas_cumprod,
                self.scheduler.config.prediction_type,
            )
            alpha_bar = self.scheduler.alphas_cumprod[timestep]
            with torch.no_grad():
                count = self.options.solver_steps
                solution = solve(teach, latents, self.solver, step * count, count)
                following = next_alpha_bar(self.scheduler, step)
                target = clean_target(latents, solution, alpha_bar, following)
            distilled.append(distillation_loss(clean, target, alpha_bar))
            if weight and real.any():
                motion = video_motion(clean[real], batch.latents[real])
                moved.append(alpha_bar * real.float().mean() * motion)
            latents = self.scheduler.step(prediction.detach(), timestep, latents).prev_sample
        loss = torch.stack(distilled).mean()
        figures = {f"step_{step}": value.item() for step, value in enumerate(distilled, start=1)}
        figures["distillation"] = loss.item()
        motion_loss = torch.stack(moved).mean() if moved else loss.new_zeros(())
        return loss + weight * motion_loss, figures | {"video_motion": motion_loss.item()}

    def _draw_conditions(self, count: int, device: torch.device) -> tuple[Tensor, Tensor, float]:
        """For each clip whether it has another's motion prompt and whether the latents are real
        ones, (B,) bool each; and the motion strength of the batch.
        """
        options = self.options
        uniform = torch.rand(count + 1, 2)
        other = uniform[:count, 0] < options.p_other_motion
        real = (uniform[:count, 1] < options.p_real) & ~other
        strength, (low, high) = 1.0, options.motion_strength
        if uniform[count, 0] < options.p_motion_strength:
            strength = low + (high - low) * uniform[count, 1].item()
        return other.to(device), real.to(device), strength

    @torch.no_grad()
    def _states(self, batch: DenoiserBatch, other: Tensor) -> TextStates:
        """The encoders' states of the prompts, with another clip's motion prompt where told."""
        ids = torch.where(other[:, None], batch.motion_ids.roll(1, dims=0), batch.motion_ids)
        encoder = self.condition.motion_encoder
        motion = None if encoder is None else penultimate_states(encoder, ids)
        return TextStates(self.content_states(batch), motion, self.condition.eot_index(ids))

    def _student(self, states: TextStates, strength: float) -> Denoiser:
        """The student without guidance; keys and values are computed once."""
        prepared = self.unet.prepare_conditioning(states.content, states.motion)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            output = self.unet(latents, timestep, conditioning=prepared, motion_strength=strength)
            prediction: Tensor = output.sample
            return prediction

        return predict

    def _teacher(self, states: TextStates, strength: float) -> Denoiser:
        """The teacher under guidance."""
        device = states.content.device
        self.teacher.to(device)  # the engine moves only trained networks
        ids = self.null_ids.to(device)
        with torch.no_grad():
            negative = self.teacher.text_conditioner().states(ids).repeat(len(states.content))
        return self.teacher.prepare_denoiser(states, negative, self.guider, strength)

    def pipeline(self) -> DemoPipeline:
        """The teacher with the student's denoiser, scheduler and defaults."""
        device = self.unet.device
        components = {**self.teacher.to(device).components, "unet": self.unet}
        pipeline = DemoPipeline(
            **components | {"scheduler": self.scheduler},
            num_inference_steps=self.steps,
            guidance_scale=1.0,
            negative_prompt=self.negative_prompt,
        )
        pipeline.speed_calibration = self.teacher.speed_calibration
        return pipeline

    def export(self, folder: Path) -> None:
        """Save the pipeline, or what differs from its teacher where an adapter was trained."""
        if self.config.lora is None:
            self.pipeline().save_pretrained(folder)
        else:
            assert self.config.base is not None
            save_adapted(self.pipeline(), folder, self.config.base.resolve())
