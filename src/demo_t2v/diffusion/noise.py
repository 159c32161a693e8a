"""Functions of the noise process that diffusers' schedulers do not have.

`alphas_cumprod` (T,) is the scheduler's. Below, a = sqrt(alphas_cumprod[t]) and
s = sqrt(1 - alphas_cumprod[t]), so that noisy latents are a x0 + s epsilon (arXiv 2006.11239,
eq. 4).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]
"""The denoiser predicts the noise epsilon, or the velocity v = a epsilon - s x0."""


def shifted_timesteps(uniform: Tensor, shift: float, count: int) -> Tensor:
    """Timesteps (B,) below `count` for uniform draws u (B,) in [0, 1).

    They are shift u / (1 + (shift - 1) u) of `count` (arXiv 2403.03206, eq. 23). A shift above 1
    moves them towards the noise.
    """
    shifted = shift * uniform / (1 + (shift - 1) * uniform)
    return (shifted * count).long().clamp(max=count - 1)


def latents_and_noise(
    prediction: Tensor,
    noisy: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: PredictionType,
) -> tuple[Tensor, Tensor]:
    """The clean latents x0 and the noise epsilon that follow from a prediction.

    prediction and noisy (B, ...), timesteps (B,); both results are (B, ...), and
    a x0 + s epsilon = noisy. From epsilon, x0 = (noisy - s epsilon) / a (arXiv 2006.11239,
    eq. 15), whose error is unbounded as alphas_cumprod goes to zero. From the velocity,
    x0 = a noisy - s v and epsilon = s noisy + a v (arXiv 2202.00512, appendix D).
    """
    alpha_bar = _at(timesteps, alphas_cumprod).view(-1, *[1] * (noisy.ndim - 1))  # (B, 1, 1, ...)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
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
    """Min-SNR weights (B,) of the squared error at `timesteps` (B,) (arXiv 2303.09556, sec. 3.4).

    With snr = (a / s)^2, the weight of the error of x0 is min(snr, gamma). This is
    min(snr, gamma) / snr for epsilon, and min(snr, gamma) / (snr + 1) for the velocity.
    """
    alpha_bar = _at(timesteps, alphas_cumprod)
    snr = alpha_bar / (1 - alpha_bar)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    raise _unknown(prediction_type)


def offset_noise(noise: Tensor, offset: Tensor, strength: float) -> Tensor:
    """noise (B, C, F, H, W) plus `strength` times an offset that is constant over each frame.

    `offset` is standard normal: (B, C, F) for one number a frame, as in DEMO and ModelScopeT2V
    (`noise_strength`), or (B, C, 1) for one a clip. The sum is added to the latents, and is the
    epsilon to be predicted. It helps the denoiser to learn the mean brightness.
    """
    return noise + strength * offset[..., None, None]


def _at(timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """alphas_cumprod[timesteps], on the device of `timesteps`."""
    return alphas_cumprod.to(timesteps.device)[timesteps]


def _unknown(prediction_type: str) -> ValueError:
    return ValueError(f"prediction type {prediction_type!r}: should be epsilon or v_prediction")
