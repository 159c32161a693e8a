"""`demo-t2v evaluate sensitivity`: distances of encoder states by part of speech."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextModel

from demo_t2v.data.sprites import BACKGROUNDS, MOTIONS, SPEEDS, THINGS
from demo_t2v.evaluation.bar_chart import COLOURS, GROUP, bar_chart
from demo_t2v.evaluation.metrics.metric import Figure
from demo_t2v.evaluation.sensitivity import Encoders, mean_distances, measure_sensitivity
from demo_t2v.evaluation.word_lists import WORD_LISTS, WordLists, read_word_lists
from helpers.in_process import run

LISTS = WordLists(
    templates=("a {noun} {verb}", "the {noun} stands"),
    content={"noun": ("car", "fish", "pear")},
    motion={"verb": ("falls", "grows")},
)


class OneHot:
    """Encoders that see one word each: the state of another word is at right angles."""

    name, fingerprint = "one-hot", ""

    def states(self, prompts):
        words = {"content": LISTS.content["noun"], "motion": LISTS.motion["verb"]}
        found = {
            name: [[float(word in prompt) for word in seen] for prompt in prompts]
            for name, seen in words.items()
        }
        return {name: torch.tensor(states).double() for name, states in found.items()}


def test_distances_of_known_vectors():
    """Pairs at 90, 180 and 90 degrees; the lengths are 1, 2 and 1."""
    states = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]).double()
    cosine, relative = mean_distances(states)
    assert cosine == pytest.approx((1 + 2 + 1) / 3)
    assert relative == pytest.approx((math.sqrt(5) / 1.5 + 2 + math.sqrt(5) / 1.5) / 3)
    assert mean_distances(torch.ones(4, 3).double()) == pytest.approx((0, 0))


def test_the_prompts_of_a_group_differ_in_one_word():
    groups = LISTS.draw_groups("noun", 4)
    assert groups == LISTS.draw_groups("noun", 4)
    assert groups != LISTS.draw_groups("noun", 4, seed=1)
    assert groups[1] == ["the car stands", "the fish stands", "the pear stands"]
    for group in groups[::2]:
        assert [prompt.split()[1] for prompt in group] == ["car", "fish", "pear"]
        assert len({prompt.split()[2] for prompt in group}) == 1
    assert all("falls" in first and "grows" in last for first, last in LISTS.draw_groups("verb", 3))


def test_each_encoder_is_sensitive_to_what_it_sees():
    done: list[None] = []
    report = measure_sensitivity(
        [OneHot()], "two", LISTS, groups=3, on_group=lambda: done.append(None)
    )
    assert len(done) == 6
    assert report.encoders == ["content", "motion"]
    found = {(each.encoder, each.part): each.cosine for each in report.sensitivities}
    assert found["content", "noun"] == Figure(1, (1, 1), 3)
    assert found["content", "verb"].value == pytest.approx(0)
    assert found["motion", "verb"].value == pytest.approx(1)
    assert [each.describes for each in report.of_encoder("motion")] == ["content", "motion"]
    assert report.of_encoder("content")[0].relative_l2.value == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("name", WORD_LISTS)
def test_the_lists_that_ship(name):
    lists = read_word_lists(name)
    for part, words in lists.parts.items():
        assert len(set(words)) == len(words)
        (group,) = lists.draw_groups(part, 1)
        assert len(set(group)) == len(words)
    if name == "sprites":
        wordings = [wording for own in MOTIONS.values() for wording in own]
        known = set(" ".join([*THINGS, *BACKGROUNDS, *SPEEDS, *wordings, "a and"]).split())
        for part in lists.parts:
            for group in lists.draw_groups(part, 4):
                assert set(" ".join(group).split()) <= known


def test_a_model_and_a_clip_from_the_command_line(tiny_folder: Path, tmp_path: Path):
    """The content encoder as a CLIP of its own has the same sensitivities."""
    encoder = CLIPTextModel.from_pretrained(tiny_folder / "content_encoder")
    encoder.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer").symlink_to(tiny_folder / "tokenizer")
    done = run(
        tmp_path, "evaluate", "sensitivity", "--model", tiny_folder, "--clip", "clip",
        "--words", "sprites", "--groups", 2, "--out", "new/s.json", "--plot", "new/s.png",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "direction" in done.stdout
    tree = json.loads((tmp_path / "new" / "s.json").read_text())
    by_encoder: dict[str, list[float]] = {}
    for each in tree["sensitivities"]:
        by_encoder.setdefault(each["encoder"], []).append(each["cosine"]["value"])
    assert list(by_encoder) == [
        f"{tiny_folder}: content encoder", f"{tiny_folder}: motion encoder", "clip",
    ]  # fmt: skip
    content, motion, clip = by_encoder.values()
    assert clip == pytest.approx(content)
    assert motion != pytest.approx(content)
    assert min(content) > 0
    assert set(tree["fingerprints"]) == {str(tiny_folder), "clip"}
    assert Image.open(tmp_path / "new" / "s.png").format == "PNG"


def test_the_hash_is_that_of_the_files_that_are_read(tiny_folder: Path, tmp_path: Path):
    """Those of the only variant, and all shards."""
    encoder = CLIPTextModel.from_pretrained(tiny_folder / "content_encoder")
    hashes = []
    for name, options in (("half", {"variant": "fp16"}), ("parts", {"max_shard_size": "20KB"})):
        encoder.save_pretrained(tmp_path / name, **options)
        (tmp_path / name / "tokenizer").symlink_to(tiny_folder / "tokenizer")
        hashes.append(Encoders.of_clip(str(tmp_path / name)).fingerprint.split())
    assert len(hashes[0]) == 1
    assert len(hashes[1]) == len(list((tmp_path / "parts").glob("*.safetensors"))) > 1


def test_a_bar_is_as_high_as_its_value():
    figures = [Figure(0.1, (0.05, 0.2), 9), Figure(0.05, None, 9), Figure(0.0, None, 9)]
    picture = np.asarray(bar_chart(["a", "b\n(motion)", "c"], {"one": figures}, "title"))
    colour = [int(COLOURS[0][start : start + 2], 16) for start in (1, 3, 5)]
    bars = (picture == colour).all(-1)[60:]  # below the legend
    one, two, three = (bars[:, 80 + GROUP * place : 80 + GROUP * (place + 1)] for place in range(3))
    heights = [group[:, GROUP // 5].sum() for group in (one, two)]
    assert heights[0] == pytest.approx(2 * heights[1], abs=3)
    assert not three[:-1].sum(0).max() > 2


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--model", "none"], "none: is no model"),
        (["--clip", "empty"], "empty: has no config.json"),
        (["--words", "none.yaml"], "none.yaml"),
        (["--words", "a.yaml"], "names 'adverb', which has no words"),
        (["--words", "b.yaml"], "'noun' has 1 different words; it needs 2"),
        (["--words", "c.yaml"], "no template names 'verb'"),
        (["--words", "d.yaml"], "is no template; write {noun} for a word"),
        (["--words", "e.yaml"], "'noun' is both content and motion"),
        (["--plot", "s.jpg"], "--plot s.jpg: should be a .png file"),
        (["--out", "empty"], "empty: is a folder; name a file"),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, problem):
    (tmp_path / "empty").mkdir()
    noun, verb = "content: {noun: [car, bus]}\n", "motion: {verb: [falls, grows]}\n"
    files = {
        "a": f"templates: ['a {{noun}} {{verb}} {{adverb}}']\n{noun}{verb}",
        "b": f"templates: ['a {{noun}} {{verb}}']\ncontent: {{noun: [car, car]}}\n{verb}",
        "c": f"templates: ['a {{noun}}']\n{noun}{verb}",
        "d": f"templates: ['a {{noun']\n{noun}{verb}",
        "e": f"templates: ['a {{noun}}']\n{noun}motion: {{noun: [falls, grows]}}\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    done = run(tmp_path, "evaluate", "sensitivity", *words)
    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
