"""The page in a real browser, over a real server with the built-in model."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from diffusers import DPMSolverMultistepScheduler  # noqa: E402
from playwright.sync_api import Browser, expect  # noqa: E402

from demo_t2v.config import InferenceConfig  # noqa: E402
from demo_t2v.data.video import read_video  # noqa: E402
from demo_t2v.web.examples import EXAMPLES, PROMPTS  # noqa: E402
from demo_t2v.web.page import build_page  # noqa: E402
from demo_t2v.web.server import open_session  # noqa: E402
from demo_t2v.web.theme import launch_options  # noqa: E402
from helpers.browser import Visitor, chromium, needs_chromium, served  # noqa: E402

pytestmark = needs_chromium
PROMPT = "a balloon moves up in the sky"
QUICK = {"Steps": 4, "Frames": 6}
TABS = ("Generate", "Compare", "Take apart", "Grid", "Look inside", "History")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served("--device", "cpu") as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def visitor(browser: Browser, address: str) -> Iterator[Visitor]:
    one = Visitor(browser, address)
    yield one
    one.context.close()
    assert one.foreign == []
    assert one.errors == []


def test_from_prompt_to_playing_video(visitor: Visitor) -> None:
    visitor.settings(Steps=8, Frames=6)
    visitor.request(PROMPT)
    bar = visitor.bar
    bar.wait_for()
    first = int(bar.get_attribute("value") or 0)
    visitor.page.wait_for_function(
        "first => document.querySelector('.status progress')?.value > first",
        arg=first,
    )
    visitor.panel.get_by_alt_text("Preview of video 1").wait_for()
    (video,) = visitor.videos(1)
    assert video[4:8] == b"ftyp"
    assert "1 video in" in visitor.status()
    player = visitor.panel.locator("video")
    assert player.evaluate("v => [v.loop, v.autoplay]") == [True, True]
    command = visitor.panel.locator(".command textarea").input_value()
    assert command.startswith(f"demo-t2v generate '{PROMPT}' --seed 0 --repeat 1 --steps 8")


def test_a_seed_is_a_video_and_downloads_hold_it(visitor: Visitor) -> None:
    visitor.settings(**QUICK, Videos=2)
    visitor.page.get_by_label("Seed", exact=True).fill("5")
    visitor.request(PROMPT)
    first = visitor.videos(2)
    assert first[0] != first[1]
    visitor.request(PROMPT)
    assert visitor.videos(2) == first
    for kind, start in (("mp4", first[0][:12]), ("gif", b"GIF89a")):
        with visitor.page.expect_download() as download:
            visitor.panel.get_by_role("button", name=f"Download {kind}").first.click()
        assert download.value.path().read_bytes().startswith(start)
        assert download.value.suggested_filename.endswith(f"a-balloon-moves-up-in-the-sky-0.{kind}")
    visitor.page.get_by_role("button", name="New seed").click()
    expect(visitor.page.get_by_label("Seed", exact=True)).not_to_have_value("5")
    visitor.request(PROMPT)
    assert visitor.videos(2) != first


def test_it_opens_with_example_videos_that_play(visitor: Visitor) -> None:
    expect(visitor.page.locator("#examples video")).to_have_count(len(EXAMPLES))
    for videos in ("#examples video", "#result video"):
        visitor.page.wait_for_function(
            """videos => [...document.querySelectorAll(videos)].every(video => {
                const before = video.dataset.seen ??= video.currentTime;
                return !video.paused && video.loop && video.muted && video.currentTime != before;
            })""",
            arg=videos,
        )
    expect(visitor.page.get_by_label("Prompt", exact=True)).to_have_value(EXAMPLES[0].prompt)
    expect(visitor.page.get_by_label("Seed", exact=True)).to_have_value(str(EXAMPLES[0].seed))


def test_a_click_loads_an_example_and_the_button_makes_it_again(
    visitor: Visitor, tmp_path: Path
) -> None:
    example = next(one for one in EXAMPLES if one.motion_prompt.startswith("0: "))
    visitor.page.get_by_label("Seed", exact=True).fill("99")
    visitor.settings(**QUICK)
    visitor.page.get_by_role("button", name=example.name).click()
    expect(visitor.page.get_by_role("tab", name="Take apart")).to_have_attribute(
        "aria-selected", "true"
    )
    expect(visitor.page.get_by_label("Prompt", exact=True)).to_have_value(example.prompt)
    expect(visitor.page.get_by_label("Motion prompt")).to_have_value(example.motion_prompt)
    expect(visitor.page.get_by_label("Seed", exact=True)).to_have_value(str(example.seed))
    expect(visitor.page.get_by_label("number input for Frames", exact=True)).to_have_value("16")
    expect(visitor.page.get_by_label("Frame 2")).to_have_value("8")
    (shown,) = visitor.videos(1)
    assert shown == example.file.read_bytes()
    command = visitor.panel.locator(".command textarea").input_value()
    visitor.request(example.prompt, "Take apart")
    (made,) = visitor.videos(1)
    assert visitor.panel.locator(".command textarea").input_value() == command
    file = tmp_path / "made.mp4"
    file.write_bytes(made)
    again, shipped = (read_video(one)[0].astype(int) for one in (file, example.file))
    assert again.shape == shipped.shape
    assert abs(again - shipped).mean() < 2  # other CPUs round otherwise


def test_another_model_has_example_prompts(browser: Browser, tiny_folder: Path) -> None:
    with served("--device", "cpu", "--model", str(tiny_folder)) as url:
        visitor = Visitor(browser, url)
        assert visitor.page.locator("video").count() == 0
        expect(visitor.page.get_by_label("Prompt", exact=True)).to_have_value("")
        visitor.page.get_by_role("button", name=PROMPTS[1]).click()
        assert visitor.videos(1)
        expect(visitor.page.get_by_label("Prompt", exact=True)).to_have_value(PROMPTS[1])
        visitor.context.close()


def test_the_timeline_editor_writes_the_motion_prompt(visitor: Visitor) -> None:
    page = visitor.page
    motion_prompt, alert = page.get_by_label("Motion prompt"), visitor.open_tab.get_by_role("alert")
    expect(motion_prompt).to_have_count(0)
    visitor.tab("Take apart")
    page.get_by_label("Prompt", exact=True).fill("a frog falls")
    page.get_by_role("button", name="Add a motion").click()
    expect(motion_prompt).to_have_value("0: a frog falls; 8: ")
    expect(alert).to_have_text("timeline: the motion prompt at frame 8 is empty")
    page.get_by_label("Motion 2").fill("a frog moves up")
    expect(motion_prompt).to_have_value("0: a frog falls; 8: a frog moves up")
    expect(alert).to_have_count(0)
    page.get_by_label("Frame 2").fill("20")
    expect(alert).to_have_text("timeline: frame 20 is beyond the clip; its last frame is 15")
    rows = visitor.open_tab.locator(".timeline-row:visible")
    expect(rows.nth(1).get_by_role("alert")).to_have_count(1)
    page.get_by_role("button", name="Take apart", exact=True).click()
    expect(visitor.panel.get_by_role("alert")).to_contain_text("frame 20 is beyond the clip")
    page.get_by_label("Frame 2").fill("9")
    page.get_by_label("number input for Motion crossfade").fill("8")
    page.get_by_label("number input for Motion crossfade").press("Tab")
    expect(alert).to_contain_text("has 7 frames, fewer than the cross-fade of 8")
    rows.nth(1).get_by_role("button", name="Remove").click()
    expect(motion_prompt).to_have_value("0: a frog falls")
    expect(rows).to_have_count(1)
    motion_prompt.fill("0: a frog falls; 4: a frog grows; 12: a frog falls")
    motion_prompt.press("Tab")
    expect(rows).to_have_count(3)
    expect(page.get_by_label("Frame 3")).to_have_value("12")
    motion_prompt.fill("it moves up")
    motion_prompt.press("Tab")
    expect(rows).to_have_count(0)
    expect(motion_prompt).to_have_value("it moves up")


# Elements of a column that leave it to the left or right, those that are clipped aside.
OUTSIDE = """() => ['form', 'result', 'examples'].flatMap(id => {
    const column = document.getElementById(id), box = column.getBoundingClientRect();
    const clipped = element => {
        for (; element !== column; element = element.parentElement)
            if (getComputedStyle(element.parentElement).overflowX !== 'visible') return true;
        return false;
    };
    return [...column.querySelectorAll('*')].filter(element => {
        const { left, right, width, height } = element.getBoundingClientRect();
        const outside = left < box.left - 1 || right > box.right + 1;
        return width > 1 && height > 1 && outside && element.offsetParent && !clipped(element);
    }).map(element => `${id}: ${element.outerHTML.slice(0, 120)}`);
})"""


@pytest.mark.parametrize(
    ("name", "width", "height", "scheme"),
    [("desktop", 1400, 900, "light"), ("phone", 390, 844, "light"), ("dark", 1400, 900, "dark")],
)
def test_everything_is_in_its_column(
    visitor: Visitor,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    width: int,
    height: int,
    scheme: str,
) -> None:
    """Its screenshots are in the tests' folder."""
    folder = tmp_path_factory.mktemp("screenshots")
    page = visitor.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})
    page.get_by_role("button", name=re.compile("^Settings")).click()
    page.get_by_label("number input for Steps").wait_for()
    visitor.advanced_settings()
    whole_multiple(visitor)
    for tab in ("Generate", "Take apart", "Grid"):
        visitor.tab(tab)
        if tab == "Take apart":
            page.get_by_role("button", name="Add a motion").click()
            page.get_by_label("Frame 2").wait_for()
        page.screenshot(path=folder / f"{name}-{tab.lower().replace(' ', '-')}.png", full_page=True)
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    form, result, examples = (
        page.locator(f"#{part}").bounding_box() for part in ("form", "result", "examples")
    )
    assert form
    assert result
    assert examples
    if name == "phone":
        assert form["x"] == result["x"] == examples["x"]
        assert form["y"] < result["y"] < examples["y"]
    else:
        expect(page.get_by_role("button", name="More tabs")).to_be_hidden()
        assert form["x"] == examples["x"]
        assert form["x"] + form["width"] <= result["x"]


