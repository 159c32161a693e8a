"""Prompt files, seeds, and batches."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from demo_t2v.checkpoints.original.importer import modelscope_scheduler
from demo_t2v.checkpoints.resolve import load_pipeline
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.inference.jobs import (
    Failure,
    PromptError,
    Video,
    make_jobs,
    read_prompts,
    sample_seed,
    split_batches,
)
from demo_t2v.inference.prompt_embeds import encode_prompts
from demo_t2v.inference.runner import CancelledError, Runner, Step

ROOT = Path(__file__).parent.parent


def write(folder: Path, text: str) -> Path:
    file = folder / "prompts.csv"
    file.write_bytes(text.encode())
    return file


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("id,prompt\n1,a car\nb,a fish\n", [("1", "a car"), ("b", "a fish")]),
        ("id,prompt\n3,Jockeys racing, in the rain", [("3", "Jockeys racing, in the rain")]),
        ('id,prompt\n3,"Jockeys racing, in the rain"', [("3", "Jockeys racing, in the rain")]),
        ('id,prompt\n3,a 6" ruler, bent', [("3", 'a 6" ruler, bent')]),
        ('id,prompt\n3,"say ""hi"""', [("3", 'say "hi"')]),
        ("prompt\na car\na fish, asleep\n", [("1", "a car"), ("2", "a fish, asleep")]),
        ("\ufeffid,prompt\r\n1,a café\r\n", [("1", "a café")]),
        ("prompt,id\na car,7\n", [("7", "a car")]),
        (" ID , Prompt ,\n1,a car,x", [("1", "a car")]),
        ("id,prompt\n,a car\n", [("1", "a car")]),
        ("id,prompt\n1,a car\n\n", [("1", "a car")]),
        ("id,prompt\r\n1,a car\r\n,\r\n \r\n\r\n", [("1", "a car")]),
        ("prompt\na car; red\n", [("1", "a car; red")]),
    ],
)
def test_prompt_files(tmp_path: Path, text: str, prompts: list[tuple[str, str]]) -> None:
    assert read_prompts(write(tmp_path, text)) == prompts


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "has no column `prompt`; begin it with `id,prompt`"),
        ("id,caption\n1,a\n", "has no column `prompt`"),
        ("id,prompt\n", "has no prompts"),
        ("id,prompt\n1,a\n\n2,b\n", "row 2 (line 3): has nothing in it"),
        ("id,prompt\n1,a\n , \n\n2,b\n", "row 2 (line 3): has nothing in it"),
        ("id,prompt\n\n,\n", "has no prompts"),
        ("id,prompt\n1,a\n2, \n", "row 2 (line 3): column `prompt` is empty"),
        ("id,prompt\n1,a\n2\n", "row 2 (line 3): column `prompt` is empty"),
        ("id;prompt\n1;a\n", "separates its columns by semicolons; separate the columns by comm"),
        ('"id";"prompt"\n"1";"a"\n', "separates its columns by semicolons"),
        ("Prompt;id\na;1\n", "separates its columns by semicolons"),
        ("id\tprompt\n1\ta\n", "separates its columns by tabs; separate the columns by commas"),
        ("id|prompt\n1|a\n", "separates its columns by bars"),
        ("\ufeffsep=;\r\nid;prompt\r\n1;a\r\n", "begins with `sep=;`; remove this line, and sep"),
        ("SEP=,\nid,prompt\n1,a\n", "begins with `SEP=,`; remove this line"),
        ("prompt,id\na, b,1\n", "row 1 (line 2): has 3 columns, not 2; quote"),
        ('id,prompt\n1,a\n2,"b\n3,c\n', "line 4: is not valid CSV"),
        ('id,prompt\n1,"a" b\n', "line 2: is not valid CSV"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, text: str, line: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(PromptError) as error:
        read_prompts(file)
    assert str(error.value).startswith(str(file))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "names", "line"),
    [
        ('id,prompt\n1,"a\nb"\n1,c\n', ["1", "1-2"], "row 2 (line 4) is 1-2"),
        ("id,prompt\nA,a\na,c\n", ["A", "a-2"], "row 2 (line 3) is a-2"),
        ("id,prompt\n2,a\n,c\n", ["2", "2-2"], "row 2 (line 3) is 2-2"),
        ("id,prompt\n1,a\n1,b\n1,c\n1-2,d\n", ["1", "1-3", "1-4", "1-2"], "row 3 (line 4) is 1-4"),
        ("id,prompt\n" + "1,a\n" * 6, ["1", *(f"1-{n}" for n in range(2, 7))], "and 2 more"),
    ],
)
def test_repeated_ids_are_numbered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, names: list[str], line: str
) -> None:
    file = write(tmp_path, text)
    assert [name for name, _ in read_prompts(file)] == names
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{file}: column `id` has repeated ids; row ")
    assert line in record.getMessage()


def test_ids_of_their_own_are_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_prompts(write(tmp_path, "id,prompt\n1,a\n2,a\n"))
    monkeypatch.setenv("RANK", "1")  # the first process of a launcher warns for all
    read_prompts(write(tmp_path, "id,prompt\n1,a\n1,a\n"))
    assert not caplog.records


