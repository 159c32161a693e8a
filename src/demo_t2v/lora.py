"""LoRA adapters (arXiv 2106.09685) by peft: new ones, and a pipeline's, from a file and to one.

The file is diffusers' usual one: safetensors, every name behind its part (`unet.`,
`content_encoder.`, `motion_encoder.`), peft's settings as JSON in the metadata. peft is needed
when there is something to adapt, not before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import ModelMixin
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import USE_PEFT_BACKEND
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from demo_t2v.core.atomic_io import make_folder
from demo_t2v.core.errors import UserError
from demo_t2v.models.lora_targets import LoraTarget, lora_layers
from demo_t2v.models.state_dicts import Shape, check_state_dict, select_component
from demo_t2v.models.unet import DemoUNet

WEIGHT_NAME: Final = "pytorch_lora_weights.safetensors"
_METADATA: Final = "lora_adapter_metadata"  # where diffusers keeps peft's settings
# What is taken from a file's settings: peft's others can change the base or import modules.
_SCALES: Final = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


class LoraError(UserError):
    """An adapter that cannot be made, read or saved; the message is one line for a person."""


def add_lora(
    unet: DemoUNet,
    motion_encoder: CLIPTextModel | None,
    target: LoraTarget = "motion",
    rank: int = 8,
    alpha: float | None = None,
    adapter_name: str = "default",
) -> None:
    """Put a new adapter on what `target` names, and leave nothing else of both to be trained.

    It changes nothing as long as it is untrained. What it has learned counts `alpha` / `rank`
    times (None: once). Raises LoraError without peft, or where the target is not there.
    """
    _require_peft()
    from peft import LoraConfig

    if target == "motion" and (motion_encoder is None or not unet.config.motion):
        raise LoraError(
            "LoRA's target motion: this model has no motion transformers and motion encoder; "
            "take DEMO, or the target all"
        )
    unet.requires_grad_(False)
    if motion_encoder is not None:
        motion_encoder.requires_grad_(False)
    depth = 0 if motion_encoder is None else motion_encoder.config.num_hidden_layers
    parts: dict[str, Any] = {"unet": unet, "motion_encoder": motion_encoder}
    for part, layers in lora_layers(target, depth).items():
        config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=layers)  # type: ignore[arg-type]
        parts[part].add_adapter(config, adapter_name)


class LoraMixin(LoraBaseMixin):
    """A pipeline's adapters as diffusers' users know them.

    From diffusers: `set_adapters(names, strengths)`, where 0 is the base model and 1 the adapter as
    it was trained, `enable_lora`, `disable_lora`, `delete_adapters`, `unload_lora_weights`,
    `get_list_adapters`.
    """

    _lora_loadable_modules = ["unet", "content_encoder", "motion_encoder"]  # noqa: RUF012

    def load_lora_weights(
        self,
        source: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        weight_name: str = WEIGHT_NAME,
    ) -> None:
        """Load an adapter, at strength 1, and let the ones before it rest.

        `source` is a file, a folder or a hub repository with `weight_name` in it, or tensors by
        name, whose alpha then is their rank. `set_adapters` lets several speak at once. Load it
        before offloading layer by layer. Raises LoraError, with nothing changed, if there is no
        peft, no such file, a missing, surplus or misshapen tensor in it, or the name is taken;
        ConnectionError if the hub does not answer.
        """
        _require_peft()
        from peft.utils import set_peft_model_state_dict

        name = self._new_name(adapter_name)
        where, tensors, settings = _read(source, weight_name)
        adapters, expected = [], dict[str, Shape]()
        try:
            for part in self._lora_loadable_modules:
                module, own = getattr(self, part), select_component(part, tensors)
                if module is not None and own:
                    config, shapes = _fit(module, own, select_component(part, settings))
                    adapters.append((module, own, config))
                    expected |= {f"{part}.{key}": shape for key, shape in shapes.items()}
            check_state_dict(tensors, expected)
        except (TypeError, ValueError) as error:  # of peft's, for settings that make no sense
            raise LoraError(f"{where}: {' '.join(str(error).split())}") from None
        if not adapters:
            raise LoraError(f"{where}: holds no tensors; an adapter is what was asked for")
        for module, own, config in adapters:
            module.add_adapter(config, name)
            set_peft_model_state_dict(module, own, name)
        self.set_adapters(name)

    def save_lora_weights(
        self,
        save_directory: str | Path,
        adapter_name: str | None = None,
        weight_name: str = WEIGHT_NAME,
    ) -> None:
        """Write one adapter, of all parts that have it, as `weight_name` into a folder.

        `adapter_name` may be left out where there is only one. Raises LoraError where there is no
        such adapter.
        """
        _require_peft()
        from peft.utils import get_peft_model_state_dict

        parts = self.get_list_adapters()
        names = sorted({name for adapters in parts.values() for name in adapters})
        name = names[0] if adapter_name is None and len(names) == 1 else adapter_name
        if name is None or name not in names:
            there = f"there are {', '.join(names)}" if names else "there is no adapter"
            raise LoraError(f"adapter_name {name!r}: cannot be saved; {there}")
        tensors, settings = dict[str, Tensor](), dict[str, Any]()
        for part in (part for part, adapters in parts.items() if name in adapters):
            module = getattr(self, part)
            state = get_peft_model_state_dict(module, adapter_name=name)
            tensors |= {f"{part}.{key}": tensor.contiguous() for key, tensor in state.items()}
            # Where the base lay on this machine is nobody's business.
            config = module.peft_config[name].to_dict() | {"base_model_name_or_path": None}
            settings |= {f"{part}.{key}": value for key, value in config.items()}
        folder = Path(save_directory)
        make_folder(folder)
        text = json.dumps(settings, default=sorted, sort_keys=True)  # sets become lists
        save_file(tensors, folder / weight_name, {"format": "pt", _METADATA: text})

    def fuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """Add the active adapters to the base weights; `options` as in diffusers (`lora_scale`).

        Then `unload_lora_weights` leaves a model like any other, which can be saved.
        """
        super().fuse_lora(components or self._lora_loadable_modules, **options)

    def unfuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """Take them out again."""
        super().unfuse_lora(components or self._lora_loadable_modules, **options)

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        """As in diffusers. Raises LoraError with adapters, whose base would not be saved right."""
        if USE_PEFT_BACKEND and self.get_list_adapters():
            raise LoraError(
                "the pipeline has adapters: save them by save_lora_weights, and the model after "
                "unload_lora_weights, or with them in it after fuse_lora and unload_lora_weights"
            )
        super().save_pretrained(*args, **options)

    def _new_name(self, wanted: str | None) -> str:
        """The name wanted, or the first that is free. Raises LoraError for one that is taken."""
        taken = {name for names in self.get_list_adapters().values() for name in names}
        if wanted in taken:
            raise LoraError(f"adapter_name {wanted!r}: is taken; so are {', '.join(sorted(taken))}")
        free = (name for name in map("default_{}".format, count()) if name not in taken)
        return wanted or next(free)


def _require_peft() -> None:
    if not USE_PEFT_BACKEND:
        raise LoraError("LoRA needs peft: pip install 'demo-t2v[lora]'")


def _fit(
    module: nn.Module, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[Any, dict[str, Shape]]:
    """The peft configuration of a part's tensors, and the tensors that it would have on `module`.

    They are peft's own answer, on a network without values.
    """
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    kind: Any = type(module)
    with torch.device("meta"):
        bare = (kind.from_config if isinstance(module, ModelMixin) else kind)(module.config)
        named = {name.partition(".lora_")[0] for name in tensors}
        layers = [
            name
            for name, layer in bare.named_modules()
            if name in named and isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)
        ]
        rank = next((len(t) for name, t in tensors.items() if ".lora_A." in name and t.ndim), 1)
        scales = {"r": rank, "lora_alpha": rank}
        scales |= {key: settings[key] for key in _SCALES if key in settings}
        config = LoraConfig(target_modules=layers, **scales)  # type: ignore[arg-type]
        if not layers:
            return config, {}
        bare.add_adapter(config)
    state = get_peft_model_state_dict(bare, adapter_name="default")
    return config, {name: tuple(tensor.shape) for name, tensor in state.items()}


def _read(
    source: str | Path | Mapping[str, Tensor], weight_name: str
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """What to call the source, its tensors, and peft's settings, which may be missing."""
    if isinstance(source, Mapping):
        return "the tensors given", dict(source), {}
    file = adapter_file(source, weight_name)
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            settings = json.loads((stored.metadata() or {}).get(_METADATA, "{}"))
    except (SafetensorError, OSError, ValueError):
        raise LoraError(f"{file}: is no whole safetensors file of an adapter") from None
    if not isinstance(settings, dict):
        raise LoraError(f"{file}: its {_METADATA} is no JSON object of peft's settings")
    return str(file), tensors, settings


def adapter_file(source: str | Path, weight_name: str = WEIGHT_NAME) -> Path:
    """The file that a file's, a folder's or a hub repository's name leads to.

    Raises LoraError, ConnectionError if the hub does not answer.
    """
    path = Path(source)
    if path.is_dir():
        path = path / weight_name
    if path.is_file():
        return path
    missing = LoraError(
        f"{path}: there is no such adapter; use a file, a folder with {weight_name}, or a hub "
        "repository as org/name"
    )
    if path.is_absolute() or len(path.parts) != 2 or path.suffix == ".safetensors":
        raise missing
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:  # unlike `hf_hub_download` it does not try for half a minute to reach the hub
        file = Path(snapshot_download(str(source), allow_patterns=[weight_name]), weight_name)
    except (HFValidationError, RepositoryNotFoundError):
        raise missing from None
    except Exception as error:  # the client passes on whatever its network library raises
        reason = str(error).strip().partition("\n")[0]
        raise ConnectionError(
            f"{source}: is no adapter here, and the hub does not give it ({reason})"
        ) from None
    if not file.is_file():
        raise missing
    return file
