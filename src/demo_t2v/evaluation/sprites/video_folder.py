"""The sprite score of videos that any program made for the list of prompts.

A video may have any size and any number of frames from `MIN_FRAMES` on. The motions of the sprite
world extend over the whole clip, so the whole video is one clip. Its frame rate selects the frames
alone: 8 a second as in the sprite world, but not fewer than 16 where the video has them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.frame_grids import spread_indices
from demo_t2v.evaluation.metrics.metric import VideoClip
from demo_t2v.evaluation.report import BENCHMARK_VERSION, Report, Subject, VideoScore
from demo_t2v.evaluation.sprites.prompts import SpritePrompt
from demo_t2v.evaluation.sprites.scoring import score_video
from demo_t2v.evaluation.video_files import ClipFormat, VideoFile, list_videos

FPS: Final = 8
"""Frames a second of the sprite world's clips."""
FRAMES: Final = 16
"""Frames of the sprite world's clips."""
MIN_FRAMES: Final = 8
"""Fewer frames do not tell all motions apart."""
VIDEOS_PER_PROCESS: Final = 16
"""At least so many videos for each process that is started."""

_Pair = tuple[SpritePrompt, VideoFile]


def score_folder(
    folder: Path,
    prompts: Sequence[SpritePrompt],
    *,
    processes: int = 1,
    on_video: Callable[[], None] | None = None,
) -> Report:
    """The report of the videos in `folder`, in the role `model`.

    A video belongs to a prompt by its id in the manifest of `demo-t2v generate`, or else by its
    name without the ending. Other videos do not count. Prompts without a video are `missing`.
    `on_video` is called after each video. Raises EvaluationError for a folder without videos of the
    prompts, for two of one prompt or one of another prompt, and for a video that does not decode,
    is smaller than 32 pixels or shorter than `MIN_FRAMES`.
    """
    found = _match(folder, prompts)
    pairs = [(prompt, found[prompt.id]) for prompt in prompts if prompt.id in found]
    missing = [prompt.id for prompt in prompts if prompt.id not in found]
    scores = []
    for score in _score_all(pairs, min(processes, len(pairs) // VIDEOS_PER_PROCESS)):
        scores.append(score)
        if on_video:
            on_video()
    return Report(None, [Subject("model", str(folder), scores, missing)], BENCHMARK_VERSION)


def frame_count(frames: int, fps: float) -> int:
    """How many of a video's frames are scored, evenly spread from the first to the last."""
    return min(frames, max(FRAMES, round(frames * FPS / fps)))


def _match(folder: Path, prompts: Iterable[SpritePrompt]) -> dict[str, VideoFile]:
    """The videos by the ids of `prompts`. Raises EvaluationError."""
    requested = {prompt.id: prompt.prompt for prompt in prompts}
    found: dict[str, VideoFile] = {}
    for video in list_videos(folder):
        if video.id not in requested:
            continue
        other = found.setdefault(video.id, video)
        if other is not video:
            raise EvaluationError(
                f"{folder}: {other.name} and {video.name} are both {video.id}; "
                "the sprite score takes one video for each prompt"
            )
        if video.prompt not in ("", requested[video.id]):
            raise EvaluationError(
                f"{video.path}: was made for {video.prompt!r}; "
                f"{video.id} of version {BENCHMARK_VERSION} is {requested[video.id]!r}"
            )
    if not found:
        raise EvaluationError(
            f"{folder}: has no video with the id of a prompt, such as {next(iter(requested), '')}; "
            "`demo-t2v evaluate sprites --write-prompts FILE.csv` lists them"
        )
    return found


def _score_all(pairs: Sequence[_Pair], processes: int) -> Iterator[VideoScore]:
    if processes <= 1:
        yield from map(_score_file, pairs)
        return
    # For the new processes: several threads in each are slower than one.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    pool = ProcessPoolExecutor(processes, get_context("spawn"))
    try:
        # The new processes inherit the mask: Ctrl-C ends this one, which ends them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            scores = pool.map(_score_file, pairs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from scores
    finally:
        pool.shutdown(cancel_futures=True)


def score_clip(prompt: SpritePrompt, clip: VideoClip) -> VideoScore:
    """The score of a whole video. Raises EvaluationError, whose message does not name it."""
    count = frame_count(len(clip.frames), clip.fps)
    if count < MIN_FRAMES:
        raise EvaluationError(f"has {count} frames; the sprite score takes at least {MIN_FRAMES}")
    return score_video(prompt, clip.frames[spread_indices(len(clip.frames), count)])


def _score_file(pair: _Pair) -> VideoScore:
    prompt, video = pair
    clip = video.read(ClipFormat())
    try:
        return score_clip(prompt, clip)
    except EvaluationError as error:
        raise EvaluationError(f"{video.path}: {error}") from None
