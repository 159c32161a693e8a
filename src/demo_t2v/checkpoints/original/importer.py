"""Original checkpoint files, or diffusers' folder of the base model -> a DemoPipeline folder.

Tensors are copied file by file, a few at a time, so no network has to fit into memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from diffusers import AutoencoderKL
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.utils.tqdm import tqdm
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedModel

from demo_t2v.checkpoints.original.files import PublishedFiles, read_torch_file
from demo_t2v.checkpoints.original.key_maps import (
    autoencoder_from_original,
    denoiser_from_original,
    infer_autoencoder,
    infer_denoiser_from_original,
)
from demo_t2v.checkpoints.original.openclip import (
    clip_from_openclip,
    clip_tokenizer,
    infer_clip,
    infer_text_encoder,
    preprocessor_config,
    text_from_openclip,
)
from demo_t2v.checkpoints.readers import read_tensors
from demo_t2v.config import read_json
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.diffusion.schedulers import ModelScopeDDIMScheduler
from demo_t2v.model_folder import ModelError, first_line, init_arguments, load_network
from demo_t2v.models.state_dicts import StateDictError, check_state_dict, shapes_of
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline

ConvertedDtype = Literal["float32", "float16"]
_SHARD_BYTES: Final = 500_000_000
NEGATIVE_PROMPT: Final = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
    "disconnected limbs, Ugly faces, incomplete arms"
)
"""DEMO's published training uses this prompt in place of a dropped one, for guidance."""


@dataclass(frozen=True)
class SourceNetwork:
    """A network to convert, and where its tensors come from."""

    network: Any
    """Gives the class and the sizes; its own weights are not used."""
    file: Path
    """The file or folder of the tensors, for messages."""
    read: Callable[[], Mapping[str, Tensor]]
    """Returns the network's state dict, mapped into memory."""


SourceNetworks = dict[str, SourceNetwork]
"""By component name: `unet`, `vae`, `content_encoder`, `motion_encoder`, and `clip`."""


def convert(
    source: Path | PublishedFiles,
    out: Path,
    dtype: ConvertedDtype | None = None,
    start_motion: bool = False,
    image_tower: bool = False,
) -> None:
    """Convert published files, or a folder with some, to a DemoPipeline folder.

    `source` may also be a folder of diffusers' `TextToVideoSDPipeline`
    (`text-to-video-ms-1.7b`). `dtype` None keeps the precision of each file. `start_motion` makes a
    base model a DEMO to train: motion transformers and motion encoder start as copies of the
    content transformers and the content encoder. With `start_motion` or `image_tower`, OpenCLIP's
    image tower is written to `clip/` for the regularization loss, if the source has one. DEMO gets
    its published negative prompt, the base model the empty text, as in its own pipeline.

    Raises ModelError, and then writes nothing; PathError if `out` exists.
    """
    sources = _open(source)
    negative_prompt = NEGATIVE_PROMPT if "motion_encoder" in sources else ""
    if start_motion:
        if "motion_encoder" in sources:
            raise ModelError(f"{sources['unet'].file}: is a DEMO already; its motion has started")
        sources = _with_motion(sources)
    elif not image_tower:
        sources.pop("clip", None)
    write_pipeline(sources, out, dtype, negative_prompt)


def _open(source: Path | PublishedFiles) -> SourceNetworks:
    if isinstance(source, PublishedFiles):
        return _open_published(source)
    if (source / "model_index.json").is_file():
        return _open_diffusers(source)
    files = PublishedFiles.find(source)
    if files is None:
        raise ModelError(
            f"{source}: holds neither published .pth files nor a folder of diffusers' "
            "text-to-video-ms-1.7b"
        )
    return _open_published(files)


def _open_published(files: PublishedFiles) -> SourceNetworks:
    """The networks of published files; their widths and depths are those of the tensors."""
    with torch.device("meta"):
        unet = _infer(infer_denoiser_from_original, files.denoiser)
        vae = _infer(infer_autoencoder, files.autoencoder)
        encoder = _infer(infer_text_encoder, files.clip)
        clip = _infer(infer_clip, files.clip)
    sources = {
        "unet": _source(files.denoiser, denoiser_from_original, unet),
        "vae": _source(files.autoencoder, autoencoder_from_original, vae),
        "content_encoder": _source(files.clip, text_from_openclip, encoder),
        "clip": _source(files.clip, clip_from_openclip, clip),
    }
    if files.motion_encoder is not None:
        sources["motion_encoder"] = _source(files.motion_encoder, text_from_openclip, encoder)
    return sources


