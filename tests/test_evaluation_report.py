"""`demo-t2v evaluate report`: results side by side, in Markdown, LaTeX and one page."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from demo_t2v.data.video import write_video
from demo_t2v.evaluation.comparison.published import read_published
from demo_t2v.evaluation.comparison.text_tables import escape_latex
from demo_t2v.evaluation.metrics.metric import Figure
from demo_t2v.evaluation.report import Report, Subject, VideoScore, save_report
from demo_t2v.evaluation.results import MetricResult, Results, save_results
from helpers.browser import chromium, needs_chromium
from helpers.in_process import run

SLY = "a|b*c*_d_ <script>alert(1)</script> & \\100%"
DARK_PAGE = "rgb(20, 23, 27)"


def results(subject="mine", values=(1.0, 2.0, 4.0), changed=None, metrics=(), **fields):
    """Results of videos with a value of `blur` each; `changed` changes every video's row."""
    rows = [
        {"name": f"{number}.mp4", "prompt": f"prompt {number}", "sha256": "", "frames": 16,
         "height": 32, "width": 32, "fps": 8.0, "blur": value, **(changed or {})}
        for number, value in enumerate(values)
    ]  # fmt: skip
    mean = Figure(float(np.mean(values)), (0.5, 5.5), len(values))
    blur = MetricResult("blur", mean, {"kernel": 3}, better="lower")
    given = {"real": "", "settings": {}, "versions": {"python": "3.11"}} | fields
    return Results(subject, metrics=[blur, *metrics], videos=rows, **given)


def fid(sha256="ab", name="FID"):
    return MetricResult(name, Figure(20.0, None, 3), {"sha256": sha256})


def score(name, right, role="model", ids=None):
    """A sprite report with a video for each place of `right`."""
    videos = [
        VideoScore(id_, f"prompt {id_}", number > 2, "a dog", "left", "sky", "a dog",
                   "left" if hit else "right", "sky", 1.0, 0.5)
        for number, (id_, hit) in enumerate(zip(ids or range(len(right)), right, strict=True))
    ]  # fmt: skip
    videos = [dataclasses.replace(video, id=str(video.id)) for video in videos]
    return Subject(role, name, videos)


def report(tmp_path, *files, **contents):
    """Save the contents as JSON files, by name, and run the command on them and on `files`."""
    for name, content in contents.items():
        save = save_report if isinstance(content, Report) else save_results
        save(content, tmp_path / f"{name}.json")
    names = [f"{name}.json" for name in contents]
    return run(tmp_path, "evaluate", "report", *names, *files)


def tables(markdown):
    """The tables of a Markdown text as rows of texts."""
    found, row = [], None
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(markdown):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            row = []
            found[-1].append(row)
        elif token.type == "inline" and row is not None:
            row.append("".join(child.content for child in token.children))
        elif token.type == "table_close":
            row = None
    return found


class Page(HTMLParser):
    """The tags, attributes and visible texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self.open:
            self.texts.append(data.strip())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two folders of videos with manifests, measured, and the page of both."""
    folder = tmp_path_factory.mktemp("measured")
    rng = np.random.default_rng(0)
    for model, spread in (("calm", 20), (f"wild {SLY.replace('/', '')}", 200)):
        (folder / model).mkdir()
        with (folder / model / "manifest.jsonl").open("w") as manifest:
            for number in range(3):
                frames = rng.integers(0, spread, (8, 32, 32, 3), dtype=np.uint8)
                write_video(frames, folder / model / f"{number}-x", 8, "png")
                entry = {"file": f"{number}-x", "prompt": f"{SLY} {number}", "seed": 7 + number}
                manifest.write(json.dumps(entry | {"model_hash": model[0] * 3}) + "\n")
        out = f"{model[:4]}.json"
        assert run(folder, "evaluate", "videos", model, "--out", out).returncode == 0
    done = run(folder, "evaluate", "report", "calm.json", "wild.json", "--out", "page")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [f"page/report.{ending}" for ending in ("html", "tex", "md")]
    return folder


def test_results_state_seeds_fingerprint_and_folder(measured):
    found = json.loads((measured / "calm.json").read_text())
    assert [row["seed"] for row in found["videos"]] == [7, 8, 9]
    assert found["settings"]["fingerprint"] == "ccc"
    assert found["folder"] == str(measured / "calm")
    better = {metric["name"]: metric["better"] for metric in found["metrics"]}
    assert better["temporal flickering"] == "higher"
    assert better["warp error (Lucas-Kanade)"] == "lower"


