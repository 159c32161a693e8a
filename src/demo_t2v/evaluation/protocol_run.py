"""A protocol for one model: makes the videos that are missing, and measures all of them."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig, load
from demo_t2v.config.inference import video_settings
from demo_t2v.core.devices import free_memory
from demo_t2v.evaluation.all_metrics import make_metrics
from demo_t2v.evaluation.distribution_metrics import Extractors
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.measurement import measure
from demo_t2v.evaluation.metrics.metric import Metric
from demo_t2v.evaluation.protocol import EvaluationProtocol
from demo_t2v.evaluation.results import MetricResult, Results, read_results, save_results
from demo_t2v.evaluation.sprites.prompts import list_prompts
from demo_t2v.evaluation.sprites.sprite_score import SpriteScore
from demo_t2v.evaluation.video_files import ClipFormat, VideoFile, list_videos
from demo_t2v.inference.jobs import make_jobs, read_prompts
from demo_t2v.inference.outputs import slug
from demo_t2v.inference.workload import Workload

RESIZING: Final = "short side scaled by area averaging, centre cropped"
"""What `ClipFormat` does, for results."""
_NAME_LENGTH: Final = 40


@dataclass(frozen=True)
class ProtocolRun:
    """The videos of a protocol by one model, and the folder of videos, features and results."""

    protocol: EvaluationProtocol
    changes: Mapping[str, Any]
    """The keys of the protocol that differ from its file."""
    subject: str
    """The model, and the options of its videos that are not its own."""
    prompts: Sequence[tuple[str, ...]]
    """(id, prompt) or (id, prompt, motion)."""
    real: Sequence[VideoFile]
    work: Workload
    folder: Path

    @classmethod
    def prepare(
        cls,
        protocol: EvaluationProtocol,
        changes: Mapping[str, Any],
        folder: Path,
        overrides: Iterable[str] = (),
        options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> Self:
        """Read prompts and names of real videos, find the model, and what is missing.

        `overrides` and `options` are those of `InferenceConfig`. Each model with its options has a
        folder of its own. Raises EvaluationError, and what `Workload.prepare` raises.
        """
        prompts = read_protocol_prompts(protocol)
        real = _list_real(protocol)
        fixed = {key: getattr(protocol, key) for key in ("seed", "num_frames", "fps")}
        given = {**(options or {}), **fixed}
        config: InferenceConfig = load(InferenceConfig, None, overrides, given)
        model = resolve(config.model)
        subject = _subject(config, load(InferenceConfig, None, (), fixed))
        videos = folder / f"{slug(subject, _NAME_LENGTH)}-{model.fingerprint[:8]}"
        config = config.model_copy(update={"out": str(videos)})
        jobs = make_jobs(prompts, protocol.repeats, protocol.seed)
        work = Workload.prepare(config, jobs, overwrite)
        return cls(protocol, changes, subject, prompts, real, work, folder)

    @property
    def results_file(self) -> Path:
        """Where the results belong: beside the folder of the videos.

        Changes of the protocol are part of the name, so that a trial replaces no results.
        """
        name = self.work.folder.path.name
        if self.changes:
            changes = ", ".join(f"{key}={value}" for key, value in self.changes.items())
            name = f"{name}-{slug(changes, _NAME_LENGTH)}"
        return self.folder / f"{name}.json"

    def save(self, results: Results) -> Path:
        """Write the results into `results_file`, and return it.

        If an earlier file there has figures that these lack, it stays, and the name of this one
        says what it is without. Raises OSError.
        """
        file = self.results_file
        try:
            earlier = read_results(file).metrics if file.exists() else []
        except EvaluationError:  # of another version
            earlier = []
        own = {each.name for each in results.metrics if each.figure is not None}
        lost = sorted({each.name for each in earlier if each.figure is not None} - own)
        if lost:
            without = slug(f"without {' '.join(lost)}", _NAME_LENGTH)
            file = file.with_name(f"{file.stem}-{without}.json")
        save_results(results, file)
        return file

    @cached_property
    def videos(self) -> Sequence[VideoFile]:
        """The videos of all jobs."""
        files = [(job, self.work.folder.file(job)) for job in self.work.jobs]
        model = self.work.model.fingerprint
        return [
            VideoFile(file.name, file, job.prompt, job.id, job.seed, model) for job, file in files
        ]

    @property
    def clip_format(self) -> ClipFormat:
        """How videos are cut and scaled before they are measured."""
        protocol = self.protocol
        if protocol.resolution is None:
            return ClipFormat()
        return ClipFormat(self.work.config.num_frames, float(protocol.fps), protocol.resolution)

    def check(self, on_video: Callable[[], None] | None = None) -> None:
        """Find before videos are made what would stop the measurement.

        Loads all networks and frees them again, and reads all real videos. Raises EvaluationError
        for one that is of no use.
        """
        self._metrics()
        _free_memory()
        for video in self.real:
            video.read(self.clip_format)
            if on_video:
                on_video()

    def measure(self, on_video: Callable[[], None] | None = None) -> Results:
        """All metrics on the videos, which must be there. Raises EvaluationError.

        One video is in memory at a time. Features that an earlier measurement computed are read.
        """
        _free_memory()
        metrics, not_computed = self._metrics()
        return measure(
            metrics,
            self.videos,
            subject=self.subject,
            real=self.real,
            real_subject=str(self.protocol.real or ""),
            form=self.clip_format,
            settings=self._settings(),
            not_computed=not_computed,
            on_video=on_video,
        )

    def _metrics(self) -> tuple[list[Metric], list[MetricResult]]:
        protocol = self.protocol
        extractors = Extractors(
            protocol.inception,
            protocol.i3d,
            protocol.videomae,
            protocol.feature_cache or self.folder / "features",
            protocol.image_frames,
        )
        metrics, missing = make_metrics(
            with_real=bool(self.real), clip=protocol.clip, raft=protocol.raft, extractors=extractors
        )
        if protocol.sprite_score:
            metrics.insert(0, SpriteScore(list_prompts(seed=protocol.seed)))
        return metrics, missing

    def _settings(self) -> dict[str, Any]:
        """What the figures depend on beside the metrics' own, as JSON values."""
        protocol, folder = self.protocol, self.work.folder
        prompts = json.dumps(self.prompts, ensure_ascii=False).encode()
        manifest = folder.entries()
        made = [manifest[video.name] for video in self.videos]
        dtypes = sorted({entry["settings"]["dtype"] for entry in made})
        return {
            "protocol": protocol.name,
            "protocol_version": protocol.version,
            "protocol_changes": dict(self.changes),
            "frames": self.work.config.num_frames,
            "fps": protocol.fps,
            "resolution": protocol.resolution,
            "resizing": RESIZING if protocol.resolution is not None else "none",
            "seed": protocol.seed,
            "repeats": protocol.repeats,
            "prompts": len(self.prompts),
            "prompts_sha256": hashlib.sha256(prompts).hexdigest(),
            "real_videos": len(self.real),
            "model": self.work.model.name,
            "fingerprint": self.work.model.fingerprint,
            "devices": sorted({entry["device"] for entry in made}),
            "generation": {**folder.settings, "dtype": ", ".join(dtypes)},
        }


