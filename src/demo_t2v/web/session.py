"""What the buttons do, on the one pipeline: a wish goes in, progress and a result come out."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.data.video import write_video
from demo_t2v.inference.batches import Step, generate
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.outputs import file_name
from demo_t2v.inference.runner import free_memory, out_of_memory
from demo_t2v.web import pictures
from demo_t2v.web.attention_maps import moments, motion_attention
from demo_t2v.web.history import Clip, Made
from demo_t2v.web.request import Limits, Wish

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from demo_t2v.pipeline import DemoPipeline

_log = logging.getLogger(__name__)

_PREVIEW_EVERY: Final = 6
"""Steps; the last one has none."""
_PREVIEW_FRAMES: Final = 4


@dataclass(frozen=True)
class Progress:
    """So many of `total` denoising steps are done; `previews` are data URIs, one a video."""

    step: int
    total: int
    previews: tuple[str, ...] = ()


class _Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """Raised in the middle of a generation whose visitor wants no more of it."""


Maker = Callable[[Wish], Iterator[Progress | Made]]
"""Yields progress after every step, and what was made at the end."""


def unchanged(maker: Maker) -> Maker:
    """The maker itself: where no decorator is needed."""
    return maker


class Studio:
    """One model, and one generation at a time.

    `config` names model, device and precision. Files go into folders of their own below `folder`,
    which must exist. `on_gpu` wraps what computes, as ZeroGPU's decorator does.
    """

    def __init__(
        self,
        pipeline: DemoPipeline,
        config: InferenceConfig,
        folder: Path,
        on_gpu: Callable[[Maker], Maker] = unchanged,
    ) -> None:
        self.config = config
        self.limits = Limits.of(pipeline)
        self.has_motion = pipeline.motion_encoder is not None
        self._pipeline = pipeline
        self._folder = folder
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._maker = on_gpu(self._make)

    def make(self, wish: Wish) -> Iterator[Progress | Made]:
        """Yields progress after every step, and what was made at the end.

        Closing the iterator stops the work within two steps, and leaves nothing behind. Raises
        ConfigError for a size that the network cannot take, ArithmeticError where its numbers
        overflow, and whatever else goes wrong; that is logged, unless memory was short.
        """
        return self._maker(wish)

    def close(self) -> None:
        """End what is being made, which takes a step, and make nothing more."""
        self._closed.set()
        with self._turn:
            pass

    def _make(self, wish: Wish) -> Iterator[Progress | Made]:
        # The pipeline calls back, a page takes one thing after another: a thread stands between.
        news: SimpleQueue[Progress | Made | Exception] = SimpleQueue()
        stop = threading.Event()
        threading.Thread(target=self._work, args=(wish, news.put, stop), daemon=True).start()
        try:
            while True:
                item = news.get()
                if isinstance(item, _Stopped):
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Made):
                    return
        finally:
            stop.set()  # and not waited for: a step of a large model is long

    def _work(
        self, wish: Wish, tell: Callable[[Progress | Made | Exception], None], stop: threading.Event
    ) -> None:
        def unwanted() -> bool:
            return stop.is_set() or self._closed.is_set()

        try:
            # A generation that is being stopped still has the scheduler.
            with self._turn, _new_folder(self._folder) as folder:
                tell(_Run(self._pipeline, self.config, wish, folder, tell, unwanted).make())
        except Exception as error:
            if out_of_memory(error):
                error.__traceback__ = None  # it would hold on to the tensors
                free_memory()
            elif not isinstance(error, (_Stopped, ConfigError, ArithmeticError)):
                _log.exception("a video could not be made")
            tell(error)


@contextmanager
def _new_folder(parent: Path) -> Iterator[Path]:
    """A folder of which nothing is left if what is done with it fails."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@dataclass
class _Run:
    """One wish on its way."""

    pipeline: DemoPipeline
    base: InferenceConfig
    wish: Wish
    folder: Path
    tell: Callable[[Progress], None]
    unwanted: Callable[[], bool]
    attention: list[NDArray[np.float32]] = field(default_factory=list)

    def make(self) -> Made:
        """All of it; raises _Stopped as soon as it is found that nobody waits any more."""
        self._go_on()
        started = time.monotonic()
        videos = [
            frames
            for variant, strength in enumerate(self.wish.strengths)
            for frames in self._videos(variant, strength)
        ]
        clips = tuple(self._write(number, frames) for number, frames in enumerate(videos))
        made = Made(
            wish=self.wish,
            folder=self.folder,
            clips=clips,
            picture=self._picture(videos),
            command=self.wish.command(self.base),
            seconds=time.monotonic() - started,
        )
        self._go_on()
        return made

    def _go_on(self) -> None:
        if self.unwanted():
            raise _Stopped

    def _videos(self, variant: int, strength: float) -> Iterator[NDArray[np.uint8]]:
        wish = self.wish
        # As the command line numbers a single prompt, so that its seeds are the same.
        jobs = make_jobs([("1", wish.prompt)], wish.videos, wish.seed)
        config = wish.config(self.base, strength)
        watch = partial(self._watch, variant)
        return (frames for _, frames, _ in generate(self.pipeline, jobs, config, watch=watch))

    def _watch(self, variant: int, step: Step) -> None:
        self._go_on()
        if self.wish.tab == "inside" and step.number in moments(step.total):
            states, _ = self.pipeline.encode_prompt(self.wish.prompt)
            self.attention.append(motion_attention(self.pipeline, step, states))
        previews: tuple[str, ...] = ()
        if step.number < step.total and step.number % _PREVIEW_EVERY == 0:
            previews = self._previews(step)
        total = step.total * len(self.wish.strengths)
        self.tell(Progress(step.total * variant + step.number, total, previews))

    def _previews(self, step: Step) -> tuple[str, ...]:
        """Every video as it can be told by now, some of its frames."""
        stride = -(-self.wish.frames // _PREVIEW_FRAMES)
        videos = self.pipeline.decode(step.clean[:, :, ::stride], self.base.decode_chunk_size)
        frames = (videos * 255).round().byte().cpu().numpy()  # (B, F', H, W, 3)
        return tuple(pictures.preview(video, self.wish.fps / stride) for video in frames)

    def _write(self, number: int, frames: NDArray[np.uint8]) -> Clip:
        self._go_on()
        jobs = make_jobs([("demo", self.wish.prompt)], number + 1, self.wish.seed)
        clip = Clip(*(self.folder / file_name(jobs[number], kind) for kind in ("mp4", "gif")))
        write_video(frames, clip.mp4, self.wish.fps, "mp4")
        write_video(frames, clip.gif, self.wish.fps, "gif")
        return clip

    def _picture(self, videos: list[NDArray[np.uint8]]) -> Path | None:
        if self.wish.tab == "compare":
            picture = pictures.flow_strip(videos)
        elif self.wish.tab == "inside":
            picture = pictures.heat_strip(videos[0], self.attention)
        else:
            return None
        file = self.folder / f"{self.wish.tab}.webp"
        picture.save(file, quality=90)
        return file