def _infer(infer: Callable[[Mapping[str, Tensor]], Any], file: Path) -> Any:
    """The network that `infer` makes for a file's tensors. Raises ModelError."""
    try:
        return infer(read_torch_file(file))
    except StateDictError as error:
        raise ModelError(f"{file}: {error}") from None


def _source(
    file: Path, key_map: Callable[[dict[str, Tensor], Any], dict[str, Tensor]], network: nn.Module
) -> SourceNetwork:
    return SourceNetwork(network, file, lambda: key_map(read_torch_file(file), network))


def _open_diffusers(folder: Path) -> SourceNetworks:
    """The networks of a `TextToVideoSDPipeline` folder (`text-to-video-ms-1.7b`).

    Its text encoder lacks OpenCLIP's last layer, whose output no model uses. A layer of zeros,
    which is the identity, takes its place.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if index.get("_class_name") != "TextToVideoSDPipeline":
        raise ModelError(
            f"{folder}: holds a {index.get('_class_name')}; a TextToVideoSDPipeline is needed"
        )
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        check_noise_schedule(scheduler)
    file = _weights_file(folder / "unet")
    try:
        with torch.device("meta"):
            unet = _diffusers_denoiser(folder / "unet")
        vae = load_network(AutoencoderKL, folder / "vae")
        shorter = load_network(CLIPTextModel, folder / "text_encoder")
    except ModelError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be read ({first_line(error)})") from None
    encoder, encoder_state = _with_last_layer(shorter)

    def read_denoiser() -> Mapping[str, Tensor]:
        state = _read_weights(file)
        check_state_dict(state, shapes_of(unet.state_dict()))
        return state

    return {
        "unet": SourceNetwork(unet, file, read_denoiser),
        "vae": SourceNetwork(vae, folder / "vae", vae.state_dict),
        "content_encoder": SourceNetwork(encoder, folder / "text_encoder", lambda: encoder_state),
    }


def _diffusers_denoiser(folder: Path) -> DemoUNet:
    """The DemoUNet without motion that has the sizes of a `UNet3DConditionModel`."""
    sizes = DemoUNet.load_config(folder)
    keys = {"block_out_channels", "layers_per_block", "cross_attention_dim"}
    keys |= {"attention_head_dim", "norm_num_groups", "in_channels", "out_channels"}
    unet: DemoUNet = DemoUNet(
        sample_size=sizes.get("sample_size") or 32,
        attention=["CrossAttn" in block for block in sizes["down_block_types"]],
        motion=False,
        **{key: sizes[key] for key in keys},
    )
    return unet


def _with_last_layer(shorter: CLIPTextModel) -> tuple[CLIPTextModel, dict[str, Tensor]]:
    """The encoder with one layer more, on the meta device, and the tensors of all its layers."""
    layers = shorter.config.num_hidden_layers
    sizes = {**shorter.config.to_dict(), "num_hidden_layers": layers + 1, "pad_token_id": 0}
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**sizes))
    zeros = {
        name: torch.zeros(tensor.shape, dtype=shorter.dtype)
        for name, tensor in encoder.state_dict().items()
        if f".layers.{layers}." in name
    }
    return encoder, shorter.state_dict() | zeros


def _weights_file(folder: Path) -> Path:
    """The file of a diffusers network's weights, or the index of its shards."""
    stem = "diffusion_pytorch_model"
    ends = ("safetensors", "safetensors.index.json", "fp16.safetensors", "bin", "fp16.bin")
    found = [folder / f"{stem}.{end}" for end in ends if (folder / f"{stem}.{end}").is_file()]
    if not found:
        raise ModelError(f"{folder}: has no {stem}.safetensors and no {stem}.bin")
    return found[0]


