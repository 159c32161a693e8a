"""What LoRA (arXiv 2106.09685) adapts: named targets, as the linear layers of each part."""

from __future__ import annotations

from typing import Final, Literal

LoraTarget = Literal["motion", "all"]
"""`motion`: the motion transformers and the motion encoder, which is what DEMO adds, so that at
`motion_strength` 0 the adapter is not heard. `all`: every transformer of the denoiser (content,
motion, temporal), and the motion encoder where there is one."""

_TRANSFORMER: Final = r"transformer_blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))"
_DENOISER: Final[dict[LoraTarget, str]] = {
    "motion": r".*\.motion_attentions\.\d+\." + _TRANSFORMER,
    "all": r".*\." + _TRANSFORMER,
}


def lora_layers(target: LoraTarget, encoder_layers: int) -> dict[str, str]:
    """Part of the pipeline -> the regular expression that its adapted layers' names match.

    In the denoiser these are the projections of the attentions and the feed-forward layers, in
    the motion encoder, which has `encoder_layers` (0: there is none), the attentions' projections.
    Its last layer is left out, since nobody hears it.
    """
    layers = {"unet": _DENOISER[target]}
    if encoder_layers:
        heard = "|".join(map(str, range(encoder_layers - 1)))
        layers["motion_encoder"] = rf"encoder\.layers\.({heard})\.self_attn\.(q|k|v|out)_proj"
    return layers
