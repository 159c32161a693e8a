"""The denoiser under DeepSpeed: plain, or sharded over all processes (ZeRO stage 3)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_t2v.config import ConfigError, InferenceConfig, read_json
from demo_t2v.core.devices import resolve_device
from demo_t2v.core.launch import set_default_environment

if TYPE_CHECKING:
    from demo_t2v.pipeline import DemoPipeline


def shard_denoiser(pipeline: DemoPipeline, config: InferenceConfig) -> bool:
    """Hand the pipeline's denoiser to DeepSpeed; returns whether its weights are sharded now.

    Then every process must call it as often as the others. Raises ConfigError.
    """
    assert config.deepspeed_config is not None
    settings = read_settings(config.deepspeed_config, config)
    try:
        import deepspeed
    except ImportError:
        raise ConfigError(
            "deepspeed_config needs DeepSpeed: pip install 'demo-t2v[deepspeed]'"
        ) from None
    set_default_environment()
    deepspeed.init_distributed(dist_backend=None, verbose=False)
    network = pipeline.unet
    sharded: bool = settings["zero_optimization"]["stage"] == 3
    network.requires_grad_(False)
    if sharded:  # layer by layer, so that the device need not hold all of them
        deepspeed.zero.Init(module=network, config_dict_or_path=settings)
    # The engine itself is not needed: it has put its hooks into the network's layers.
    deepspeed.initialize(model=network, config=settings)
    network.eval()
    return sharded


def read_settings(file: Path, config: InferenceConfig) -> dict[str, Any]:
    """DeepSpeed's settings, complete. Raises ConfigError for what only a training can use."""
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: should hold a JSON object")
    if config.lora or config.offload != "none" or config.max_memory is not None:
        raise ConfigError("deepspeed_config: leave out lora, offload and max_memory beside it")
    zero = settings.setdefault("zero_optimization", {"stage": 0})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 3):
        raise ConfigError(f"{file}: zero_optimization.stage should be 0 or 3 without a training")
    zero.setdefault("stage", 0)
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise ConfigError(f"{file}: {key} is for a training; leave it out")
    for key in ("bf16", "fp16"):
        precision = settings.pop(key, {})
        if not isinstance(precision, dict):
            raise ConfigError(f"{file}: {key}: should be an object, or be left out")
        if precision.get("enabled") not in (None, "auto", False):
            raise ConfigError(f"{file}: {key}: say `dtype` in the YAML, or --dtype, instead")
    enabled = {"bfloat16": "bf16", "float16": "fp16"}.get(
        resolve_device(config.device, config.dtype)[1]
    )
    if enabled:
        settings[enabled] = {"enabled": True}
    settings["train_micro_batch_size_per_gpu"] = config.batch_size
    settings.pop("train_batch_size", None)
    return settings
