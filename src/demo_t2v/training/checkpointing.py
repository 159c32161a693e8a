"""Checkpoints: folders that are written atomically.

    checkpoints/00000400/
        weights.safetensors     the trained weights by parameter name
        optimizer.safetensors   the optimizer's state as <parameter>.<key>; or `deepspeed/`
        average.safetensors     the averaged weights
        data-0.json             a process's position in its stream of samples, if it has one
        state.json              the state of the run: step, sample position, sums not yet logged

Frozen weights are not stored: a resumed run loads them from where it started. Learning rates and
random states are functions of the step and are not stored either. Interrupted runs resume
bit-exactly. A run can resume with another number of processes: only rounding and dropout then
differ. ZeRO's optimizer state requires the same number of processes; with another one it starts
from zero, and a stream is read again up to its position. All processes must see the folder.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo_t2v.config import ConfigError
from demo_t2v.core.atomic_io import sync, sync_all
from demo_t2v.core.launch import rank
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.distributed.base import Engine
from demo_t2v.training.distributed.model_weights import named_weights

Resume = Path | Literal["auto", "none"]
_NAME: Final = re.compile(r"\d{8,}")
_FILES: Final = ("state.json", "weights.safetensors", "optimizer.safetensors")
_HOLDS: Final = {
    "state": "the state of the run",
    "weights": "the weights",
    "optimizer": "the optimizer's state",
    "deepspeed": "DeepSpeed's optimizer state",
    "average": "the averaged weights",
    "data": "the position in the data",
}
_log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """The state of a run beside its tensors; the field names are keys of `state.json`."""

    step: int = 0
    """Steps taken or skipped."""
    position: int = 0
    """Samples used."""
    bad: int = 0
    """Consecutive skipped steps, up to the last one."""
    taken: int = 0
    """Steps taken since the last log line, without skipped ones."""
    skipped: int = 0
    """Steps skipped since the last log line."""
    sums: dict[str, float] = field(default_factory=dict)
    """The sum of each figure over the `taken` steps."""


class Checkpoints:
    """The checkpoints of one run, in `log_dir/checkpoints`."""

    def __init__(self, config: TrainConfig) -> None:
        self.folder = config.log_dir / "checkpoints"
        self.config = config

    def find(self, resume: Resume) -> Path | None:
        """The checkpoint to resume from: the last complete one, a given one, or none.

        A warning names later, damaged ones. Raises ConfigError if the given path is no complete
        checkpoint, or if all checkpoints are damaged.
        """
        if resume == "none":
            return None
        if resume != "auto":
            return _check_given(resume)
        flaws: list[str] = []
        for folder in sorted(_checkpoints(self.folder), key=_step, reverse=True):
            flaw = find_flaw(folder)
            if flaw is None:
                for line in flaws if rank() == 0 else ():
                    _log.warning("%s; the steps after %s are repeated", line, folder)
                return folder
            flaws.append(flaw)
        if flaws:
            raise ConfigError(
                f"{flaws[0]}; no checkpoint in {self.folder} is complete, --resume none starts over"
            )
        return None

    def begin(self, step: int) -> None:
        """Delete incomplete checkpoints, and rename those after `step` to `*.old`."""
        for partial in self.folder.glob(".*.partial"):
            shutil.rmtree(partial)
        for later in [found for found in _checkpoints(self.folder) if _step(found) > step]:
            old = later.with_suffix(".old")
            shutil.rmtree(old, ignore_errors=True)
            later.rename(old)

    def save(self, engine: Engine, state: TrainState, data: Mapping[str, Any]) -> None:
        """Write, sync and rename a checkpoint, then delete old ones. Collective.

        `data` is this process's position in its stream, if it has one. Raises OSError in the main
        process and TrainingStopped in the others when a file cannot be written; earlier
        checkpoints stay complete.
        """
        folder = self.folder / f"{state.step:08d}"
        partial = folder.with_name(f".{folder.name}.partial")
        failure: OSError | None = None
        if engine.main:
            try:
                partial.mkdir(parents=True)
            except OSError as error:
                failure = error
        engine.any(False)  # a barrier: the folder exists before other processes write
        try:
            if data:
                _data_file(partial, engine).write_text(json.dumps(data), encoding="utf-8")
        except OSError as error:
            failure = error
        engine.save_extra_state(partial)
        for name, tensors in _gather_tensors(engine):
            if engine.main and tensors and failure is None:
                try:
                    _write(partial / f"{name}.safetensors", tensors)
                except OSError as error:
                    failure = error
        if engine.main and failure is None:
            try:
                _write_state(partial / "state.json", engine, state, bool(data))
                sync_all(partial)
            except OSError as error:
                failure = error
        if engine.any(failure is not None):
            if not engine.main:
                raise engine.stopped("", 1)
            shutil.rmtree(partial, ignore_errors=True)
            raise failure or OSError(f"{partial}: a process could not write its data position")
        if engine.main:
            partial.rename(folder)
            sync(self.folder)
            self._prune()

    def _prune(self) -> None:
        """Delete all but the `keep_last` last checkpoints and those of every `keep_every` steps."""
        every = self.config.keep_every
        for folder in sorted(_checkpoints(self.folder), key=_step)[: -self.config.keep_last]:
            if every is None or _step(folder) % every:
                shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.partial")))


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in no order."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]


def _check_given(folder: Path) -> Path:
    """A given checkpoint. Raises ConfigError unless it is complete."""
    if not folder.is_dir() or not any((folder / file).is_file() for file in _FILES):
        raise ConfigError(f"{folder}: is no checkpoint; one is a folder as checkpoints/00000400")
    flaw = find_flaw(folder)
    if flaw is not None:
        others = sorted(_checkpoints(folder.parent), key=_step, reverse=True)
        good = next((other for other in others if find_flaw(other) is None), None)
        hint = "no other one is complete" if good is None else f"the last complete one is {good}"
        raise ConfigError(f"{flaw}; {hint}")
    return folder


def find_flaw(folder: Path) -> str | None:
    """A message about a checkpoint's first missing or damaged file; None if it is complete."""
    file = folder / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        TrainState(**state["progress"])
        files = state.get("files") or _expected_files(state)
        for name in files:
            file = folder / name
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            else:
                next(file.iterdir())
    except (FileNotFoundError, StopIteration):
        return f"{file}: is missing; it holds {_HOLDS[file.stem.split('-')[0]]}"
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{file}: is damaged; it holds {_HOLDS[file.stem.split('-')[0]]}"
    return None


