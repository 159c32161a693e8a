"""Writes a model's card: README.md with front matter, in the format of the Hugging Face hub.

Its contents come from the model's files and the given CardInfo; sections without contents are left
out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from PIL import Image

from demo_t2v.checkpoints.fingerprint import fingerprint
from demo_t2v.checkpoints.memory import read_networks
from demo_t2v.checkpoints.resolve import HUB_ID, read_defaults
from demo_t2v.config import load
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.frame_grids import contact_sheet
from demo_t2v.evaluation.report import Report, Subject, accuracies, read_report
from demo_t2v.inference.outputs import read_manifest
from demo_t2v.training.config import AnyTraining

CARD: Final = "README.md"
SAMPLES: Final = "samples.png"
MAX_SAMPLES: Final = 8
_LICENSE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)
_METHOD: Final = (
    "DEMO (Ruan et al., NeurIPS 2024, [arXiv 2410.24219](https://arxiv.org/abs/2410.24219))"
)
_SPLITS: Final = {False: "trained pairs", True: "held-out pairs"}
"""Names of the subsets by VideoScore.held_out."""
_METRICS: Final = ("motion", "content")
"""Names of the accuracies that a card reports."""


@dataclass(frozen=True)
class CardInfo:
    """What the model's files do not contain; None for unknown."""

    repo: str | None = None
    """Repository on the hub, as org/name."""
    license: str | None = None
    """The hub's short name of the license, such as `mit` or `cc-by-nc-4.0`."""
    base_model: str | None = None
    """Repository of the model that the training started from."""
    data: str | None = None
    """Description of the training data, as Markdown."""
    recipe: Path | None = None
    """Configuration of the training, a YAML file."""
    scores: Path | None = None
    """Report of `demo-t2v evaluate sprites --out`."""
    samples: Path | None = None
    """Output folder of `demo-t2v generate`."""


def write_card(folder: Path, info: CardInfo, overwrite: bool = False) -> list[Path]:
    """Write the card of the model in `folder` and a picture of its samples; returns the files.

    Raises EvaluationError, config.ConfigError, model_folder.ModelError, data.video.VideoError,
    OSError.
    """
    read_defaults(folder)
    files = [folder / CARD, *([folder / SAMPLES] if info.samples else [])]
    for file in files:
        if file.exists() and not overwrite:
            raise EvaluationError(f"{file}: exists; give --overwrite to replace it")
    _check(info)
    report = read_report(info.scores) if info.scores else None
    samples = _find_samples(folder, info.samples) if info.samples else []
    text = "\n\n".join(
        ["---\n" + front_matter(info, report) + "---", *_sections(folder, info, report, samples)]
    )
    if samples:
        sheet: Image.Image = contact_sheet((entry["path"], entry["prompt"]) for entry in samples)
        sheet.save(folder / SAMPLES, optimize=True)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")
    return files


def escape(text: str) -> str:
    """Text for Markdown and HTML, on one line, its punctuation as numeric entities."""
    return re.sub(
        r"[!-&(-+./:-@\[-`{-~]", lambda match: f"&#{ord(match[0])};", " ".join(text.split())
    )


def front_matter(info: CardInfo, report: Report | None) -> str:
    """The card's metadata as YAML, as huggingface_hub's `ModelCardData` reads it."""
    metadata: dict[str, Any] = {"license": info.license} if info.license else {}
    metadata |= {"library_name": "diffusers", "pipeline_tag": "text-to-video"}
    metadata["tags"] = ["text-to-video", "diffusers", "demo-t2v"]
    if info.base_model:
        metadata["base_model"] = info.base_model
    if report:
        name = (info.repo or "demo-t2v").rpartition("/")[2]
        model = next(subject for subject in report.subjects if subject.role == "model")
        metadata["model-index"] = [{"name": name, "results": list(_results(model))}]
    text: str = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return text


def _results(subject: Subject) -> Iterator[dict[str, Any]]:
    """Model-index entries of the hub, one for each subset with videos."""
    for held_out, split in _SPLITS.items():
        shares = accuracies(subject.subset(held_out))
        metrics = [
            {"type": "accuracy", "name": f"{name} right", "value": share.right / share.count}
            for name in _METRICS
            if (share := shares[name]).count
        ]
        if metrics:
            yield {
                "task": {"type": "text-to-video"},
                "dataset": {
                    "type": "demo-t2v-sprites",
                    "name": "DEMO-T2V sprites",
                    "split": split,
                },
                "metrics": metrics,
            }


def _check(info: CardInfo) -> None:
    for name, value in (("--repo", info.repo), ("--base-model", info.base_model)):
        if value is not None and not HUB_ID.fullmatch(value):
            raise EvaluationError(f"{name} {value}: should be a repository on the hub, as org/name")
    if info.license is not None and not _LICENSE.fullmatch(info.license):
        raise EvaluationError(f"--license {info.license}: should be a name of the hub, such as mit")
    if info.data is not None and not info.data.strip():
        raise EvaluationError("--data: is empty; describe the training data, or leave it out")


