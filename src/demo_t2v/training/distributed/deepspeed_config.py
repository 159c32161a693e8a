"""DeepSpeed's JSON beside the training's YAML: what is taken from it, and how it is completed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from pydantic import ValidationError

from demo_t2v.config import ConfigError, read_json
from demo_t2v.core.devices import trains_on_cpu
from demo_t2v.core.launch import rank
from demo_t2v.training.config import TrainConfig
from demo_t2v.training.distributed.base import micro_batch_size

C = TypeVar("C", bound=TrainConfig)
Rates = Callable[[int], tuple[float, tuple[float, float]]]
"""A step, counted from 0 -> what the learning rates are multiplied by, and AdamW's betas."""

_ADAM: Final = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
"""What DeepSpeed's Adam has where its JSON does not say it."""
_SCHEDULE: Final = ("lr_schedule", "warmup_steps", "lr_floor")
"""Keys of the YAML in whose place a scheduler of the JSON stands."""
_COUNTS: Final = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)
_log = logging.getLogger(__name__)


def take_settings(config: C, world: int) -> C:
    """The configuration with what its DeepSpeed JSON says of batch, optimizer and precision.

    `world` is the number of processes. Where the YAML says otherwise the JSON counts, and one
    warning names all such keys. Raises ConfigError.
    """
    if config.deepspeed_config is None:
        return config
    file, given = config.deepspeed_config, config.model_dump(by_alias=True, exclude_unset=True)
    settings = _read(file)
    said = _said(file, settings, config, world)
    try:
        taken = type(config).model_validate(given | said)
    except ValidationError as error:
        problem = error.errors()[0]
        key, message = ".".join(map(str, problem["loc"])), problem["msg"]
        raise ConfigError(f"{file}: {key}: {message[0].lower()}{message[1:]}") from None
    other = [
        f"{key} {getattr(taken, key)} for {getattr(config, key)}"
        for key in said
        if key in config.model_fields_set and getattr(taken, key) != getattr(config, key)
    ]
    if "scheduler" in settings:
        other += [
            f"{settings['scheduler'].get('type')} for {key} {getattr(config, key)}"
            for key in _SCHEDULE
            if key in config.model_fields_set
        ]
    if rank() == 0 and other:
        _log.warning("%s counts where the YAML says otherwise: %s", file, ", ".join(other))
    if rank() == 0 and _wants_fp16(settings) and trains_on_cpu():
        _log.warning("%s: fp16 needs a GPU; without one this training is in float32", file)
    return taken


def read_settings(config: TrainConfig, world: int) -> tuple[dict[str, Any], Rates | None]:
    """DeepSpeed's settings from `config.deepspeed_config`, complete, for so many processes; and
    its scheduler, if it has one.

    Raises ConfigError where they say something else than `config`, which `take_settings` avoids.
    """
    file = config.deepspeed_config
    assert file is not None
    settings = _read(file)
    for key, value in _said(file, settings, config, world).items():
        known = getattr(config, key)
        if value != (list(known) if isinstance(known, tuple) else known):
            raise ConfigError(f"{file}: {key} is {value}, and {known} in the configuration")
    rates = _rates(file, settings.pop("scheduler"), config) if "scheduler" in settings else None
    settings.pop("optimizer", None)
    settings |= {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size(config, world),
        "gradient_accumulation_steps": config.gradient_accumulation,
        "gradient_clipping": config.grad_clip,
    }
    for kind in ("bf16", "fp16"):
        used = config.mixed_precision == kind  # what is off must not cast inputs either
        settings[kind] = (settings.get(kind, {}) if used else {}) | {"enabled": used}
    return settings, rates


def _read(file: Path) -> dict[str, Any]:
    settings = read_json(file)
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in (1, 2, 3):
        raise ConfigError(f"{file}: zero_optimization.stage should be 1, 2 or 3")
    for key in ("optimizer", "scheduler", "fp16", "bf16"):
        section = settings.get(key, {})
        if not isinstance(section, dict) or not isinstance(section.get("params", {}), dict):
            raise ConfigError(f"{file}: {key} and its params should be objects")
    known: dict[str, Any] = settings
    return known