def whole_multiple(visitor: Visitor) -> None:
    """Checks that the result is shown sharp, centred, at a whole multiple of its size."""
    player = visitor.panel.locator("video:visible")
    visitor.page.wait_for_function(
        "() => document.querySelector('#result video')?.style.getPropertyValue('--width')"
    )
    shown, own, rendering, left, right = player.evaluate(
        """video => {
            const box = video.getBoundingClientRect();
            const column = video.closest('.result').getBoundingClientRect();
            return [[box.width, box.height], [video.videoWidth, video.videoHeight],
                getComputedStyle(video).imageRendering,
                box.left - column.left, column.right - box.right];
        }"""
    )
    scale = shown[0] / own[0]
    assert scale >= 1
    assert scale == int(scale)
    assert shown[1] == scale * own[1]
    assert rendering == "pixelated"
    assert abs(left - right) <= 1
    assert left >= 0


def test_stop_stops(visitor: Visitor) -> None:
    visitor.settings(Steps=100)
    visitor.request(PROMPT)
    visitor.wait_for_status("of 100")
    visitor.panel.get_by_role("button", name="Stop").click()
    visitor.wait_for_status("Stopped.")
    visitor.page.wait_for_timeout(1500)
    assert visitor.status() == "Stopped."
    assert visitor.panel.locator("video:visible").count() == 1  # still the example
    visitor.settings(Steps=1, Frames=2)  # and the pipeline is free again
    visitor.request(PROMPT)
    assert visitor.videos(1)


