"""Files of networks with random weights, for speed alone: their figures mean nothing.

Each function writes what `demo-t2v evaluate videos` takes, in the architecture whose weights
published figures use. With `small` the transformers have two narrow layers.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
)

from demo_t2v.checkpoints.resolve import BUILT_IN

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write_clip(folder: Path, small: bool) -> None:
    """CLIP ViT-B/32 with the tokenizer of the built-in model."""
    tokenizer = CLIPTokenizer.from_pretrained(BUILT_IN["sprites"] / "tokenizer")
    tower = SMALL if small else {}
    text = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    text |= {"vocab_size": len(tokenizer)}
    CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)


def write_videomae(folder: Path, frames: int, small: bool) -> None:
    """VideoMAE base."""
    config = VideoMAEConfig(num_frames=frames, **(SMALL if small else {}))
    VideoMAEForVideoClassification(config).save_pretrained(folder)


def write_raft(file: Path) -> None:
    """RAFT large; takes torchvision."""
    from torchvision.models.optical_flow import raft_large

    torch.save(raft_large(weights=None).state_dict(), file)


def write_inception(file: Path) -> None:
    """InceptionV3; takes torch-fidelity."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    kind = theirs.FeatureExtractorInceptionV3
    with (
        mock.patch.object(theirs, "load_state_dict_from_url", return_value={}),
        mock.patch.object(kind, "load_state_dict"),
    ):
        network = kind("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), file)


def write_i3d(file: Path) -> None:
    """I3D as TorchScript, with the arguments of StyleGAN-V's file."""
    torch.jit.script(I3d().eval()).save(str(file))  # type: ignore[no-untyped-call]


class I3d(nn.Module):
    """Inflated Inception (arXiv 1705.07750, figure 3): 400 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _unit(3, 64, 7, 2),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            _unit(64, 64, 1),
            _unit(64, 192, 3),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            Mixed(192, 64, 96, 128, 16, 32, 32),
            Mixed(256, 128, 128, 192, 32, 96, 64),
            nn.MaxPool3d(3, 2, 1),
            Mixed(480, 192, 96, 208, 16, 48, 64),
            Mixed(512, 160, 112, 224, 24, 64, 64),
            Mixed(512, 128, 128, 256, 24, 64, 64),
            Mixed(512, 112, 144, 288, 32, 64, 64),
            Mixed(528, 256, 160, 320, 32, 128, 128),
            nn.MaxPool3d(2, 2, ceil_mode=True),
            Mixed(832, 256, 160, 320, 32, 128, 128),
            Mixed(832, 384, 192, 384, 48, 128, 128),
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(1024, 400, 1),
        )

    def forward(
        self,
        x: Tensor,
        rescale: bool = False,
        resize: bool = False,
        return_features: bool = False,
    ) -> Tensor:
        """Frames (B, 3, F, H, W) in 0 to 255 -> logits (B, 400)."""
        if resize:
            size = [x.shape[2], 224, 224]
            x = nn.functional.interpolate(x, size=size, mode="trilinear", align_corners=False)
        if rescale:
            x = x * 2 / 255 - 1
        logits = self.layers(x).flatten(1)
        return logits if return_features else logits.softmax(dim=1)


class Mixed(nn.Module):
    """Four branches of convolutions side by side."""

    def __init__(self, width: int, a: int, b0: int, b1: int, c0: int, c1: int, d: int) -> None:
        super().__init__()
        self.a = _unit(width, a, 1)
        self.b = nn.Sequential(_unit(width, b0, 1), _unit(b0, b1, 3))
        self.c = nn.Sequential(_unit(width, c0, 1), _unit(c0, c1, 3))
        self.d = nn.Sequential(nn.MaxPool3d(3, 1, 1), _unit(width, d, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], dim=1)


def _unit(width: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv3d(width, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(out), nn.ReLU())
