"""Typed configurations: YAML files, dotted `key=value` overrides, errors that name file and key.

Every default stands here and nowhere else. The YAML keys of inference are the ones of the paper's
release, so that a configuration written for it is at home here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line for a person."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class InferDataset(_Strict):
    """Where the prompts come from: a CSV file with the columns `id,prompt`, seen from here."""

    type: Literal["csv"] = "csv"
    csv_path: Path | None = None
    repeat_times: Annotated[int, Field(ge=1)] = 1


class InferenceConfig(_Strict):
    """Everything that `demo-t2v generate` can be told. None means: as the model was trained."""

    infer_dataset: InferDataset = InferDataset()
    pretrained: str = "sprites"
    out: Path = Path("outputs")
    batch_size: Annotated[int, Field(ge=1)] = 4
    decoder_bs: Annotated[int, Field(ge=1)] = 16
    max_frames: Annotated[int, Field(ge=1, le=256)] | None = None
    resolution: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] | None = None
    """Height and width in pixels. The release writes a list of two, and so do we."""
    guide_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    ddim_timesteps: Annotated[int, Field(ge=1, le=1000)] | None = None
    negative_prompt: str = ""
    inference_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    fps: Annotated[int, Field(ge=1, le=120)] = 8
    format: Literal["mp4", "webm", "gif", "png"] = "mp4"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class TrainConfig(_Strict):
    """What every training stage shares."""

    log_dir: Path
    """Checkpoints, the loss curve and at the end the trained weights (`final/`)."""
    seed: int = 0
    num_steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)]
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    log_interval: Annotated[int, Field(ge=1)] = 50
    save_ckp_interval: Annotated[int, Field(ge=1)] = 500
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; None leaves it to torch."""
    resolution: Annotated[int, Field(ge=8)] = 64
    max_frames: Annotated[int, Field(ge=1)] = 16
    model: dict[str, Any] = {}
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


def load(
    kind: Any,
    file: Path | None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Read `file` (YAML; None: nothing but defaults), apply overrides, validate.

    `options` sets dotted keys to values and counts more than the file; `overrides` are
    `key=value` texts, their values YAML, and count most. `kind` is one of this module's models
    or `AnyTraining`. Raises ConfigError.
    """
    tree: dict[str, Any] = {} if file is None else _read_yaml(file)
    given = dict(options or {})
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{override!r} is no override: write key=value, as in seed=7")
        given[key.strip()] = _parse(override, text)
    for key, value in given.items():
        _assign(tree, key, value)
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, kind, file, given)) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(f"{file}{line}: is not valid YAML") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: should hold `key: value` lines, not a {type(tree).__name__}")
    return tree


def _parse(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{override}: the value is not valid YAML") from None


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set tree[a][b] = value for the key a.b."""
    *parents, last = dotted.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"{dotted}: {parent} is a value, it has no keys of its own")
    tree[last] = value


def _first_problem(
    error: ValidationError, kind: Any, file: Path | None, given: Mapping[str, Any]
) -> str:
    """One line on the first thing that is wrong: where, which key, what would be right."""
    problem = error.errors()[0]
    models = _models(kind)
    place = [part for part in problem["loc"] if isinstance(part, str)]
    if len(models) > 1:
        place = place[1:]  # pydantic begins with the member of the union
    key = ".".join(place)
    from_command = file is None or any(f"{name}.".startswith(f"{key}.") for name in given if key)
    source = "the command line" if from_command else str(file)
    if problem["type"] == "extra_forbidden":
        return f"{source}: unknown key {key}; {_suggest(key, models)}"
    if problem["type"] == "missing":
        return f"{source}: {key} is missing"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{source}: {key + ': ' if key else ''}{message}, got {problem['input']!r}"


def _models(kind: Any) -> list[type[BaseModel]]:
    """The models that `kind`, a model or a union of models, can be."""
    if isinstance(kind, type):
        return [kind] if issubclass(kind, BaseModel) else []
    return [model for part in get_args(kind) for model in _models(part)]


def _suggest(key: str, models: list[type[BaseModel]]) -> str:
    known = []
    for name, field in {n: f for m in models for n, f in m.model_fields.items()}.items():
        nested = _models(field.annotation)
        known += [f"{name}.{inner}" for model in nested for inner in model.model_fields] or [name]
    close = get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