def _expected_files(state: Mapping[str, Any]) -> list[str]:
    """The files of an early checkpoint, whose `state.json` has no list of files."""
    own = state["kind"] == Engine.kind and state["progress"]["step"] > 0
    files = {
        "weights.safetensors": True,
        "optimizer.safetensors": own,
        "average.safetensors": state["averaged_steps"] > 0,
    }
    return [name for name, there in files.items() if there]


def read_weights(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """The weights of a checkpoint by name.

    Raises ConfigError unless they match weights of `model` by name and shape and include all
    trained ones.
    """
    file = folder / "weights.safetensors"
    ours = {name: tuple(weight.shape) for name, weight in named_weights(model)}
    with safe_open(file, framework="pt") as stored:
        theirs = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    for name in [*dict(named_weights(model, frozen=False)), *theirs]:
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"{folder}: holds another architecture: {name} is {theirs.get(name, 'missing')}, "
                f"and in this configuration {ours.get(name, 'missing')}"
            )
    tensors: dict[str, Tensor] = load_file(file)
    return tensors


def restore(folder: Path, engine: Engine) -> TrainState:
    """Load all but the weights of a checkpoint into a wrapped engine.

    Raises ConfigError if it was made by another optimizer.
    """
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    used = engine.config.optimizer
    if state["optimizer"] != used:
        raise ConfigError(f"{folder}: was made with optimizer {state['optimizer']}, not {used}")
    file = folder / "optimizer.safetensors"
    if state["kind"] != engine.kind or (
        engine.kind != Engine.kind and state["processes"] != engine.world
    ):
        if engine.main:
            made = f"{state['processes']} process(es) with {state['kind']}"
            _log.warning("%s: made by %s; the optimizer's state starts from zero", folder, made)
    else:
        try:
            engine.load_extra_state(folder)
        except (OSError, RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise ConfigError(f"{folder / 'deepspeed'}: cannot be read ({line})") from None
        if file.exists():
            engine.load_optimizer(load_file(file))
    if state["scaler"] and engine.scaler.is_enabled():
        engine.scaler.load_state_dict(state["scaler"])
    if engine.average is not None:
        average = folder / "average.safetensors"
        # Without the file the average starts from the current weights.
        if average.exists():
            engine.load_average(load_file(average), state["averaged_steps"])
    samples, data = engine.task.samples, _data_file(folder, engine)
    if samples is not None and data.exists() and state["processes"] == engine.world:
        samples.load_state_dict(json.loads(data.read_text(encoding="utf-8")))
    return TrainState(**state["progress"])


def _gather_tensors(engine: Engine) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors of each file, gathered one file at a time, since each may be large."""
    yield "weights", engine.weights(frozen=False)
    yield "optimizer", engine.optimizer_state()
    yield "average", engine.average_weights()


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:
        problem = f"{file}: cannot be written ({error}); earlier checkpoints are complete"
        raise OSError(problem) from None


def _data_file(folder: Path, engine: Engine) -> Path:
    return folder / f"data-{engine.rank}.json"


def _write_state(file: Path, engine: Engine, state: TrainState, stream: bool) -> None:
    files = [path.name for path in file.parent.glob("*.safetensors")]
    files += ["deepspeed"] if (file.parent / "deepspeed").is_dir() else []
    files += [f"data-{process}.json" for process in range(engine.world) if stream]
    content = {
        "files": sorted(files),
        "progress": asdict(state),
        "kind": engine.kind,
        "processes": engine.world,
        "optimizer": engine.config.optimizer,
        "averaged_steps": engine.average.optimization_step if engine.average else 0,
        "scaler": engine.scaler.state_dict(),
    }
    file.write_text(json.dumps(content), encoding="utf-8")


def _step(folder: Path) -> int:
    return int(folder.name)
