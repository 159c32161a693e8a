"""LoRA adapters (arXiv 2106.09685) by peft: adding, loading and saving them.

The file has diffusers' format: safetensors whose keys have the component as prefix (`unet.`,
`content_encoder.`, `motion_encoder.`), and peft's configuration as JSON in the metadata. peft is
imported only by functions that need it.
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
from demo_t2v.core.weight_files import find_weight_file
from demo_t2v.models.lora_layouts import from_list, from_peft, is_peft, layers_of
from demo_t2v.models.lora_targets import LoraTarget, lora_layers
from demo_t2v.models.state_dicts import (
    Shape,
    StateDictError,
    check_state_dict,
    select_component,
)
from demo_t2v.models.unet import DemoUNet

WEIGHT_NAME: Final = "pytorch_lora_weights.safetensors"
_OTHER_NAMES: Final = ("adapter_model.safetensors", "unet_lora.pt")  # `models.lora_layouts`
_PEFT_SETTINGS: Final = "adapter_config.json"
_METADATA: Final = "lora_adapter_metadata"  # where diffusers keeps peft's settings
# Keys of peft's configuration that are read from a file. Others can change the base or import code.
_CONFIG_KEYS: Final = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


class LoraError(UserError):
    """An adapter that cannot be added, loaded or saved."""


def add_lora(
    unet: DemoUNet,
    motion_encoder: CLIPTextModel | None,
    target: LoraTarget = "motion",
    rank: int = 8,
    alpha: float | None = None,
    adapter_name: str = "default",
) -> None:
    """Add a new adapter to the layers of `target` and freeze all other weights of both networks.

    An untrained adapter does not change the output. Its update of a weight is multiplied by
    `alpha` / `rank` (None: 1). Raises LoraError without peft, and for a target that the model
    does not have.
    """
    _require_peft()
    from peft import LoraConfig

    if target == "motion" and (motion_encoder is None or not unet.config.motion):
        raise LoraError(
            "LoRA's target motion: this model has no motion transformers and motion encoder; "
            "use a DEMO model, or the target all"
        )
    unet.requires_grad_(False)
    if motion_encoder is not None:
        motion_encoder.requires_grad_(False)
    depth = 0 if motion_encoder is None else motion_encoder.config.num_hidden_layers
    components: dict[str, Any] = {"unet": unet, "motion_encoder": motion_encoder}
    for name, pattern in lora_layers(target, depth).items():
        layers = layers_of(components[name]) if target == "network" else pattern
        config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=layers)  # type: ignore[arg-type]
        components[name].add_adapter(config, adapter_name)


def merge_lora(network: nn.Module, source: str | Path, component: str) -> None:
    """Add an adapter's update to the weights of a network, without peft.

    `source` is a file or a folder with `WEIGHT_NAME`, whose tensors of `component` count. A weight
    W becomes W + alpha / r B A (arXiv 2106.09685, eq. 3). Raises LoraError for tensors that do not
    belong to the network.
    """
    label, tensors, settings = _read(source, WEIGHT_NAME)
    own, settings = (select_component(component, each) for each in (tensors, settings))
    scale = settings.get("lora_alpha", 1) / settings.get("r", 1)
    names = dict.fromkeys(name.partition(".lora_")[0] for name in own)
    expected: dict[str, Shape] = {}
    for name in names:
        down = own.get(f"{name}.lora_A.weight")
        weight = network.get_parameter(f"{name}.weight") if name in layers_of(network) else None
        if weight is not None and down is not None:
            rank, ones = len(down), (1,) * (weight.ndim - 2)
            expected[f"{component}.{name}.lora_A.weight"] = (rank, *weight.shape[1:])
            expected[f"{component}.{name}.lora_B.weight"] = (weight.shape[0], rank, *ones)
    try:
        check_state_dict(tensors, expected)
    except StateDictError as error:
        raise LoraError(f"{label}: {error}") from None
    with torch.no_grad():
        for name in names:
            weight = network.get_parameter(f"{name}.weight")
            up, down = (own[f"{name}.lora_{which}.weight"].float() for which in "BA")
            update = scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
            weight.copy_(weight + update.to(weight.device))


class LoraMixin(LoraBaseMixin):
    """Adapters of a pipeline, with diffusers' methods.

    Inherited: `set_adapters(names, weights)`, where the weight 0 is the base model and 1 the
    adapter as trained, `enable_lora`, `disable_lora`, `delete_adapters`, `unload_lora_weights` and
    `get_list_adapters`.
    """

    _lora_loadable_modules = ["unet", "content_encoder", "motion_encoder"]  # noqa: RUF012

    def load_lora_weights(
        self,
        source: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        weight_name: str = WEIGHT_NAME,
    ) -> None:
        """Load an adapter and activate it with weight 1; adapters loaded before become inactive.

        `source` is a file, a folder or a hub repository with `weight_name` in it, or a state dict,
        whose alpha is its rank. Files of MCM and T2V-Turbo are read too (`models.lora_layouts`).
        `set_adapters` activates several. Load adapters before sequential offloading. Raises
        LoraError, without changing the pipeline, if peft or the file is missing, if a tensor is
        missing, surplus or of wrong shape, or if the name is in use; ConnectionError if the hub
        does not answer.
        """
        _require_peft()
        from peft.utils import set_peft_model_state_dict

        name = self._unused_name(adapter_name)
        label, tensors, settings = _read(source, weight_name, self.unet)
        adapters, expected = [], dict[str, Shape]()
        try:
            for component in self._lora_loadable_modules:
                module, own = getattr(self, component), select_component(component, tensors)
                if module is not None and own:
                    own_settings = select_component(component, settings)
                    config, shapes = _peft_config(module, own, own_settings)
                    adapters.append((module, own, config))
                    expected |= {f"{component}.{key}": shape for key, shape in shapes.items()}
            check_state_dict(tensors, expected)
        except (TypeError, ValueError) as error:  # raised by peft for unusable settings
            raise LoraError(f"{label}: {' '.join(str(error).split())}") from None
        if not adapters:
            raise LoraError(f"{label}: holds no tensors; it must hold those of an adapter")
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
        """Write one adapter, of all components that have it, as `weight_name` into a folder.

        `adapter_name` is optional where there is only one. Raises LoraError for an unknown adapter.
        """
        _require_peft()
        from peft.utils import get_peft_model_state_dict

        loaded = self.get_list_adapters()
        names = sorted({name for adapters in loaded.values() for name in adapters})
        name = names[0] if adapter_name is None and len(names) == 1 else adapter_name
        if name is None or name not in names:
            there = f"there are {', '.join(names)}" if names else "there is no adapter"
            raise LoraError(f"adapter_name {name!r}: cannot be saved; {there}")
        tensors, settings = dict[str, Tensor](), dict[str, Any]()
        for component in (key for key, adapters in loaded.items() if name in adapters):
            module = getattr(self, component)
            state = get_peft_model_state_dict(module, adapter_name=name)
            tensors |= {f"{component}.{key}": tensor.contiguous() for key, tensor in state.items()}
            # The path of the base on this machine is private.
            config = module.peft_config[name].to_dict() | {"base_model_name_or_path": None}
            settings |= {f"{component}.{key}": value for key, value in config.items()}
        folder = Path(save_directory)
        make_folder(folder)
        text = json.dumps(settings, default=sorted, sort_keys=True)  # sets become lists
        save_file(tensors, folder / weight_name, {"format": "pt", _METADATA: text})

    def fuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """Add the active adapters to the base weights; `options` as in diffusers (`lora_scale`).

        After `unload_lora_weights` the pipeline can be saved as a model without adapters.
        """
        super().fuse_lora(components or self._lora_loadable_modules, **options)

    def unfuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """Subtract fused adapters from the base weights."""
        super().unfuse_lora(components or self._lora_loadable_modules, **options)

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        """As in diffusers. Raises LoraError with adapters: peft renames the base's tensors."""
        if USE_PEFT_BACKEND and self.get_list_adapters():
            raise LoraError(
                "the pipeline has adapters: save them by save_lora_weights, and the model after "
                "unload_lora_weights, or with them in it after fuse_lora and unload_lora_weights"
            )
        super().save_pretrained(*args, **options)

    def _unused_name(self, wanted: str | None) -> str:
        """`wanted`, or the first unused `default_<n>`. Raises LoraError for a name in use."""
        taken = {name for names in self.get_list_adapters().values() for name in names}
        if wanted in taken:
            raise LoraError(f"adapter_name {wanted!r}: is taken; so are {', '.join(sorted(taken))}")
        free = (name for name in map("default_{}".format, count()) if name not in taken)
        return wanted or next(free)