def _said(file: Path, settings: dict[str, Any], config: TrainConfig, world: int) -> dict[str, Any]:
    """What the JSON says, by the configuration's keys; "auto" says nothing."""
    for key in _COUNTS:
        if type(settings.get(key, 1)) is not int and settings[key] != "auto":
            raise ConfigError(f'{file}: {key} should be a whole number or "auto"')
    said: dict[str, Any] = {}
    accumulation = settings.get("gradient_accumulation_steps", "auto")
    if accumulation != "auto":
        said["gradient_accumulation"] = accumulation
    size, share = (settings.get(key, "auto") for key in _COUNTS[:2])
    if share != "auto":
        whole = share * said.get("gradient_accumulation", config.gradient_accumulation) * world
        if size not in ("auto", whole):
            raise ConfigError(
                f"{file}: train_batch_size is {size}, but train_micro_batch_size_per_gpu x "
                f"gradient_accumulation_steps x {world} process(es) is {whole}"
            )
        said["batch_size"] = whole
    elif size != "auto":
        said["batch_size"] = size
    if settings.get("gradient_clipping", "auto") != "auto":
        said["grad_clip"] = settings["gradient_clipping"]
    said |= _precision(settings)
    if "optimizer" in settings:
        said |= _optimizer(file, settings["optimizer"])
    return said


def _precision(settings: dict[str, Any]) -> dict[str, str]:
    enabled = {kind: settings.get(kind, {}).get("enabled", "auto") for kind in ("bf16", "fp16")}
    if enabled["fp16"] is True:
        return {"mixed_precision": "no" if trains_on_cpu() else "fp16"}
    if enabled["bf16"] is True:
        return {"mixed_precision": "bf16"}
    return {"mixed_precision": "no"} if set(enabled.values()) == {False} else {}


def _wants_fp16(settings: dict[str, Any]) -> bool:
    return settings.get("fp16", {}).get("enabled") is True


def _optimizer(file: Path, section: dict[str, Any]) -> dict[str, Any]:
    """AdamW's settings. Raises ConfigError for another optimizer, or settings that it lacks."""
    kind, params = section.get("type"), section.get("params", {})
    if kind not in ("Adam", "AdamW"):
        raise ConfigError(f"{file}: optimizer.type should be Adam or AdamW, not {kind!r}")
    for key, value in params.items():
        if key not in (*_ADAM, "torch_adam", "adam_w_mode"):
            raise ConfigError(f"{file}: optimizer.params.{key} is unknown: {', '.join(_ADAM)}")
        if key == "adam_w_mode" and not value and params.get("weight_decay"):
            raise ConfigError(f"{file}: optimizer.params.adam_w_mode should be true")
    known = _ADAM | {key: value for key, value in params.items() if key in _ADAM}
    said = {key: value for key, value in known.items() if value != "auto"}
    return said | {"optimizer": "adamw"}


def _rates(file: Path, section: dict[str, Any], config: TrainConfig) -> Rates:
    """A scheduler of DeepSpeed's as a function of the step. Raises ConfigError."""
    from deepspeed.runtime import lr_schedules

    kind, known = str(section.get("type")), lr_schedules.VALID_LR_SCHEDULES
    if kind not in known:
        raise ConfigError(f"{file}: scheduler.type {kind!r} should be one of {', '.join(known)}")
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=config.lr, betas=config.betas)
    (group,) = optimizer.param_groups
    try:
        scheduler = getattr(lr_schedules, kind)(optimizer, **section.get("params", {}))
        scheduler.step(0)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{file}: scheduler.params: {error}") from None

    def rates(step: int) -> tuple[float, tuple[float, float]]:
        scheduler.step(step - 1)
        return group["lr"] / config.lr, group["betas"]

    return rates
