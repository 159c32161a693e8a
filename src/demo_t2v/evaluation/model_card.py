"""The model card of a folder: README.md with front matter, in the format of the Hugging Face Hub.

Its facts come from the folder's files and from the options of `demo-t2v card`. A section without
facts is left out.
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

from demo_t2v.checkpoints.memory import read_parts
from demo_t2v.checkpoints.resolve import HUB_ID, fingerprint, read_defaults
from demo_t2v.config import load
from demo_t2v.core.errors import UserError
from demo_t2v.evaluation.frame_grids import contact_sheet
from demo_t2v.evaluation.report import Report, Subject, figures, read_report
from demo_t2v.inference.outputs import read_manifest
from demo_t2v.training.config import AnyTraining

CARD: Final = "README.md"
SAMPLES: Final = "samples.png"
MOST_SAMPLES: Final = 8
_LICENCE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)
_METHOD: Final = (
    "DEMO (Ruan et al., NeurIPS 2024, [arXiv 2410.24219](https://arxiv.org/abs/2410.24219))"
)
_SPLITS: Final = {False: "trained pairs", True: "held-out pairs"}
"""By whether their pairs of thing and motion were held out."""
_METRICS: Final = ("motion", "content")
"""The figures of the sprite score that a card has."""


class CardError(UserError):
    """A card that cannot be written; the message is one line."""


@dataclass(frozen=True)
class Facts:
    """A card's facts that are not in the folder; None is unknown."""

    repo: str | None = None
    """The repository on the hub, as org/name."""
    license: str | None = None
    """The hub's short name of the licence, as `mit` or `cc-by-nc-4.0`."""
    base_model: str | None = None
    """The repository of the model that the training started from."""
    data: str | None = None
    """Description of the training data, as Markdown."""
    recipe: Path | None = None
    """The training's YAML."""
    scores: Path | None = None
    """The report of `demo-t2v evaluate sprites --out`."""
    samples: Path | None = None
    """An output folder of `demo-t2v generate`."""


def write_card(folder: Path, facts: Facts, overwrite: bool = False) -> list[Path]:
    """Write the card of the model in `folder`, and its samples' picture; returns the files.

    Raises CardError, report.ReportError, config.ConfigError, weights.hub.ModelError,
    data.video.VideoError, OSError.
    """
    read_defaults(folder)
    files = [folder / CARD, *([folder / SAMPLES] if facts.samples else [])]
    for file in files:
        if file.exists() and not overwrite:
            raise CardError(f"{file}: is there already; give --overwrite to write it anew")
    _check(facts)
    report = read_report(facts.scores) if facts.scores else None
    samples = _find_samples(folder, facts.samples) if facts.samples else []
    text = "\n\n".join(
        ["---\n" + front_matter(facts, report) + "---", *_sections(folder, facts, report, samples)]
    )
    if samples:
        sheet: Image.Image = contact_sheet((entry["path"], entry["prompt"]) for entry in samples)
        sheet.save(folder / SAMPLES, optimize=True)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")
    return files


def escape(text: str) -> str:
    """Text on one line, its signs as HTML entities, so that Markdown and HTML show it verbatim."""
    return re.sub(
        r"[!-&(-+./:-@\[-`{-~]", lambda sign: f"&#{ord(sign[0])};", " ".join(text.split())
    )


def front_matter(facts: Facts, report: Report | None) -> str:
    """The card's metadata as YAML, as huggingface_hub's `ModelCardData` reads it."""
    known: dict[str, Any] = {"license": facts.license} if facts.license else {}
    known |= {"library_name": "diffusers", "pipeline_tag": "text-to-video"}
    known["tags"] = ["text-to-video", "diffusers", "demo-t2v"]
    if facts.base_model:
        known["base_model"] = facts.base_model
    if report:
        name = (facts.repo or "demo-t2v").rpartition("/")[2]
        known["model-index"] = [{"name": name, "results": list(_results(_scored(report)))}]
    text: str = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
    return text


def _results(subject: Subject) -> Iterator[dict[str, Any]]:
    for held_out, label in _SPLITS.items():
        shares = figures(subject.part(held_out))
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
                    "split": label,
                },
                "metrics": metrics,
            }


def _scored(report: Report) -> Subject:
    """The model among the subjects of a report."""
    return next(subject for subject in report.subjects if subject.role == "model")


def _check(facts: Facts) -> None:
    for name, value in (("--repo", facts.repo), ("--base-model", facts.base_model)):
        if value is not None and not HUB_ID.fullmatch(value):
            raise CardError(f"{name} {value}: should be a repository on the hub, as org/name")
    if facts.license is not None and not _LICENCE.fullmatch(facts.license):
        raise CardError(f"--license {facts.license}: should be the hub's name of it, as in mit")
    if facts.data is not None and not facts.data.strip():
        raise CardError("--data is empty; say on what the model was trained, or leave it out")


