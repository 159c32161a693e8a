"""Model folders: complete or refused, and saved so that plain diffusers can load them.

diffusers and transformers replace what a folder lacks: missing weights by random numbers, a missing
tokenizer by an empty one. This module raises ModelError instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Final, Self

from demo_t2v.conditioning.speed import FILE as SPEED_FILE
from demo_t2v.conditioning.speed import SpeedCalibration
from demo_t2v.core.atomic_io import path_exists
from demo_t2v.core.errors import UserError

OWN_CLASSES: Final[Mapping[str, str]] = {
    "DemoUNet": "demo_t2v.models.unet",
    "ModelScopeDDIMScheduler": "demo_t2v.diffusion.schedulers",
    "OpenCLIPTokenizer": "demo_t2v.models.tokenizer",
}
"""This package's classes among a pipeline's components: class name -> module."""
BASE_KEY: Final = "base_model"
DEFAULT_KEYS: Final = ("num_inference_steps", "guidance_scale", "negative_prompt")
"""The defaults of a call in a pipeline's configuration."""
_SHIM: Final = '''"""{name} for diffusers' from_pretrained with trust_remote_code=True."""

try:
    from {module} import {name}
except ModuleNotFoundError as error:
    if error.name != "demo_t2v":
        raise
    raise ModuleNotFoundError("this model needs demo-t2v: pip install demo-t2v") from error

__all__ = ["{name}"]
'''
_TOKENIZER: Final = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_WEIGHTS: Final = re.compile(r"[^.]+?(\.(?P<variant>[^.]+?))?(-\d+-of-\d+)?\.(safetensors|bin)")


class ModelError(UserError):
    """A model that is missing or incomplete; the message is one line."""


class FolderMixin:
    """A pipeline that loads complete folders only, and saves them for `DiffusionPipeline` too.

    A saved folder has small Python files that import the pipeline's class and those of
    `OWN_CLASSES`. `DiffusionPipeline.from_pretrained` runs them with `trust_remote_code=True`; the
    pipeline's own `from_pretrained` runs no file of the folder.
    """

    speed_calibration: SpeedCalibration | None = None
    """The speeds at which the model's things move, where they were measured."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """As in diffusers. If all weights of a network are of one variant, it is the default.

        An adapted folder (`base_folder`) gives its base with the adapter added to the weights.
        Raises ModelError for a folder in which a component's files or weights are missing.
        """
        name = pretrained_model_name_or_path
        diffusers_class: Any = cls  # the mixin's type lacks the methods of DiffusionPipeline
        folder = Path(name)
        if not folder.is_dir():
            if path_exists(folder):
                raise ModelError(f"{name}: is no folder of a model")
            folder = Path(diffusers_class.download(name, **options))
        index = diffusers_class.load_config(folder)
        if (base := base_folder(folder, index)) is not None:
            adapted = cls.from_pretrained(base, **options)
            _adapt(adapted, folder, index, options.keys())
            return adapted
        check_files(folder, index, options.keys())
        options = {"variant": only_variant(folder), **options}
        pipeline: Any = super().from_pretrained(folder, **options)  # type: ignore[misc]
        pipeline.register_to_config(_name_or_path=str(name))
        if not options.keys() & {"device_map", "quantization_config"}:  # these change the tensors
            for component, network in pipeline.components.items():
                if component not in options and hasattr(network, "state_dict"):
                    check_weights(folder / component, network, options["variant"])
        loaded: Self = pipeline
        loaded.speed_calibration = SpeedCalibration.read(folder)
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str | Path, **options: Any) -> str:
        """As in diffusers, with the speed calibration, which is no file of a component."""
        from huggingface_hub import snapshot_download

        folder = super().download(pretrained_model_name, **options)  # type: ignore[misc]
        keys = ("cache_dir", "force_download", "local_files_only", "token")
        snapshot: str = snapshot_download(
            str(pretrained_model_name),
            revision=Path(folder).name,  # the commit
            allow_patterns=[SPEED_FILE],
            **{key: options[key] for key in keys if key in options},
        )
        return snapshot

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """As in diffusers, with the speed calibration. An older one in the folder is removed."""
        pipeline: Any = self  # the mixin's type lacks the components
        tokenizer = getattr(pipeline.tokenizer, "backend_tokenizer", None)
        if tokenizer is not None:  # its file would have the settings of the last call
            tokenizer.no_truncation()
            tokenizer.no_padding()
        super().save_pretrained(str(save_directory), **options)  # type: ignore[misc]

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict[str, Any]:
        """The index, naming this package's modules instead of the folder's Python files."""
        index: dict[str, Any] = super()._dict_from_json_file(json_file)  # type: ignore[misc]
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        for name, _, kind in _components(index):
            if kind in OWN_CLASSES:
                index[name] = [OWN_CLASSES[kind], kind]
        return index

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the index, the speed calibration and the Python files by which diffusers finds this
        package's classes.
        """
        super().to_json_file(json_file_path)  # type: ignore[misc]
        file = Path(json_file_path)
        index = json.loads(file.read_text(encoding="utf-8"))
        found = {
            f"{name}/demo_{name}": (kind, module)
            for name, module, kind in _components(index)
            if kind in OWN_CLASSES
        }
        index |= {
            shim.split("/")[0]: [shim.split("/")[1], kind] for shim, (kind, _) in found.items()
        }
        pipeline = type(self)
        found["pipeline"] = (pipeline.__name__, pipeline.__module__)
        index["_class_name"] = ["pipeline", pipeline.__name__]
        for shim, (kind, module) in found.items():
            code = file.parent / f"{shim}.py"
            code.parent.mkdir(parents=True, exist_ok=True)
            code.write_text(_SHIM.format(name=kind, module=module), encoding="utf-8")
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        file.write_text(text, encoding="utf-8")
        (file.parent / SPEED_FILE).unlink(missing_ok=True)
        if self.speed_calibration is not None:
            self.speed_calibration.write(file.parent)


