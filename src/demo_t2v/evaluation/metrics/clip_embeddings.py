"""CLIP embeddings of a video's frames and prompt, computed once for all metrics (2103.00020)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, CLIPModel

from demo_t2v.checkpoints.resolve import HUB_ID, quieten_libraries
from demo_t2v.config import ConfigError
from demo_t2v.core.atomic_io import digest
from demo_t2v.core.devices import process_device
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.features.cache import with_cache
from demo_t2v.evaluation.features.extractor import Features
from demo_t2v.evaluation.metrics.metric import Frames, MissingWeightsError, VideoClip
from demo_t2v.model_folder import ModelError, first_line, load_network, network_files
from demo_t2v.training.data.features import load_tokenizer

_BATCH: Final = 16
"""Frames that are embedded at once."""


class ClipEmbedder:
    """A CLIP of transformers, with the tokenizer and the image preprocessing that it came with.

    `name` is a folder or a repository on the hub, such as openai/clip-vit-base-patch32; frames are
    preprocessed by Pillow. `feature_cache` is a folder of embeddings that are computed once.
    Raises MissingWeightsError for None, EvaluationError for a name that leads to no complete CLIP,
    ConnectionError when the hub cannot be reached.
    """

    def __init__(self, name: str | None, feature_cache: Path | None = None) -> None:
        if name is None:
            raise MissingWeightsError(
                "needs a CLIP: name a folder or a repository of the hub by --clip "
                "(openai/clip-vit-base-patch32)"
            )
        folder = _find(name)
        quieten_libraries()
        try:
            self.model = load_network(CLIPModel, folder, dtype=torch.float32).eval()
            self.tokenizer = load_tokenizer(folder)
            self.processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                folder, backend="pil"
            )
        except (ModelError, ConfigError, OSError, ValueError) as error:
            raise EvaluationError(f"--clip {name}: {first_line(error)}") from None
        self.model.to(process_device())
        self.name = (
            name if HUB_ID.fullmatch(name) and not Path(name).exists() else folder.resolve().name
        )
        self.depends_on: Mapping[str, Any] = {
            "clip": self.name,
            "sha256": {file.name: digest(file) for file in network_files(folder)},
        }
        self._embed = with_cache(self, feature_cache)
        self.frames = lru_cache(maxsize=1)(self._frames)

    @property
    def sha256(self) -> str:
        """The hashes of the files of weights."""
        return " ".join(self.depends_on["sha256"].values())

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """The settings of the image preprocessing."""
        settings: dict[str, Any] = json.loads(self.processor.to_json_string())
        return settings

    @torch.no_grad()
    def prompt(self, prompt: str) -> Tensor:
        """The embedding (D,) of a text, cut to CLIP's length; its norm is 1."""
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(prompt, max_length=length, truncation=True, return_tensors="pt")
        pooled = self.model.text_model(input_ids=ids.input_ids.to(self.model.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)[0]

    def _frames(self, clip: VideoClip) -> Tensor:
        """The embeddings (F, D) of the frames; their norms are 1."""
        return torch.from_numpy(self._embed(clip.frames)).to(self.model.device)

    @torch.no_grad()
    def __call__(self, frames: Frames) -> Features:
        """frames (F, H, W, 3) -> embeddings (F, D); their norms are 1."""
        embeddings = []
        for start in range(0, len(frames), _BATCH):
            pictures = [Image.fromarray(frame) for frame in frames[start : start + _BATCH]]
            pixels = self.processor(pictures, return_tensors="pt").pixel_values
            pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device))
            embeddings.append(self.model.visual_projection(pooled.pooler_output))
        features: Features = F.normalize(torch.cat(embeddings), dim=-1).cpu().numpy()
        return features


def _find(name: str) -> Path:
    """The folder that a name leads to, downloaded from the hub if it is no folder here."""
    if Path(name).is_dir():
        return Path(name)
    missing = EvaluationError(f"--clip {name}: is neither a folder nor a repository as org/name")
    if Path(name).exists() or not HUB_ID.fullmatch(name):
        raise missing
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
        if not network_files(folder):
            snapshot_download(name, allow_patterns=["pytorch_model*.bin*"])
    except RepositoryNotFoundError:
        raise missing from None
    except Exception as error:  # the client passes on whatever its network library raises
        raise ConnectionError(
            f"--clip {name}: is no folder here, and the hub does not give it ({first_line(error)})"
        ) from None
    return folder
