"""Curves and sample videos of a training, on TensorBoard or Weights & Biases.

The caller of the training loop passes its log lines to `RunLogger`.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from demo_t2v.config import ConfigError
from demo_t2v.core.devices import free_memory
from demo_t2v.core.launch import world_size
from demo_t2v.training.config import AnyTraining, DenoiserTraining
from demo_t2v.training.previews import make_previews, show_previews
from demo_t2v.training.task import Task

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PREVIEW_FPS = 8


class RunLogger:
    """Logs the lines of one run; a context manager. It opens its writers with the first line, so
    only the main process opens them. Entering it raises ConfigError for a missing package.

    A denoiser's previews are made with the current weights, not their average, and only if they
    are not sharded.
    """

    def __init__(self, task: Task, config: AnyTraining) -> None:
        self._task, self._config = task, config
        self._previewed: int | None = None
        """Number of preview intervals at the last previews."""
        self._writer: SummaryWriter | None = None
        self._wandb: Any = None

    def __enter__(self) -> Self:
        if self._config.tensorboard is not None:
            _summary_writer()
        if self._config.wandb is not None:
            _import_wandb()
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()

    def log(self, line: Mapping[str, float]) -> None:
        """Add each figure of a line to its curve."""
        config, step = self._config, int(line["step"])
        figures = {f"train/{name}": value for name, value in line.items() if name != "step"}
        if config.tensorboard is not None:
            if self._writer is None:
                folder = config.tensorboard / config.log_dir.name
                self._writer = _summary_writer()(str(folder))
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            if isinstance(config, DenoiserTraining) and self._due(config, step):
                self._preview(config, self._writer, step)
        if config.wandb is not None:
            if self._wandb is None:
                self._wandb = _import_wandb().init(
                    project=config.wandb,
                    name=config.log_dir.name,
                    config=config.model_dump(mode="json"),
                )
            self._wandb.log(figures, step=step)

    def _due(self, config: DenoiserTraining, step: int) -> bool:
        """Whether a multiple of `preview_interval` was reached since the last previews."""
        sharded = (config.fsdp and world_size() > 1) or config.deepspeed_config is not None
        if self._previewed is None:  # the first line, perhaps of a resumed run
            self._previewed = max(0, step - config.log_interval) // config.preview_interval
        number = step // config.preview_interval
        due = bool(config.preview_prompts) and not sharded and number > self._previewed
        self._previewed = max(self._previewed, number)
        return due

    def _preview(self, config: DenoiserTraining, writer: SummaryWriter, step: int) -> None:
        network = self._task.model
        network.eval()
        pipeline = self._task.pipeline()  # type: ignore[attr-defined]
        pipeline.set_progress_bar_config(disable=True)
        previews = list(make_previews(pipeline, config.preview_prompts, config.seed))
        show_previews(writer, previews, step, PREVIEW_FPS)
        network.train()
        del pipeline
        gc.collect()
        free_memory()


def _summary_writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard: is not installed; pip install 'demo-t2v[train]', or write null"
        ) from None
    return SummaryWriter


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError("wandb: is not installed; pip install wandb, or leave it out") from None
    return wandb