def test_videos_resume_after_a_stop_and_a_refusal(visitor: Visitor) -> None:
    player = visitor.panel.locator("video:visible")
    visitor.settings(Steps=1, Frames=6)
    visitor.request(PROMPT)
    visitor.videos(1)
    visitor.settings(Steps=100, Frames=16)  # long enough for the stop
    visitor.request(PROMPT)
    visitor.wait_for_status("of 100")
    assert player.evaluate("video => video.paused")
    visitor.panel.get_by_role("button", name="Stop").click()
    visitor.wait_for_status("Stopped.")
    plays(visitor)
    visitor.request("")
    visitor.panel.get_by_role("alert").wait_for()
    plays(visitor)


def plays(visitor: Visitor) -> None:
    """Waits until the one video of the tab plays."""
    visitor.page.wait_for_function(
        "() => [...document.querySelectorAll('#result video')]"
        ".some(v => v.offsetParent && !v.paused)"
    )


def test_stop_stops_within_two_steps(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # open_session sets it, too
    session = open_session(InferenceConfig(device="cpu"), tmp_path)
    steps: list[float] = []
    step = DPMSolverMultistepScheduler.step

    def slow_step(*words: Any, **options: Any) -> Any:
        time.sleep(0.5)  # so that a step takes longer than the click
        steps.append(time.monotonic())
        return step(*words, **options)

    monkeypatch.setattr(DPMSolverMultistepScheduler, "step", slow_step)
    page = build_page(session)
    _, address, _ = page.launch(quiet=True, prevent_thread_lock=True, **launch_options())
    try:
        visitor = Visitor(browser, address)
        visitor.settings(Steps=100)
        visitor.request(PROMPT)
        visitor.wait_for_status("of 100")  # not each step updates the page
        visitor.panel.get_by_role("button", name="Stop").click()
        clicked = time.monotonic()
        visitor.wait_for_status("Stopped.")
        visitor.page.wait_for_timeout(3000)
        visitor.context.close()
    finally:
        session.close()
        page.close(verbose=False)
    assert 2 <= len(steps) < 100
    assert sum(done > clicked for done in steps) <= 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "Describe what the video should show"),
        ("<script>alert(1)</script>", "contains a tag"),
        ("<img src=x onerror=alert(1)>", "contains a tag"),
    ],
)
def test_a_refused_prompt_has_a_message(visitor: Visitor, prompt: str, message: str) -> None:
    visitor.request(prompt)
    alert = visitor.panel.get_by_role("alert")
    alert.wait_for()
    assert message in alert.inner_text()
    assert visitor.page.locator("img[src='x']").count() == 0
    assert "Example" in visitor.panel.inner_text()  # nothing is made
    assert visitor.errors == []


