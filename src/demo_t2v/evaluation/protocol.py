"""Evaluation protocols: YAML files with everything that the figures of a benchmark depend on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from demo_t2v.config import ConfigError, InferenceConfig, Option, Strict, canonical_keys, load
from demo_t2v.config.yaml_text import OptionalPath, PathOrName, none_if_off
from demo_t2v.evaluation.errors import EvaluationError

FIXED: Final = frozenset(("infer_dataset", "out", "seed", "num_frames", "fps", "format"))
"""Options of `InferenceConfig` that a protocol sets."""
_PACKAGE: Final = Path(__file__).parents[1]
_OptionalName = Annotated[PathOrName | None, BeforeValidator(none_if_off)]


class EvaluationProtocol(Strict):
    """What a benchmark fixes: prompts, videos, real videos, and the networks of the metrics."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    """Name in results and folders: a-z, 0-9, dots and dashes."""
    version: Annotated[int, Field(ge=1)]
    """Number that grows when the protocol changes. Figures of two versions are not comparable."""
    prompts: Annotated[
        OptionalPath, Option("File of prompts, as for generate.", metavar="FILE")
    ] = None
    num_prompts: Annotated[int, Field(ge=1)] | None = None
    """Number of prompts of the benchmark; a file with another number is refused."""
    max_prompts: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Option("Prompts of a trial: the first ones (default: all)."),
    ] = None
    sprite_score: bool = False
    """Whether the prompts are those of the sprite world, and the sprite score is computed."""
    repeats: Annotated[
        int, Field(ge=1), Option("Videos for each prompt, each with a seed of its own.")
    ] = 1
    seed: Annotated[
        int, Field(ge=0, lt=2**63), Option("Seed. Each video's own seed comes from it.")
    ] = 0
    num_frames: Annotated[
        Annotated[int, Field(ge=1, le=256)] | None,
        Option("Frames of each video (default: MODEL's).", "frames"),
    ] = None
    fps: Annotated[
        int,
        Field(ge=1, le=120),
        Option("Frames a second of the videos, and of the clips of real videos."),
    ] = 8
    resolution: Annotated[
        Annotated[int, Field(ge=8, le=8192)] | None,
        Option("Side in pixels to which all videos are scaled (default: they stay as they are)."),
    ] = None
    real: Annotated[
        OptionalPath,
        Option("Folder of real videos; their first frames count.", metavar="FOLDER"),
    ] = None
    clip: Annotated[
        _OptionalName, Option("CLIP for CLIPSIM and consistency.", metavar="FOLDER|HUB_ID")
    ] = None
    raft: Annotated[OptionalPath, Option("RAFT's weights from torchvision.", metavar="FILE")] = None
    inception: Annotated[
        OptionalPath,
        Option("Weights for FID, KID, Inception Score (torch-fidelity).", metavar="FILE"),
    ] = None
    i3d: Annotated[
        OptionalPath,
        Option("TorchScript file for FVD. Loading it runs its code.", metavar="FILE"),
    ] = None
    videomae: Annotated[
        _OptionalName, Option("VideoMAE model for FVD.", metavar="FOLDER|HUB_ID")
    ] = None
    image_frames: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Option("Frames of each video for FID, KID, Inception Score (default: all)."),
    ] = None
    feature_cache: Annotated[
        OptionalPath,
        Option("Features that are computed once (default: OUT/features).", metavar="FOLDER"),
    ] = None

    def changes(self, file: Path) -> dict[str, Any]:
        """The keys whose values differ from the file's, without paths and names of networks.

        Raises ConfigError for a file that is no protocol.
        """
        written: EvaluationProtocol = load(EvaluationProtocol, file)
        networks = {"clip", "raft", "inception", "i3d", "videomae"}
        compared = type(self).model_fields.keys() - networks - {"prompts", "real", "feature_cache"}
        own, other = (each.model_dump(mode="json", include=compared) for each in (self, written))
        return {key: value for key, value in own.items() if value != other[key]}


def shipped_protocols() -> dict[str, Path]:
    """The protocols of `configs/evaluation/` by name; an installed package has a copy of it."""
    copy = _PACKAGE / "assets" / "evaluation"
    folder = copy if copy.is_dir() else _PACKAGE.parents[1] / "configs" / "evaluation"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_protocol(source: str) -> Path:
    """The file of a path, or of a shipped protocol with or without its ending.

    Raises EvaluationError.
    """
    if Path(source).is_file():
        return Path(source)
    shipped = shipped_protocols()
    found = shipped.get(source.removesuffix(".yaml"))
    if found is None:
        raise EvaluationError(f"{source}: is no file, and no protocol: {', '.join(shipped)}")
    return found


def load_protocol(
    file: Path, overrides: Iterable[str] = (), options: Mapping[str, Any] | None = None
) -> EvaluationProtocol:
    """Read a protocol; `overrides` and `options` are those of `config.load`.

    Prompts that are not in the working directory may be beside the file. Raises ConfigError.
    """
    protocol: EvaluationProtocol = load(EvaluationProtocol, file, overrides, options)
    prompts = protocol.prompts
    if prompts is not None and not prompts.exists() and (file.parent / prompts).is_file():
        return protocol.model_copy(update={"prompts": file.parent / prompts})
    return protocol


def split_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """The overrides of a protocol, and those of `InferenceConfig`.

    Raises ConfigError for an option that the protocol sets.
    """
    own: list[str] = []
    generation: list[str] = []
    for override in overrides:
        key = override.partition("=")[0].strip().partition(".")[0]
        (name, *_), _ = canonical_keys({key: [None, None]}, InferenceConfig)
        if name not in InferenceConfig.model_fields or key in EvaluationProtocol.model_fields:
            own.append(override)
        elif name in FIXED:
            keys = ", ".join(EvaluationProtocol.model_fields)
            raise ConfigError(f"{key}: a protocol sets this by keys of its own: {keys}")
        else:
            generation.append(override)
    return own, generation
