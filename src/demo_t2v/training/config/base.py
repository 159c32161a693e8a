"""What all stages of a training share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field

from demo_t2v.config import Aliases, Strict
from demo_t2v.config.yaml_text import AnyKeys, ExpandedPath, OptionalPath, none_if_off


class TrainConfig(Strict):
    """The keys of every training stage."""

    log_dir: ExpandedPath
    """Checkpoints, the loss curve and at the end the trained weights (`final/`)."""
    seed: int = 0
    """Seed of the weights, the noise and the order of the samples."""
    num_steps: Annotated[int, Field(ge=1)]
    """Steps of the whole training."""
    batch_size: Annotated[int, Field(ge=1)]
    """Samples per step, over all processes and micro-batches."""
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches per step in each process."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the network's computation; the weights are float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    deepspeed_config: OptionalPath = None
    """DeepSpeed's JSON (`configs/deepspeed/`); None: no DeepSpeed."""
    fsdp: bool = False
    """Shard the weights over the processes (FSDP2) rather than replicate them (DDP)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0)]
    """Largest learning rate."""
    lr_schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps over which the learning rate rises."""
    decay_steps: Annotated[int, Field(ge=0)] = 0
    """Number of last steps in which a constant learning rate falls linearly to zero."""
    lr_floor: Annotated[float, Field(ge=0, le=1)] | None = None
    """Fraction of the learning rates at the start of `one_cycle`, and again from step
    2 `warmup_steps` on, as in DeepSpeed's OneCycle. None: torch's OneCycleLR."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.99,
    )
    """Of AdamW, as is `eps`."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradients; larger ones are scaled down to it."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.999
    """Decay of the moving average of the weights, which is exported; None: no average."""
    log_interval: Annotated[int, Field(ge=1)] = 50
    """Steps between log lines."""
    save_ckp_interval: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints."""
    keep_last: Annotated[int, Field(ge=1)] = 3
    """Number of checkpoints to keep; older ones are deleted."""
    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Also keep every checkpoint whose step is a multiple of this."""
    max_bad_steps: Annotated[int, Field(ge=1)] = 10
    """The run stops after this many consecutive steps whose loss or gradient is not finite."""
    tensorboard: OptionalPath = Path("tensorboard_log")
    """Folder of TensorBoard's runs; this run has the name of its `log_dir`. off: no curves."""
    wandb: Annotated[str | None, BeforeValidator(none_if_off)] = None
    """Project on Weights & Biases for the curves."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; None: torch's default."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Worker processes per training process that make its micro-batches; 0: a thread makes them.
    The samples do not depend on it."""
    resolution: Annotated[int, Field(ge=8)] = 64
    """Side of the square frames in pixels."""
    num_frames: Annotated[int, Field(ge=1), Aliases("max_frames")] = 16
    """Frames in a clip."""
    model: AnyKeys = Field(default_factory=dict)
    """The sizes of the network: arguments of its class."""

    def over(self, num_steps: int) -> Self:
        """The same training with another number of steps and its phases in proportion."""
        phases = ("warmup_steps", "decay_steps", "crop_steps")
        lengths = {name: getattr(self, name) for name in phases if hasattr(self, name)}
        scaled = {name: round(each * num_steps / self.num_steps) for name, each in lengths.items()}
        return self.model_copy(update={"num_steps": num_steps, **scaled})