def _require_peft() -> None:
    if not USE_PEFT_BACKEND:
        raise LoraError("LoRA needs peft: pip install 'demo-t2v[lora]'")


def _peft_config(
    module: nn.Module, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[Any, dict[str, Shape]]:
    """peft's configuration for a component's tensors, and the shapes that it requires of them.

    peft computes the shapes on a copy of `module` on the meta device.
    """
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    kind: Any = type(module)
    with torch.device("meta"):
        bare = (kind.from_config if isinstance(module, ModelMixin) else kind)(module.config)
        named = {name.partition(".lora_")[0] for name in tensors}
        layers = [name for name in layers_of(bare) if name in named]
        rank = next((len(t) for name, t in tensors.items() if ".lora_A." in name and t.ndim), 1)
        values = {"r": rank, "lora_alpha": rank}
        values |= {key: settings[key] for key in _CONFIG_KEYS if key in settings}
        config = LoraConfig(target_modules=layers, **values)  # type: ignore[arg-type]
        if not layers:
            return config, {}
        bare.add_adapter(config)
    state = get_peft_model_state_dict(bare, adapter_name="default")
    return config, {name: tuple(tensor.shape) for name, tensor in state.items()}


def _read(
    source: str | Path | Mapping[str, Tensor], weight_name: str, unet: DemoUNet | None = None
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The source's name in messages, its tensors, and peft's settings, {} if there are none.

    A list of tensors needs the denoiser to name them.
    """
    if isinstance(source, Mapping):
        return "the tensors given", dict(source), {}
    file = adapter_file(source, weight_name)
    if file.suffix == ".pt" and unet is not None:
        return str(file), *_read_list(file, unet)
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            settings = json.loads((stored.metadata() or {}).get(_METADATA, "{}"))
    except (SafetensorError, OSError, ValueError):
        raise LoraError(f"{file}: is no complete safetensors file of an adapter") from None
    if is_peft(tensors):
        tensors, settings = from_peft(tensors, _read_settings(file.with_name(_PEFT_SETTINGS)))
    if not isinstance(settings, dict):
        raise LoraError(f"{file}: its {_METADATA} is no JSON object of peft's settings")
    return str(file), tensors, settings


def _read_settings(file: Path) -> dict[str, Any]:
    """The settings in peft's folder. Raises LoraError."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoraError(f"{file}: is missing; it has the adapter's settings") from None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise LoraError(f"{file}: is no JSON object of peft's settings")
    return settings


def _read_list(file: Path, unet: DemoUNet) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The named tensors and settings of a list of tensors in a torch file. Raises LoraError."""
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # any error of pickle or of the archive
        tensors = None
    if not isinstance(tensors, list) or not all(isinstance(each, Tensor) for each in tensors):
        raise LoraError(f"{file}: is no torch file with a list of tensors of an adapter")
    try:
        return from_list([each.detach() for each in tensors], unet)
    except StateDictError as error:
        raise LoraError(f"{file}: {error}") from None


def adapter_file(source: str | Path, weight_name: str = WEIGHT_NAME) -> Path:
    """The adapter's file, from a file, a folder or a hub repository; MCM's and T2V-Turbo's too.

    Raises LoraError for an adapter that does not exist, ConnectionError if the hub does not answer.
    """
    return find_weight_file(source, weight_name, "adapter", LoraError, _OTHER_NAMES)