def base_folder(folder: Path, index: Mapping[str, Any]) -> Path | None:
    """The folder of the model that an adapted one differs from; None for a complete model.

    An adapted folder has the defaults of a call and `base_model`, the path of its base from there,
    in `model_index.json`, a DDIM scheduler, and in `unet` an adapter (LoRA, arXiv 2106.09685) in
    place of the weights. Raises ModelError for a base that is no complete model.
    """
    if (name := index.get(BASE_KEY)) is None:
        return None
    base = folder / str(name)
    if not (base / "unet" / "config.json").is_file():
        raise ModelError(
            f"{folder / 'model_index.json'}: base_model {name} is no folder of a complete model"
        )
    return base


def _adapt(pipeline: Any, folder: Path, index: Mapping[str, Any], given: Set[str]) -> None:
    """Turn the base's pipeline into that of an adapted folder, but for what the caller has given.

    Raises ModelError, LoraError.
    """
    from diffusers import DDIMScheduler

    from demo_t2v.lora import merge_lora

    missing = [key for key in DEFAULT_KEYS if key not in index]
    if missing:
        raise ModelError(f"{folder / 'model_index.json'}: has no {' and no '.join(missing)}")
    try:
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'scheduler'}: cannot be read ({first_line(error)})") from None
    if "unet" not in given:
        merge_lora(pipeline.unet, folder / "unet", "unet")
    if "scheduler" not in given:
        pipeline.register_modules(scheduler=scheduler)
    pipeline.register_to_config(**{key: index[key] for key in DEFAULT_KEYS if key not in given})


def register_classes() -> None:
    """Let diffusers load and save `OWN_CLASSES` from this package, like transformers' classes."""
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    for name, module in OWN_CLASSES.items():
        LOADABLE_CLASSES[module] = {name: ["save_pretrained", "from_pretrained"]}


def class_name(index: Mapping[str, Any]) -> str:
    """The pipeline's class that an index names, alone or as [file, class]."""
    name = index.get("_class_name", "nothing known")
    return str(name[-1] if isinstance(name, list) else name)


def check_files(folder: Path, index: Mapping[str, Any], without: Collection[str] = ()) -> None:
    """Raise ModelError unless each component, except those in `without`, has its files.

    transformers makes an empty tokenizer of missing files, to which all prompts are the same.
    """
    for name, _, kind in _components(index):
        if name in without:
            continue
        if not (folder / name).is_dir():
            raise ModelError(f"{folder / name}: is missing; the model folder is incomplete")
        if "Tokenizer" in kind:
            check_tokenizer(folder / name)
            continue
        config = "scheduler_config.json" if "Scheduler" in kind else "config.json"
        if not (folder / name / config).is_file():
            raise ModelError(
                f"{folder / name / config}: is missing; the model folder is incomplete"
            )


