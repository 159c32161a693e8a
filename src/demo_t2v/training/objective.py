"""DEMO's training objective: the diffusion loss and the weighted motion losses.

Eq. 10 of arXiv 2410.24219. Each term is a function of `demo_t2v.losses.motion`; here is what they
are given. A loss whose weight is 0 is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import DDPMScheduler
from torch import Tensor

from demo_t2v.diffusion.noise import latents_and_noise, min_snr_weights
from demo_t2v.losses.motion import diffusion, regularization, text_motion, video_motion
from demo_t2v.losses.optical_flow import FlowEstimator, Raft, lucas_kanade
from demo_t2v.training.config import DenoiserTraining


@dataclass(frozen=True)
class Samples:
    """What one step of a denoiser sees, B clips."""

    latents: Tensor
    """(B, C, F, h, w)"""
    noise: Tensor
    """(B, C, F, h, w)"""
    timesteps: Tensor
    """(B,)"""
    content_ids: Tensor
    """(B, L) the content encoder's tokens: the caption or the null text."""
    motion_ids: Tensor
    """(B, L) the motion encoder's tokens."""
    heard: Tensor
    """(B,) bool: whether the motion encoder gets the caption."""
    content: Tensor | None = None
    """(B, L, D) what the content encoder says of it, where that is kept."""
    flow: Tensor | None = None
    """(B, F-1, 2, H, W) the real clips' optical flow, in pixels."""
    image: Tensor | None = None
    """(B, D) CLIP's embeddings of the clips' middle frames."""
    frames: Tensor | None = None
    """uint8 (B, F, H, W, 3): the clips whose latents the step makes; `latents` is empty until
    then."""


@dataclass(frozen=True)
class Answer:
    """What the networks say to B samples."""

    prediction: Tensor
    """(B, C, F, h, w)"""
    maps: tuple[Tensor, ...] = ()
    """(B, h, w, F) each: the motion transformers' attention to the [eot] token."""
    motion_state: Tensor | None = None
    """(B, D) the motion encoder's state at the [eot] token."""


def flow_estimator(config: DenoiserTraining) -> FlowEstimator:
    """Who estimates the flow of attention maps, and of real clips. Raises ValueError (`Raft`)."""
    return Raft(config.raft_weights) if config.flow == "raft" else lucas_kanade


class Objective:
    """Samples and the networks' answer to them -> the scalar to minimise, and its terms."""

    def __init__(self, config: DenoiserTraining, scheduler: DDPMScheduler, motion: bool) -> None:
        """`motion` is whether there is a motion branch; without it there are no motion losses."""
        self._config = config
        self._scheduler = scheduler
        self.video_weight = config.video_motion_weight if motion else 0.0
        self.text_weight = config.text_motion_weight if motion else 0.0
        self.regularization_weight = config.regularization_weight if motion else 0.0
        self._flow = flow_estimator(config) if self.text_weight else lucas_kanade

    def __call__(
        self, samples: Samples, noisy: Tensor, answer: Answer
    ) -> tuple[Tensor, dict[str, float]]:
        """`noisy` (B, C, F, h, w) are the latents that the networks were given."""
        terms = {"diffusion": (1.0, self._diffusion(samples, answer.prediction))}
        if self.video_weight:
            value = self._video_motion(samples, noisy, answer.prediction)
            terms["video_motion"] = (self.video_weight, value)
        # Nobody who hears nothing can know the motion, or what the clip shows. A sample that does
        # not hear counts 0, so that a batch's loss is the mean of its parts', however it is cut.
        heard = samples.heard
        share, nothing = heard.float().mean(), answer.prediction.new_zeros(())
        if self.text_weight and samples.flow is not None:
            value = nothing
            if heard.any():
                maps = [attention[heard] for attention in answer.maps]
                value = share * text_motion(maps, self._flow, samples.flow[heard])
            terms["text_motion"] = (self.text_weight, value)
        image, state = samples.image, answer.motion_state
        if self.regularization_weight and image is not None and state is not None:
            value = nothing
            if heard.any():
                value = share * regularization(state[heard], image[heard])
            terms["regularization"] = (self.regularization_weight, value)
        total = sum((weight * value for weight, value in terms.values()), nothing)
        return total, {name: value.item() for name, (_, value) in terms.items()}

    def _diffusion(self, samples: Samples, prediction: Tensor) -> Tensor:
        """Eq. 1 and 2, in what the network predicts."""
        kind, gamma = self._scheduler.config.prediction_type, self._config.min_snr_gamma
        target = samples.noise
        if kind == "v_prediction":
            target = self._scheduler.get_velocity(samples.latents, samples.noise, samples.timesteps)
        weights = None
        if gamma is not None:
            kept = self._scheduler.alphas_cumprod
            weights = min_snr_weights(samples.timesteps, kept, kind, gamma)
        return diffusion(prediction, target, weights)

    def _video_motion(self, samples: Samples, noisy: Tensor, prediction: Tensor) -> Tensor:
        """Eq. 7 to 9, on clean latents or on the noise."""
        clean, noise = latents_and_noise(
            prediction,
            noisy,
            samples.timesteps,
            self._scheduler.alphas_cumprod,
            self._scheduler.config.prediction_type,
        )
        if self._config.video_motion_space == "eps":
            return video_motion(noise, samples.noise, "eps")
        return video_motion(clean, samples.latents, "x0")
