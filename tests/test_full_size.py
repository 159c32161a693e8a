"""A file of the published size, through the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from demo_t2v.checkpoints.original.key_maps import autoencoder_from_original, denoiser_to_original
from demo_t2v.checkpoints.original.openclip import to_openclip
from demo_t2v.pipeline import DemoPipeline
from helpers.published_layout import write_published

MEASURED = """
import resource, subprocess, sys
code = subprocess.call([sys.executable, "-m", "demo_t2v", *sys.argv[1:]], stdout=2)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux does")
@pytest.mark.parametrize(("motion", "tensors"), [(True, 1896), (False, 1480)])
def test_it_is_converted_whole_and_in_little_memory(
    tmp_path: Path, motion: bool, tensors: int
) -> None:
    files = write_published(tmp_path, motion=motion, full=True)
    out = tmp_path / "model"
    command = [sys.executable, "-c", MEASURED, "convert", str(tmp_path), str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    written = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    peak = int(ended.stdout)
    print(f"peak {peak / 2**30:.2f} GiB, written {written / 2**30:.2f} GiB: {peak / written:.2f}")
    assert peak < 1.3 * written
    loaded = DemoPipeline.from_pretrained(out, dtype=torch.float16)
    state = denoiser_to_original(loaded.unet.state_dict(), loaded.unet)
    assert len(state) == tensors
    parts = {
        "demo.pth" if motion else "text2video_pytorch_model.pth": state,
        "open_clip_pytorch_model.bin": to_openclip(loaded.content_encoder.state_dict()),
    }
    if motion:
        parts["motion_encoder.pth"] = to_openclip(loaded.motion_encoder.state_dict())
    for name, ours in parts.items():
        assert ours
        assert [key for key in ours if not torch.equal(ours[key], files[name][key])] == []
    ours = loaded.vae.state_dict()
    theirs = autoencoder_from_original(files["VQGAN_autoencoder.pth"], loaded.vae)
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
