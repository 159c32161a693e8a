"""Checkpoints of others -> a folder of this project's: the published files, and diffusers' base.

Tensors go from file to file a few at a time, so that a network never has to fit into memory.
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

from demo_t2v.checkpoints.original.files import PublishedFiles, read_published
from demo_t2v.checkpoints.original.key_maps import (
    autoencoder_from_published,
    denoiser_from_published,
    published_autoencoder,
    published_autoencoder_width,
    published_denoiser,
)
from demo_t2v.checkpoints.original.openclip import (
    clip_from_openclip,
    clip_tokenizer,
    preprocessing,
    published_clip,
    published_encoder,
    text_from_openclip,
)
from demo_t2v.checkpoints.resolve import ModelError, first_line, read_tensors
from demo_t2v.config import read_json
from demo_t2v.core.atomic_io import whole_or_nothing
from demo_t2v.diffusion.schedulers import ModelScopeDDIMScheduler
from demo_t2v.model_folder import load_network
from demo_t2v.models.state_dicts import NamesError, check
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline

ConvertedDtype = Literal["float32", "float16"]
_SHARD: Final = 500_000_000  # bytes of a file of tensors
NEGATIVE_PROMPT: Final = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
    "disconnected limbs, Ugly faces, incomplete arms"
)
"""The content prompt of the samples that DEMO's published training dropped for guidance."""


@dataclass(frozen=True)
class Source:
    """A network on the meta device, and its tensors in a file of somebody else's."""

    network: Any
    file: Path
    read: Callable[[], Mapping[str, Tensor]]
    """The network's state dict, mapped into memory: touched tensor by tensor."""


Parts = dict[str, Source]
"""Sources by the names that they have in a pipeline: `unet`, `vae`, ..."""


def convert(
    source: Path | PublishedFiles,
    out: Path,
    dtype: ConvertedDtype | None = None,
    start_motion: bool = False,
    image_tower: bool = False,
) -> None:
    """Write a DemoPipeline folder from published files, or from a folder that holds some.

    `source` may also be a folder of diffusers' `TextToVideoSDPipeline`
    (`text-to-video-ms-1.7b`). `dtype` None keeps what each file has. With `start_motion` a base
    model becomes a DEMO to be trained: motion transformers and motion encoder are copies of their
    content neighbours. With it or with `image_tower`, `clip/` has the image tower for the
    regularization loss, where the source has one. DEMO's weights get its published negative prompt,
    the base model the empty text, as its own published pipeline. Raises ModelError, and then writes
    nothing.
    """
    parts = _open(source)
    negative_prompt = NEGATIVE_PROMPT if "motion_encoder" in parts else ""
    if start_motion:
        if "motion_encoder" in parts:
            raise ModelError(f"{parts['unet'].file}: is a DEMO already; its motion has started")
        parts = _with_motion(parts)
    elif not image_tower:
        parts.pop("clip", None)
    write_pipeline(parts, out, dtype, negative_prompt)


def _open(source: Path | PublishedFiles) -> Parts:
    if isinstance(source, PublishedFiles):
        return published_parts(source)
    if (source / "model_index.json").is_file():
        return diffusers_parts(source)
    files = PublishedFiles.find(source)
    if files is None:
        raise ModelError(
            f"{source}: holds neither published .pth files nor a folder of diffusers' "
            "text-to-video-ms-1.7b"
        )
    return published_parts(files)


def published_parts(files: PublishedFiles) -> Parts:
    """The networks of published files; their widths and depths are read from the tensors."""
    clip = read_published(files.clip)
    with torch.device("meta"):
        unet = _named(files.denoiser, published_denoiser, read_published(files.denoiser))
        pictures = read_published(files.autoencoder)
        vae = published_autoencoder(
            _named(files.autoencoder, published_autoencoder_width, pictures)
        )
        encoder = _named(files.clip, published_encoder, clip)
        both = _named(files.clip, published_clip, clip)
    parts = {
        "unet": _published(files.denoiser, denoiser_from_published, unet),
        "vae": _published(files.autoencoder, lambda s, _: autoencoder_from_published(s), vae),
        "content_encoder": _published(files.clip, text_from_openclip, encoder),
        "clip": _published(files.clip, clip_from_openclip, both),
    }
    if files.motion_encoder is not None:
        file = files.motion_encoder
        parts["motion_encoder"] = _published(file, text_from_openclip, encoder)
    return parts


