"""The interface between the training loop and a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful


class Task(Protocol):
    """A model, its data, its loss and its export. Samples have numbers, from 0 at the beginning
    of a run.
    """

    @property
    def model(self) -> nn.Module:
        """The module whose parameters with `requires_grad` are trained."""

    @property
    def samples(self) -> Stateful | None:
        """The source of the samples where its position in a stream belongs into checkpoints."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for torch's optimizers. `lr` defaults to the configuration's; `rate` is
        the name of the group's learning rate in the log (default: `lr`).
        """

    def batch(self, numbers: range) -> Any:
        """The samples with these numbers; the same ones in every call."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise and figures for the log, with the same keys in every process."""

    def export(self, folder: Path) -> None:
        """Save the trained weights as diffusers and transformers folders."""
