"""DEMO's training objective: the diffusion loss and the weighted motion losses.

Eq. 10 of arXiv 2410.24219. `demo_t2v.losses.motion` has a function for each term; this module
prepares their arguments. A loss whose weight is 0 is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffusers import DDPMScheduler
from torch import Tensor

from demo_t2v.diffusion.noise import latents_and_noise, min_snr_weights
from demo_t2v.losses.motion import diffusion, regularization, text_motion, video_motion
from demo_t2v.losses.optical_flow import FlowEstimator, lucas_kanade


@dataclass(frozen=True)
class DenoiserBatch:
    """Inputs of one training step of a denoiser, for B clips."""

    latents: Tensor
    """(B, C, F, h, w)"""
    noise: Tensor
    """(B, C, F, h, w)"""
    timesteps: Tensor
    """(B,)"""
    content_ids: Tensor
    """(B, L) the content encoder's token ids: of the caption or of the null text."""
    motion_ids: Tensor
    """(B, L) the motion encoder's token ids."""
    has_motion_prompt: Tensor
    """(B,) bool: False where the motion encoder gets the null text."""
    content: Tensor | None = None
    """(B, L, D) the content encoder's states, where they are cached."""
    flow: Tensor | None = None
    """(B, F-1, 2, H, W) the real clips' optical flow, in pixels."""
    image: Tensor | None = None
    """(B, D) CLIP's embeddings of the clips' middle frames."""
    frames: Tensor | None = None
    """uint8 (B, F, H, W, 3): clips that the step encodes; `latents` is empty until then."""


@dataclass(frozen=True)
class DenoiserOutput:
    """Outputs of the networks for B clips."""

    prediction: Tensor
    """(B, C, F, h, w)"""
    attention_maps: tuple[Tensor, ...] = ()
    """(B, h, w, F) each: the motion transformers' attention to the [eot] token."""
    motion_state: Tensor | None = None
    """(B, D) the motion encoder's state at the [eot] token."""


class Objective:
    """Eq. 10: the sum of the diffusion loss and of the weighted motion losses."""

    def __init__(
        self,
        scheduler: DDPMScheduler,
        *,
        video_motion_weight: float = 0.0,
        text_motion_weight: float = 0.0,
        regularization_weight: float = 0.0,
        video_motion_space: Literal["x0", "eps"] = "x0",
        min_snr_gamma: float | None = None,
        flow_estimator: FlowEstimator = lucas_kanade,
    ) -> None:
        """`scheduler` is the one that adds the noise; `flow_estimator` is for attention maps."""
        self.video_motion_weight = video_motion_weight
        self.text_motion_weight = text_motion_weight
        self.regularization_weight = regularization_weight
        self._scheduler = scheduler
        self._video_motion_space = video_motion_space
        self._min_snr_gamma = min_snr_gamma
        self._flow_estimator = flow_estimator

    def __call__(
        self, batch: DenoiserBatch, noisy: Tensor, output: DenoiserOutput
    ) -> tuple[Tensor, dict[str, float]]:
        """The scalar loss and its unweighted terms; `noisy` (B, C, F, h, w) are the network's
        input latents.
        """
        terms = {"diffusion": (1.0, self._diffusion(batch, output.prediction))}
        if self.video_motion_weight:
            value = self._video_motion(batch, noisy, output.prediction)
            terms["video_motion"] = (self.video_motion_weight, value)
        # The null text names neither motion nor content. Samples with it count as 0, so that the
        # loss of a batch is the mean of the losses of its micro-batches.
        prompted = batch.has_motion_prompt
        fraction, zero = prompted.float().mean(), output.prediction.new_zeros(())
        if self.text_motion_weight and batch.flow is not None:
            value = zero
            if prompted.any():
                maps = [attention[prompted] for attention in output.attention_maps]
                flow = batch.flow[prompted]
                value = fraction * text_motion(maps, self._flow_estimator, flow)
            terms["text_motion"] = (self.text_motion_weight, value)
        image, state = batch.image, output.motion_state
        if self.regularization_weight and image is not None and state is not None:
            value = zero
            if prompted.any():
                value = fraction * regularization(state[prompted], image[prompted])
            terms["regularization"] = (self.regularization_weight, value)
        total = sum((weight * value for weight, value in terms.values()), zero)
        return total, {name: value.item() for name, (_, value) in terms.items()}

    def _diffusion(self, batch: DenoiserBatch, prediction: Tensor) -> Tensor:
        """Eq. 1 and 2, for the scheduler's prediction type."""
        kind = self._scheduler.config.prediction_type
        target = batch.noise
        if kind == "v_prediction":
            target = self._scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        weights = None
        if self._min_snr_gamma is not None:
            alphas_cumprod = self._scheduler.alphas_cumprod
            weights = min_snr_weights(batch.timesteps, alphas_cumprod, kind, self._min_snr_gamma)
        return diffusion(prediction, target, weights)

    def _video_motion(self, batch: DenoiserBatch, noisy: Tensor, prediction: Tensor) -> Tensor:
        """Eq. 7 to 9, on clean latents or on the noise."""
        clean, noise = latents_and_noise(
            prediction,
            noisy,
            batch.timesteps,
            self._scheduler.alphas_cumprod,
            self._scheduler.config.prediction_type,
        )
        if self._video_motion_space == "eps":
            return video_motion(noise, batch.noise, "eps")
        return video_motion(clean, batch.latents, "x0")