def test_a_prompt_is_text_wherever_it_is_shown(visitor: Visitor) -> None:
    visitor.settings(Steps=1, Frames=2)
    prompt = "a car &lt;b&gt; < 3 **bold** ${1+1} {{x}}"
    visitor.request(prompt)
    visitor.videos(1)
    visitor.tab("History")
    visitor.open_tab.get_by_text(prompt).first.wait_for()


def test_compare(visitor: Visitor) -> None:
    visitor.settings(**QUICK)
    visitor.tab("Compare")
    visitor.request(PROMPT, "Compare")
    off, on = visitor.videos(2)
    assert off != on
    picture = visitor.panel.locator(".picture img")
    assert picture.evaluate("i => i.naturalWidth") > 500
    visitor.page.wait_for_timeout(1000)
    times = visitor.page.eval_on_selector_all(
        "#result video", "videos => videos.map(video => video.currentTime)"
    )
    length = 6 / 8  # seconds; just behind the end one may have begun anew before the other
    apart = abs(times[0] - times[1])
    assert min(apart, length - apart) < 0.25


def test_take_apart(visitor: Visitor) -> None:
    visitor.settings(**QUICK)
    visitor.tab("Take apart")
    visitor.request("a car on the grass", "Take apart")
    (plain,) = visitor.videos(1)
    visitor.page.get_by_label("Motion prompt").fill("it moves up quickly")
    visitor.page.get_by_label("number input for Motion strength").fill("1.5")
    visitor.page.get_by_label("number input for Motion strength").press("Tab")
    visitor.request("a car on the grass", "Take apart")
    assert visitor.videos(1) != [plain]
    command = visitor.panel.locator(".command textarea").input_value()
    assert "'--motion-prompt=it moves up quickly' --motion-strength 1.5" in command


