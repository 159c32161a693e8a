"""Configuration of the denoiser's training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from demo_t2v.config import Aliases, Strict
from demo_t2v.config.inference import Interval
from demo_t2v.config.yaml_text import ExpandedPath, OptionalPath
from demo_t2v.models.lora_targets import LoraTarget
from demo_t2v.training.config.base import TrainConfig
from demo_t2v.training.config.datasets import AnyDataset


class Lora(Strict):
    """A LoRA adapter (arXiv 2106.09685), trained on a frozen base."""

    target: LoraTarget = "motion"
    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapter's matrices."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The adapter's update is scaled by `alpha` / `rank`; None: by 1."""


class Distillation(Strict):
    """A student of a few steps without guidance, which learns from the frozen `base`.

    The configuration's `num_inference_steps` are the student's steps, and its
    `video_motion_weight` weighs the motion of real clips.
    """

    highest_noise_level: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Noise level of the first step, as a fraction of the training's timesteps: above it latents
    are noise alone."""
    solver_steps: Annotated[int, Field(ge=1)] = 3
    """Steps of the teacher for one step of the student, by DPM-Solver++."""
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    """Guidance scale of the teacher; None: its default."""
    p_real: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that a clip's noisy latents are the real clip's at every step. Otherwise they are
    those that the student's own steps lead to, from noise alone (mixed trajectory distillation,
    arXiv 2406.06890)."""
    p_other_motion: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Probability that the motion prompt is another clip's caption."""
    p_motion_strength: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Probability that a batch has a motion strength other than 1."""
    motion_strength: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (
        0.5,
        1.5,
    )
    """Lowest and highest of these motion strengths."""


def _check_lora(lora: Lora | None, info: ValidationInfo) -> Lora | None:
    if lora is not None:
        if info.data.get("base") is None:
            raise ValueError("needs a trained denoiser to adapt: give base")
        for key in ("freeze_unet", "stop_grad_index"):
            if info.data.get(key):
                raise ValueError(f"freezes all of the base already: leave out {key}")
    return lora


def _check_distillation(student: Distillation | None, info: ValidationInfo) -> Distillation | None:
    if student is not None:
        if info.data.get("base") is None:
            raise ValueError("needs a trained model to learn from: give base")
        for key in ("freeze_unet", "stop_grad_index", "stills", "min_snr_gamma", "motion_clip"):
            if info.data.get(key):
                raise ValueError(f"trains the denoiser of the base alone: leave out {key}")
    return student


class DenoiserTraining(TrainConfig):
    """Stages 3 to 5: an image denoiser (`temporal: false` in `model`), the base denoiser
    (`motion: false`), then DEMO, each on top of the one before.
    """

    task: Literal["denoiser"]
    autoencoder: ExpandedPath
    """Folder of a trained autoencoder (`vae`)."""
    clip: ExpandedPath
    """Folder of a trained CLIP (`tokenizer`, `content_encoder`; `clip` for regularization)."""
    base: OptionalPath = None
    """A trained denoiser to start from; None: random weights. `autoencoder`, `clip` and `base` also
    accept published files, as `--model` does."""
    motion_clip: OptionalPath = None
    """A folder whose `content_encoder` the motion encoder starts from; None: the motion encoder of
    `base`, or, where it has none, the `content_encoder` of `clip`."""
    train_dataset: AnyDataset
    """The captioned clips."""
    latents: OptionalPath = None
    """Folder of the feature cache, which has one clip per video. None: every clip is encoded when
    it is used, and each epoch cuts new clips from the videos."""
    encode_in_step: bool = False
    """Encode the frames of a micro-batch to latents in the training step, as one batch, rather than
    clip by clip where the samples are made: for a GPU, which data workers cannot use."""
    encode_text: bool = False
    """Cache the content encoder's states too: large files, but no text encoder in the step."""
    stills: bool = False
    """Train on one random frame of every clip: an image denoiser is the first stage, as Stable
    Diffusion was for ModelScopeT2V."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """None: that of `base`; without a base v_prediction."""
    beta_end: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Last beta of the noise schedule; None: that of `base`, without a base 0.012. Small latents
    with many similar frames need more noise: otherwise a clip's motion is visible at nearly every
    timestep and is not learned from the caption (arXiv 2301.11093)."""
    timestep_shift: Annotated[float, Field(ge=1)] = 1.0
    """Above 1, noisy timesteps are drawn more often (arXiv 2403.03206, eq. 23). They decide the
    motion; a network that started from stills has learned the rest already."""
    negative_prompt: str | None = None
    """The null text: it replaces dropped prompts (classifier-free guidance) and is the default
    negative prompt of the saved pipeline. None: that of `base`, without a base the empty text."""
    p_zero: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Probability that a sample's content prompt is the null text."""
    p_zero_motion: Annotated[float, Field(ge=0, le=1)] | None = None
    """The same for the motion prompt, drawn independently; 0 never drops it, as in the published
    training. None: both prompts are dropped in the same samples."""
    p_zero_both: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that both prompts are the null text, in addition to these."""
    p_motion_phrase: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that the motion prompt is only the caption's motion phrase, without the thing and
    the background; for captions of the sprite world."""
    noise_strength: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the noise that all pixels of a frame share, added to that of each pixel."""
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Weigh timesteps by min-SNR (arXiv 2303.09556; usually 5); None: equal weights."""
    freeze_unet: bool = False
    """Of the denoiser train only the motion transformers."""
    stop_grad_index: Annotated[int, Field(ge=0)] = 0
    """The first layer of the motion encoder that is trained; from 1 on, its embeddings and its
    final layer norm are frozen."""
    lora: Annotated[Lora | None, AfterValidator(_check_lora)] = None
    """Train only an adapter: `final/` then holds the adapter's file instead of a model."""
    distillation: Annotated[Distillation | None, AfterValidator(_check_distillation)] = None
    """Train a student that needs a few steps and no guidance, rather than a denoiser. With `lora`
    it is an adapter of the target `network`."""
    motion_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the motion encoder; None: the same as `lr`."""
    video_motion_weight: Annotated[float, Field(ge=0)] = 0.1
    text_motion_weight: Annotated[float, Field(ge=0)] = 0.1
    regularization_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weights of the motion losses (arXiv 2410.24219, eq. 10). They are ignored in a stage without
    motion transformers. Text-motion uses the real clips' optical flow, regularization uses the
    middle frames' embeddings by the image tower in `clip`."""
    video_motion_space: Literal["x0", "eps"] = "x0"
    """Compare clean latents, as in the paper, or noise, as in the published code."""
    flow: Literal["lucas_kanade", "raft"] = "lucas_kanade"
    """Estimator of optical flow: Lucas and Kanade, without weights, or RAFT-small."""
    raft_weights: OptionalPath = None
    """A file with RAFT-small's weights; None: torchvision's, downloaded once."""
    preview_prompts: tuple[str, ...] = ()
    """Prompts of the sample videos on TensorBoard, made with the motion branch on and off."""
    preview_interval: Annotated[int, Field(ge=1)] = 500
    """Steps between previews; they are made with the next log line."""
    num_inference_steps: Annotated[
        Annotated[int, Field(ge=1, le=1000)] | None, Aliases("ddim_timesteps")
    ] = None
    """Denoising steps that the saved pipeline uses by default; None: the base's, or 20."""
    guidance_scale: Annotated[Annotated[float, Field(ge=0)] | None, Aliases("guide_scale")] = None
    """Guidance scale that the saved pipeline uses by default; None: the base's, or 4."""
    guidance_interval: Interval | None = None
    """Noise levels at which the saved pipeline guides by default (arXiv 2404.07724); None: the
    base's, or all."""