def check_tokenizer(folder: Path) -> None:
    """Raise ModelError unless a tokenizer's folder has its files."""
    if not any(all((folder / file).is_file() for file in files) for files in _TOKENIZER):
        raise ModelError(
            f"{folder}: has no tokenizer.json (nor vocab.json with merges.txt); "
            "the tokenizer is incomplete, get it again"
        )


def load_network(kind: Any, folder: Path, **options: Any) -> Any:
    """A network by `kind.from_pretrained`; of its only variant (`fp16`), if it has no other files.

    Raises ModelError if the folder cannot be loaded or a weight is missing.
    """
    variant = _only_variant_of_network(folder)
    try:
        network, found = kind.from_pretrained(
            folder, variant=variant, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded ({first_line(error)})") from None
    _check_missing(folder, sorted(found["missing_keys"]))
    return network


def init_arguments(network: Any) -> dict[str, Any]:
    """The arguments that a diffusers network was built with, to build a changed one.

    diffusers' own entries begin with `_`; one of them would reset changed arguments to defaults.
    """
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


def check_fit(unet: Any, tokenizer: Any, content_encoder: Any, motion_encoder: Any) -> None:
    """Raise ModelError for components that do not fit each other; a component may be None."""
    if content_encoder is None:
        return
    if unet is not None and unet.config.motion and motion_encoder is None:
        raise ModelError("motion_encoder: is missing; the denoiser has motion transformers")
    tokens, expected = len(tokenizer), content_encoder.config.vocab_size
    if tokens != expected:
        raise ModelError(
            f"tokenizer: has {tokens} tokens, and the content encoder {expected}; "
            "files of the tokenizer are missing or another model's"
        )


def only_variant(folder: Path) -> str | None:
    """The variant (`fp16`) of a model in which some network has weights of no other variant."""
    variants = {_only_variant_of_network(network) for network in folder.glob("*/")}
    return min((variant for variant in variants if variant), default=None)


def _only_variant_of_network(folder: Path) -> str | None:
    """The variant of a network's weights, if they have only one."""
    variants = {variant for _, variant in _weights(folder)}
    return variants.pop() if len(variants) == 1 else None


def network_files(folder: Path) -> list[Path]:
    """The files that `load_network` reads a network's weights from; several if it is in shards."""
    return weight_files(folder, _only_variant_of_network(folder))


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The files that a network of a variant is loaded from; safetensors if there are any."""
    found = _weights(folder)
    files = [file for file, each in found if each == variant]
    files = files or [file for file, each in found if each is None]
    return [file for file in files if file.suffix == ".safetensors"] or files


def check_weights(folder: Path, network: Any, variant: str | None = None) -> None:
    """Raise ModelError unless every weight of a loaded network comes from a file and is finite.

    The libraries draw missing weights at random, with a warning at most.
    """
    stored = _stored(folder, variant)
    weights = network.state_dict()
    _check_missing(folder, [name for name in weights if name not in stored])
    damaged = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if damaged:
        raise ModelError(
            f"{folder}: {damaged[0]} has numbers that are not finite; the weights are "
            "damaged, or too large for float16: try --dtype float32"
        )


def _check_missing(folder: Path, missing: list[str]) -> None:
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} tensors are missing, {', '.join(missing[:10])}; "
            "the model is incomplete, get it again"
        )


def _stored(folder: Path, variant: str | None) -> set[str]:
    """The names of the tensors in the files that a network of this variant is loaded from."""
    import torch
    from safetensors import safe_open

    stored: set[str] = set()
    for file in weight_files(folder, variant):
        if file.suffix == ".bin":
            stored |= set(torch.load(file, map_location="meta", weights_only=True, mmap=True))
        else:
            with safe_open(file, "pt") as tensors:
                stored |= set(tensors.keys())
    return {name.removeprefix("text_model.") for name in stored}


def _weights(folder: Path) -> list[tuple[Path, str | None]]:
    """The weight files of a network, each with its variant."""
    found = [(file, _WEIGHTS.fullmatch(file.name)) for file in sorted(folder.glob("*"))]
    return [(file, match["variant"]) for file, match in found if match]


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _components(index: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The name, module and class of an index's components; those that are null are skipped.

    Other lists, such as `guidance_interval`, have no names.
    """
    for name, value in index.items():
        if isinstance(value, list | tuple) and name != "_class_name" and isinstance(value[0], str):
            yield name, value[0], str(value[1])
