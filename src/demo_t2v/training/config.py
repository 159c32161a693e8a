"""What a training can be told: a YAML file a stage. Every default stands here.

Keys that the paper's release has keep their names.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from demo_t2v.checkpoints.resolve import is_published, resolve
from demo_t2v.config import Strict
from demo_t2v.config.yaml_text import AnyKeys, Place, PlaceOrNone, switched
from demo_t2v.core.devices import trains_on_cpu
from demo_t2v.core.launch import is_launched, rank
from demo_t2v.data.sprites import MOTIONS
from demo_t2v.models.lora_targets import LoraTarget

_log = logging.getLogger(__name__)


class TrainConfig(Strict):
    """What every training stage shares."""

    log_dir: Place
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
    deepspeed_config: PlaceOrNone = None
    """DeepSpeed's JSON (`configs/deepspeed/`); None: plain, or DDP over several processes."""
    fsdp: bool = False
    """Share the weights over the processes by FSDP2 rather than copy them to each (DDP)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0)]
    lr_schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    decay_steps: Annotated[int, Field(ge=0)] = 0
    """Last steps, over which a constant learning rate falls to zero along a straight line."""
    lr_floor: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the learning rates where `one_cycle` begins, where it is back after another
    `warmup_steps`, and where it stays, as DeepSpeed's OneCycle. None: torch's OneCycleLR."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.99,
    )
    """AdamW's, as `eps`."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
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
    tensorboard: PlaceOrNone = Path("tensorboard_log")
    """Folder in which TensorBoard finds this run, by the name of its `log_dir`; off: no curves."""
    wandb: Annotated[str | None, BeforeValidator(switched)] = None
    """Project on Weights & Biases that gets the curves."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; None leaves it to torch."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes beside each training process that make its micro-batches; 0: a thread of its own
    makes them. The samples are the same."""
    resolution: Annotated[int, Field(ge=8)] = 64
    max_frames: Annotated[int, Field(ge=1)] = 16
    model: AnyKeys = Field(default_factory=dict)
    """The sizes of the network, handed to its class as they are."""

    def over(self, num_steps: int) -> Self:
        """The same training over another number of steps, its phases in proportion."""
        phases = ("warmup_steps", "decay_steps", "crop_steps")
        lengths = {name: getattr(self, name) for name in phases if hasattr(self, name)}
        scaled = {name: round(each * num_steps / self.num_steps) for name, each in lengths.items()}
        return self.model_copy(update={"num_steps": num_steps, **scaled})


class AutoencoderTraining(TrainConfig):
    """Stage 1: frames to latents and back."""

    task: Literal["autoencoder"]
    kl_weight: Annotated[float, Field(ge=0)] = 1e-5
    crop: Annotated[int, Field(ge=8)] | None = None
    """Side of the squares round the thing that the first steps see, for speed."""
    crop_steps: Annotated[int, Field(ge=0)] = 0


class StudentTraining(TrainConfig):
    """An autoencoder for larger frames that shares the latents of a trained one."""

    task: Literal["student"]
    teacher: Place
    """A folder with the trained autoencoder (`vae`); `sample_size` is the side of its frames."""
    base: PlaceOrNone = None
    """A folder with the student as it is so far; None: a new one, with the teacher's tensors where
    names and shapes agree."""
    train: Literal["decoder", "encoder"]
    """The half that is trained; the other one stays as it is."""
    latent_noise: Annotated[float, Field(ge=0)] = 0.15
    """Strongest noise on the latents that the decoder reads, in their standard deviations."""
    thing_weight: Annotated[float, Field(ge=1)] = 5.0
    """Weight of the thing's pixels in the decoder's loss; the background's is 1."""
    crop: Annotated[int, Field(ge=8)] | None = None
    """Side in pixels of the windows round the thing that the decoder's first steps see, for speed;
    a multiple of the pixels of one latent."""
    crop_steps: Annotated[int, Field(ge=0)] = 0


class ClipTraining(TrainConfig):
    """Stage 2: captions and still frames in one space, by contrast."""

    task: Literal["clip"]
    vocab_size: Annotated[int, Field(ge=300)] = 700
    text: PlaceOrNone = None
    """A folder with a trained `tokenizer` and `content_encoder` to start from."""
    freeze_text: bool = True
    """Learn only the image tower where `text` is given."""
    frames_per_side: Annotated[int, Field(ge=1)] = 1
    """More than 1: an image is a square of that many rows and columns of frames, spread over a
    clip, so that the text tower learns what motions are called."""