def test_markdown_has_the_figures_the_tests_and_the_quoted_rows(tmp_path):
    one = results(settings={"protocol": "msr-vtt"}, metrics=[fid()])
    other = results("other", (2.0, 4.0, 7.0), settings={"protocol": "msr-vtt"}, metrics=[fid()])
    done = report(tmp_path, a=one, b=other)
    assert (done.returncode, done.stderr) == (0, "")
    figures, tests = tables(done.stdout)
    assert figures == [
        ["metric", "videos", "mine", "other", "ModelScopeT2V (quoted)", "DEMO (quoted)"],
        ["blur \N{DOWNWARDS ARROW}", "3", "2.333 (0.5 to 5.5)", "4.333 (0.5 to 5.5)", "-", "-"],
        ["FID", "3", "20", "20", "14.89", "11.77"],
        ["FVD (I3D)", "", "-", "-", "557", "422"],
    ]
    (head, row) = tests
    assert head == ["metric", "models", "difference", "videos", "test", "p", "differ"]
    # Differences -1, -2, -3: two of eight flips are as extreme.
    assert row[:2] + row[3:] == ["blur", "mine minus other", "3", "sign flips", "0.25", "not shown"]
    assert row[2].startswith("-2 (-")
    assert "arXiv 2410.24219, Table 1" in done.stdout
    assert "FID: no paired test, since single videos have no value." in done.stdout


def test_clear_differences_are_said_and_adjusted_for_all_tests(tmp_path):
    values = np.linspace(1, 2, 12)
    three = {
        name: results(name, (values + shift).tolist())
        for name, shift in {"a": 0, "b": 1, "c": 1.5}.items()
    }
    done = report(tmp_path, **three)
    rows = tables(done.stdout)[1][1:]
    # All differences have one sign: p = 2 / 2^12, times 3 tests.
    assert [row[1] for row in rows] == ["a minus b", "a minus c", "b minus c"]
    assert {(row[5], row[6]) for row in rows} == {("0.0015", "yes")}


