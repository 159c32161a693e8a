"""Where model names lead. The hub is a server on this machine, or nobody."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch

from demo_t2v.checkpoints.resolve import (
    ModelDefaults,
    load_pipeline,
    read_defaults,
    resolve,
)
from demo_t2v.model_folder import ModelError
from demo_t2v.pipeline import DemoPipeline
from helpers.damage import spoil
from helpers.http_server import serve

NO_TEXT = json.dumps({
    "_class_name": "DemoPipeline", "num_inference_steps": 3, "guidance_scale": 3.0,
    "negative_prompt": 3,
})  # fmt: skip
NO_LEVELS = json.dumps({
    "_class_name": "DemoPipeline", "num_inference_steps": 3, "guidance_scale": 3.0,
    "guidance_interval": [0.5, 0.2],
})  # fmt: skip


def test_folders(tiny_folder: Path) -> None:
    assert resolve(str(tiny_folder)).folder == tiny_folder
    assert read_defaults(tiny_folder).frames == 4
    assert read_defaults(tiny_folder).side == 32


def test_defaults_are_what_the_pipeline_does_by_itself(tiny_folder: Path) -> None:
    pipeline = load_pipeline(str(tiny_folder), "cpu")
    unet = pipeline.unet.config
    assert read_defaults(tiny_folder) == ModelDefaults(
        steps=pipeline.config.num_inference_steps,
        guidance=pipeline.config.guidance_scale,
        guidance_interval=pipeline.config.guidance_interval,
        negative_prompt=pipeline.config.negative_prompt,
        frames=unet.sample_frames,
        side=unet.sample_size * pipeline.vae_scale_factor,
    )
    assert pipeline.dtype == torch.float32
    assert load_pipeline(str(tiny_folder), "cpu", "bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["", "nowhere", "../nowhere", "a/b/c", "a b/c", "/no/where"])
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(ModelError, match=r"is no model; use sprites, a folder .* or a hub"):
        resolve(name)


def test_a_folder_that_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path), "org/name"):  # the second would do as a hub repository too
        with pytest.raises(ModelError, match=r"is a folder without model_index\.json"):
            resolve(name)


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("model_index.json", '{"_class_name": "WanPipeline"}', "holds a WanPipeline"),
        ("model_index.json", "{", "is not the JSON of a model"),
        ("model_index.json", '{"_class_name": "DemoPipeline"}', "no usable 'num_inference_steps'"),
        ("model_index.json", NO_TEXT, r"index\.json: negative_prompt should be a text, not 3"),
        ("model_index.json", NO_LEVELS, "no usable guidance interval .*the lower one first"),
        ("unet/config.json", None, "is missing; the model folder is incomplete"),
        ("vae/config.json", "[]", "is not the JSON of a model"),
    ],
)
def test_a_broken_model(
    tmp_path: Path, tiny_folder: Path, file: str, text: str | None, line: str
) -> None:
    broken = tmp_path / "model"
    shutil.copytree(tiny_folder, broken)
    if text is None:
        (broken / file).unlink()
    else:
        (broken / file).write_text(text)
    with pytest.raises(ModelError, match=line) as error:
        load_pipeline(str(broken))
    assert str(broken) in str(error.value)


def test_broken_weights(tmp_path: Path, tiny_folder: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(tiny_folder, broken)
    (weights,) = (broken / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load_pipeline(str(broken), "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["unet", "vae", "content_encoder", "motion_encoder"])
def test_weights_are_never_filled_in_by_chance(
    tmp_path: Path, tiny_folder: Path, part: str
) -> None:
    broken = tmp_path / "model"
    shutil.copytree(tiny_folder, broken)
    spoil(broken, part, lambda tensors: tensors.popitem())
    with pytest.raises(
        ModelError, match=rf"{part}: 1 tensors are missing, \S+; the model is incomplete"
    ):
        load_pipeline(str(broken), "cpu")


def test_weights_that_are_no_numbers(tmp_path: Path, tiny_folder: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(tiny_folder, broken)
    spoil(broken, "unet", lambda tensors: tensors["conv_out.bias"].fill_(1e5))
    load_pipeline(str(broken), "cpu", "float32")
    with pytest.raises(
        ModelError, match=r"conv_out\.bias has numbers that are not finite; .*float32"
    ):
        load_pipeline(str(broken), "cpu", "float16")


def test_a_missing_shard(tmp_path: Path, tiny_pipeline: DemoPipeline) -> None:
    tiny_pipeline.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    shards = sorted((tmp_path / "model/unet").glob("*.safetensors"))
    assert len(shards) > 2
    load_pipeline(str(tmp_path / "model"), "cpu")
    shards[1].unlink()
    with pytest.raises(ModelError, match=shards[1].name) as error:
        load_pipeline(str(tmp_path / "model"), "cpu")
    assert "\n" not in str(error.value)


class Hub(BaseHTTPRequestHandler):
    """As the hub answers: `org/empty` holds a README, `org/broken` fails, nothing else is there."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/empty"):
            info = {"id": "org/empty", "sha": "0" * 40, "siblings": [{"rfilename": "README.md"}]}
            self._answer(200, [] if "/tree/" in self.path else info)
        elif "org/broken" in self.path:
            self._answer(403, {"error": "forbidden"})
        else:
            self._answer(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, code: int, body: object, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with serve(Hub) as address:
        yield address


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("org/unknown", 2, "is neither a folder here nor a repository on the hub"),
        ("org/na..me", 2, "is neither a folder here nor a repository"),
        ("org/empty", 2, "is no diffusers model (no model_index.json)"),
        ("org/broken", 1, "the hub does not give it (Got: HfHubHTTPError: 403"),
    ],
)
def test_the_hub_has_no_such_model(
    tmp_path: Path, hub: str, name: str, code: int, line: str
) -> None:
    assert_ends(tmp_path, hub, name, code, line)


def test_the_hub_is_out_of_reach(tmp_path: Path) -> None:
    assert_ends(tmp_path, "http://127.0.0.1:9", "org/any", 1, "the hub does not give it")


def assert_ends(folder: Path, endpoint: str, name: str, code: int, line: str) -> None:
    """Whether the program, given the model `name`, says one line with `line` in it."""
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "demo_t2v", "generate", "a car", "--model", name],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"demo-t2v: {name}: ")
    assert line in last
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
