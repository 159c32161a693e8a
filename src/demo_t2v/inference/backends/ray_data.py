"""The same jobs on a Ray cluster: a pool of actors that each hold the model (Ray Data).

Ray replaces a process or a machine that dies, and runs its batch again. The actors write the
videos; the process that started them writes the manifest.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_t2v.checkpoints.memory import pick
from demo_t2v.checkpoints.original.files import PublishedFiles
from demo_t2v.checkpoints.resolve import is_published, resolve
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.core.launch import world_size
from demo_t2v.inference.backends.processes import Outcome
from demo_t2v.inference.jobs import Failure, Job, Video, split_batches
from demo_t2v.inference.outputs import OutputFolder
from demo_t2v.inference.runner import Runner
from demo_t2v.inference.storage import open_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Worker:
    """Runs in an actor: a batch of jobs in, outcomes with manifest lines or failures out."""

    def __init__(self, jobs: Sequence[Job], config: InferenceConfig, folder: Sequence[Any]) -> None:
        """`folder` are the arguments of `open_folder`; `jobs` are those of all actors."""
        model = resolve(config.model)
        plan, _ = pick(model, config, len(jobs))
        self.runner = Runner.load(model, config, plan, jobs)
        self.folder = open_folder(*folder).with_settings(dtype=self.runner.dtype)
        self.folder.prepare()

    def __call__(self, rows: Mapping[str, NDArray[Any]]) -> dict[str, list[str]]:
        """One row `batch`, jobs as JSON -> a row `result` for each of them."""
        (text,) = rows["batch"]
        jobs = [Job(**job) for job in json.loads(text)]
        results = self.runner.run([jobs], self._write)
        return {"result": [json.dumps(result) for result in results]}

    def _write(self, result: Video | Failure) -> tuple[Outcome, Mapping[str, Any]]:
        if isinstance(result, Failure):
            return "failed", result.entry
        device = self.runner.device
        return "made", self.folder.write(result.job, result.frames, result.seconds, device)


def run_on_ray(
    folder: OutputFolder, jobs: Sequence[Job], config: InferenceConfig
) -> Iterator[tuple[Outcome, Mapping[str, Any]]]:
    """What becomes of each job on the cluster at RAY_ADDRESS (default: on this machine).

    Yields outcomes with manifest lines, which are not in the manifest yet, or with failures.
    Raises ConfigError without Ray or with settings for another engine, and what an actor raised.
    """
    if config.deepspeed_config is not None or world_size() > 1:
        raise ConfigError("engine: ray starts its own processes; no launcher, no deepspeed_config")
    if ":" in config.device:
        raise ConfigError("device: ray gives each actor a GPU of its own; leave the number out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("engine: ray needs Ray: pip install 'demo-t2v[cluster]'") from None
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield from _results(ray, folder, jobs, config)
    except ray.exceptions.RayError as error:
        raise _cause(error) from None
    finally:
        ray.shutdown()


def _results(
    ray: Any, folder: OutputFolder, jobs: Sequence[Job], config: InferenceConfig
) -> Iterator[tuple[Outcome, Mapping[str, Any]]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    batches = [
        json.dumps([asdict(job) for job in batch])
        for batch in split_batches(jobs, config.batch_size)
    ]
    found = ray.cluster_resources()
    gpus = int(found.get("GPU", 0)) if config.device != "cpu" else 0
    if not gpus and config.device == "auto":  # the actors divide the CPUs
        config = config.model_copy(update={"device": "cpu"})
    workers = min(config.workers or gpus or int(found.get("CPU", 1)), len(batches))
    rows = ray.data.from_items(
        [{"batch": batch} for batch in batches], override_num_blocks=len(batches)
    )
    location = config.out if "://" in config.out else str(Path(config.out).resolve())
    folder_arguments = (location, folder.model, folder.settings, folder.model_hash)
    made = rows.map_batches(
        Worker,
        fn_constructor_args=(jobs, with_absolute_paths(config), folder_arguments),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
    )
    for row in made.iter_rows():
        kind, entry = json.loads(row["result"])
        yield kind, entry


def with_absolute_paths(config: InferenceConfig) -> InferenceConfig:
    """The configuration for an actor, which may run in another folder."""
    named = {"model": config.model, "lora": config.lora}
    paths = {key: Path(name) for key, name in named.items() if name}
    absolute: dict[str, Any] = {
        key: str(path.resolve()) for key, path in paths.items() if path.exists()
    }
    if config.motion_word:
        absolute["motion_word"] = tuple(
            str(Path(name).resolve()) if Path(name).exists() else name
            for name in config.motion_word
        )
    if is_published(config.model) and (files := PublishedFiles.find(Path(config.model))):
        absolute["model"] = ",".join(str(file.resolve()) for file in files)
    return config.model_copy(update=absolute)


def _cause(error: BaseException) -> BaseException:
    """The actor's own error, without Ray's report of it."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return error