def _published(
    file: Path, rename: Callable[[dict[str, Tensor], Any], dict[str, Tensor]], network: nn.Module
) -> Source:
    return Source(network, file, lambda: rename(read_published(file), network))


def _named(file: Path, make: Callable[[Any], Any], state: Mapping[str, Tensor]) -> Any:
    """What `make` makes of a file's tensors, or an error with the file's name."""
    try:
        return make(state)
    except NamesError as error:
        raise ModelError(f"{file}: {error}") from None


def diffusers_parts(folder: Path) -> Parts:
    """The networks of a `TextToVideoSDPipeline` folder (`text-to-video-ms-1.7b`).

    The text encoder has lost its last layer there, which is never heard; here it is kept, so one
    of zeros, which does nothing, takes its place.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if index.get("_class_name") != "TextToVideoSDPipeline":
        raise ModelError(
            f"{folder}: holds a {index.get('_class_name')}; a TextToVideoSDPipeline is needed"
        )
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        check_published_noise(scheduler)
    file = _weights_file(folder / "unet")
    try:
        sizes = DemoUNet.load_config(folder / "unet")
        keys = {"block_out_channels", "layers_per_block", "cross_attention_dim"}
        keys |= {"attention_head_dim", "norm_num_groups", "in_channels", "out_channels"}
        attention = ["CrossAttn" in block for block in sizes["down_block_types"]]
        with torch.device("meta"):
            unet = DemoUNet(
                sample_size=sizes.get("sample_size") or 32,
                attention=attention,
                motion=False,
                **{key: sizes[key] for key in keys},
            )
        vae = load_network(AutoencoderKL, folder / "vae")
        heard = load_network(CLIPTextModel, folder / "text_encoder")
    except ModelError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be read ({first_line(error)})") from None
    encoder, states = _with_last_layer(heard)

    def denoiser() -> Mapping[str, Tensor]:
        state = _read_weights(file)
        check(state, {name: tuple(w.shape) for name, w in unet.state_dict().items()})
        return state

    return {
        "unet": Source(unet, file, denoiser),
        "vae": Source(vae, folder / "vae", vae.state_dict),
        "content_encoder": Source(encoder, folder / "text_encoder", lambda: states),
    }


def _with_last_layer(heard: CLIPTextModel) -> tuple[CLIPTextModel, dict[str, Tensor]]:
    """The encoder on the meta device with one layer more, and tensors for all of it."""
    layers = heard.config.num_hidden_layers
    sizes = {**heard.config.to_dict(), "num_hidden_layers": layers + 1, "pad_token_id": 0}
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**sizes))
    added = f".layers.{layers}."
    zeros = {
        name: torch.zeros(tensor.shape, dtype=heard.dtype)
        for name, tensor in encoder.state_dict().items()
        if added in name
    }
    return encoder, heard.state_dict() | zeros


def _weights_file(folder: Path) -> Path:
    """The file of a diffusers network's tensors, or of their index where there are several."""
    stem = "diffusion_pytorch_model"
    ends = ("safetensors", "safetensors.index.json", "fp16.safetensors", "bin", "fp16.bin")
    found = [folder / f"{stem}.{end}" for end in ends if (folder / f"{stem}.{end}").is_file()]
    if not found:
        raise ModelError(f"{folder}: has no {stem}.safetensors and no {stem}.bin")
    return found[0]