def _find_samples(folder: Path, outputs: Path) -> list[dict[str, Any]]:
    """The manifest's first entries whose videos this model made."""
    entries = read_manifest(outputs)
    if not entries:
        raise CardError(f"{outputs}: has no manifest.jsonl; name a folder of `demo-t2v generate`")
    model = fingerprint(folder)
    found = [
        entry | {"path": outputs / file}
        for file, entry in entries.items()
        if (outputs / file).exists()
        and entry.get("model_hash") == model
        and not (entry.get("settings") or {}).get("lora")
    ]
    if not found:
        raise CardError(f"{outputs}: none of its videos was made by {folder} alone")
    alike = [entry for entry in found if entry["settings"] == found[0]["settings"]]
    return alike[:MOST_SAMPLES]


def _sections(
    folder: Path, facts: Facts, report: Report | None, samples: list[dict[str, Any]]
) -> Iterator[str]:
    yield f"# {escape((facts.repo or folder.resolve().name).rpartition('/')[2])}"
    yield from _what(folder)
    if samples:
        yield from _shown(samples)
    yield from _use(facts)
    if facts.data or facts.recipe:
        yield from _training(facts)
    if report:
        yield from _score(report)
    if facts.license:
        yield f"## Licence\n\n`{facts.license}`"


def _what(folder: Path) -> Iterator[str]:
    """The model and its parts, from its files."""
    made, parts = read_defaults(folder), read_parts(folder)
    method = _METHOD if "motion_encoder" in parts else f"the base network of {_METHOD}"
    yield (
        f"A text-to-video model: {method}, as a diffusers pipeline of DEMO-T2V. By default it "
        f"makes {made.frames} frames of {made.side}x{made.side} pixels in {made.steps} steps with "
        f"guidance {made.guidance:g}{_negative(made.negative_prompt)}."
    )
    yield "\n".join([
        "| part | class | parameters | file size |",
        "|---|---|---:|---:|",
        *(
            f"| `{name}` | {part.kind} | {part.numbers:,} | {_mebibytes(folder / name)} |"
            for name, part in parts.items()
        ),
    ])  # fmt: skip


def _negative(prompt: str) -> str:
    return f" and the negative prompt “{escape(prompt)}”" if prompt else ""


def _mebibytes(folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return f"{size / 2**20:.1f} MiB"


def _shown(samples: list[dict[str, Any]]) -> Iterator[str]:
    yield f"## Samples\n\n![A row for each video, frames from first to last]({SAMPLES})"
    yield "\n".join([
        "| row | prompt | seed |",
        "|---|---|---|",
        *(
            f"| {row} | {escape(entry['prompt'])} | {entry['seed']} |"
            for row, entry in enumerate(samples, start=1)
        ),
    ])  # fmt: skip
    yield "These are the first videos of a list of prompts, with these settings:"
    settings = yaml.safe_dump(samples[0]["settings"], sort_keys=False, allow_unicode=True)
    yield _indented(settings)


def _use(facts: Facts) -> Iterator[str]:
    model = facts.repo or "FOLDER"
    yield f'## Use\n\n```sh\ndemo-t2v generate "what the video shows" --model {model}\n```'
    yield f"""\
```python
from demo_t2v.pipeline import DemoPipeline

pipe = DemoPipeline.from_pretrained("{model}")
video = pipe("what the video shows").frames  # numpy (1, frames, height, width, 3) in [0, 1]
```"""


def _training(facts: Facts) -> Iterator[str]:
    yield "## Training"
    if facts.data:
        yield facts.data.strip()
    if facts.recipe:
        yield "The configuration of `demo-t2v train`, without paths:"
        given = load(AnyTraining, facts.recipe).model_dump(exclude_unset=True, by_alias=True)
        yield _indented(yaml.safe_dump(json.loads(json.dumps(_pathless(given))), sort_keys=False))


def _pathless(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the keys whose values are paths of one machine."""
    return {
        key: _pathless(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if not isinstance(value, Path)
    }


def _score(report: Report) -> Iterator[str]:
    yield (
        "## Score\n\nThe sprite score of DEMO-T2V: the percentage of videos with the motion, and "
        "with the thing, of the prompt, and its 95 % interval. Held-out pairs of thing and motion "
        f"are not in the training data. One video a prompt, seed {report.seed}."
    )
    names = {"model": "this model", "base": "its base"}
    rows = [
        f"| {names[subject.role]} | {split} | {len(videos)} | {' | '.join(shares)} |"
        for subject in report.subjects
        if subject.role in names
        for held_out, split in _SPLITS.items()
        if (videos := subject.part(held_out))
        for shares in [[str(figures(videos)[name]) for name in _METRICS]]
    ]
    head = f"| model | prompts | videos | {' | '.join(f'{name} right' for name in _METRICS)} |"
    yield "\n".join([head, "|---" * (3 + len(_METRICS)) + "|", *rows])


def _indented(text: str) -> str:
    """A block of code that nothing in the text can end."""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())
