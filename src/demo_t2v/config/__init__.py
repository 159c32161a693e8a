"""Typed configurations: YAML files, `key=value` overrides, errors that name file and key."""

from demo_t2v.config.inference import InferDataset, InferenceConfig, parse_size
from demo_t2v.config.loader import ConfigError, Strict, load, read_json

__all__ = [
    "ConfigError",
    "InferDataset",
    "InferenceConfig",
    "Strict",
    "load",
    "parse_size",
    "read_json",
]