def test_the_published_prompt_file(tmp_path: Path) -> None:
    """Its ids, twice 1 and 2, its unquoted commas."""
    published = ["0,Slow motion petals fall, landing softly", "1,An old man", "2,Jockeys racing"]
    published += ["1,2 Dog and a whale, ocean adventure", "2,Teddy bear", "3,goldfish in glass"]
    file = write(tmp_path, "\n".join(["id,prompt", *published]))
    assert read_prompts(file) == [
        ("0", "Slow motion petals fall, landing softly"),
        ("1", "An old man"),
        ("2", "Jockeys racing"),
        ("1-2", "2 Dog and a whale, ocean adventure"),
        ("2-2", "Teddy bear"),
        ("3", "goldfish in glass"),
    ]


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "b", "prompt": "a car, red", "more": 1}\n{"prompt": "a \u2028 fish"}\n')
    assert read_prompts(file) == [("b", "a car, red"), ("2", "a \u2028 fish")]
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a car"}\r\n\r\n \n')
    assert read_prompts(file) == [("1", "a car")]


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("id,prompt\n7,a car, red\n", [("7", "a car, red")]),
        (
            '{"id": "7", "prompt": "a car"}\n{"prompt": "a fish"}\n',
            [("7", "a car"), ("2", "a fish")],
        ),
    ],
)
def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, text: str, prompts: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert read_prompts(Path("-")) == prompts


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a car\n", "standard input: has no column `prompt`; begin it with `id,prompt`"),
        (b"", "standard input: has no column `prompt`"),
        (b'{"prompt": ""}', "standard input, row 1: column `prompt` is empty"),
        ("prompt\nschön".encode("latin-1"), "standard input: is not UTF-8 text"),
    ],
)
def test_bad_standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes, line: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(PromptError) as error:
        read_prompts(Path("-"))
    assert str(error.value).startswith(line)


def test_parquet(tmp_path: Path) -> None:
    rows = {"id": [7, None], "prompt": ["a car, red", "a fish"], "n": [1.0, 2.0]}
    file = tmp_path / "prompts.parquet"
    parquet.write_table(pyarrow.table(rows), file)
    assert read_prompts(file) == [("7", "a car, red"), ("2", "a fish")]
    parquet.write_table(pyarrow.table({"text": ["a car"]}), file)
    with pytest.raises(PromptError, match=r"parquet: has no column `prompt`; it has text"):
        read_prompts(file)
    file.write_text("no Parquet")
    with pytest.raises(PromptError, match=r"parquet: cannot be read"):
        read_prompts(file)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "has no prompts"),
        ('{"prompt": "a"}\n\n{"prompt": "b"}', "row 2: has nothing in it; remove it"),
        ('{"prompt": "a"}\n{}\n', "row 2: column `prompt` is empty"),
        ("\n\n", "has no prompts"),
        ("[]", "row 1: is no JSON object"),
        ('{"prompt": 3}', "row 1: column `prompt` should be text, not int"),
        ('{"prompt": "a", "id": []}', "row 1: column `id` should be text, not list"),
        ('{"id": "a"}', "row 1: column `prompt` is empty"),
        (f'{{"prompt": "{"a" * 1_000_000}"}}', "has 1,000,000 characters; write at most 10,000"),
    ],
)
def test_bad_json_lines(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(PromptError) as error:
        read_prompts(file)
    assert str(error.value).startswith(str(file))
    assert line in str(error.value)
    assert len(str(error.value)) < 300


def test_prompt_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("id,prompt\n1,schön".encode("latin-1"))
    with pytest.raises(PromptError, match=r"latin\.csv: is not UTF-8"):
        read_prompts(tmp_path / "latin.csv")
    with pytest.raises(PromptError, match=r"none\.csv: cannot be read \(No such file"):
        read_prompts(tmp_path / "none.csv")
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompts(tmp_path)


words = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r\n"), min_size=1
).filter(lambda text: text == text.strip())


@given(prompts=st.lists(words, min_size=1))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    stream = io.StringIO()
    rows = [(str(number), prompt) for number, prompt in enumerate(prompts)]
    csv.writer(stream).writerows([("id", "prompt"), *rows])
    assert read_prompts(write(tmp_path_factory.mktemp("csv"), stream.getvalue())) == rows


