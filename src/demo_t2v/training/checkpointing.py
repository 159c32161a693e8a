"""Checkpoints: folders that are whole or not there, and what of a run they hold.

    checkpoints/00000400/
        weights.safetensors     the weights that are trained, by parameter name
        optimizer.safetensors   what the optimizer keeps, as <parameter>.<key>; or `deepspeed/`
        average.safetensors     the averaged weights
        data-0.json             where a process's data is, if it is read as a stream
        state.json              where the run is: step, data position, losses not yet logged

What is frozen has no place there, a run that goes on has it from where it began; nor have learning
rates and random numbers: both are functions of the step (every process seeds its generators anew
in each), so a run that goes on takes the steps that it would have taken. With another number of
processes, the weights, their average, the optimizer's state and the data's order stay; what
differs is rounding, and what a network draws by chance (dropout) in its forward pass. ZeRO's
optimizer state can be read by as many processes as wrote it; with others it begins anew, and a
stream is read again up to its place. All processes must see the folder.
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
    "state": "where the run is",
    "weights": "the weights",
    "optimizer": "the optimizer's state",
    "deepspeed": "DeepSpeed's optimizer state",
    "average": "the averaged weights",
    "data": "where the data is",
}
_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0
    """Steps that were taken or skipped."""
    position: int = 0
    """Samples that were seen."""
    bad: int = 0
    """Skipped steps in a row, up to now."""
    taken: int = 0
    """Steps that the next log line is about; the skipped ones are counted on their own."""
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Of each figure over the taken steps."""


class Checkpoints:
    """The checkpoints of one run, in `log_dir/checkpoints`."""

    def __init__(self, config: TrainConfig) -> None:
        self.folder = config.log_dir / "checkpoints"
        self.config = config

    def find(self, resume: Resume) -> Path | None:
        """The checkpoint to go on from: the last whole one, a given one, or none.

        Later ones that are not whole are named in a warning. Raises ConfigError if the given path
        is no whole checkpoint, or if there are checkpoints and none is whole.
        """
        if resume == "none":
            return None
        if resume != "auto":
            return _given(resume)
        flaws: list[str] = []
        for place in sorted(self._all(), key=_step, reverse=True):
            flaw = find_flaw(place)
            if flaw is None:
                for line in flaws if rank() == 0 else ():
                    _log.warning("%s; the steps after %s are taken again", line, place)
                return place
            flaws.append(flaw)
        if flaws:
            raise ConfigError(
                f"{flaws[0]}; no checkpoint in {self.folder} is whole, --resume none begins anew"
            )
        return None

    def begin(self, step: int) -> None:
        """Clear away what an interruption left, and put later checkpoints aside as `*.old`."""
        for partial in self.folder.glob(".*.partial"):
            shutil.rmtree(partial)
        for later in [found for found in self._all() if _step(found) > step]:
            aside = later.with_suffix(".old")
            shutil.rmtree(aside, ignore_errors=True)
            later.rename(aside)

    def save(self, engine: Engine, progress: Progress, data: Mapping[str, Any]) -> None:
        """Write, sync, rename, and delete what need not be kept. All processes together.

        `data` is where this process's data is.

        Raises OSError in the main process and TrainingStopped in the others when it cannot be
        written; earlier checkpoints are then whole.
        """
        place = self.folder / f"{progress.step:08d}"
        partial = place.with_name(f".{place.name}.partial")
        failure: OSError | None = None
        if engine.main:
            try:
                partial.mkdir(parents=True)
            except OSError as error:
                failure = error
        engine.any(False)  # nobody writes before the folder is there
        try:
            if data:
                _data_file(partial, engine).write_text(json.dumps(data), encoding="utf-8")
        except OSError as error:
            failure = error
        engine.save_own(partial)
        for name, tensors in _parts(engine):
            if engine.main and tensors and failure is None:
                try:
                    _write(partial / f"{name}.safetensors", tensors)
                except OSError as error:
                    failure = error
        if engine.main and failure is None:
            try:
                _write_state(partial / "state.json", engine, progress, bool(data))
                sync_all(partial)
                partial.rename(place)
                sync(self.folder)
                self._prune()
            except OSError as error:
                failure = error
        if engine.any(failure is not None):
            if not engine.main:
                raise engine.stopped("", 1)
            shutil.rmtree(partial, ignore_errors=True)
            raise failure or OSError(f"{partial}: a process could not write where its data is")

    def _prune(self) -> None:
        """Delete all but the last ones and those of every so many steps."""
        every = self.config.keep_every
        for place in sorted(self._all(), key=_step)[: -self.config.keep_last]:
            if every is None or _step(place) % every:
                gone = place.rename(place.with_name(f".{place.name}.partial"))
                shutil.rmtree(gone)

    def _all(self) -> list[Path]:
        """Every checkpoint, in no order."""
        return _checkpoints(self.folder)


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [place for place in folder.iterdir() if _NAME.fullmatch(place.name)]


