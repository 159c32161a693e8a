"""What a training can be told: a YAML file a stage. Every default stands here.

Keys that the paper's release has keep their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from demo_t2v.config import Strict


class TrainConfig(Strict):
    """What every training stage shares."""

    log_dir: Path
    """Checkpoints, the loss curve and at the end the trained weights (`final/`)."""
    seed: int = 0
    num_steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    """Samples in a step, over all processes and micro-batches."""
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches that each process makes of its share of a step."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass: less memory, a third more time."""
    deepspeed_config: Path | None = None
    """DeepSpeed's JSON (`configs/deepspeed/`); None: plain, or DDP over several processes."""
    fsdp: bool = False
    """Share the weights over the processes by FSDP2 rather than copy them to each (DDP)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0)]
    lr_schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.999
    """Of the average of the weights that is exported; None: the weights as they are."""
    log_interval: Annotated[int, Field(ge=1)] = 50
    save_ckp_interval: Annotated[int, Field(ge=1)] = 500
    keep_last: Annotated[int, Field(ge=1)] = 3
    """Checkpoints that are kept; older ones are deleted."""
    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Keep the checkpoints of every so many steps, too."""
    max_bad_steps: Annotated[int, Field(ge=1)] = 10
    """Steps in a row whose loss or gradient is not finite, until the run is stopped."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; None leaves it to torch."""
    resolution: Annotated[int, Field(ge=8)] = 64
    max_frames: Annotated[int, Field(ge=1)] = 16
    model: dict[str, Any] = Field(default_factory=dict)
    """The sizes of the network, handed to its class as they are."""


class AutoencoderTraining(TrainConfig):
    """Stage 1: frames to latents and back."""

    task: Literal["autoencoder"]
    kl_weight: Annotated[float, Field(ge=0)] = 1e-5
    crop: Annotated[int, Field(ge=8)] | None = None
    """Side of the squares round the thing that the first steps see, for speed."""
    crop_steps: Annotated[int, Field(ge=0)] = 0


class ClipTraining(TrainConfig):
    """Stage 2: captions and still frames in one space, by contrast."""

    task: Literal["clip"]
    vocab_size: Annotated[int, Field(ge=300)] = 700


class DenoiserTraining(TrainConfig):
    """Stages 3 to 5: an image denoiser (`temporal: false` in `model`), the base denoiser
    (`motion: false`), then DEMO, each on top of the one before.
    """

    task: Literal["denoiser"]
    autoencoder: Path
    clip: Path
    base: Path | None = None
    """A trained base denoiser to start from; None starts from nothing."""
    latents: Path
    """Where the encoded clips are kept."""
    clips: Annotated[int, Field(ge=1)] = 16_000
    data_seed: int = 0
    """Which clips; `seed` is for the weights, the noise and the order."""
    stills: bool = False
    """See one random frame of every clip: an image denoiser comes first, as ModelScopeT2V began
    with Stable Diffusion."""
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.012
    """The last beta of the noise schedule. Small latents with many frames alike want more noise:
    else a clip's motion shows through the noise at nearly every timestep, and need not be
    learned from its caption (arXiv 2301.11093)."""
    timestep_shift: Annotated[float, Field(ge=1)] = 1.0
    """More than 1 draws noisy timesteps more often (arXiv 2403.03206, eq. 23): what moves where
    is decided there, and a network that started from stills knows the rest already."""
    p_zero: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the samples that are trained with the empty prompt, for guidance."""
    motion_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the motion encoder; None: the same as `lr`."""
    ddim_timesteps: Annotated[int, Field(ge=1, le=1000)] = 20
    guide_scale: Annotated[float, Field(ge=0)] = 4.0
    """Steps and guidance that the saved pipeline uses by default."""


AnyTraining = Annotated[
    AutoencoderTraining | ClipTraining | DenoiserTraining, Field(discriminator="task")
]
