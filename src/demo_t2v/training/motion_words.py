"""Learning a motion word: from clips on disk to the word's file."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from demo_t2v.checkpoints.resolve import ResolvedModel
from demo_t2v.conditioning.motion_words import (
    WEIGHT_NAME,
    MotionWord,
    MotionWordError,
    check_content_prompt,
    check_name,
)
from demo_t2v.config import ConfigError
from demo_t2v.core.atomic_io import PathError, path_exists
from demo_t2v.core.devices import process_device, trains_on_cpu
from demo_t2v.core.launch import world_size
from demo_t2v.data.whole_clips import read_whole_clip
from demo_t2v.training.config.motion_word import MotionWordTraining
from demo_t2v.training.data.features import encode_frames
from demo_t2v.training.tasks.motion_word import MotionWordTask
from demo_t2v.training.trainer import train

if TYPE_CHECKING:
    from torch import Tensor

    from demo_t2v.pipeline import DemoPipeline

MAX_CLIPS: Final = 8


def learn_motion_word(
    config: MotionWordTraining,
    model: ResolvedModel,
    sources: Sequence[Path],
    out: Path,
    overwrite: bool = False,
) -> Iterator[dict[str, float]]:
    """Learn a motion word from one to eight clips and write it to the file `out`.

    Each source is a video file or a folder of frames (`read_whole_clip`). Yields the log lines of
    the training. `config.log_dir` has a folder for each run, which is deleted at the end; a run of
    the same clips, settings and model resumes from it. Raises MotionWordError for a number of
    clips, a name, a content prompt or a model that cannot be, PathError for an existing file
    without `overwrite`, VideoError for a clip that does not decode or is shorter than the model's,
    TrainingStopped after Ctrl-C, ConfigError, also under a launcher of several processes,
    ModelError.
    """
    if world_size() > 1:
        raise ConfigError(f"a motion word is learned in one process, not in {world_size()}")
    check_name(config.name)
    check_content_prompt(config.content or "", [config.name])
    if not 1 <= len(sources) <= MAX_CLIPS:
        raise MotionWordError(f"{len(sources)} clips: give 1 to {MAX_CLIPS}")
    if out.is_dir() or not out.parent.is_dir():
        raise PathError(f"{out}: give the name of a file in an existing folder")
    if path_exists(out) and not overwrite:
        raise PathError(f"{out}: already exists; give --overwrite, or another --out")
    frames, side = model.defaults.frames, model.defaults.side
    clips = [read_whole_clip(source, frames, side) for source in sources]
    pipeline = model.load(process_device(), "float32")
    if not trains_on_cpu():
        pipeline.unet.enable_gradient_checkpointing()
    run = config.log_dir / _run_name(config, model, clips)
    config = config.model_copy(update={"log_dir": run})
    yield from train(MotionWordTask(config, pipeline, _encode_clips(pipeline, clips)), config)
    MotionWord.read(run / "final" / WEIGHT_NAME).save(out)
    shutil.rmtree(run)


def _run_name(
    config: MotionWordTraining, model: ResolvedModel, clips: Sequence[NDArray[np.uint8]]
) -> str:
    """A hash of everything that the result depends on."""
    settings = config.model_dump_json(exclude={"log_dir"})
    combined = hashlib.sha256(f"{model.fingerprint} {settings}".encode())
    for clip in clips:
        combined.update(clip.tobytes())
    return combined.hexdigest()[:16]


@torch.no_grad()
def _encode_clips(pipeline: DemoPipeline, clips: Sequence[NDArray[np.uint8]]) -> Tensor:
    """The latents (N, C, F, h, w) of the clips, on the CPU."""
    device = pipeline.vae.device
    latents = [encode_frames(pipeline.vae, torch.tensor(clip, device=device)) for clip in clips]
    return rearrange(torch.stack(latents), "n f c h w -> n c f h w").cpu()
