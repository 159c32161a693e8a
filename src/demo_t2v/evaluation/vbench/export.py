"""Videos of `demo-t2v generate` in the layout that VBench measures."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from demo_t2v.core.atomic_io import atomic_write, reason
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.metrics.metric import check_frames
from demo_t2v.evaluation.vbench.names import ENDING, video_name
from demo_t2v.evaluation.vbench.suite import CUSTOM, Coverage, PromptSuite, read_json, samples
from demo_t2v.evaluation.video_files import ClipFormat, VideoFile
from demo_t2v.inference.outputs import MANIFEST, read_manifest

VIDEOS: Final = "videos"
"""Folder of the videos; it holds nothing else, since VBench takes the ending of any file in it."""
PROMPTS: Final = "prompts.json"
"""The prompts by the names of the videos, for `vbench evaluate --prompt_file`."""
EXPORT: Final = "export.json"
"""What the videos are, for the import of the results."""


@dataclass(frozen=True)
class ExportedVideo:
    """A video: its name for VBench, and what it was before."""

    file: str
    name: str
    prompt: str
    index: int
    seed: int
    sha256: str
    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class Export:
    """The videos of one model with one set of settings, as VBench measures them."""

    folder: str
    """The folder of the videos before, absolute."""
    model: str
    model_hash: str
    settings: Mapping[str, Any]
    videos: Sequence[ExportedVideo]
    coverage: Mapping[str, Coverage] = field(default_factory=dict)
    """Of VBench's standard prompts, by dimension; empty for other prompts."""

    @property
    def dimensions(self) -> list[str]:
        """The dimensions that can be measured."""
        if not self.coverage:
            return list(CUSTOM)
        return [name for name, each in self.coverage.items() if each.videos]


def export_videos(
    folder: Path,
    out: Path,
    suite: PromptSuite | None = None,
    on_video: Callable[[], None] | None = None,
) -> Export:
    """Link or copy the videos of `folder` into the new folder `out`.

    The videos of a prompt are numbered in the order of their seeds. Raises EvaluationError for a
    folder without a manifest, for videos of several models or settings, for two of one prompt and
    seed, and for a video that is not there or does not decode; PathError if `out` exists.
    """
    entries = _read_entries(folder)
    _check_same_model(folder, entries)
    numbered = _number(folder, entries)
    counts = Counter(entry["prompt"] for entry in entries)
    coverage = suite.coverage(counts) if suite else {}
    if suite and not any(each.videos for each in coverage.values()):
        raise EvaluationError(
            f"{folder}: has none of VBench's prompts; without --full-info they are measured as "
            "prompts of your own"
        )
    first = entries[0]
    with atomic_write(out, new_folder=True) as partial:
        (partial / VIDEOS).mkdir()
        videos = []
        for entry, index in numbered:
            video = _describe(folder, entry, index)
            _link(folder / entry["file"], partial / VIDEOS / video.file)
            videos.append(video)
            if on_video:
                on_video()
        export = Export(
            str(folder.absolute()),
            str(first.get("model", "")),
            str(first.get("model_hash", "")),
            first.get("settings") or {},
            videos,
            coverage,
        )
        _write(partial / PROMPTS, {video.file: video.prompt for video in videos})
        _write(partial / EXPORT, asdict(export))
    return export


def read_export(folder: Path) -> Export:
    """What `export_videos` wrote in `folder`. Raises EvaluationError."""
    file = folder / EXPORT
    tree = read_json(file)
    try:
        return TypeAdapter(Export).validate_python(tree)
    except ValueError:
        raise EvaluationError(f"{file}: is not of `demo-t2v evaluate vbench export`") from None


def coverage_notes(export: Export, suite: PromptSuite) -> list[str]:
    """What VBench's list has and the export lacks, and the reverse; a sentence each."""
    empty = [dimension for dimension, each in export.coverage.items() if not each.videos]
    notes = [f"no videos for {', '.join(empty)}"] if empty else []
    for dimension, each in export.coverage.items():
        if each.videos and each.incomplete:
            notes.append(
                f"{dimension}: fewer than {samples(dimension)} videos for {each.incomplete} of "
                f"{each.prompts} prompts, the first is {each.first!r}"
            )
    counts = Counter(video.prompt for video in export.videos)
    others = [prompt for prompt in counts if prompt not in suite]
    more = sum(max(0, counts[prompt] - suite.samples(prompt)) for prompt in counts.keys() - others)
    if more:
        notes.append(f"not measured: {more} videos beyond the first ones of their prompts")
    if others:
        notes.append(
            f"not measured: {len(others)} prompts that are not VBench's, the first is {others[0]!r}"
        )
    return notes


def _read_entries(folder: Path) -> list[dict[str, Any]]:
    manifest = folder / MANIFEST
    try:
        entries = list(read_manifest(folder).values())
    except OSError as error:
        raise EvaluationError(f"{manifest}: cannot be read ({reason(error, manifest)})") from None
    if not entries:
        raise EvaluationError(f"{manifest}: is missing or empty; `demo-t2v generate` writes it")
    for entry in entries:
        if not isinstance(entry.get("prompt"), str) or not isinstance(entry.get("seed"), int):
            raise EvaluationError(f"{manifest}: has no prompt and seed for {entry['file']}")
    return entries


def _check_same_model(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    first = entries[0]
    for entry in entries:
        for key in ("model_hash", "settings"):
            if entry.get(key) != first.get(key):
                raise EvaluationError(
                    f"{folder / MANIFEST}: {first['file']} and {entry['file']} differ in {key}; "
                    "export videos of one model with one set of settings"
                )


def _number(folder: Path, entries: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The entries with their numbers among those of the same prompt."""
    by_prompt: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in entries:
        other = by_prompt.setdefault(entry["prompt"], {}).setdefault(entry["seed"], entry)
        if other is not entry:
            raise EvaluationError(
                f"{folder}: {other['file']} and {entry['file']} have one prompt and seed; VBench "
                "takes videos of different seeds"
            )
    return [
        (by_seed[seed], index)
        for by_seed in by_prompt.values()
        for index, seed in enumerate(sorted(by_seed))
    ]


def _describe(folder: Path, entry: Mapping[str, Any], index: int) -> ExportedVideo:
    """Decode a video. Raises EvaluationError."""
    name, prompt = entry["file"], entry["prompt"]
    path = folder / name
    if path.suffix.lower() != ENDING:
        raise EvaluationError(f"{path}: VBench reads {ENDING[1:]}; generate with --format mp4")
    video = VideoFile(name, path, prompt)
    clip = video.read(ClipFormat())
    check_frames(clip, 2)
    if entry.get("sha256") not in (None, video.sha256):
        raise EvaluationError(f"{path}: is not the video that {MANIFEST} describes")
    frames, height, width, _ = clip.frames.shape
    return ExportedVideo(
        file=video_name(prompt, index),
        name=name,
        prompt=prompt,
        index=index,
        seed=entry["seed"],
        sha256=video.sha256,
        frames=frames,
        height=height,
        width=width,
        fps=clip.fps,
    )


def _link(source: Path, target: Path) -> None:
    """Make `target` a hard link of `source`, or a copy where the file system has no links."""
    if target.exists():
        raise EvaluationError(f"{source}: another video has its name for VBench, {target.name!r}")
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _write(file: Path, tree: Mapping[str, Any]) -> None:
    """Write JSON in ASCII, since VBench reads it in the encoding of the locale."""
    file.write_text(json.dumps(tree, indent=1) + "\n", encoding="ascii")
