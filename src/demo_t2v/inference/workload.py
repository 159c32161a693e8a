"""The videos of one command: what is missing of them, how they are made, and what became of them.

One process makes all of them, or each process of a launcher takes batches until none is left, or a
Ray cluster makes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from demo_t2v.checkpoints.memory import pick
from demo_t2v.checkpoints.resolve import ResolvedModel, resolve
from demo_t2v.conditioning.motion_words import word_file
from demo_t2v.conditioning.speed import FILE as SPEED_FILE
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.config.inference import video_settings
from demo_t2v.core.atomic_io import digest
from demo_t2v.core.compiler import check_compiler
from demo_t2v.core.devices import resolve_device
from demo_t2v.core.imports import uncollected
from demo_t2v.core.launch import is_launched, world_size
from demo_t2v.inference.backends.deepspeed import shard_denoiser
from demo_t2v.inference.backends.processes import Coordinator, Counts, Outcome
from demo_t2v.inference.jobs import Failure, Job, Video, describe, split_batches
from demo_t2v.inference.outputs import OutputFolder
from demo_t2v.inference.prompt_embeds import check_motion
from demo_t2v.inference.storage import open_folder

if TYPE_CHECKING:
    from demo_t2v.inference.runner import Runner


class Observer(Protocol):
    """Is called while videos are made, from two threads."""

    def message(self, line: str) -> None:
        """A line for the user; in the first process only."""

    def progress(self, counts: Counts) -> None:
        """The work of all processes until now; in the first process only."""

    def made(self, entry: Mapping[str, Any]) -> None:
        """This process has written a video; `entry` is its line in the manifest."""

    def failed(self, failure: Mapping[str, Any]) -> None:
        """A video cannot be made: `id`, `prompt`, `repeat`, `seed`, `reason`."""


@dataclass(frozen=True)
class Summary:
    """What became of all videos of a command."""

    videos: Sequence[Mapping[str, Any]]
    """Those that were made: `id`, `prompt`, `repeat`, `seed`, `file`, `seconds`."""
    skipped: int
    """Videos that were there already."""
    failed: int
    """Videos that were not made, whether they failed or were not begun."""
    problem: str
    """One line about the failed ones; empty where there are none."""


@dataclass(frozen=True)
class Workload:
    """The videos of one command, and the processes that make them."""

    model: ResolvedModel
    config: InferenceConfig
    """Complete: the model's own values stand where none were given."""
    folder: OutputFolder
    jobs: Sequence[Job]
    missing: Sequence[Job]
    """The jobs that are still to be done."""
    coordinator: Coordinator
    new_folders: Sequence[Path] = ()
    """The folders that were made for the videos, innermost first."""

    @classmethod
    def prepare(cls, config: InferenceConfig, jobs: Sequence[Job], overwrite: bool = False) -> Self:
        """Find the model, the other processes, and what is missing in the output folder.

        Raises ModelError, ConfigError, CompilerError, OutputError, PathError, LoraError,
        MotionWordError, MotionPromptError, SpeedError, ProcessError, ConnectionError, OSError.
        """
        model = resolve(config.model)
        config = model.defaults.complete(config)
        check_motion(jobs, config, model.speed_calibration)
        if config.compile:
            _check_compile(config)
        folder = open_folder(config.out, config.model, _settings(config, model), model.fingerprint)
        if world_size() > 1 and "://" in config.out:  # a manifest there has one writer
            raise ConfigError(
                f"out: {config.out}: several processes need a folder; or use engine=ray"
            )
        coordinator = Coordinator.join()
        new_folders = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
        missing = coordinator.find_missing(folder, jobs, overwrite)
        return cls(model, config, folder, jobs, missing, coordinator, new_folders)

    def run(self, observer: Observer) -> None:
        """Make this process's videos; in the first process, wait for the others' too.

        Raises OSError where the folder takes no more, and the errors that end a run. After an error
        the folders that were made for the videos and are empty are removed.
        """
        if not self.missing:
            return
        try:
            if self.config.engine == "ray":
                self._run_on_ray(observer)
            else:
                runner = self._load(observer)
                folder = self.folder.with_settings(dtype=runner.dtype)
                save = partial(self._save, runner, folder, observer)
                count = partial(self._count, observer)
                deque(runner.run(self._batches(runner), save, count), maxlen=0)
        except BaseException:
            if world_size() == 1:  # other processes may still write
                self._remove_new_folders()
            raise
        finally:
            self.coordinator.finish()
        if self.coordinator.is_main:
            self.coordinator.wait(partial(self._show_progress, observer))

    def _remove_new_folders(self) -> None:
        for folder in self.new_folders:
            with suppress(OSError):  # it has files
                folder.rmdir()

    def summary(self) -> Summary:
        """What all processes have made; for the first process, at the end."""
        order = {self.folder.file(job).name: number for number, job in enumerate(self.jobs)}
        made = sorted(self.coordinator.records("made"), key=lambda entry: order[entry["file"]])
        videos = [
            {key: entry[key] for key in ("id", "prompt", "repeat", "seed")}
            | {"file": self.folder.shown(self.folder.path / entry["file"])}
            | {"seconds": entry["seconds"]}
            for entry in made
        ]
        missing = len(self.missing)
        lost, failures, problem = missing - len(videos), self.coordinator.records("failed"), ""
        if failures:
            first = describe(failures[0])
            problem = f"{len(failures)} of {missing} videos failed, first {first}"
        elif lost:
            problem = f"{lost} of {missing} videos were not made: another process ended early"
        return Summary(videos, len(self.jobs) - missing, lost, problem)

    def _load(self, observer: Observer) -> Runner:
        """The model as it fits into memory, and as DeepSpeed shards it where that is wanted."""
        with uncollected():  # torch, transformers and diffusers load slowly
            import demo_t2v.pipeline  # noqa: F401 - loading the model would import it
            from demo_t2v.inference.runner import Runner

        plan, line = pick(self.model, self.config, len(self.missing))
        if self.coordinator.is_main:
            for text in filter(None, (line, _without_gpu(self.config))):
                observer.message(text)
        runner = Runner.load(self.model, self.config, plan, self.missing)
        if self.config.deepspeed_config and shard_denoiser(runner.pipeline, self.config):
            return replace(runner, max_pending=0, lockstep=True)
        return runner

    def _batches(self, runner: Runner) -> Iterator[Sequence[Job]]:
        """The batches that this process takes."""
        batches = split_batches(self.missing, self.config.batch_size)
        for number in self.coordinator.assign(len(batches), runner.lockstep):
            if number is None:  # the other processes need this one's part of the network
                runner.denoise(batches[0])
            else:
                yield batches[number]

    def _save(
        self, runner: Runner, folder: OutputFolder, observer: Observer, result: Video | Failure
    ) -> None:
        """Write a video, and report it or its failure."""
        if isinstance(result, Failure):
            self._report(observer, "failed", result.entry)
        else:
            entry = folder.save(result.job, result.frames, result.seconds, runner.device)
            self._report(observer, "made", entry)

    def _run_on_ray(self, observer: Observer) -> None:
        from demo_t2v.inference.backends.ray_data import run_on_ray

        for kind, entry in run_on_ray(self.folder, self.missing, self.config):
            if kind == "made":
                self.folder.record(entry)
            self._count(observer, self.config.num_inference_steps or 0)
            self._report(observer, kind, entry)

    def _report(self, observer: Observer, kind: Outcome, entry: Mapping[str, Any]) -> None:
        self.coordinator.record(kind, entry)
        (observer.made if kind == "made" else observer.failed)(entry)
        self._show_progress(observer)

    def _count(self, observer: Observer, steps: int) -> None:
        """Add denoising steps to those of all processes."""
        self.coordinator.add_steps(steps)
        self._show_progress(observer)

    def _show_progress(self, observer: Observer) -> None:
        if self.coordinator.is_main:
            observer.progress(self.coordinator.counts())