@given(st.lists(st.sampled_from(["a car", "a fish", "at night"]), min_size=1))
def test_unquoted_commas_belong_to_the_prompt(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    prompt = ", ".join(parts)
    file = write(tmp_path_factory.mktemp("csv"), f"id,prompt\n1,{prompt}\n")
    assert read_prompts(file) == [("1", prompt)]


def test_the_examples_that_ship() -> None:
    assert len(read_prompts(ROOT / "prompts" / "examples.csv")) == 8


def test_seeds_depend_on_nothing_but_seed_id_and_repeat() -> None:
    few = make_jobs([("b", "y")], repeat=2, seed=5)
    many = make_jobs([("a", "x"), ("b", "z")], repeat=4, seed=5)
    assert [job.seed for job in few] == [job.seed for job in many[4:6]]
    assert len({job.seed for job in many}) == 8
    assert sample_seed(5, "b", 0) == 0xE079E5402D18  # recorded: old seeds keep their videos
    assert sample_seed(6, "b", 0) != sample_seed(5, "b", 0)


@pytest.fixture(scope="module")
def config() -> InferenceConfig:
    return InferenceConfig(ddim_timesteps=2, guide_scale=3.0, batch_size=2)


def video_of(result: Video | Failure) -> Video:
    assert isinstance(result, Video)
    return result


def test_videos_do_not_depend_on_their_batch(tiny_folder: Path, config: InferenceConfig) -> None:
    pipeline = load_pipeline(str(tiny_folder), "cpu")
    jobs = make_jobs([("a", "a car falls"), ("b", "a fish"), ("c", "a fish")], repeat=1, seed=1)
    steps: list[int] = []
    runner = Runner(pipeline, config)
    together = list(runner.run(split_batches(jobs, 2), video_of, steps.append))
    assert steps == [2, 2, 1, 1]
    assert [video.job for video in together] == jobs
    for video in together:
        frames = video.frames
        assert frames.shape == (4, 32, 32, 3)
        assert frames.dtype == np.uint8
        assert video.seconds > 0
        (alone,) = runner.videos([video.job])
        assert np.abs(alone.frames.astype(int) - frames).max() <= 1
    assert (
        np.abs(together[1].frames.astype(int) - together[2].frames).max() > 1
    )  # their seeds differ


def test_steps_are_counted_as_asked_for_where_the_scheduler_takes_more(
    tiny_folder: Path, config: InferenceConfig
) -> None:
    pipeline = load_pipeline(str(tiny_folder), "cpu")
    pipeline.scheduler = modelscope_scheduler()
    jobs = make_jobs([("a", "a car falls"), ("b", "a fish")], repeat=1, seed=1)
    uneven = config.model_copy(
        update={"num_inference_steps": 6}
    )  # a stride of 166: seven timesteps
    counted: list[int] = []
    seen: list[Step] = []
    runner = Runner(pipeline, uneven)
    assert len(list(runner.run([jobs], video_of, counted.append, seen.append))) == 2
    assert [(step.number, step.total) for step in seen] == [(n, 7) for n in range(1, 8)]
    assert sum(counted) == 2 * 6
    assert set(counted) == {0, 2}


def test_sizes_are_checked_at_once(tiny_folder: Path, config: InferenceConfig) -> None:
    pipeline = load_pipeline(str(tiny_folder), "cpu")
    wrong = config.model_copy(update={"height": 33, "width": 32})
    with pytest.raises(ConfigError, match="height 33: "):
        Runner(pipeline, wrong)


def test_overflow_is_said_and_not_saved(tiny_folder: Path, config: InferenceConfig) -> None:
    pipeline = load_pipeline(str(tiny_folder), "cpu")
    pipeline.unet.conv_out.bias.data.fill_(float("nan"))
    (job,) = make_jobs([("a", "a car")], repeat=1, seed=1)
    with pytest.raises(ArithmeticError, match="float32"):
        list(Runner(pipeline, config).videos([replace(job, id="b")]))


def test_a_callback_gets_the_latents_and_can_end_the_run(
    tiny_folder: Path, config: InferenceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline(str(tiny_folder), "cpu")
    jobs = make_jobs([("a", "a car falls"), ("b", "a fish")], repeat=1, seed=1)
    seen: list[Step] = []
    runner = Runner(pipeline, config)
    together = list(runner.videos(jobs, on_step=seen.append))
    assert [(step.number, step.total) for step in seen] == [(1, 2), (2, 2)]
    assert {step.latents.shape for step in seen} == {step.clean.shape for step in seen}
    assert seen[0].latents.shape == (2, 4, 4, 4, 4)
    decoded = pipeline.decode_latents(seen[-1].latents).detach().numpy()
    assert np.abs(decoded[0] * 255 - together[0].frames).max() <= 1
    monkeypatch.setattr(pipeline, "decode_latents", lambda *_: pytest.fail("decoded"))

    def end(step: Step) -> None:
        raise CancelledError(step.number)

    with pytest.raises(CancelledError, match="1"):
        list(runner.videos(jobs, on_step=end))


def test_motion_has_a_prompt_and_a_strength(tiny_folder: Path, config: InferenceConfig) -> None:
    pipeline = load_pipeline(str(tiny_folder), "cpu")
    jobs = make_jobs([("a", "a car falls")], repeat=1, seed=1)

    def video(**settings: object) -> np.ndarray:
        return next(Runner(pipeline, config.model_copy(update=settings)).videos(jobs)).frames

    plain = video()
    assert (video(motion_prompt="a car falls", motion_strength=1.0) == plain).all()
    assert (video(motion_prompt="it grows") != plain).any()
    assert (video(motion_strength=0.0) != plain).any()
    other = config.model_copy(update={"motion_prompt": "it grows"})
    runner = Runner(pipeline, other)
    runner.prompt_embeds = encode_prompts(pipeline, jobs, runner.config)
    (video,) = runner.videos(jobs)
    assert (video.frames != plain).any()  # also where the prompts are encoded beforehand
