"""The bridge to VBench: names, export, commands and import.

The files are those of VBench 0.1.5: `{prompt}-{index}.mp4`, `VBench_full_info.json`, and
`*_eval_results.json` with `{dimension: [value, [{video_path, video_results}, ...]]}`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo_t2v.data.video import write_video
from demo_t2v.evaluation.results import read_results
from demo_t2v.evaluation.vbench.export import export_videos
from demo_t2v.evaluation.vbench.names import split_name, video_name
from demo_t2v.evaluation.vbench.suite import CUSTOM, DIMENSIONS
from helpers.in_process import run

LONG = "a dog " * 60
PROMPTS = ("a red bird", "A dog-3", "either/or", LONG, "ブランコ " * 40, "")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The smallest video that VBench can measure."""
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(np.zeros((2, 16, 16, 3), np.uint8), file, 8, "mp4")
    return file


def generate(folder: Path, clip: Path, *samples: tuple[str, int], **facts: object) -> Path:
    """A folder as `demo-t2v generate` makes it, of videos with these prompts and seeds."""
    folder.mkdir()
    content = clip.read_bytes()
    lines = []
    for number, (prompt, seed) in enumerate(samples):
        file = f"{number}.mp4"
        (folder / file).write_bytes(content)
        entry = {"id": str(number), "prompt": prompt, "repeat": 0, "seed": seed, "file": file}
        entry |= {"sha256": hashlib.sha256(content).hexdigest(), "model": "mine"}
        lines.append(json.dumps(entry | {"model_hash": "f", "settings": {"fps": 8}} | facts))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def read_name(name: str) -> tuple[str, int]:
    """Prompt and index as VBench reads them from a name."""
    prompt, index = re.fullmatch(r"(.*)-(\d+)", Path(name).stem, re.DOTALL).groups()
    return prompt, int(index)


def write_info(file: Path, **prompts: list[str]) -> Path:
    """A VBench_full_info.json: dimensions by prompt."""
    entries = [{"prompt_en": prompt, "dimension": names} for prompt, names in prompts.items()]
    file.write_text(json.dumps(entries))
    return file


def write_scores(file: Path, **dimensions: object) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(dimensions, indent=4))
    return file


def score(value: float, **videos: object) -> list[object]:
    """A dimension's part of *_eval_results.json."""
    return [
        value,
        [{"video_path": f"videos/{k}.mp4", "video_results": v} for k, v in videos.items()],
    ]


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.text(max_size=300), st.sets(st.integers(0, 99), min_size=1, max_size=6),
                       min_size=1, max_size=4))  # fmt: skip
def test_names_and_prompts_of_an_export_read_back(clip, seeds):
    samples = [(prompt, seed) for prompt, each in seeds.items() for seed in each]
    with TemporaryDirectory() as name:
        folder = generate(Path(name) / "mine", clip, *samples)
        export_videos(folder, Path(name) / "out")
        files = os.listdir(Path(name) / "out" / "videos")
        prompts = json.loads((Path(name) / "out" / "prompts.json").read_text())
    assert {(prompts[file], read_name(file)[1]) for file in files} == {
        (prompt, index) for prompt, each in seeds.items() for index in range(len(each))
    }
    assert len(files) == len(samples) == len(prompts)


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc"],
                                      exclude_characters='<>:"/\\|?*'), max_size=60),
       st.integers(0, 10**6))  # fmt: skip
def test_a_prompt_that_fits_is_the_name(prompt, index):
    assert video_name(prompt, index) == f"{prompt}-{index}.mp4"
    assert read_name(video_name(prompt, index)) == (prompt, index)


@given(st.text(st.characters(), max_size=400), st.text(st.characters(), max_size=400))
def test_each_name_is_one_that_file_systems_hold(one, other):
    """Lone surrogates too, which a manifest can have."""
    names = {video_name(one, 0), video_name(other, 0)}
    assert len(names) == len({one, other})
    for name in names:
        assert len(name.encode()) <= 255
        assert not re.search(r'[\x00-\x1f<>:"/\\|?*]', name)


