"""One generation: the videos of a request with previews, pictures and files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from demo_t2v.config import InferenceConfig
from demo_t2v.data.video import write_video
from demo_t2v.evaluation.frame_grids import read_frames
from demo_t2v.evaluation.frame_overlays import draw_attention, draw_flow, gif_data_uri
from demo_t2v.evaluation.video_grid import write_sheet
from demo_t2v.inference.grid import Grid
from demo_t2v.inference.jobs import Job, make_jobs, split_batches
from demo_t2v.inference.outputs import OutputFolder, file_name
from demo_t2v.inference.runner import CancelledError, Runner, Step, set_sampler
from demo_t2v.web.attention_maps import motion_attention, recorded_steps
from demo_t2v.web.history import GenerationResult, VideoFiles
from demo_t2v.web.request import GenerationRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from demo_t2v.pipeline import DemoPipeline

_PREVIEW_INTERVAL: Final = 6
"""Steps between two previews; the last step has none."""
_PREVIEW_FRAMES: Final = 4


@dataclass(frozen=True)
class StepUpdate:
    """`step` of `total` denoising steps are done; `previews` are GIFs as data URIs, one a video."""

    step: int
    total: int
    previews: tuple[str, ...] = ()


@dataclass
class Generation:
    """Generates the videos of one request.

    `base` has the model, device and precision. `on_update` is called after each denoising step,
    `is_cancelled` after each step and before each file. Files are written to `folder`.
    """

    pipeline: DemoPipeline
    base: InferenceConfig
    request: GenerationRequest
    folder: Path
    on_update: Callable[[StepUpdate], None]
    is_cancelled: Callable[[], bool]
    attention: list[NDArray[np.float32]] = field(default_factory=list)

    def run(self) -> GenerationResult:
        """Generate and write all files. Raises CancelledError and the runner's errors."""
        self._check_cancelled()
        started = time.monotonic()
        set_sampler(self.pipeline, self.request.config(self.base, strength=1.0))
        batches = self._batches()
        videos = [
            frames
            for number, (strength, jobs) in enumerate(batches)
            for frames in self._videos(jobs, strength, number, len(batches))
        ]
        if grid := self.request.grid:
            files: tuple[VideoFiles, ...] = (self._write_grid(grid, videos),)
        else:
            files = tuple(self._write(number, frames) for number, frames in enumerate(videos))
        result = GenerationResult(
            request=self.request,
            folder=self.folder,
            videos=files,
            picture=self._picture(videos),
            command=self.request.command(self.base),
            seconds=time.monotonic() - started,
        )
        self._check_cancelled()
        return result

    def _check_cancelled(self) -> None:
        if self.is_cancelled():
            raise CancelledError

    def _batches(self) -> list[tuple[float, Sequence[Job]]]:
        """Motion strength and jobs of each batch."""
        request = self.request
        if grid := request.grid:
            batches = split_batches(grid.jobs(request.seed), self.base.batch_size)
            return [(1.0, jobs) for jobs in batches]
        # The command line gives a single prompt the id 1, from which its seeds are derived.
        jobs = make_jobs([("1", *request.texts)], request.repeat_times, request.seed)
        return [(strength, jobs) for strength in request.strengths]

    def _videos(
        self, jobs: Sequence[Job], strength: float, batch: int, batches: int
    ) -> Iterator[NDArray[np.uint8]]:
        """Frames (F, H, W, 3) of each video of a batch, of which there are `batches`."""
        config = self.request.config(self.base, strength)
        runner = Runner(self.pipeline, config, max_pending=0)
        videos = runner.videos(jobs, on_step=partial(self._after_step, batch, batches))
        return (video.frames for video in videos)

    def _after_step(self, batch: int, batches: int, step: Step) -> None:
        self._check_cancelled()
        if self.request.tab == "attention" and step.number in recorded_steps(step.total):
            states, _ = self.pipeline.encode_prompt(self.request.prompt)
            self.attention.append(motion_attention(self.pipeline, step, states))
        previews: tuple[str, ...] = ()
        if step.number < step.total and step.number % _PREVIEW_INTERVAL == 0:
            previews = self._previews(step)
        done = step.total * batch + step.number
        self.on_update(StepUpdate(done, step.total * batches, previews))

    def _previews(self, step: Step) -> tuple[str, ...]:
        """Some frames of each video, decoded from the predicted clean latents."""
        stride = -(-self.request.num_frames // _PREVIEW_FRAMES)
        videos = self.pipeline.decode_latents(
            step.clean[:, :, ::stride], self.base.decode_chunk_size
        )
        frames = (videos * 255).round().byte().cpu().numpy()  # (B, F', H, W, 3)
        return tuple(gif_data_uri(video, self.request.fps / stride) for video in frames)

    def _write(self, number: int, frames: NDArray[np.uint8]) -> VideoFiles:
        self._check_cancelled()
        jobs = make_jobs([("demo", self.request.prompt)], number + 1, self.request.seed)
        mp4, gif = (self.folder / file_name(jobs[number], kind) for kind in ("mp4", "gif"))
        write_video(frames, mp4, self.request.fps, "mp4")
        write_video(frames, gif, self.request.fps, "gif")
        return VideoFiles(mp4, gif)

    def _write_grid(self, grid: Grid, videos: Sequence[NDArray[np.uint8]]) -> VideoFiles:
        """The contact sheet of files of all videos, as `demo-t2v grid` writes it."""
        fps = self.request.fps
        folder = OutputFolder(self.folder, self.base.model, {"format": "mp4", "fps": fps})
        jobs = grid.jobs(self.request.seed)
        for job, frames in zip(jobs, videos, strict=True):
            self._check_cancelled()
            write_video(frames, folder.file(job), fps, "mp4")
        mp4 = write_sheet(grid, folder, jobs)
        gif = mp4.with_suffix(".gif")
        write_video(read_frames(mp4), gif, fps, "gif")
        return VideoFiles(mp4, gif)

    def _picture(self, videos: list[NDArray[np.uint8]]) -> Path | None:
        if self.request.tab == "compare":
            picture = draw_flow(videos)
        elif self.request.tab == "attention":
            picture = draw_attention(videos[0], self.attention)
        else:
            return None
        file = self.folder / f"{self.request.tab}.webp"
        picture.save(file, quality=90)
        return file
