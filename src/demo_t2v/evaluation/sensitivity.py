"""How much a text encoder's state changes with each part of speech: DEMO's pilot study.

The prompts of a group differ in the word of one part of speech. The sensitivity to this part is the
distance between the states of two prompts, averaged over the pairs of a group and over groups
(arXiv 2410.24219, Figure 1). A state is that of the [eot] token in the last but one layer after the
final layer norm, which conditions the denoiser.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import CLIPTextModel

from demo_t2v.checkpoints.memory import DENOISING
from demo_t2v.checkpoints.resolve import download, quieten_libraries, resolve
from demo_t2v.core.atomic_io import atomic_write, digest
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.metrics.metric import Figure, mean_interval
from demo_t2v.evaluation.results import package_versions
from demo_t2v.evaluation.word_lists import WordLists
from demo_t2v.model_folder import load_network, network_files
from demo_t2v.models.text import TextConditioner
from demo_t2v.training.data.features import load_tokenizer

GROUPS: Final = 32
"""Groups of each part of speech, by default."""
_CLIP_FILES: Final = ("*.json", "merges.txt", "model*.safetensors")


@dataclass(frozen=True)
class Encoders:
    """The text encoders of a model, or that of a CLIP."""

    name: str
    fingerprint: str
    conditioner: TextConditioner

    @classmethod
    def of_model(cls, name: str) -> Self:
        """Content and motion encoder of a model. Raises model_folder.ModelError."""
        model = resolve(name)
        pipeline = model.load("cpu", "float32", without=DENOISING)
        return cls(name, model.fingerprint, pipeline.text_conditioner())

    @classmethod
    def of_clip(cls, name: str) -> Self:
        """The text encoder of a CLIP in transformers' layout, a folder or a hub repository.

        The tokenizer is in the folder, or in `tokenizer` below it. Raises EvaluationError,
        ModelError, ConfigError, ConnectionError.
        """
        folder = Path(name)
        if not folder.is_dir():
            folder = download(name, _CLIP_FILES)
        if not (folder / "config.json").is_file():
            raise EvaluationError(f"{name}: has no config.json; name a folder of a CLIP")
        quieten_libraries()
        encoder: CLIPTextModel = load_network(CLIPTextModel, folder, dtype=torch.float32)
        own = folder / "tokenizer"
        tokenizer = load_tokenizer(own if own.is_dir() else folder)
        weights = " ".join(digest(file)[:16] for file in network_files(folder))
        return cls(name, weights, TextConditioner(tokenizer, encoder, None))

    @torch.no_grad()
    def states(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The [eot] states (B, D) of B prompts in float64, by the encoder's name."""
        states = self.conditioner(prompts)
        at = torch.arange(len(prompts)), states.eot_index.cpu()
        if states.motion is None:
            return {self.name: states.content.double()[at]}
        return {
            f"{self.name}: content encoder": states.content.double()[at],
            f"{self.name}: motion encoder": states.motion.double()[at],
        }


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of one encoder to one part of speech, over groups."""

    encoder: str
    part: str
    describes: str
    """`content` or `motion`."""
    cosine: Figure
    """1 - cosine of the angle between two states."""
    relative_l2: Figure
    """Length of the difference of two states, divided by their mean length."""


@dataclass(frozen=True)
class SensitivityReport:
    """The sensitivities and all that they depend on."""

    words: str
    """Name or file of the word lists."""
    word_lists: WordLists
    seed: int
    fingerprints: dict[str, str]
    """Of the files of models, and of the weights of CLIPs, by their names."""
    sensitivities: list[Sensitivity]

    @property
    def encoders(self) -> list[str]:
        """The encoders' names in order."""
        return list(dict.fromkeys(each.encoder for each in self.sensitivities))

    def of_encoder(self, encoder: str) -> list[Sensitivity]:
        """One encoder's sensitivities, in the order of the word lists."""
        return [each for each in self.sensitivities if each.encoder == encoder]

    def save(self, file: Path) -> None:
        """Write it as JSON, atomically. Raises OSError."""
        tree = {
            "words": self.words,
            "word_lists": self.word_lists.model_dump(),
            "seed": self.seed,
            "fingerprints": self.fingerprints,
            "state": "[eot], last but one layer after the final layer norm",
            "sensitivities": [asdict(each) for each in self.sensitivities],
            "versions": package_versions(),
        }
        with atomic_write(file) as partial:
            partial.write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n", "utf-8")


def measure_sensitivity(
    encoders: Sequence[Encoders],
    words: str,
    lists: WordLists,
    *,
    groups: int = GROUPS,
    seed: int = 0,
    on_group: Callable[[], None] | None = None,
) -> SensitivityReport:
    """The sensitivity of all encoders to all parts of speech.

    `words` is the name of `lists` in the report. The encoders read the same groups. An interval is
    that of the mean over the groups. `on_group` is called after each group of each model.
    """
    found = []
    for model in encoders:
        for part in lists.parts:
            describes = "content" if part in lists.content else "motion"
            distances: dict[str, list[tuple[float, float]]] = {}
            for prompts in lists.draw_groups(part, groups, seed):
                for name, states in model.states(prompts).items():
                    distances.setdefault(name, []).append(mean_distances(states))
                if on_group:
                    on_group()
            for name, pairs in distances.items():
                cosine, relative = (
                    _figure(np.array(values)) for values in zip(*pairs, strict=True)
                )
                found.append(Sensitivity(name, part, describes, cosine, relative))
    fingerprints = {model.name: model.fingerprint for model in encoders}
    return SensitivityReport(words, lists, seed, fingerprints, found)


def mean_distances(states: Tensor) -> tuple[float, float]:
    """Means over the pairs of states (P, D), P > 1: 1 - cosine, and the relative L2 distance."""
    first, second = (states[rows] for rows in torch.triu_indices(len(states), len(states), 1))
    cosine = 1 - cosine_similarity(first, second)
    lengths = (first.norm(dim=1) + second.norm(dim=1)) / 2
    return float(cosine.mean()), float(((first - second).norm(dim=1) / lengths).mean())


def _figure(values: NDArray[np.float64]) -> Figure:
    return Figure(float(values.mean()), mean_interval(values), len(values))
