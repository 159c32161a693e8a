"""The same jobs on a Ray cluster: a pool of actors that each hold the model (Ray Data).

A process or a machine that dies is replaced by Ray, and its batch is made again. The actors write
the videos; the manifest is written here alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_t2v.checkpoints.memory import pick
from demo_t2v.checkpoints.original.files import PublishedFiles
from demo_t2v.checkpoints.resolve import is_published, resolve
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.inference.backends.processes import Share
from demo_t2v.inference.batches import cut
from demo_t2v.inference.outputs import Job, OutputFolder
from demo_t2v.inference.runner import Failure, Maker, Watcher
from demo_t2v.inference.storage import open_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Worker:
    """What runs in an actor: a batch of jobs in, manifest lines and failures out."""

    def __init__(self, jobs: Sequence[Job], config: InferenceConfig, place: Sequence[Any]) -> None:
        """`place` is what `open_folder` takes; `jobs` are all of them, for their texts."""
        model = resolve(config.model)
        plan, _ = pick(model, config, len(jobs))
        self.maker = Maker.load(model, jobs, config, plan, open_folder(*place))
        self.maker.folder.prepare()

    def __call__(self, rows: Mapping[str, NDArray[Any]]) -> dict[str, list[str]]:
        """One row `batch`, jobs as JSON -> a row `result` for each of them."""
        (text,) = rows["batch"]
        jobs = [Job(**job) for job in json.loads(text)]
        results = [
            {"failed": result.entry} if isinstance(result, Failure) else {"made": result}
            for done in self.maker.attempt(jobs, lambda _steps: None)
            for result in self.maker.finish(done, self.maker.folder.write)
        ]
        return {"result": [json.dumps(result) for result in results]}


def make_on_ray(
    folder: OutputFolder,
    jobs: Sequence[Job],
    config: InferenceConfig,
    share: Share,
    watcher: Watcher,
) -> None:
    """Make all jobs on the cluster at RAY_ADDRESS, or on this machine where that is not set.

    Raises ConfigError without Ray or with settings for another engine, and what an actor raised.
    """
    if config.deepspeed_config is not None or share.world > 1:
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
        for result in _results(ray, folder, jobs, config):
            share.count(config.num_inference_steps or 1)
            if "failed" in result:
                share.report("failed", result["failed"])
                watcher.failed(result["failed"])
            else:
                folder.record(result["made"])
                share.report("made", result["made"])
                watcher.made(result["made"])
    except ray.exceptions.RayError as error:
        raise _origin(error) from None
    finally:
        ray.shutdown()


def _results(ray: Any, folder: OutputFolder, jobs: Sequence[Job], config: InferenceConfig) -> Any:
    """What becomes of each job, as it becomes known."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    batches = [json.dumps([asdict(job) for job in batch]) for batch in cut(jobs, config.batch_size)]
    found = ray.cluster_resources()
    gpus = int(found.get("GPU", 0)) if config.device != "cpu" else 0
    if not gpus and config.device == "auto":  # each actor has a share of the CPU
        config = config.model_copy(update={"device": "cpu"})
    workers = min(config.workers or gpus or int(found.get("CPU", 1)), len(batches))
    rows = ray.data.from_items(
        [{"batch": batch} for batch in batches], override_num_blocks=len(batches)
    )
    place = config.out if "://" in config.out else str(Path(config.out).resolve())
    folder_of = (place, folder.model, folder.settings, folder.model_hash)
    made = rows.map_batches(
        Worker,
        fn_constructor_args=(jobs, from_anywhere(config), folder_of),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
    )
    return (json.loads(row["result"]) for row in made.iter_rows())


def from_anywhere(config: InferenceConfig) -> InferenceConfig:
    """The configuration for an actor, which may stand in another folder."""
    named = {"model": config.model, "lora": config.lora}
    places = {key: Path(name) for key, name in named.items() if name}
    here = {key: str(place.resolve()) for key, place in places.items() if place.exists()}
    if is_published(config.model) and (files := PublishedFiles.find(Path(config.model))):
        here["model"] = ",".join(str(file.resolve()) for file in files)
    return config.model_copy(update=here)


def _origin(error: BaseException) -> BaseException:
    """What went wrong in the actor, without Ray's account of it."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return error
