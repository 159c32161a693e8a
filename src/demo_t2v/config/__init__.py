"""Typed configurations: YAML files, `key=value` overrides, errors that name file and key."""

from demo_t2v.config.inference import InferDataset, InferenceConfig, SchedulerName, parse_size
from demo_t2v.config.loader import (
    Aliases,
    ConfigError,
    Option,
    Strict,
    canonical_keys,
    load,
    read_json,
)

__all__ = [
    "Aliases",
    "ConfigError",
    "InferDataset",
    "InferenceConfig",
    "Option",
    "SchedulerName",
    "Strict",
    "canonical_keys",
    "load",
    "parse_size",
    "read_json",
]
