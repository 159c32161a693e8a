"""Noise and what a prediction says about it, as pure functions beside a diffusers scheduler.

Adding noise and the velocity to be predicted are the scheduler's own `add_noise` and
`get_velocity`; here is what training needs and a scheduler does not have. `alphas_cumprod` (T,) is
the scheduler's; a = sqrt(alphas_cumprod[t]) and s = sqrt(1 - alphas_cumprod[t]) below, so that
noisy latents are a x0 + s epsilon.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]
"""What the denoiser predicts: the noise epsilon, or the velocity v = a epsilon - s x0."""


def latents_and_noise(
    prediction: Tensor,
    noisy: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: PredictionType,
) -> tuple[Tensor, Tensor]:
    """The clean latents x0 and the noise epsilon that a prediction stands for.

    prediction and noisy (B, ...), timesteps (B,); both results (B, ...), and
    a x0 + s epsilon = noisy. From epsilon, x0 = (noisy - s epsilon) / a (arXiv 2006.11239, eq. 15),
    so its error grows without limit where alphas_cumprod goes to zero; from the velocity,
    x0 = a noisy - s v and epsilon = s noisy + a v (arXiv 2202.00512, appendix D).
    """
    kept = _at(timesteps, alphas_cumprod).view(-1, *[1] * (noisy.ndim - 1))  # (B, 1, 1, ...)
    a, s = kept.sqrt(), (1 - kept).sqrt()
    if prediction_type == "epsilon":
        return (noisy - s * prediction) / a, prediction
    if prediction_type == "v_prediction":
        return a * noisy - s * prediction, s * noisy + a * prediction
    raise _unknown(prediction_type)


def min_snr_weights(
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: PredictionType,
    gamma: float = 5.0,
) -> Tensor:
    """Weights (B,) of the squared error at `timesteps` (B,) (min-SNR, arXiv 2303.09556, sec. 3.4).

    With snr = (a / s)^2, the weight on x0 is min(snr, gamma): min(snr, gamma) / snr on epsilon,
    and min(snr, gamma) / (snr + 1) on the velocity.
    """
    kept = _at(timesteps, alphas_cumprod)
    snr = kept / (1 - kept)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    raise _unknown(prediction_type)


def offset_noise(noise: Tensor, offset: Tensor, strength: float) -> Tensor:
    """noise (B, C, F, H, W) and `strength` times one number for all places of a frame.

    `offset` is standard normal, (B, C, F) for a number a frame, as DEMO and ModelScopeT2V draw it
    (their `noise_strength`), or (B, C, 1) for one that a whole clip shares. The sum is what is
    added to the latents and what epsilon then means. Without it a denoiser learns brightness badly.
    """
    return noise + strength * offset[..., None, None]


def _at(timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    return alphas_cumprod.to(timesteps.device)[timesteps]


def _unknown(prediction_type: str) -> ValueError:
    return ValueError(f"prediction type {prediction_type!r}: should be epsilon or v_prediction")