def test_prompt_and_number_of_a_name():
    assert split_name("A 3D model of a 1800s victorian house.-4.mp4") == (
        "A 3D model of a 1800s victorian house.",
        4,
    )
    assert split_name("a dog-3-12.mp4") == ("a dog-3", 12)
    assert split_name("a dog.mp4") == ("a dog", -1)


def test_videos_are_numbered_by_seed_and_keep_their_bytes(tmp_path, clip):
    samples = [(prompt, seed) for seed in (7, 3, 11) for prompt in PROMPTS]
    generate(tmp_path / "mine", clip, *samples)
    done = run(tmp_path, "evaluate", "vbench", "export", "mine", "--out", "vb")
    assert (done.returncode, done.stderr) == (0, "")
    export = json.loads((tmp_path / "vb" / "export.json").read_text())
    assert [(v["prompt"], v["index"], v["seed"], v["name"]) for v in export["videos"][:3]] == [
        ("a red bird", 0, 3, "6.mp4"),
        ("a red bird", 1, 7, "0.mp4"),
        ("a red bird", 2, 11, "12.mp4"),
    ]
    first = export["videos"][0]
    assert (first["frames"], first["height"], first["width"], first["fps"]) == (2, 16, 16, 8)
    videos = tmp_path / "vb" / "videos"
    assert {"a red bird-0.mp4", "A dog-3-2.mp4", "-1.mp4"} < set(os.listdir(videos))
    assert all(file.read_bytes() == clip.read_bytes() for file in videos.iterdir())
    assert (videos / "a red bird-0.mp4").samefile(tmp_path / "mine" / "6.mp4")


def test_a_file_system_without_links_has_copies(tmp_path, clip, monkeypatch):
    def no_links(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    export_videos(generate(tmp_path / "mine", clip, ("a", 1)), tmp_path / "vb")
    assert (tmp_path / "vb" / "videos" / "a-0.mp4").read_bytes() == clip.read_bytes()


def test_two_videos_of_one_name_are_one_line(tmp_path, clip, monkeypatch):
    """As on a file system that does not distinguish capitals."""
    lower = "demo_t2v.evaluation.vbench.export.video_name"
    monkeypatch.setattr(lower, lambda prompt, index: f"{prompt.lower()}-{index}.mp4")
    generate(tmp_path / "mine", clip, ("a dog", 1), ("A dog", 1))
    done = run(tmp_path, "evaluate", "vbench", "export", "mine", "--out", "vb")
    assert_one_line(done, "mine/1.mp4: another video has its name for VBench, 'a dog-0.mp4'")


def test_the_commands_of_prompts_of_ones_own(tmp_path, clip):
    generate(tmp_path / "mine", clip, ("a dog", 0))
    out = tmp_path / "my 'folder'"
    lines = run(tmp_path, "evaluate", "vbench", "export", "mine", "--out", out).stdout.splitlines()
    assert "pip install vbench==0.1.5" in lines
    assert not any("detectron2" in line for line in lines)
    assert ["cd", str(out)] in [shlex.split(line, comments=True) for line in lines]
    measured = [line for line in lines if line.startswith("vbench evaluate")]
    assert [shlex.split(line)[5] for line in measured] == list(CUSTOM)
    ending = " --mode custom_input --prompt_file prompts.json"
    assert all(line.endswith(ending) for line in measured)
    assert lines[-1].startswith("demo-t2v evaluate vbench import evaluation_results/*")


def test_what_vbench_lacks_is_said(tmp_path, clip):
    five = [("a red bird", seed) for seed in range(6)]
    generate(tmp_path / "mine", clip, *five, ("a red dog", 0), ("still", 1), ("mine", 1))
    write_info(
        tmp_path / "info.json",
        **{"a red bird": ["color"], "a red dog": ["color"], "a cat": ["scene", "object_class"]},
        still=["temporal_flickering"],
    )
    words = ["mine", "--out", "vb", "--full-info", "info.json"]
    done = run(tmp_path, "evaluate", "vbench", "export", *words)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "demo-t2v: no videos for object_class, scene",
        "demo-t2v: temporal_flickering: fewer than 25 videos for 1 of 1 prompts, "
        "the first is 'still'",
        "demo-t2v: color: fewer than 5 videos for 1 of 2 prompts, the first is 'a red dog'",
        "demo-t2v: not measured: 1 videos beyond the first ones of their prompts",
        "demo-t2v: not measured: 1 prompts that are not VBench's, the first is 'mine'",
    ]
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("vbench")] == [
        "vbench static_filter --videos_path videos",
        "vbench evaluate --videos_path filter_results/filtered_videos "
        "--dimension temporal_flickering",
        "vbench evaluate --videos_path videos --dimension color",
    ]
    assert any("detectron2" in line for line in lines)
    for index in range(5):
        assert (tmp_path / "vb" / "videos" / f"a red bird-{index}.mp4").is_file()