def test_a_preset_sets_its_fields(visitor: Visitor) -> None:
    page = visitor.page
    steps = page.get_by_label("number input for Steps")
    scheduler, interval = page.get_by_label("Scheduler"), page.get_by_label("Guidance interval")
    fast, balanced = (page.get_by_role("radio", name=name) for name in ("Fast", "Balanced"))
    expect(balanced).to_be_checked()
    visitor.settings(Frames=2)
    visitor.advanced_settings()
    fast.check()
    expect(steps).to_have_value("4")
    expect(scheduler).to_have_value("dpm++")
    expect(interval).to_have_value("0.5-1")
    visitor.settings(Steps=5)
    expect(fast).not_to_be_checked()
    visitor.settings(Steps=4)
    expect(fast).to_be_checked()
    interval.fill("half")
    page.get_by_role("button", name="Generate", exact=True).click()
    visitor.wait_for_status("Guidance interval: should be two noise levels, as in 0.3-1")
    page.get_by_role("button", name=EXAMPLES[1].name).click()
    expect(balanced).to_be_checked()
    expect(steps).to_have_value("8")
    expect(scheduler).to_have_value("model's own")
    expect(interval).to_have_value("0.3-1")


def test_a_cache(visitor: Visitor) -> None:
    visitor.settings(**QUICK)
    visitor.request(PROMPT)
    plain = visitor.videos(1)
    visitor.advanced_settings()
    visitor.page.get_by_label("Cache", exact=True).click()
    visitor.page.get_by_role("option", name="deep").click()
    visitor.request(PROMPT)
    assert visitor.videos(1) != plain
    command = visitor.panel.locator(".command textarea").input_value()
    assert command.endswith("--cache=deep --device=cpu")
    visitor.page.get_by_label("Cache", exact=True).click()
    visitor.page.get_by_role("option", name="forecast").click()
    visitor.request(PROMPT)
    visitor.wait_for_status("cache forecast: needs 16 steps with the interval 2, not 4")


def test_grid(visitor: Visitor) -> None:
    visitor.settings(Steps=2, Frames=2)
    prompt = visitor.page.get_by_label("Prompt", exact=True)
    shown = prompt.input_value()
    visitor.tab("Grid")
    expect(prompt).to_have_count(0)
    contents = visitor.page.get_by_label("Content prompts")
    motions = visitor.page.get_by_label("Motion prompts")
    contents.fill("a car")
    motions.fill("a car falls\n" * 4)
    visitor.page.get_by_role("button", name="Make the grid").click()
    expect(visitor.panel.get_by_role("alert")).to_have_text(
        "4 motion prompts: write 1 to 3, one a line."
    )
    make_grid(visitor)
    assert "1 video in" in visitor.status()
    rendering = "video => getComputedStyle(video).imageRendering"
    assert visitor.panel.locator("video:visible").evaluate(rendering) == "auto"
    command = visitor.panel.locator(".command textarea").input_value()
    assert command.startswith("demo-t2v grid '--content=a frog in the sky' '--content=a car")
    visitor.tab("Generate")
    expect(prompt).to_have_value(shown)
    visitor.tab("History")
    visitor.open_tab.get_by_role("button", name=re.compile("Thumbnail")).first.click()
    expect(contents).to_have_value("a frog in the sky\na car in the sky")
    expect(motions).to_have_value("a pear falls\n0: a pear moves up; 1: a pear falls")


def make_grid(visitor: Visitor) -> None:
    """Start two content prompts by two motion prompts, and wait for the sheet."""
    page = visitor.page
    page.get_by_label("Content prompts").fill("a frog in the sky\na car in the sky")
    page.get_by_label("Motion prompts").fill("a pear falls\n0: a pear moves up; 1: a pear falls")
    page.get_by_role("button", name="Make the grid").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#result video')]"
        ".some(v => v.videoWidth > 2 * 160 && v.videoHeight > 2 * 160)"
    )


def test_look_inside(visitor: Visitor) -> None:
    visitor.settings(**QUICK)
    visitor.tab("Look inside")
    visitor.request(PROMPT, "Look inside")
    assert visitor.videos(1)
    assert visitor.panel.locator(".picture img").evaluate("i => i.naturalHeight") > 300