def _settings(config: InferenceConfig, model: ResolvedModel) -> dict[str, Any]:
    """What shapes the videos, for the manifest. Raises LoraError, MotionWordError."""
    settings = video_settings(config)
    if config.speed is not None:  # the model's fingerprint does not cover the calibration
        settings["speed_calibration"] = digest(model.folder / SPEED_FILE)[:16]
    if config.motion_word:
        hashes = [digest(word_file(source))[:16] for source in config.motion_word]
        settings["motion_word_hash"] = " ".join(hashes)
    if config.lora is None:
        return settings
    from demo_t2v.lora import adapter_file  # diffusers loads slowly

    return settings | {"lora_hash": digest(adapter_file(config.lora))[:16]}


def _check_compile(config: InferenceConfig) -> None:
    """Raise ConfigError or CompilerError where the denoiser cannot be compiled."""
    if config.deepspeed_config:
        raise ConfigError(
            "compile: cannot be combined with deepspeed_config; leave one of them out"
        )
    if config.engine == "local":  # each actor of Ray has a machine of its own
        check_compiler(resolve_device(config.device, config.dtype)[0])


def _without_gpu(config: InferenceConfig) -> str:
    """A line for a launcher of GPUs that finds none; else empty."""
    on_cpu = config.device == "auto" and resolve_device(config.device, config.dtype)[0] == "cpu"
    return "no GPU here: the videos are made on the CPU" if on_cpu and is_launched() else ""