def _known_motions(emphasis: dict[str, int]) -> dict[str, int]:
    for name in emphasis:
        if name not in MOTIONS:
            raise ValueError(f"there is no motion {name!r}; there are {', '.join(MOTIONS)}")
    return emphasis


class Dataset(Strict):
    """Where captioned clips come from."""

    data_seed: int = Field(0, ge=0)
    """Which clips: where in a video each begins; `seed` is for the weights, the noise and the
    order. Of shards it settles the order too."""


class SpritesDataset(Dataset):
    """The sprite world, drawn on the fly."""

    type: Literal["sprites"]
    clips: Annotated[int, Field(ge=1)] = 16_000
    emphasis: Annotated[dict[str, Annotated[int, Field(ge=1)]], AfterValidator(_known_motions)] = (
        Field(default_factory=dict)
    )
    """How many times as often as the others a motion is drawn, by its name in `MOTIONS`."""
    poses: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the clips that show a thing at any angle and without motion."""


class VideoDataset(Dataset):
    """Clips that are cut from videos."""

    sample_fps: Annotated[float, Field(gt=0)] = 3.0
    repeat_frames: bool = False
    """Whether a video with fewer frames than a clip repeats them, evenly; else it is bad."""


class WebvidDataset(VideoDataset):
    """A caption CSV and a folder of videos; the defaults are the layout of WebVid-10M."""

    type: Literal["webvid"]
    csv_path: Place
    video_dir: Place
    path_column: str = "videoid"
    """Names a file below `video_dir`, with or without `.mp4`; slashes join columns."""
    caption_column: str = "name"
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """With more bad videos than this the training ends."""


class ShardsDataset(VideoDataset):
    """A folder of WebDataset tar files, as `demo-t2v data shards` writes them."""

    type: Literal["shards"]
    folder: Place
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    threads: Annotated[int, Field(ge=1)] = 1
    """Clips that are decoded at a time."""


def _names_class(source: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source):
        raise ValueError("should be package.module:Name")
    return source


class CustomDataset(VideoDataset):
    """A class of one's own (docs/own_dataset.md)."""

    type: Literal["custom"]
    source: Annotated[str, Field(alias="class"), AfterValidator(_names_class)]
    """`package.module:Name`; it is called with `sampling` and what stands in `args`."""
    args: AnyKeys = Field(default_factory=dict)


AnyDataset = Annotated[
    SpritesDataset | WebvidDataset | ShardsDataset | CustomDataset, Field(discriminator="type")
]


class Lora(Strict):
    """An adapter (arXiv 2106.09685) that is trained on a base that stays as it is."""

    target: LoraTarget = "motion"
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] | None = None
    """What the adapter learns counts `alpha` / `rank` times; None: once."""


def _base_alone(lora: Lora | None, info: ValidationInfo) -> Lora | None:
    if lora is not None:
        if info.data.get("base") is None:
            raise ValueError("needs a trained denoiser to adapt: give base")
        for key in ("freeze_unet", "stop_grad_index"):
            if info.data.get(key):
                raise ValueError(f"freezes all of the base already: leave out {key}")
    return lora