def read_protocol_prompts(protocol: EvaluationProtocol) -> list[tuple[str, ...]]:
    """The (id, prompt) or (id, prompt, motion) of a protocol. Raises EvaluationError, PromptError.

    Those of the sprite world depend on the protocol's seed.
    """
    if protocol.sprite_score:
        if protocol.prompts is not None:
            raise EvaluationError("sprite_score: has prompts of its own; leave out prompts")
        prompts: list[tuple[str, ...]] = [
            (prompt.id, prompt.prompt) for prompt in list_prompts(seed=protocol.seed)
        ]
    elif protocol.prompts is None:
        raise EvaluationError(f"{protocol.name}: has no prompts; write prompts=FILE")
    elif not protocol.prompts.is_file():
        raise EvaluationError(
            f"{protocol.prompts}: there is no such file of prompts; write prompts=FILE"
        )
    else:
        prompts = read_prompts(protocol.prompts)
    if protocol.num_prompts not in (None, len(prompts)):
        raise EvaluationError(
            f"{protocol.prompts}: has {len(prompts)} prompts, {protocol.name} has "
            f"{protocol.num_prompts}; write num_prompts={len(prompts)} for another list"
        )
    return prompts[: protocol.max_prompts]


def _subject(config: InferenceConfig, default: InferenceConfig) -> str:
    """The model's name, and the options of its videos that differ from `default`."""
    own, other = video_settings(config), video_settings(default)
    given = [f"{key}={value}" for key, value in own.items() if value != other.get(key)]
    return ", ".join([config.model, *given])


def _free_memory() -> None:
    """Free the memory of networks that are no longer used."""
    gc.collect()
    free_memory()


def _list_real(protocol: EvaluationProtocol) -> list[VideoFile]:
    """The real videos. Raises EvaluationError."""
    if protocol.real is None:
        return []
    if protocol.resolution is None:
        raise EvaluationError("real: real videos are cut and scaled to one size; give resolution")
    if not protocol.real.is_dir():
        raise EvaluationError(
            f"{protocol.real}: is no folder of real videos; write real=FOLDER, or real=none to "
            "measure without"
        )
    return list_videos(protocol.real)
