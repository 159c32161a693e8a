"""Translates configuration files of the paper's release (github.com/PR-Ryan/DEMO).

`t2v_inference_deepspeed.yaml` and `t2v_train_deepspeed.yaml` are read unchanged. Their settings of
the networks and the noise process must match the published weights; other values are refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from demo_t2v.core.atomic_io import reason
from demo_t2v.core.errors import UserError
from demo_t2v.core.launch import world_size

Tree = Mapping[str, Any]
_USED_OF_JSON: Final = {"optimizer.type", "optimizer.params.lr", "optimizer.params.weight_decay"}
"""Keys of the optimizer in a DeepSpeed JSON that a training uses without DeepSpeed, too."""
_TASKS: Final = {"inference_t2v_deepspeed": "generate", "train_t2v_deepspeed": "train"}
_BLOCKS: Final = {
    *("TASK_TYPE", "Pretrain", "embedder", "motion_encoder", "clip_visual", "auto_encoder"),
    *("UNet", "Diffusion"),
}
"""Keys that identify a file of the release."""
_FIXED: Final[Mapping[str, Any]] = {
    "Diffusion.type": "DiffusionDDIM",
    "Diffusion.schedule": "linear_sd",
    "Diffusion.schedule_param.num_timesteps": 1000,
    "Diffusion.schedule_param.init_beta": 0.00085,
    "Diffusion.schedule_param.last_beta": 0.012,
    "Diffusion.schedule_param.zero_terminal_snr": False,
    "Diffusion.mean_type": "eps",
    "Diffusion.loss_type": "mse",
    "Diffusion.rescale_timesteps": False,
    "UNet.type": "UNetSD_T2V_DEMO",
    "UNet.in_dim": 4,
    "UNet.out_dim": 4,
    "UNet.dim_mult": [1, 2, 4, 4],
    "UNet.head_dim": 64,
    "UNet.num_res_blocks": 2,
    "UNet.temporal_attention": True,
    "UNet.temporal_attn_times": 1,
    "UNet.use_fps_condition": False,
    "Pretrain.type": "load_model",
    "auto_encoder.type": "AutoencoderKL",
    "auto_encoder.embed_dim": 4,
    "auto_encoder.ddconfig.double_z": True,
    "auto_encoder.ddconfig.z_channels": 4,
    "auto_encoder.ddconfig.in_channels": 3,
    "auto_encoder.ddconfig.out_ch": 3,
    "auto_encoder.ddconfig.ch_mult": [1, 2, 4, 4],
    "auto_encoder.ddconfig.num_res_blocks": 2,
    "auto_encoder.ddconfig.attn_resolutions": [],
    "embedder.type": "FrozenOpenCLIPEmbedder",
    "embedder.layer": "penultimate",
    "motion_encoder.type": "MotionEncoder",
    "motion_encoder.layer": "penultimate",
    "clip_visual.type": "FrozenOpenCLIPVisualEmbedder",
    "infer_dataset.type": "InferenceDatasetRepeat",
    "train_dataset.type": "WebVid10M",
    "train_dataset.is_image": False,
    "temporal_attention": True,
    "use_div_loss": False,
    "scale": 8,
    "scale_factor": 0.18215,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
"""Settings of the published weights. Other values would change results."""
_IMPLIED: Final = {
    *("TASK_TYPE", "UNet.dim", "UNet.context_dim", "UNet.y_dim", "UNet.num_heads"),
    *("auto_encoder.ddconfig.ch", "Pretrain.inference", "motion_encoder.from_incomplete"),
    *("embedder.freeze", "motion_encoder.freeze", "clip_visual.freeze"),
}
"""Ignored keys: their values are read from the weights, or are always the same."""
_IGNORED: Final = {
    "generate": ("deepspeed_config",),
    "train": (
        *("noise_strength", "lr", "weight_decay", "warmup_steps", "ema_decay", "betas", "eps"),
        "num_workers",
    ),
}
"""Keys of both projects that the release does not read, or uses for something else (`num_workers`),
by command."""
_OTHERS: Final = {
    *("ENABLE", "alpha", "batch_size", "batch_sizes", "chunk_size", "ddim_timesteps"),
    *("decay_mode", "decoder_bs", "depth_clamp", "depth_std", "frame_lens", "freeze_unet"),
    *("guidances", "guide_scale", "img_dataset", "inference_list_path", "inference_seed"),
    *("load_from", "log_dir", "log_interval", "max_frames", "max_words", "misc_size"),
    *("model_name", "motion_lr", "negative_prompt", "num_steps", "num_workers", "p_zero"),
    *("prefetch_factor", "regularization_weight", "resolution", "resume_step", "sample_fps"),
    *("save_ckp_interval", "seed", "stop_grad_index", "text_motion_weight", "use_checkpoint"),
    *("use_ema", "use_fp16", "use_fsdp", "use_sharded_ddp", "use_zero_infer", "vid_dataset"),
    *("video_motion_weight", "visual_inference", "visual_train", "vit_mean", "vit_out_dim"),
    *("vit_resolution", "vit_std", "viz_interval"),
}
"""The other keys of the release's files."""
_DATASETS: Final = ("infer_dataset", "train_dataset")


