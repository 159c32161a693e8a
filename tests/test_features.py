"""The features of a clip: outputs of networks, optical flow, preprocessed images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPModel, CLIPTextModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo_t2v.data.sprites import draw_clip
from demo_t2v.losses.optical_flow import lucas_kanade, resize_flow, video_flow
from demo_t2v.models.text import penultimate_states
from demo_t2v.training.data.feature_cache import encode_clips
from demo_t2v.training.data.image_preprocessing import ImagePreprocessing
from demo_t2v.training.data.samples import Sample
from helpers.datasets import configure
from helpers.stages import prepared_task

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_a_sample_has_the_outputs_of_its_networks(world: Path, tmp_path: Path) -> None:
    config = configure(world, tmp_path)
    caption, features = encode_clips(config)[7]
    sample = Sample.of(caption, features)
    clip = draw_clip(np.random.default_rng([0, 7]), 32, 4)
    assert sample.caption == clip.caption
    pixels = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 127.5 - 1  # (F, 3, H, W)
    vae = AutoencoderKL.from_pretrained(world / "vae")
    content = CLIPTextModel.from_pretrained(world / "content_encoder")
    whole = CLIPModel.from_pretrained(world / "clip")
    with torch.no_grad():
        latents = (0.7 * vae.encode(pixels).latent_dist.mean).transpose(0, 1)
        flow = video_flow(lucas_kanade, pixels.transpose(0, 1)[None])[0]
        states = penultimate_states(content, sample.tokens[None])[0]
        image = whole.get_image_features(pixel_values=pixels[2:3]).pooler_output[0]
    expected = {"latents": latents, "flow": flow, "content": states, "image": image}
    for name, tensor in expected.items():
        assert getattr(sample, name).dtype == torch.float32
        torch.testing.assert_close(getattr(sample, name), tensor, rtol=2e-3, atol=2e-3)
    assert flow.abs().max() > 0.2
    assert prepared_task(config).condition.tokens([caption])[0].tolist() == sample.tokens.tolist()


def test_flows_are_stored_small(world: Path, tmp_path: Path) -> None:
    config = configure(world, tmp_path, "sprites", "resolution=64", "regularization_weight=0")
    _, features = encode_clips(config)[3]
    frames = torch.from_numpy(draw_clip(np.random.default_rng([0, 3]), 64, 4).frames)
    video = frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    flow = resize_flow(video_flow(lucas_kanade, video)[0], (32, 32))
    torch.testing.assert_close(features["flow"].float(), flow, rtol=2e-3, atol=2e-3)


def test_images_are_preprocessed_for_clip(tmp_path: Path) -> None:
    frame = draw_clip(np.random.default_rng(0), 50, 1).frames[0]
    square = torch.from_numpy(frame).permute(2, 0, 1)[None]
    plain = ImagePreprocessing.read(tmp_path, 50)(square)
    torch.testing.assert_close(plain, square / 127.5 - 1)
    for size, crop in ((32, 32), (64, 60)):
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": crop, "width": crop}
        )
        processor.save_pretrained(tmp_path)
        expected = processor(Image.fromarray(frame), return_tensors="pt").pixel_values
        ours = ImagePreprocessing.read(tmp_path, 1)(square)
        assert ours.shape == expected.shape == (1, 3, crop, crop)
        # Within one of 255 steps of a channel, whose deviation is about a quarter.
        assert (ours - expected).abs().max() < 0.016
        assert (ours - expected).abs().mean() < 0.001
