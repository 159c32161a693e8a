"""Configuration of the training of CLIP."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from demo_t2v.config.yaml_text import OptionalPath
from demo_t2v.training.config.base import TrainConfig


class ClipTraining(TrainConfig):
    """Stage 2: contrastive training on captions and still frames."""

    task: Literal["clip"]
    vocab_size: Annotated[int, Field(ge=300)] = 700
    """Number of tokens of a new tokenizer."""
    text: OptionalPath = None
    """A folder with a trained `tokenizer` and `content_encoder` to start from."""
    freeze_text: bool = True
    """Train only the image tower where `text` is given."""
    frames_per_side: Annotated[int, Field(ge=1)] = 1
    """More than 1: an image is a grid of that many rows and columns of frames, spread over a
    clip, so that the text tower learns the words of motions."""