def _read_weights(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".bin":
        return read_published(file)
    files = {file}
    if file.suffix == ".json":
        known = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        files = {file.with_name(Path(name).name) for name in known.values()}
    return {name: w for shard in sorted(files) for name, w in read_tensors(shard).items()}


def _with_motion(parts: Parts) -> Parts:
    """DEMO before its training: what hears of motion is a copy of what hears of content."""
    base = parts["unet"]
    sizes = {name: size for name, size in base.network.config.items() if name[0] != "_"}
    with torch.device("meta"):
        unet = DemoUNet(**{**sizes, "motion": True})

    def read() -> Mapping[str, Tensor]:
        state = base.read()
        copies = {
            name.replace(".attentions.", ".motion_attentions."): tensor
            for name, tensor in state.items()
            if ".attentions." in name
        }
        return {**state, **copies}

    return {
        **parts,
        "unet": Source(unet, base.file, read),
        "motion_encoder": parts["content_encoder"],
    }


def write_pipeline(
    parts: Parts, out: Path, dtype: ConvertedDtype | None, negative_prompt: str
) -> None:
    """Write the folder of a pipeline with the published sampler; all of it or nothing.

    Raises ModelError for tensors that do not belong to their network, are not finite, or do not
    fit into float16; outputs.OutputError if `out` is there.
    """
    networks = {name: part.network for name, part in parts.items() if name != "clip"}
    pipeline = DemoPipeline(
        **networks,
        tokenizer=clip_tokenizer(),
        scheduler=published_scheduler(),
        negative_prompt=negative_prompt,
    )
    total = sum(w.numel() for part in parts.values() for w in part.network.state_dict().values())
    with (
        whole_or_nothing(out) as folder,
        tqdm(  # type: ignore[no-untyped-call]
            total=total, unit="", unit_scale=True, desc=out.name, disable=None
        ) as bar,
    ):
        pipeline.save_config(folder)
        pipeline.tokenizer.save_pretrained(folder / "tokenizer")
        pipeline.scheduler.save_pretrained(folder / "scheduler")
        for name, part in parts.items():
            _write_network(part, folder / name, dtype, bar.update)
        if "clip" in parts:
            side = parts["clip"].network.config.vision_config.image_size
            text = json.dumps(preprocessing(side), indent=2)
            (folder / "clip" / "preprocessor_config.json").write_text(text, encoding="utf-8")


def published_scheduler() -> ModelScopeDDIMScheduler:
    """DDIM as ModelScopeT2V samples: t = 981, ..., 21, 1 and a last step to the first noise."""
    return ModelScopeDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def check_published_noise(file: Path) -> None:
    """Raise ModelError unless a scheduler's configuration has the noise of the published one."""
    ours, theirs = read_json(file), published_scheduler().config
    for key in ("prediction_type", "beta_start", "beta_end", "beta_schedule"):
        if ours.get(key, theirs[key]) != theirs[key]:
            raise ModelError(
                f"{file}: {key} is {ours[key]}, and the published code samples with {theirs[key]}; "
                "train with that to publish so"
            )


def _write_network(
    part: Source, folder: Path, dtype: ConvertedDtype | None, done: Callable[[int], Any]
) -> None:
    """Settings and tensors of one network, as its own library would save them."""
    if isinstance(part.network, PreTrainedModel):
        part.network.config.architectures = [type(part.network).__name__]
        part.network.config.save_pretrained(folder)
        stem = "model"
    else:
        part.network.save_config(folder)
        stem = "diffusion_pytorch_model"
    state = _named(part.file, lambda _: part.read(), {})
    kind = getattr(torch, dtype) if dtype else next(iter(state.values())).dtype
    planned = {name: tensor.to("meta", kind) for name, tensor in state.items()}
    plan = split_torch_state_dict_into_shards(
        planned, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=_SHARD
    )
    del state
    for file, names in plan.filename_to_tensors.items():
        source = part.read()  # anew for each file, so that what was read before is let go
        tensors = {name: _cast(source[name], kind, f"{part.file}: {name}") for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        done(sum(tensor.numel() for tensor in tensors.values()))
        del source, tensors
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2)
        (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")


def _cast(tensor: Tensor, kind: torch.dtype, what: str) -> Tensor:
    """The tensor in another precision, laid out anew; `what` names it in errors."""
    if not tensor.isfinite().all():
        raise ModelError(
            f"{what} has numbers that are not finite, as after an overflow of float16; "
            "the weights are spoilt, take them in float32"
        )
    cast = tensor.to(kind, copy=True).contiguous()  # two names may have one tensor
    if not cast.isfinite().all():
        raise ModelError(f"{what} does not fit into float16; give --dtype float32")
    return cast