def test_sprite_scores_are_tested_by_mcnemar_and_share_their_real_clips(tmp_path):
    ids = [f"trained-{number}" for number in range(12)]
    good, bad = score("good", [1] * 12, ids=ids), score("bad", [1] * 4 + [0] * 8, ids=ids)
    clips = score("sprite world", [1] * 12, "real clips", ids)
    rounded = [dataclasses.replace(v, share=v.share - 1e-9) for v in clips.videos]
    elsewhere = dataclasses.replace(clips, videos=rounded)  # another machine's last digits
    reports = {"a": Report(0, [good, clips]), "b": Report(0, [bad, elsewhere])}
    done = report(tmp_path, **reports, c=results(), d=results("x"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.index("## Videos") < done.stdout.index("## Sprite score, version 1")
    *_, figures, tests = tables(done.stdout)
    assert figures[0] == ["metric", "videos", "good", "sprite world", "bad"]
    assert figures[1][1:] == [
        "12",
        "100 (75.75 to 100)",
        "100 (75.75 to 100)",
        "33.33 (13.81 to 60.94)",
    ]
    rows = {row[0]: row for row in tests[1:]}
    assert {row[1] for row in tests[1:]} == {"good minus bad"}
    # 8 of 8: p = 2 / 2^8, the smallest but one of 5 tests (blur, and 4 of the score), times 5.
    assert rows["motion right, all pairs (%)"][4:] == ["McNemar, exact", "0.039", "yes"]


def test_markdown_shows_names_as_they_are(measured):
    text = (measured / "page" / "report.md").read_text()
    head = tables(text)[0][0]
    assert head[3] == " ".join(f"wild {SLY.replace('/', '')}".split())
    assert "<" not in text.replace("\\<", "")


def test_latex_is_escaped_and_has_booktabs(measured):
    assert escape_latex("50% of a_b & #1 {x} ~^ \\ [y] --z <q>") == (
        r"50\% of a\_b \& \#1 \{x\} \textasciitilde{}\textasciicircum{} \textbackslash{} "
        r"{[}y] -{}-z \textless{}q\textgreater{}"
    )
    text = (measured / "page" / "report.tex").read_text()
    assert r"\textbackslash{}100\%" in text
    bare = re.sub(r"\\[\\{}&%#_$]", "", text)
    assert bare.count("{") == bare.count("}")
    for tabular in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        columns = len(re.match(r"\{(l*r*)\}", tabular)[1])
        rows = [line for line in tabular.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 1
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}
        assert all(rule in tabular for rule in (r"\toprule", r"\midrule", r"\bottomrule"))


def test_a_minus_sign_is_not_a_hyphen(tmp_path):
    done = report(tmp_path, "--out", "out", a=results("CLIP-4"), b=results("b", (3, 5, 7)))
    assert done.returncode == 0
    text = (tmp_path / "out" / "report.tex").read_text()
    assert "CLIP-4 minus b & $-$2.667" in text


def test_the_page_stands_alone(measured):
    page = Page((measured / "page" / "report.html").read_text())
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 6  # three videos of two models
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    for source in sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert picture.size == (6 * 96 + 5 * 2, 96)
    assert page.tags.count("svg") == 4  # flickering, and three metrics of flow
    assert f"{' '.join(SLY.split())} 0" in page.texts
    assert any("ccc" in text for text in page.texts)  # the fingerprint
    assert "Do the models differ?" in page.texts


@needs_chromium
def test_the_page_in_a_browser(measured):
    address = (measured / "page" / "report.html").as_uri()
    colours = {}
    with chromium() as browser:
        for scheme, width in (("light", 1200), ("dark", 390)):
            context = browser.new_context(
                color_scheme=scheme,
                java_script_enabled=False,
                viewport={"width": width, "height": 900},
            )
            page, requests, complaints = context.new_page(), [], []
            page.on("request", lambda request, seen=requests: seen.append(request.url))
            page.on("console", lambda message, seen=complaints: seen.append(message.text))
            page.goto(address)
            style = "e => getComputedStyle(e).backgroundColor"
            colours[scheme] = page.locator("body").evaluate(style)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
            assert [url for url in requests if not url.startswith("data:")] == [address]
            assert complaints == []
            context.close()
    assert colours == {"light": "rgb(255, 255, 255)", "dark": DARK_PAGE}


def test_frames_of_changed_or_missing_videos_are_left_out(tmp_path):
    (tmp_path / "v").mkdir()
    for name in "abc":
        write_video(np.full((8, 32, 32, 3), ord(name), np.uint8), tmp_path / "v" / name, 8, "png")
    run(tmp_path, "evaluate", "videos", "v", "--out", "v.json")
    (tmp_path / "v" / "a").rename(tmp_path / "gone")
    Image.new("RGB", (32, 32)).save(next((tmp_path / "v" / "c").iterdir()))
    done = run(tmp_path, "evaluate", "report", "v.json", "--out", "out")
    assert done.returncode == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert [value for name, value in page.attributes if name == "alt"] == ["Frames by v: b"]


def test_videos_without_prompts_are_paired_by_name(tmp_path):
    one = results(changed={"prompt": ""})
    other = results("other", (2.0, 4.0, 7.0), changed={"prompt": ""})
    assert len(tables(report(tmp_path, a=one, b=other).stdout)) == 2
    renamed = [dict(row, name=f"other-{row['name']}") for row in other.videos]
    done = report(tmp_path, a=one, c=dataclasses.replace(other, videos=renamed))
    assert len(tables(done.stdout)) == 1
    assert "blur: no paired test, which takes two videos or more with the same" in done.stdout


def test_videos_of_one_prompt_are_paired_in_their_order(tmp_path):
    """Repeats of a prompt; the second file has them under other names, in another order."""
    one = results(values=(1.0, 2.0, 10.0), changed={"prompt": "same"})
    other = results("other", (2.0, 4.0, 13.0), changed={"prompt": "same"})
    rows = tables(report(tmp_path, a=one, b=other).stdout)[1]
    assert rows[1][5] == "0.25"  # differences 1, 2, 3


def test_quoted_figures_name_their_tables():
    tables_ = read_published()
    assert "2410.24219" in tables_.source
    assert tables_.benchmarks["msr-vtt"].models["DEMO"] == {"FID": 11.77, "FVD (I3D)": 422}
    assert all(table.table.startswith("Table ") for table in tables_.benchmarks.values())


def test_figures_are_quoted_on_request(tmp_path):
    done = report(tmp_path, "--quote", "webvid-10m", a=results())
    assert "DEMO (quoted)" in tables(done.stdout)[0][0]
    assert "quoted" not in report(tmp_path, a=results()).stdout


def test_results_without_sizes_and_files(tmp_path):
    """Those that another program measured."""
    rows = [{"name": f"{n}.mp4", "prompt": f"p {n}", "blur": float(n)} for n in range(3)]
    one = dataclasses.replace(results(), videos=rows)
    done = report(tmp_path, "--out", "out", a=one, b=dataclasses.replace(one, subject="b"))
    assert (done.returncode, done.stderr) == (0, "")
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "img" not in page.tags
    assert "Frames" not in page.texts


def test_different_versions_are_noted(tmp_path):
    done = report(tmp_path, a=results(), b=results("b", versions={"python": "3.12"}))
    assert "different versions of packages" in done.stdout


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (results("b", changed={"frames": 8}), "frames 8 and 16; give both the same --frames"),
        (results("b", changed={"fps": 12.5}), "fps 12.5 and 8; give both"),
        (results("b", changed={"width": 64}), "width 64 and 32; give both"),
        (results("b", (1.0, 2.0)), "number of videos 2 and 3; measure as many"),
        (results("b", changed={"prompt": "x"}), "prompts, such as x; measure videos of the same"),
        (results("b", settings={"protocol": "q"}), "protocol q and p; measure both by one"),
        (results("b", real="r2", real_sha256="cd"), "real videos r2 and r1; give both the same"),
        (results("b", metrics=[fid("cd")]), "FID, sha256 cd and ab; measure both with the same"),
        (results("b", metrics=[fid(name="FVD (x)")]), "metric FVD (x) and FVD (y); measure both"),
        (results("mine"), "b.json: measures mine, as a.json does; give one of the two"),
    ],
)
def test_results_that_were_measured_differently_are_refused(tmp_path, other, problem):
    extra = [fid(), fid(name="FVD (y)")]
    one = results(settings={"protocol": "p"}, real="r1", real_sha256="ab", metrics=extra)
    done = report(tmp_path, a=one, b=other)
    assert done.returncode == 2
    assert done.stderr.startswith("demo-t2v: b.json: ")
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