def _find_samples(folder: Path, outputs: Path) -> list[dict[str, Any]]:
    """Manifest entries of the first videos that this model made, all with the same settings."""
    manifest = read_manifest(outputs)
    if not manifest:
        raise EvaluationError(
            f"{outputs}: has no manifest.jsonl; name an output folder of `demo-t2v generate`"
        )
    model = fingerprint(folder)
    entries = [
        entry | {"path": outputs / file}
        for file, entry in manifest.items()
        if (outputs / file).exists()
        and entry.get("model_hash") == model
        and not (entry.get("settings") or {}).get("lora")
    ]
    if not entries:
        raise EvaluationError(f"{outputs}: has no video that {folder} made without an adapter")
    settings = entries[0]["settings"]
    return [entry for entry in entries if entry["settings"] == settings][:MAX_SAMPLES]


def _sections(
    folder: Path, info: CardInfo, report: Report | None, samples: list[dict[str, Any]]
) -> Iterator[str]:
    yield f"# {escape((info.repo or folder.resolve().name).rpartition('/')[2])}"
    yield from _description(folder)
    if samples:
        yield from _samples(samples)
    yield from _use(info)
    if info.data or info.recipe:
        yield from _training(info)
    if report:
        yield from _score(report)
    if info.license:
        yield f"## Licence\n\n`{info.license}`"


def _description(folder: Path) -> Iterator[str]:
    """The model's defaults and components, from its files."""
    defaults, components = read_defaults(folder), read_networks(folder)
    method = _METHOD if "motion_encoder" in components else f"the base network of {_METHOD}"
    negative = escape(defaults.negative_prompt)
    negative = f" and the negative prompt “{negative}”" if negative else ""
    low, high = defaults.guidance_interval
    interval = f" at noise levels of {low:g} to {high:g}" if (low, high) != (0, 1) else ""
    yield (
        f"A text-to-video model: {method}, as a diffusers pipeline of DEMO-T2V. By default it "
        f"makes {defaults.frames} frames of {defaults.side}x{defaults.side} pixels in "
        f"{defaults.steps} steps with guidance {defaults.guidance:g}{interval}"
        f"{negative}."
    )
    yield "\n".join([
        "| component | class | parameters | file size |",
        "|---|---|---:|---:|",
        *(
            f"| `{name}` | {found.kind} | {found.parameters:,} | {_mebibytes(folder / name)} |"
            for name, found in components.items()
        ),
    ])  # fmt: skip


def _mebibytes(folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return f"{size / 2**20:.1f} MiB"


def _samples(samples: list[dict[str, Any]]) -> Iterator[str]:
    yield f"## Samples\n\n![A row for each video, frames from first to last]({SAMPLES})"
    yield "\n".join([
        "| row | prompt | seed |",
        "|---|---|---|",
        *(
            f"| {row} | {escape(entry['prompt'])} | {entry['seed']} |"
            for row, entry in enumerate(samples, start=1)
        ),
    ])  # fmt: skip
    yield "These are the first videos of a list of prompts. Settings:"
    settings = yaml.safe_dump(samples[0]["settings"], sort_keys=False, allow_unicode=True)
    yield _indented(settings)


def _use(info: CardInfo) -> Iterator[str]:
    model = info.repo or "FOLDER"
    yield f'## Use\n\n```sh\ndemo-t2v generate "what the video shows" --model {model}\n```'
    yield f"""\
```python
from demo_t2v.pipeline import DemoPipeline

pipe = DemoPipeline.from_pretrained("{model}")
video = pipe("what the video shows").frames  # numpy (1, frames, height, width, 3) in [0, 1]
```"""


def _training(info: CardInfo) -> Iterator[str]:
    yield "## Training"
    if info.data:
        yield info.data.strip()
    if info.recipe:
        yield "Configuration of `demo-t2v train`, without paths:"
        given = load(AnyTraining, info.recipe).model_dump(exclude_unset=True, by_alias=True)
        settings = json.loads(json.dumps(_without_paths(given)))
        yield _indented(yaml.safe_dump(settings, sort_keys=False))


def _without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_paths(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if not isinstance(value, Path)
    }


def _score(report: Report) -> Iterator[str]:
    seed = "" if report.seed is None else f", seed {report.seed}"
    yield (
        "## Score\n\nThe sprite score of DEMO-T2V: the percentage of videos with the motion, and "
        "with the thing, of the prompt, and its 95 % interval. Held-out pairs of thing and motion "
        f"are not in the training data. One video a prompt{seed}."
    )
    names = {"model": "this model", "base": "its base"}
    rows = [
        f"| {names[subject.role]} | {split} | {len(videos)} | {' | '.join(shares)} |"
        for subject in report.subjects
        if subject.role in names
        for held_out, split in _SPLITS.items()
        if (videos := subject.subset(held_out))
        for shares in [[str(accuracies(videos)[name]) for name in _METRICS]]
    ]
    head = f"| model | prompts | videos | {' | '.join(f'{name} right' for name in _METRICS)} |"
    yield "\n".join([head, "|---" * (3 + len(_METRICS)) + "|", *rows])


def _indented(text: str) -> str:
    """An indented code block, which no contents can end."""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())