def test_results_of_vbench_become_ours(tmp_path, clip):
    generate(tmp_path / "mine", clip, ("a dog", 4), ("a dog", 2), (LONG, 1))
    run(tmp_path, "evaluate", "vbench", "export", "mine", "--out", "vb")
    (long,) = [n for n in os.listdir(tmp_path / "vb" / "videos") if n.startswith("a dog a")]
    names = ["a dog-0", "a dog-1", long.removesuffix(".mp4")]
    results = tmp_path / "vb" / "evaluation_results"
    moving = score(2 / 3, **dict(zip(names[::-1], (True, False, True), strict=True)))
    write_scores(results / "results_1_eval_results.json", dynamic_degree=moving)
    quality = score(0.5, **dict(zip(names, (40.0, 50.0, 60.0), strict=True)))
    write_scores(results / "results_2_eval_results.json", imaging_quality=quality)
    weighted = score(0.93, **dict(zip(names[1:], (0.9, 0.94), strict=True)))
    write_scores(results / "results_3_eval_results.json", subject_consistency=weighted)
    files = [f"vb/evaluation_results/results_{n}_eval_results.json" for n in (1, 2, 3)]
    words = ["--export", "vb", "--vbench-version", "0.1.5", "--out", "r.json"]
    done = run(tmp_path, "evaluate", "vbench", "import", *files, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "imaging" in done.stdout
    found = read_results(tmp_path / "r.json")
    assert (found.folder, found.settings["fingerprint"]) == (str(tmp_path / "mine"), "f")
    assert found.versions["vbench"] == "0.1.5"
    # Sorted by seed: the file with seed 2 is "a dog-0".
    assert [(row["name"], row["seed"]) for row in found.videos] == [
        ("1.mp4", 2),
        ("0.mp4", 4),
        ("2.mp4", 1),
    ]
    rows = {row["name"]: row for row in found.videos}
    assert [rows[name]["VBench imaging quality"] for name in ("1.mp4", "0.mp4", "2.mp4")] == [
        0.4,
        0.5,
        0.6,
    ]
    assert rows["2.mp4"]["prompt"] == LONG
    assert rows["2.mp4"]["sha256"] == hashlib.sha256(clip.read_bytes()).hexdigest()
    metrics = {metric.name: metric for metric in found.metrics}
    figure = metrics["VBench dynamic degree"].figure
    assert (figure.value, figure.count) == (2 / 3, 3)
    assert figure.interval[0] < 2 / 3 < figure.interval[1]
    assert metrics["VBench dynamic degree"].depends_on == {
        "package": "vbench",
        "version": "0.1.5",
        "dimension": "dynamic_degree",
        "prompts": "custom",
    }
    figure = metrics["VBench subject consistency"].figure
    assert (figure.value, figure.interval) == (0.93, None)
    assert "not the mean of the videos, 0.92" in figure.notes[0]
    assert figure.notes[1] == "1 of 3 videos have no value"


def test_results_without_the_export_have_the_prompts_of_the_names(tmp_path):
    scores = score(0.5, **{"a dog-10": 0.5, "a dog-9": 0.5, "a cat": 0.5})
    write_scores(tmp_path / "x_eval_results.json", color=scores)
    done = run(tmp_path, "evaluate", "vbench", "import", "x_eval_results.json", "--out", "r.json")
    assert done.returncode == 0
    found = read_results(tmp_path / "r.json")
    assert found.videos == [
        {"name": f"videos/{name}.mp4", "prompt": prompt, "VBench color": 0.5}
        for name, prompt in (("a cat", "a cat"), ("a dog-9", "a dog"), ("a dog-10", "a dog"))
    ]
    assert found.metrics[0].depends_on["version"] == "not stated"
    assert found.metrics[0].figure.interval == (0.5, 0.5)


def test_a_value_that_is_no_number_is_not_computed(tmp_path):
    scores = score(float("nan"), **{"a-0": float("nan"), "b-0": 1.0})
    write_scores(tmp_path / "x.json", temporal_flickering=scores)
    run(tmp_path, "evaluate", "vbench", "import", "x.json", "--out", "r.json")
    found = read_results(tmp_path / "r.json")
    assert found.metrics[0].figure is None
    assert found.metrics[0].not_computed == "VBench's value is not a number"
    assert "VBench temporal flickering" not in found.videos[0]


def test_an_incomplete_prompt_list_is_noted(tmp_path, clip):
    generate(tmp_path / "mine", clip, ("a red bird", 0))
    write_info(tmp_path / "info.json", **{"a red bird": ["color"], "a red dog": ["color"]})
    words = ["mine", "--out", "vb", "--full-info", "info.json"]
    run(tmp_path, "evaluate", "vbench", "export", *words)
    write_scores(tmp_path / "x.json", color=score(1.0, **{"a red bird-0": 1.0}))
    words = ["x.json", "--export", "vb", "--out", "r.json"]
    run(tmp_path, "evaluate", "vbench", "import", *words)
    (metric,) = read_results(tmp_path / "r.json").metrics
    assert "too few videos for 2 of 2 prompts" in metric.figure.notes
    assert metric.depends_on["prompts"] == "VBench's"


BAD_EXPORTS = {
    "bare": "bare/manifest.jsonl: is missing or empty",
    "none": "none/manifest.jsonl: is missing or empty",
    "lost": "lost/1.mp4: ",
    "broken": "broken/0.mp4: is no video that FFmpeg can read",
    "replaced": "replaced/0.mp4: is not the video that manifest.jsonl describes",
    "short": "0.mp4: has 1 frames; this takes at least 2",
    "double": "double: 0.mp4 and 1.mp4 have one prompt and seed",
    "models": "models/manifest.jsonl: 0.mp4 and 1.mp4 differ in model_hash",
    "seedless": "seedless/manifest.jsonl: has no prompt and seed for 0.mp4",
    "gif": "gif/0.gif: VBench reads mp4; generate with --format mp4",
}


@pytest.mark.parametrize("folder", BAD_EXPORTS)
def test_bad_folders_are_one_line(tmp_path, clip, folder):
    mine = generate(tmp_path / folder, clip, ("a", 1), ("b", 1)) if folder != "none" else None
    manifest = tmp_path / folder / "manifest.jsonl"
    lines = manifest.read_text().splitlines() if mine else []
    match folder:
        case "bare":
            manifest.unlink()
        case "lost":
            (mine / "1.mp4").unlink()
        case "broken":
            (mine / "0.mp4").write_text("no video")
        case "replaced":
            write_video(np.full((2, 16, 16, 3), 255, np.uint8), mine / "0.mp4", 8, "mp4")
        case "short":
            write_video(np.zeros((1, 16, 16, 3), np.uint8), mine / "0.mp4", 8, "mp4")
        case "double":
            manifest.write_text("\n".join(line.replace('"b"', '"a"') for line in lines))
        case "models":
            manifest.write_text(lines[0] + "\n" + lines[1].replace('"f"', '"g"'))
        case "seedless":
            manifest.write_text(lines[0].replace('"seed": 1', '"seed": "one"'))
        case "gif":
            manifest.write_text(lines[0].replace("0.mp4", "0.gif"))
    done = run(tmp_path, "evaluate", "vbench", "export", folder, "--out", "vb")
    assert_one_line(done, BAD_EXPORTS[folder])
    assert not (tmp_path / "vb").exists()


def test_an_export_replaces_nothing(tmp_path, clip):
    generate(tmp_path / "mine", clip, ("a", 1))
    (tmp_path / "vb").mkdir()
    done = run(tmp_path, "evaluate", "vbench", "export", "mine", "--out", "vb")
    assert_one_line(done, "vb: already exists; give the name of a new folder")


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ("{}", "info.json: is no VBench_full_info.json"),
        ("no JSON", "info.json: is no VBench_full_info.json"),
        ('[{"prompt_en": "a", "dimension": ["beauty"]}]', "'beauty' is no dimension of VBench"),
        ('[{"prompt_en": "c", "dimension": ["color"]}]', "mine: has none of VBench's prompts"),
    ],
)
def test_bad_prompt_lists_are_one_line(tmp_path, clip, info, problem):
    generate(tmp_path / "mine", clip, ("a", 1))
    (tmp_path / "info.json").write_text(info)
    words = ["mine", "--out", "vb", "--full-info", "info.json"]
    assert_one_line(run(tmp_path, "evaluate", "vbench", "export", *words), problem)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("no JSON", "x.json: is no *_eval_results.json of VBench"),
        ("[]", "x.json: is no *_eval_results.json of VBench"),
        ("{}", "x.json: is no *_eval_results.json of VBench"),
        ('{"i2v_subject": [1, []]}', "x.json: 'i2v_subject' is no dimension of VBench 0.1.5"),
        ('{"color": 0.5}', "x.json: color is not VBench's [value, [videos]]"),
        ('{"color": [0.5, [{"video_path": "a.mp4"}]]}', "color is not VBench's [value, [videos]]"),
        ('{"color": [0.5, []]}', "x.json: color has no videos"),
        (
            json.dumps({"color": [1, 2 * score(1, a=1)[1]]}),
            "color has two values for 'videos/a.mp4'",
        ),
        (json.dumps({"scene": score(1, a=1)}), "x.json: has scene, as y.json has; give one"),
        (json.dumps({"color": score(1, a=1)}), "videos/a.mp4: is no video of export.json"),
    ],
)
def test_bad_results_are_one_line(tmp_path, clip, content, problem):
    generate(tmp_path / "mine", clip, ("a", 1))
    run(tmp_path, "evaluate", "vbench", "export", "mine", "--out", "vb")
    (tmp_path / "x.json").write_text(content)
    write_scores(tmp_path / "y.json", scene=score(1, **{"a-0": 1}))
    words = ["y.json", "x.json", "--export", "vb"]
    assert_one_line(run(tmp_path, "evaluate", "vbench", "import", *words), problem)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["none.json"], "none.json: cannot be read (No such file or directory)"),
        (["y.json", "--export", "none"], "none/export.json: cannot be read"),
        (["y.json", "--export", "."], "export.json: is not of `demo-t2v evaluate vbench export`"),
    ],
)
def test_missing_files_are_one_line(tmp_path, words, problem):
    write_scores(tmp_path / "y.json", scene=score(1, a=1))
    (tmp_path / "export.json").write_text("{}")
    assert_one_line(run(tmp_path, "evaluate", "vbench", "import", *words), problem)


def test_there_are_sixteen_dimensions():
    assert len(set(DIMENSIONS)) == len(DIMENSIONS) == 16
    assert set(CUSTOM) < set(DIMENSIONS)


def assert_one_line(done, problem):
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert problem in done.stderr