def test_history_loads_results_and_is_private(
    visitor: Visitor, browser: Browser, address: str
) -> None:
    visitor.settings(**QUICK)
    visitor.page.get_by_label("Seed", exact=True).fill("11")
    visitor.request(PROMPT)
    made = visitor.videos(1)
    visitor.settings(Steps=2)
    visitor.page.get_by_label("Seed", exact=True).fill("12")
    visitor.request("a car falls at night")
    assert visitor.videos(1) != made
    visitor.tab("History")
    entries = visitor.open_tab.get_by_role("button", name=re.compile("Thumbnail"))
    expect(entries).to_have_count(2)
    entries.nth(1).click()
    expect(visitor.page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    expect(visitor.page.get_by_label("Seed", exact=True)).to_have_value("11")
    expect(visitor.page.get_by_label("number input for Steps")).to_have_value("4")
    expect(visitor.page.get_by_role("tab", name="Generate")).to_have_attribute(
        "aria-selected", "true"
    )
    assert visitor.videos(1) == made
    visitor.settings(Steps=30)
    visitor.request("a fish circles")
    visitor.bar.wait_for()
    visitor.tab("History")  # and it ends while this is open
    entries.nth(2).wait_for()
    entries.nth(2).click()
    expect(visitor.page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    other = Visitor(browser, address)
    other.tab("History")
    assert other.open_tab.locator("img").count() == 0
    assert PROMPT not in other.open_tab.inner_text()
    other.context.close()


def test_by_keyboard_alone(visitor: Visitor) -> None:
    """Tab reaches the prompt, Enter makes a video, and every tab can be opened."""
    keyboard, box = visitor.page.keyboard, visitor.page.get_by_label("Prompt", exact=True)
    for _ in range(3):
        keyboard.press("Tab")
        if box.evaluate("box => box === document.activeElement"):
            break
    keyboard.press("Control+A")
    keyboard.type(PROMPT)
    expect(box).to_have_value(PROMPT)
    visitor.settings(Steps=1, Frames=2)
    box.press("Enter")
    assert visitor.videos(1)
    for name in TABS:
        visitor.page.get_by_role("tab", name=name).focus()
        keyboard.press("Enter")
        expect(visitor.page.get_by_role("tab", name=name)).to_have_attribute(
            "aria-selected", "true"
        )


@pytest.mark.slow
def test_looks(visitor: Visitor, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In light and dark, on a desk and on a phone, every tab with its result: no serious finding
    of axe-core's, nothing wider than the screen.
    """
    folder = tmp_path_factory.mktemp("screenshots")
    print(f"screenshots: {folder}")
    visitor.settings(Steps=6, Frames=8)
    visitor.page.get_by_role("button", name=re.compile("^Settings")).click()
    for tab in TABS[:-1]:
        visitor.tab(tab)
        if tab == "Grid":
            make_grid(visitor)
        else:
            visitor.request(PROMPT, tab)
            visitor.videos(2 if tab == "Compare" else 1)
    problems = [
        problem
        for width in (1280, 390)
        for scheme in ("light", "dark")
        for tab in TABS
        for problem in look(visitor, tab, width, scheme, folder)
    ]
    assert not problems, "\n".join(problems)


def look(visitor: Visitor, tab: str, width: int, scheme: str, folder: Path) -> Iterator[str]:
    """What is wrong with a tab at this width and in these colours; keeps a picture of it."""
    page, name = visitor.page, f"{tab}-{width}-{scheme}".lower().replace(" ", "-")
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function(
        "dark => document.body.classList.contains('dark') === dark", arg=scheme == "dark"
    )
    visitor.tab(tab)
    page.wait_for_timeout(300)
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    wide = page.evaluate("document.documentElement.scrollWidth")
    if wide > width:
        yield f"{name}: {wide} pixels wide"
    for found in Axe().run(page).response["violations"]:
        if found["impact"] in ("serious", "critical"):
            nodes = [node["html"][:160] for node in found["nodes"]]
            yield f"{name}: {found['id']}: {nodes}"