def test_any_two_results_must_be_alike(tmp_path):
    """Also two that both agree with a third, which lacks what they differ in."""
    one, two = (results(name, metrics=[fid(name)]) for name in ("x", "y"))
    done = report(tmp_path, first=results("none"), one=one, two=two)
    problem = "two.json: was measured differently from one.json: FID, sha256 y and x"
    assert (done.returncode, problem in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["none.json"], "none.json: cannot be read (No such file or directory)"),
        (["text.json"], "text.json: holds no results of `demo-t2v evaluate`"),
        (["other.json"], "other.json: holds no results of `demo-t2v evaluate`"),
        (["newer.json"], "newer.json: has format 99; this version reads format 1"),
        (["score9.json"], "score9.json: has version 9 of the sprite score"),
        (["fine.json", "fine.json"], "fine.json: is given twice"),
        (["fine.json", "--quote", "imagenet"], "--quote imagenet: there are figures of msr-vtt"),
        (["score.json", "--quote", "vbench"], "--quote vbench: there are no results"),
        (["score.json", "more.json"], "more.json: has 2 videos and score.json has 3"),
        (["score.json", "again.json"], "again.json: scores good, as score.json does"),
        (["fine.json", "--out", "text.json"], "text.json: a file is in the way of this folder"),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, problem):
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "newer.json").write_text('{"format": 99, "metrics": []}')
    save_results(results(), tmp_path / "fine.json")
    save_report(Report(0, [score("good", [1, 0, 1])]), tmp_path / "score.json")
    save_report(Report(0, [score("good", [1, 0, 1])]), tmp_path / "again.json")
    save_report(Report(0, [score("more", [1, 0])]), tmp_path / "more.json")
    save_report(Report(0, [score("old", [1, 0])], 9), tmp_path / "score9.json")
    done = run(tmp_path, "evaluate", "report", *words)
    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
