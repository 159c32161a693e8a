"""The layers that LoRA (arXiv 2106.09685) adapts, by named targets.

Imports nothing heavy: the training configuration names a target.
"""

from __future__ import annotations

from typing import Final, Literal

LoraTarget = Literal["motion", "all", "network"]
"""`motion`: the motion transformers and the motion encoder, which DEMO adds; such an adapter has no
effect at `motion_strength` 0. `all`: all transformers of the denoiser (content, motion, temporal),
and the motion encoder if the model has one. `network`: all linear layers and convolutions of the
denoiser, as for the adapters of few-step students (LCM-LoRA, arXiv 2311.05556)."""

_TRANSFORMER: Final = r"transformer_blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))"
_DENOISER: Final[dict[LoraTarget, str]] = {  # among the linear layers and convolutions
    "motion": r".*\.motion_attentions\.\d+\." + _TRANSFORMER,
    "all": r".*\." + _TRANSFORMER,
    "network": r".*",
}


def lora_layers(target: LoraTarget, encoder_layers: int) -> dict[str, str]:
    """A regular expression of the adapted layers' names for each component of the pipeline.

    In the denoiser: the projections of attention and feed-forward layers, or all linear layers and
    convolutions. In the motion encoder of `encoder_layers` layers (0: no encoder): the projections
    of self-attention, except for the target `network`. Its last layer is left out, because the
    denoiser uses the states of the last but one.
    """
    layers = {"unet": _DENOISER[target]}
    if encoder_layers and target != "network":
        used = "|".join(map(str, range(encoder_layers - 1)))
        layers["motion_encoder"] = rf"encoder\.layers\.({used})\.self_attn\.(q|k|v|out)_proj"
    return layers