class DenoiserTraining(TrainConfig):
    """Stages 3 to 5: an image denoiser (`temporal: false` in `model`), the base denoiser
    (`motion: false`), then DEMO, each on top of the one before.
    """

    task: Literal["denoiser"]
    autoencoder: Place
    clip: Place
    base: PlaceOrNone = None
    """A trained base denoiser to start from; None starts from nothing. Published files, as
    `--model` takes them, do for all three."""
    motion_clip: PlaceOrNone = None
    """A folder whose `content_encoder` the motion encoder starts from; None: the motion encoder of
    `base`, or, where it has none, the `content_encoder` of `clip`."""
    train_dataset: AnyDataset
    latents: PlaceOrNone = None
    """Where encoded clips are kept, each cut once; None: every clip is encoded whenever it is
    seen, and each epoch cuts every video anew."""
    encode_in_step: bool = False
    """Encode the frames of a micro-batch to latents together, where the network is trained, rather
    than clip by clip where they are made: for a GPU, whose workers cannot use it."""
    encode_text: bool = False
    """Whether the content encoder's states are kept there too: large, but never computed twice."""
    stills: bool = False
    """See one random frame of every clip: an image denoiser comes first, as ModelScopeT2V began
    with Stable Diffusion."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """None: as `base` was trained; without one, v_prediction."""
    beta_end: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The last beta of the noise schedule; None: as `base`'s, without one 0.012. Small latents with
    many frames alike want more noise: else a clip's motion shows through the noise at nearly every
    timestep, and need not be learned from its caption (arXiv 2301.11093)."""
    timestep_shift: Annotated[float, Field(ge=1)] = 1.0
    """More than 1 draws noisy timesteps more often (arXiv 2403.03206, eq. 23): what moves where
    is decided there, and a network that started from stills knows the rest already."""
    negative_prompt: str | None = None
    """The null text: the prompt of the samples that are dropped for guidance, and the default
    negative prompt of the saved pipeline. None: as `base`'s, without one the empty text."""
    p_zero: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the samples whose content prompt is the null text."""
    p_zero_motion: Annotated[float, Field(ge=0, le=1)] | None = None
    """The same for the motion prompt, drawn on its own; 0 never drops it, as in the published
    training. None: both prompts are dropped in the same samples."""
    p_zero_both: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the samples in which both prompts are the null text, beside these."""
    p_motion_phrase: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the samples whose motion encoder reads the motion phrase of the caption alone,
    without thing and place; of the sprite world's captions."""
    noise_strength: Annotated[float, Field(ge=0)] = 0.0
    """Of the noise that all places of a frame share, beside the noise of each place."""
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Weigh timesteps by min-SNR (arXiv 2303.09556; 5 is usual); None: all alike."""
    freeze_unet: bool = False
    """Train the motion transformers alone of the denoiser."""
    stop_grad_index: Annotated[int, Field(ge=0)] = 0
    """The first layer of the motion encoder that is trained; from 1 on, its embeddings and its
    last layer norm are not."""
    lora: Annotated[Lora | None, AfterValidator(_base_alone)] = None
    """Train an adapter alone: `final/` is then the adapter's file and no model."""
    motion_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the motion encoder; None: the same as `lr`."""
    video_motion_weight: Annotated[float, Field(ge=0)] = 0.1
    text_motion_weight: Annotated[float, Field(ge=0)] = 0.1
    regularization_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weights of the motion losses (arXiv 2410.24219, eq. 10); they are DEMO's alone, and do not
    count in a stage without motion transformers. Text-motion takes the real clips' optical flow,
    regularization takes CLIP's embeddings of the middle frames, by the image tower in `clip`."""
    video_motion_space: Literal["x0", "eps"] = "x0"
    """Compare clean latents, as in the paper, or noise, as in the published code."""
    flow: Literal["lucas_kanade", "raft"] = "lucas_kanade"
    """Who estimates optical flow: Lucas and Kanade, without weights, or RAFT-small."""
    raft_weights: PlaceOrNone = None
    """A file of RAFT-small's weights; None: torchvision's own, downloaded once."""
    preview_prompts: tuple[str, ...] = ()
    """Prompts whose videos TensorBoard shows, with the motion branch on and off."""
    preview_interval: Annotated[int, Field(ge=1)] = 500
    """Steps between previews; they come with the log line at or behind that step."""
    ddim_timesteps: Annotated[int, Field(ge=1, le=1000)] = 20
    guide_scale: Annotated[float, Field(ge=0)] = 4.0
    """Steps and guidance that the saved pipeline uses by default."""


AnyTraining = Annotated[
    AutoencoderTraining | StudentTraining | ClipTraining | DenoiserTraining,
    Field(discriminator="task"),
]


def find_models(config: AnyTraining) -> AnyTraining:
    """The configuration with published files replaced by the folders that they are converted to.

    Raises weights.hub.ModelError.
    """
    if not isinstance(config, DenoiserTraining):
        return config
    places = {key: getattr(config, key) for key in ("autoencoder", "clip", "base")}
    published = {key: str(place) for key, place in places.items() if is_published(str(place))}
    folders = {key: resolve(name, to_train=True).folder for key, name in published.items()}
    return config.model_copy(update=folders)


def fit_device(config: AnyTraining) -> AnyTraining:
    """The configuration as this machine trains it: without a GPU in float32 instead of float16.

    A warning says so, and that a launcher found no GPU.
    """
    if not trains_on_cpu():
        return config
    halved = config.mixed_precision == "fp16"
    if rank() == 0 and (halved or is_launched()):
        precision = ", in float32 instead of float16" if halved else ""
        _log.warning("no GPU here: the training runs on the CPU%s", precision)
    return config.model_copy(update={"mixed_precision": "no"}) if halved else config