def _read_weights(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".bin":
        return read_torch_file(file)
    files = {file}
    if file.suffix == ".json":
        shards = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        files = {file.with_name(Path(name).name) for name in shards.values()}
    return {name: w for shard in sorted(files) for name, w in read_tensors(shard).items()}


def _with_motion(sources: SourceNetworks) -> SourceNetworks:
    """DEMO before its training: copies of the content networks are its motion networks."""
    base = sources["unet"]
    with torch.device("meta"):
        unet = DemoUNet(**{**init_arguments(base.network), "motion": True})

    def read() -> Mapping[str, Tensor]:
        state = base.read()
        copies = {
            name.replace(".attentions.", ".motion_attentions."): tensor
            for name, tensor in state.items()
            if ".attentions." in name
        }
        return {**state, **copies}

    return {
        **sources,
        "unet": SourceNetwork(unet, base.file, read),
        "motion_encoder": sources["content_encoder"],
    }


def write_pipeline(
    sources: SourceNetworks, out: Path, dtype: ConvertedDtype | None, negative_prompt: str
) -> None:
    """Write a complete pipeline folder with ModelScopeT2V's scheduler, or nothing.

    Raises ModelError for tensors that do not belong to their network, are not finite, or do not
    fit into float16; PathError if `out` exists.
    """
    networks = {name: source.network for name, source in sources.items() if name != "clip"}
    pipeline = DemoPipeline(
        **networks,
        tokenizer=clip_tokenizer(),
        scheduler=modelscope_scheduler(),
        negative_prompt=negative_prompt,
    )
    tensors = (w for source in sources.values() for w in source.network.state_dict().values())
    total = sum(tensor.numel() for tensor in tensors)
    with (
        atomic_write(out, new_folder=True) as folder,
        tqdm(  # type: ignore[no-untyped-call]
            total=total, unit="", unit_scale=True, desc=out.name, disable=None
        ) as bar,
    ):
        pipeline.save_config(folder)
        pipeline.tokenizer.save_pretrained(folder / "tokenizer")
        pipeline.scheduler.save_pretrained(folder / "scheduler")
        for name, source in sources.items():
            _write_network(source, folder / name, dtype, bar.update)
        if "clip" in sources:
            side = sources["clip"].network.config.vision_config.image_size
            text = json.dumps(preprocessor_config(side), indent=2)
            (folder / "clip" / "preprocessor_config.json").write_text(text, encoding="utf-8")


def modelscope_scheduler() -> ModelScopeDDIMScheduler:
    """ModelScopeT2V's DDIM: for 50 steps, t = 981, ..., 21, 1, then a step to t = 0."""
    return ModelScopeDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def check_noise_schedule(file: Path) -> None:
    """Raise ModelError unless a `scheduler_config.json` has ModelScopeT2V's noise schedule."""
    ours, theirs = read_json(file), modelscope_scheduler().config
    for key in ("prediction_type", "beta_start", "beta_end", "beta_schedule"):
        if ours.get(key, theirs[key]) != theirs[key]:
            raise ModelError(
                f"{file}: {key} is {ours[key]}, and the published code samples with {theirs[key]}; "
                "only a model trained with that can be exported"
            )


def _write_network(
    source: SourceNetwork,
    folder: Path,
    dtype: ConvertedDtype | None,
    progress: Callable[[int], Any],
) -> None:
    """Write a network's configuration and weights as its own library saves them.

    Calls `progress` with the number of parameters in each file that is written.
    """
    if isinstance(source.network, PreTrainedModel):
        source.network.config.architectures = [type(source.network).__name__]
        source.network.config.save_pretrained(folder)
        stem = "model"
    else:
        source.network.save_config(folder)
        stem = "diffusion_pytorch_model"
    try:
        state = source.read()
    except StateDictError as error:
        raise ModelError(f"{source.file}: {error}") from None
    target = getattr(torch, dtype) if dtype else next(iter(state.values())).dtype
    plan = split_torch_state_dict_into_shards(
        {name: tensor.to("meta", target) for name, tensor in state.items()},
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=_SHARD_BYTES,
    )
    del state
    for file, names in plan.filename_to_tensors.items():
        state = source.read()  # read again for each file: this frees the pages of the last one
        tensors = {name: _cast(state[name], target, f"{source.file}: {name}") for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        progress(sum(tensor.numel() for tensor in tensors.values()))
        del state, tensors
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2)
        (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A contiguous copy in another precision; `name` is for errors."""
    if not tensor.isfinite().all():
        raise ModelError(
            f"{name} has numbers that are not finite, as after an overflow of float16; "
            "the weights are damaged, take them in float32"
        )
    cast = tensor.to(dtype, copy=True).contiguous()  # safetensors refuses shared memory
    if not cast.isfinite().all():
        raise ModelError(f"{name} does not fit into float16; give --dtype float32")
    return cast