def _given(place: Path) -> Path:
    """A checkpoint that was asked for. Raises ConfigError unless it is whole."""
    if not place.is_dir() or not any((place / file).is_file() for file in _FILES):
        raise ConfigError(f"{place}: is no checkpoint; one is a folder as checkpoints/00000400")
    flaw = find_flaw(place)
    if flaw is not None:
        others = sorted(_checkpoints(place.parent), key=_step, reverse=True)
        whole = next((other for other in others if find_flaw(other) is None), None)
        hint = "no other one is whole" if whole is None else f"the last whole one is {whole}"
        raise ConfigError(f"{flaw}; {hint}")
    return place


def find_flaw(place: Path) -> str | None:
    """The first file of a checkpoint that is missing or damaged, and what it holds; else None."""
    file = place / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        Progress(**state["progress"])
        files = state.get("files") or _files_before(state)
        for name in files:
            file = place / name
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


def _files_before(state: Mapping[str, Any]) -> list[str]:
    """The files of a checkpoint that does not list them."""
    own = state["kind"] == Engine.kind and state["progress"]["step"] > 0
    files = {
        "weights.safetensors": True,
        "optimizer.safetensors": own,
        "average.safetensors": state["averaged_steps"] > 0,
    }
    return [name for name, there in files.items() if there]


def read_weights(place: Path, model: nn.Module) -> dict[str, Tensor]:
    """The weights of a checkpoint by name.

    Raises ConfigError unless they are weights of `model` by name and shape, among them all that
    are trained.
    """
    file = place / "weights.safetensors"
    ours = {name: tuple(weight.shape) for name, weight in named_weights(model)}
    with safe_open(file, framework="pt") as stored:
        theirs = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    for name in [*dict(named_weights(model, frozen=False)), *theirs]:
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"{place}: holds another architecture: {name} is {theirs.get(name, 'not there')}, "
                f"and in this configuration {ours.get(name, 'not there')}"
            )
    tensors: dict[str, Tensor] = load_file(file)
    return tensors


def restore(place: Path, engine: Engine) -> Progress:
    """Give a wrapped engine, whose weights were read before, the rest of a checkpoint.

    Raises ConfigError if it was made by another optimizer.
    """
    state: dict[str, Any] = json.loads((place / "state.json").read_text(encoding="utf-8"))
    used = engine.config.optimizer
    if state["optimizer"] != used:
        raise ConfigError(f"{place}: was made with optimizer {state['optimizer']}, not {used}")
    file = place / "optimizer.safetensors"
    if state["kind"] != engine.kind or (
        engine.kind != Engine.kind and state["processes"] != engine.world
    ):
        if engine.main:
            made = f"{state['processes']} process(es) with {state['kind']}"
            _log.warning("%s: made by %s; the optimizer's state begins anew", place, made)
    else:
        try:
            engine.load_own(place)
        except (OSError, RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise ConfigError(f"{place / 'deepspeed'}: cannot be read ({line})") from None
        if file.exists():
            engine.load_optimizer(load_file(file))
    if state["scaler"] and engine.scaler.is_enabled():
        engine.scaler.load_state_dict(state["scaler"])
    if engine.average is not None:
        average = place / "average.safetensors"
        # A run that kept no average begins one with the weights as they are.
        if average.exists():
            engine.load_average(load_file(average), state["averaged_steps"])
    items, data = engine.task.items, _data_file(place, engine)
    if items is not None and data.exists() and state["processes"] == engine.world:
        items.load_state_dict(json.loads(data.read_text(encoding="utf-8")))
    return Progress(**state["progress"])


def _parts(engine: Engine) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What is gathered from all processes, one after another, since each may be large."""
    yield "weights", engine.weights(frozen=False)
    yield "optimizer", engine.optimizer_state()
    yield "average", engine.average_weights()


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:
        problem = f"{file}: cannot be written ({error}); earlier checkpoints are whole"
        raise OSError(problem) from None


def _data_file(place: Path, engine: Engine) -> Path:
    return place / f"data-{engine.rank}.json"


def _write_state(file: Path, engine: Engine, progress: Progress, stream: bool) -> None:
    files = [path.name for path in file.parent.glob("*.safetensors")]
    files += ["deepspeed"] if (file.parent / "deepspeed").is_dir() else []
    files += [f"data-{process}.json" for process in range(engine.world) if stream]
    state = {
        "files": sorted(files),
        "progress": asdict(progress),
        "kind": engine.kind,
        "processes": engine.world,
        "optimizer": engine.config.optimizer,
        "averaged_steps": engine.average.optimization_step if engine.average else 0,
        "scaler": engine.scaler.state_dict(),
    }
    file.write_text(json.dumps(state), encoding="utf-8")


def _step(place: Path) -> int:
    return int(place.name)
