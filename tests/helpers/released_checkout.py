"""A checkout of the paper's release with small random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from demo_t2v.data.clips import write_sprite_dataset
from helpers.published_layout import write_published

BASE_FILES = ("VQGAN_autoencoder.pth", "open_clip_pytorch_model.bin")


def write_models(models: Path) -> None:
    """`demo/` beside `modelscopet2v/`, as the published README has it."""
    base, demo = models / "modelscopet2v", models / "demo"
    base.mkdir(parents=True)
    demo.mkdir()
    write_published(base, motion=False)
    write_published(demo, motion=True)
    for name in BASE_FILES:
        (demo / name).unlink()


def write_steps(models: Path, checkpoints: Path, *steps: int) -> None:
    """Checkpoints in the release's format after these steps, with DEMO's weights."""
    checkpoints.mkdir(parents=True)
    for step in steps:
        for name, end in (("demo", ""), ("motion_encoder", "_motion_encoder")):
            target = checkpoints / f"non_ema_{step:08d}{end}.pth"
            target.hardlink_to(models / "demo" / f"{name}.pth")


NEGATIVE = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
    "disconnected limbs, Ugly faces, incomplete arms"
)
_MODELSCOPE = "models/modelscopet2v"
_CLIP = f"{_MODELSCOPE}/open_clip_pytorch_model.bin"
_SHARED: dict[str, Any] = {
    "ENABLE": False,
    "use_ema": False,
    "num_workers": 16,
    "max_frames": 16,
    "sample_fps": 3,
    "resolution": [256, 256],
    "embedder": {
        "type": "FrozenOpenCLIPEmbedder",
        "layer": "penultimate",
        "pretrained": _CLIP,
        "freeze": True,
    },
    "UNet": {
        "type": "UNetSD_T2V_DEMO",
        "in_dim": 4,
        "y_dim": 1024,
        "upper_len": 128,
        "context_dim": 1024,
        "out_dim": 4,
        "dim_mult": [1, 2, 4, 4],
        "num_heads": 8,
        "default_fps": 8,
        "head_dim": 64,
        "num_res_blocks": 2,
        "dropout": 0.1,
        "misc_dropout": 0.4,
        "temporal_attention": True,
        "temporal_attn_times": 1,
        "use_checkpoint": True,
        "use_fps_condition": False,
        "use_sim_mask": False,
    },
    "Diffusion": {
        "type": "DiffusionDDIM",
        "schedule": "linear_sd",
        "schedule_param": {
            "num_timesteps": 1000,
            "init_beta": 0.00085,
            "last_beta": 0.0120,
            "zero_terminal_snr": False,
        },
        "mean_type": "eps",
        "loss_type": "mse",
        "var_type": "fixed_small",
        "rescale_timesteps": False,
        "noise_strength": 0.0,
    },
    "auto_encoder": {
        "type": "AutoencoderKL",
        "ddconfig": {
            "double_z": True,
            "z_channels": 4,
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 128,
            "ch_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "attn_resolutions": [],
            "dropout": 0.0,
            "video_kernel_size": [3, 1, 1],
        },
        "embed_dim": 4,
        "pretrained": f"{_MODELSCOPE}/VQGAN_autoencoder.pth",
    },
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "max_words": 1000,
    "prefetch_factor": 1,
    "ddim_timesteps": 50,
    "use_div_loss": False,
    "scale_factor": 0.18215,
    "use_fsdp": False,
    "use_fp16": True,
    "temporal_attention": True,
    "negative_prompt": NEGATIVE,
}
INFERENCE: dict[str, Any] = {
    **_SHARED,
    "TASK_TYPE": "inference_t2v_deepspeed",
    "batch_size": 16,
    "decoder_bs": 16,
    "inference_seed": 42,
    "model_name": "DEMO",
    "infer_dataset": {
        "type": "InferenceDatasetRepeat",
        "csv_path": "prompts/test_prompt.csv",
        "repeat_times": 5,
    },
    "motion_encoder": {
        "type": "MotionEncoder",
        "layer": "penultimate",
        "pretrained": "models/demo/motion_encoder.pth",
        "freeze": True,
        "from_incomplete": True,
    },
    "Pretrain": {
        "type": "load_model",
        "from_modelscope": False,
        "inference": True,
        "resume_checkpoint": "models/demo/demo.pth",
    },
    "UNet": {**_SHARED["UNet"], "text_reweight": True},
    "guide_scale": 9.0,
    "scale": 8,
    "log_dir": "inference",
    "deepspeed_config": "ds_configs/ds_config_inference.json",
}
TRAINING: dict[str, Any] = {
    **_SHARED,
    "TASK_TYPE": "train_t2v_deepspeed",
    "freeze_unet": True,
    "train_dataset": {
        "type": "WebVid10M",
        "csv_path": "data/webvid/train_sample.csv",
        "video_folder": "data/webvid/videos",
        "resolution": [256, 256],
        "sample_n_frames": 16,
    },
    "motion_encoder": {
        "type": "MotionEncoder",
        "layer": "penultimate",
        "pretrained": _CLIP,
        "freeze": False,
    },
    "clip_visual": {
        "type": "FrozenOpenCLIPVisualEmbedder",
        "layer": "penultimate",
        "pretrained": _CLIP,
        "freeze": True,
    },
    "UNet": {**_SHARED["UNet"], "dim": 320},
    "Pretrain": {
        "type": "load_model",
        "from_modelscope": True,
        "resume_checkpoint": f"{_MODELSCOPE}/text2video_pytorch_model.pth",
    },
    "motion_lr": 0.000001,
    "noise_strength": 0.1,
    "p_zero": 0.1,
    "num_steps": 1_000_000,
    "use_zero_infer": True,
    "save_ckp_interval": 2000,
    "log_dir": "workspace",
    "log_interval": 100,
    "seed": 8888,
    "video_motion_weight": 0.1,
    "text_motion_weight": 0.1,
    "regularization_weight": 0.1,
    "stop_grad_index": 10,
    "deepspeed_config": "ds_configs/ds_config_train.json",
    "resume_step": 267_000,
}
DEEPSPEED: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "Adam", "params": {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8}},
    "scheduler": {
        "type": "OneCycle",
        "params": {
            "cycle_first_step_size": 2000,
            "cycle_first_stair_count": 1000,
            "cycle_second_step_size": 2000,
            "cycle_second_stair_count": 1000,
            "decay_step_size": 10_000,
            "cycle_min_lr": 0.00001,
            "cycle_max_lr": 0.00005,
            "decay_lr_rate": 0.001,
            "cycle_min_mom": 0.85,
            "cycle_max_mom": 0.99,
            "decay_mom_rate": 0.0,
        },
    },
    "fp16": {"enabled": True, "auto_cast": True},
    "zero_optimization": {
        "stage": 2,
        "reduce_bucket_size": 5e6,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_scatter": True,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    },
    "steps_per_print": 1,
}


def write_configurations(
    folder: Path,
    inference: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    deepspeed: dict[str, Any] | None = None,
) -> tuple[Path, Path]:
    """The two YAML files where the published code has them, and the JSON files that they name."""
    for name in ("configs", "ds_configs"):
        (folder / name).mkdir(exist_ok=True)
    files = tuple(folder / f"configs/t2v_{task}_deepspeed.yaml" for task in ("inference", "train"))
    for file, tree in zip(files, (inference or INFERENCE, training or TRAINING), strict=True):
        file.write_text(yaml.safe_dump(tree))
    settings = {"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    (folder / "ds_configs/ds_config_inference.json").write_text(json.dumps(settings))
    (folder / "ds_configs/ds_config_train.json").write_text(json.dumps(deepspeed or DEEPSPEED))
    return files[0], files[1]


RUN = "workspace/t2v_train_deepspeed01-31_12:00"
PROMPTS = """id,prompt
0,Slow motion petals fall, landing softly
1,An old man is shown speaking
1,2 Dog and a whale, ocean adventure
"""


def write_checkout(folder: Path) -> None:
    """Write weights, a training's output, configurations of small videos and few steps, prompts,
    and videos with captions.
    """
    write_models(folder / "models")
    write_steps(folder / "models", folder / RUN / "checkpoints", 2000)
    small = {"max_frames": 2, "resolution": [64, 64], "ddim_timesteps": 2}
    prompts = INFERENCE["infer_dataset"] | {"repeat_times": 1}
    clips = TRAINING["train_dataset"] | {"sample_n_frames": 2, "resolution": [64, 64]}
    few = {"num_steps": 4, "save_ckp_interval": 2, "log_interval": 2, "stop_grad_index": 1}
    write_configurations(
        folder,
        INFERENCE | small | {"batch_size": 4, "infer_dataset": prompts},
        TRAINING | small | few | {"train_dataset": clips},
        DEEPSPEED | {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2},
    )
    (folder / "prompts").mkdir(exist_ok=True)
    (folder / "prompts/test_prompt.csv").write_text(PROMPTS)
    captions = write_sprite_dataset(folder / "data/webvid", 4)
    captions.rename(captions.with_name("train_sample.csv"))