class ReleaseError(UserError):
    """A configuration of the release that cannot be translated."""


def is_release(tree: Tree) -> bool:
    """Whether a configuration has the release's format."""
    return bool(_BLOCKS & tree.keys())


def is_release_key(dotted: str, fields: Collection[str]) -> bool:
    """Whether a dotted key is one of the release's, and not one of `fields`."""
    head, _, rest = dotted.partition(".")
    if head in _DATASETS:
        return rest in ("video_folder", "sample_n_frames", "resolution", "is_image", "type")
    return head not in fields and (head in _BLOCKS | _OTHERS or dotted in _FIXED)


def translate(
    tree: Tree, fields: Collection[str], given: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """A configuration of the release with this project's keys, and notes for the log.

    `fields` are the keys of the target configuration, `given` those that the caller overrides.
    Unknown keys stay for the caller to refuse. Raises ReleaseError.
    """
    command = "train" if "train_dataset" in fields else "generate"
    task = tree.get("TASK_TYPE")
    if task is not None and _TASKS.get(task) != command:
        problem = f"is for `demo-t2v {_TASKS[task]}`" if task in _TASKS else "is no task of DEMO's"
        raise ReleaseError(f"TASK_TYPE: {task} {problem}")
    flat = _flat(tree)
    for key, expected in _FIXED.items():
        if (value := flat.pop(key, expected)) != expected:
            raise ReleaseError(
                f"{key}: {json.dumps(value)} is not what DEMO was published with, "
                f"{json.dumps(expected)}; results would differ"
            )
    unused = [key for key in _IGNORED[command] if flat.pop(key, None) is not None]
    new = _inference(flat, given) if command == "generate" else _training(flat, given)
    rest = {key: value for key, value in flat.items() if key not in _IMPLIED}
    shared = {key: value for key, value in rest.items() if key in fields}
    heads = {*_BLOCKS, *_OTHERS, *_DATASETS} - shared.keys()
    unused += [key for key in rest if key.partition(".")[0] in heads]
    unknown = {key: value for key, value in rest.items() if key not in unused}
    notes = [f"without a counterpart, and not used: {', '.join(unused)}"] if unused else []
    if command == "train" and "deepspeed_config" in given:
        notes += _only_with_deepspeed(tree.get("deepspeed_config"))
    return shared | unknown | new, notes + _counts(tree, new)


def _inference(flat: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    new: dict[str, Any] = {"guidance_scale": flat.pop("guidance_scale", 3.0)}
    if flat.pop("Pretrain.from_modelscope", False):
        raise ReleaseError("Pretrain.from_modelscope: true begins a training; write false")
    files = _files(flat)
    if "model" not in given:
        new["model"] = _listed(files)
    if "use_fp16" in flat:
        new["dtype"] = "auto" if flat.pop("use_fp16") else "float32"
    if "log_dir" in flat:
        name = flat.pop("model_name", None)
        below = f"{name}_{_FIXED['infer_dataset.type']}" if name else ""
        new["out"] = str(Path(flat.pop("log_dir"), below))
    new["infer_dataset"] = {
        "csv_path": flat.pop("infer_dataset.csv_path", None),
        "repeat_times": flat.pop("infer_dataset.repeat_times", 5),
    }
    return new


def _training(flat: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    settings = _deepspeed(flat.get("deepspeed_config"), needed="deepspeed_config" not in given)
    size, frames = flat.pop("resolution", [256, 256]), flat.pop("num_frames", 16)
    size = flat.pop("train_dataset.resolution", size)
    if not isinstance(size, list) or len(set(size)) != 1:
        raise ReleaseError(f"resolution: should be a square, as in [256, 256], got {size}")
    dataset = {
        "type": "webvid",
        "csv_path": flat.pop("train_dataset.csv_path", None),
        "video_dir": flat.pop("train_dataset.video_folder", None),
        "sample_fps": flat.pop("sample_fps", 3),
        "repeat_frames": True,
    }
    new = settings | {
        "task": "denoiser",
        "train_dataset": {key: value for key, value in dataset.items() if value is not None},
        "resolution": size[0],
        "num_frames": flat.pop("train_dataset.sample_n_frames", frames),
        "model": {"motion": True, "dropout": flat.pop("UNet.dropout", 0.1)},
        "gradient_checkpointing": flat.pop("UNet.use_checkpoint", False),
        "noise_strength": flat.pop("Diffusion.noise_strength", 0.0),
        "p_zero_motion": 0.0,
        "prediction_type": "epsilon",
        "video_motion_space": "eps",
        "flow": "raft",
        "ema_decay": None,
        "mixed_precision": "fp16" if flat.pop("use_fp16", True) else "no",
        "guidance_scale": flat.pop("guidance_scale", 9.0),
    }
    files = _files(flat)
    if not {"base", "clip", "autoencoder"} <= set(given):
        new |= dict.fromkeys(("base", "clip", "autoencoder"), _listed(files))
    for key in _COUNTED:
        if type(flat.get(key)) is int:
            new[key] = -(-flat.pop(key) // settings.get("gradient_accumulation", 1))
    return new


_COUNTED: Final = ("num_steps", "save_ckp_interval", "log_interval")
"""Keys that count micro-batches in the release, and steps here."""


def _counts(tree: Tree, new: Tree) -> list[str]:
    """A note about the keys of `_COUNTED` that changed."""
    changed = [key for key in _COUNTED if key in new and new[key] != tree[key]]
    if not changed:
        return []
    changes = ", ".join(f"{key} {new[key]} for {tree[key]}" for key in changed)
    return [f"counted in steps, of {new['gradient_accumulation']} micro-batches: {changes}"]


def _files(flat: dict[str, Any]) -> list[str]:
    """The files of the denoiser, the autoencoder, OpenCLIP and, for DEMO, the motion encoder.

    A file that is not given is "".
    """
    keys = ("Pretrain.resume_checkpoint", "auto_encoder.pretrained", "embedder.pretrained")
    denoiser, autoencoder, clip = (flat.pop(key, "") for key in keys)
    visual = flat.pop("clip_visual.pretrained", clip)
    motion = flat.pop("motion_encoder.pretrained", "")
    if visual != clip:
        raise ReleaseError(f"clip_visual.pretrained: should be embedder.pretrained, {clip}")
    if not flat.pop("Pretrain.from_modelscope", False):
        return [denoiser, autoencoder, clip, motion]
    if motion not in (clip, ""):
        raise ReleaseError(
            f"motion_encoder.pretrained: should be embedder.pretrained, {clip}, because it starts "
            "as a copy of that file when Pretrain.from_modelscope is true"
        )
    return [denoiser, autoencoder, clip]


def _listed(files: list[str]) -> str:
    """The `model` value for these files: their names with commas between them."""
    if not files[0]:
        raise ReleaseError("Pretrain.resume_checkpoint: is missing; name the denoiser's file")
    return ",".join(map(str, files)).rstrip(",")


def _deepspeed(name: Any, needed: bool) -> dict[str, Any]:
    """The keys of a training that the release reads from its DeepSpeed JSON.

    Raises ReleaseError if the file is needed and cannot be read.
    """
    if not isinstance(name, str) or not (needed or Path(name).is_file()):
        return {}
    settings = _read_json(name)
    flat = _flat(settings)
    size = flat.get("train_micro_batch_size_per_gpu")
    accumulation = flat.get("gradient_accumulation_steps", 1)
    accumulation = accumulation if type(accumulation) is int else 1
    new = {"gradient_accumulation": accumulation, "lr": flat.get("optimizer.params.lr", 1e-3)}
    new["weight_decay"] = flat.get("optimizer.params.weight_decay", 0.0)
    if type(size) is int:
        new["batch_size"] = size * accumulation * world_size()
    if type(clipping := flat.get("gradient_clipping")) in (int, float):
        new["grad_clip"] = clipping
    if "scheduler" not in settings:
        new |= {"lr_schedule": "constant", "warmup_steps": 0}
    return new


def _only_with_deepspeed(name: Any) -> list[str]:
    """A note about what a DeepSpeed JSON says and a training without DeepSpeed does not use."""
    if not isinstance(name, str) or not Path(name).is_file():
        return []
    keys = _flat(_read_json(name)).keys() - _USED_OF_JSON
    unused = sorted(key for key in keys if key.startswith(("optimizer.", "scheduler.")))
    return [f"without DeepSpeed, not used of {name}: {', '.join(unused)}"] if unused else []


def _read_json(name: str) -> dict[str, Any]:
    """The object in a JSON file; empty for another value. Raises ReleaseError."""
    try:
        settings = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ReleaseError(
            f"deepspeed_config: {name}: cannot be read ({reason(error, Path(name))})"
        ) from None
    except ValueError:
        raise ReleaseError(f"deepspeed_config: {name}: is not valid JSON") from None
    return settings if isinstance(settings, dict) else {}


def _flat(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        flat |= _flat(value, f"{dotted}.") if isinstance(value, dict) else {dotted: value}
    return flat
