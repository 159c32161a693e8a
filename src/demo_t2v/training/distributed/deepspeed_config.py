"""DeepSpeed's JSON: it overrides keys of the training's YAML, and is completed by it."""

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
Schedule = Callable[[int], tuple[float, tuple[float, float]]]
"""A step, counted from 0 -> the factor of the learning rates, and AdamW's betas."""

_ADAM: Final = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
"""Defaults of DeepSpeed's Adam."""
_SCHEDULE: Final = ("lr_schedule", "warmup_steps", "lr_floor")
"""Keys of the YAML that a scheduler in the JSON replaces."""
_COUNTS: Final = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)
_log = logging.getLogger(__name__)


def apply_deepspeed_config(config: C, world: int) -> C:
    """The configuration with the batch size, optimizer and precision of its DeepSpeed JSON.

    `world` is the number of processes. The JSON overrides the YAML; one warning names the keys
    that differ. Raises ConfigError.
    """
    if config.deepspeed_config is None:
        return config
    file, given = config.deepspeed_config, config.model_dump(by_alias=True, exclude_unset=True)
    settings = _read(file)
    overrides = _overrides(file, settings, config, world)
    try:
        merged = type(config).model_validate(given | overrides)
    except ValidationError as error:
        problem = error.errors()[0]
        key, message = ".".join(map(str, problem["loc"])), problem["msg"]
        raise ConfigError(f"{file}: {key}: {message[0].lower()}{message[1:]}") from None
    changes = [
        f"{key} {getattr(merged, key)} for {getattr(config, key)}"
        for key in overrides
        if key in config.model_fields_set and getattr(merged, key) != getattr(config, key)
    ]
    if "scheduler" in settings:
        changes += [
            f"{settings['scheduler'].get('type')} for {key} {getattr(config, key)}"
            for key in _SCHEDULE
            if key in config.model_fields_set
        ]
    if rank() == 0 and changes:
        _log.warning("%s overrides the YAML: %s", file, ", ".join(changes))
    if rank() == 0 and _wants_fp16(settings) and trains_on_cpu():
        _log.warning("%s: fp16 needs a GPU; this training runs in float32", file)
    return merged


def complete_settings(config: TrainConfig, world: int) -> tuple[dict[str, Any], Schedule | None]:
    """The complete settings of DeepSpeed for `world` processes, and the JSON's scheduler or None.

    Raises ConfigError where the JSON contradicts `config`; `apply_deepspeed_config` avoids this.
    """
    file = config.deepspeed_config
    assert file is not None
    settings = _read(file)
    for key, value in _overrides(file, settings, config, world).items():
        own = getattr(config, key)
        if value != (list(own) if isinstance(own, tuple) else own):
            raise ConfigError(f"{file}: {key} is {value}, but {own} in the configuration")
    schedule = None
    if "scheduler" in settings:
        schedule = _schedule(file, settings.pop("scheduler"), config)
    settings.pop("optimizer", None)
    settings |= {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size(config, world),
        "gradient_accumulation_steps": config.gradient_accumulation,
        "gradient_clipping": config.grad_clip,
    }
    for kind in ("bf16", "fp16"):
        used = config.mixed_precision == kind  # a disabled section may not cast inputs either
        settings[kind] = (settings.get(kind, {}) if used else {}) | {"enabled": used}
    return settings, schedule


def _read(file: Path) -> dict[str, Any]:
    settings = read_json(file)
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in (1, 2, 3):
        raise ConfigError(f"{file}: zero_optimization.stage should be 1, 2 or 3")
    for key in ("optimizer", "scheduler", "fp16", "bf16"):
        section = settings.get(key, {})
        if not isinstance(section, dict) or not isinstance(section.get("params", {}), dict):
            raise ConfigError(f"{file}: {key} and its params should be objects")
    sections: dict[str, Any] = settings
    return sections


def _overrides(
    file: Path, settings: dict[str, Any], config: TrainConfig, world: int
) -> dict[str, Any]:
    """The JSON's values by the configuration's keys, without those that are "auto"."""
    for key in _COUNTS:
        if type(settings.get(key, 1)) is not int and settings[key] != "auto":
            raise ConfigError(f'{file}: {key} should be a whole number or "auto"')
    overrides: dict[str, Any] = {}
    accumulation = settings.get("gradient_accumulation_steps", "auto")
    if accumulation != "auto":
        overrides["gradient_accumulation"] = accumulation
    size, micro_batch = (settings.get(key, "auto") for key in _COUNTS[:2])
    if micro_batch != "auto":
        steps = overrides.get("gradient_accumulation", config.gradient_accumulation)
        batch = micro_batch * steps * world
        if size not in ("auto", batch):
            raise ConfigError(
                f"{file}: train_batch_size is {size}, but train_micro_batch_size_per_gpu x "
                f"gradient_accumulation_steps x {world} process(es) is {batch}"
            )
        overrides["batch_size"] = batch
    elif size != "auto":
        overrides["batch_size"] = size
    if settings.get("gradient_clipping", "auto") != "auto":
        overrides["grad_clip"] = settings["gradient_clipping"]
    overrides |= _precision(settings)
    if "optimizer" in settings:
        overrides |= _optimizer(file, settings["optimizer"])
    return overrides


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
    """AdamW's settings. Raises ConfigError for another optimizer and for unknown settings."""
    kind, params = section.get("type"), section.get("params", {})
    if kind not in ("Adam", "AdamW"):
        raise ConfigError(f"{file}: optimizer.type should be Adam or AdamW, not {kind!r}")
    for key, value in params.items():
        if key not in (*_ADAM, "torch_adam", "adam_w_mode"):
            raise ConfigError(f"{file}: optimizer.params.{key} is unknown: {', '.join(_ADAM)}")
        if key == "adam_w_mode" and not value and params.get("weight_decay"):
            raise ConfigError(f"{file}: optimizer.params.adam_w_mode should be true")
    known = _ADAM | {key: value for key, value in params.items() if key in _ADAM}
    given = {key: value for key, value in known.items() if value != "auto"}
    return given | {"optimizer": "adamw"}


def _schedule(file: Path, section: dict[str, Any], config: TrainConfig) -> Schedule:
    """A scheduler of DeepSpeed as a function of the step. Raises ConfigError."""
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

    def schedule(step: int) -> tuple[float, tuple[float, float]]:
        scheduler.step(step - 1)
        return group["lr"] / config.lr, group["betas"]

    return schedule
