"""The denoiser: published figures, and what must hold whatever the weights are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo_t2v.checkpoints.original.key_maps import denoiser_from_original, denoiser_to_original
from demo_t2v.models.attention import TransformerBlock
from demo_t2v.models.unet import DemoUNet
from helpers.golden import make_input, make_state, manifest, recorded, relative_error, weight
from helpers.tiny_networks import tiny_unet


def small_network() -> DemoUNet:
    return DemoUNet(
        block_out_channels=(64, 128, 256, 256), attention_head_dim=32, num_input_heads=2
    ).eval()


def published_state(unet: DemoUNet) -> dict[str, torch.Tensor]:
    """Weights made from the published names, in the published shapes, for `unet`'s sizes."""
    published = denoiser_to_original(unet.state_dict(), unet)
    return {key: weight(key, tensor.shape) for key, tensor in published.items()}


def test_small_network_matches_the_recorded_figures() -> None:
    unet = small_network()
    unet.load_state_dict(denoiser_from_original(published_state(unet), unet))
    figures = recorded("unet_small.safetensors")
    with torch.no_grad():
        output = unet(
            make_input("x", (2, 4, 8, 16, 16)),
            torch.tensor([10, 500]),
            make_input("content", (2, 77, 1024)),
            make_input("motion", (2, 77, 1024)),
            eot_index=torch.tensor([5, 9]),
        )
    assert relative_error(output.sample, figures["eps"]) < 1e-4
    assert len(output.eot_attention) == 16
    for number, ours in enumerate(output.eot_attention):
        assert relative_error(ours, figures[f"eot_attention.{number:02d}"]) < 1e-4


@pytest.mark.slow
def test_full_network_matches_the_recorded_figures() -> None:
    with torch.device("meta"):
        unet = DemoUNet().eval()
    state = make_state("demo_unet_keys.json")
    unet.load_state_dict(denoiser_from_original(state, unet), assign=True)
    with torch.no_grad():
        output = unet(
            make_input("full.x", (1, 4, 4, 16, 16)),
            torch.tensor([321]),
            make_input("full.content", (1, 77, 1024)),
            make_input("full.motion", (1, 77, 1024)),
        )
    assert relative_error(output.sample, recorded("unet_full.safetensors")["eps"]) < 1e-4


@pytest.mark.parametrize(
    ("keys_json", "motion"),
    [("demo_unet_keys.json", True), ("modelscope_unet_keys.json", False)],
)
def test_every_published_name_and_shape_has_its_place(keys_json: str, motion: bool) -> None:
    with torch.device("meta"):
        unet = DemoUNet(motion=motion)
        published = {key: torch.empty(shape) for key, shape in manifest(keys_json).items()}
    converted = denoiser_from_original(published, unet)
    assert {k: v.shape for k, v in converted.items()} == {
        k: v.shape for k, v in unet.state_dict().items()
    }
    back = denoiser_to_original(converted, unet)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in published.items()}


def test_dropout_is_in_convolutions_alone() -> None:
    with torch.device("meta"):
        unet = DemoUNet()
    rates = {name: m.p for name, m in unet.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert set(rates.values()) == {0.1}
    assert len(rates) == 22 * 4  # one in a residual block, three in its temporal convolutions
    assert all(".resnets." in name or ".temp_convs." in name for name in rates)


def test_conversion_names_missing_surplus_and_misshapen_tensors() -> None:
    unet = small_network()
    state = published_state(unet)
    state["surplus.weight"] = state.pop("out.2.bias")
    with pytest.raises(ValueError, match=r"out\.2\.bias"):
        denoiser_from_original(state, unet)
    with pytest.raises(ValueError, match=r"surplus\.weight"):
        denoiser_from_original(published_state(unet) | {"surplus.weight": torch.zeros(1)}, unet)
    with pytest.raises(ValueError, match=r"out\.2\.bias"):
        denoiser_from_original(published_state(unet) | {"out.2.bias": torch.zeros(5)}, unet)


def inputs(batch: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 4, 4, 4, 4), (batch, 7, 24), (batch, 7, 24)]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@torch.no_grad()
def test_strength_zero_is_the_base_network() -> None:
    demo, base = tiny_unet(), tiny_unet(motion=False)
    base.load_state_dict({k: v for k, v in demo.state_dict().items() if k in base.state_dict()})
    x, content, motion = inputs()
    expected = base(x, 7, content).sample
    assert torch.equal(demo(x, 7, content, motion, motion_strength=0.0).sample, expected)
    whole = demo(x, 7, content, motion).sample
    assert not torch.allclose(whole, expected, atol=1e-2)


@torch.no_grad()
def test_motion_transformers_without_output_change_nothing() -> None:
    demo, base = tiny_unet(), tiny_unet(motion=False)
    base.load_state_dict({k: v for k, v in demo.state_dict().items() if k in base.state_dict()})
    for name, parameter in demo.named_parameters():
        if "motion_attentions" in name and ".proj_out." in name:
            parameter.zero_()
    x, content, motion = inputs()
    assert torch.equal(demo(x, 7, content, motion).sample, base(x, 7, content).sample)


@torch.no_grad()
def test_prepared_conditioning_is_the_states() -> None:
    unet = tiny_unet()
    x, content, motion = inputs()
    prepared = unet.prepare_conditioning(content, motion)
    assert torch.equal(unet(x, 7, conditioning=prepared).sample, unet(x, 7, content, motion).sample)


def test_keys_and_values_are_computed_once_for_a_prompt() -> None:
    unet = tiny_unet()
    x, content, motion = inputs()
    seen: list[torch.Size] = []
    for block in unet.blocks:
        for attention in (*block.attentions, *block.motion_attentions):
            projection = attention.transformer_blocks[0].attn2.to_k
            projection.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    prepared = unet.prepare_conditioning(content, motion)
    unet(x, 7, conditioning=prepared)
    unet(x, 3, conditioning=prepared)
    # 2 + 1 + 4 layers with a content and a motion transformer each; B samples of L tokens.
    assert seen == [torch.Size([2, 7, 24])] * 14


@torch.no_grad()
def test_asking_for_maps_does_not_change_the_answer() -> None:
    unet = tiny_unet()
    x, content, motion = inputs()
    output = unet(x, 7, content, motion, eot_index=torch.tensor([2, 6]))
    torch.testing.assert_close(output.sample, unet(x, 7, content, motion).sample)
    assert [tuple(m.shape) for m in output.eot_attention] == [
        (2, 4, 4, 4), (2, 2, 2, 4), (2, 2, 2, 4), (2, 2, 2, 4), (2, 2, 2, 4), (2, 4, 4, 4),
        (2, 4, 4, 4),
    ]  # fmt: skip
    assert all(((m > 0) & (m < 1)).all() for m in output.eot_attention)


@torch.no_grad()
def test_samples_do_not_hear_one_another() -> None:
    unet = tiny_unet()
    x, content, motion = inputs(3)
    together = unet(x, torch.tensor([1, 50, 900]), content, motion).sample
    alone = unet(x[1:2], 50, content[1:2], motion[1:2]).sample
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_motion_states_matter_where_the_content_does_not() -> None:
    unet = tiny_unet()
    x, content, motion = inputs()
    first = unet(x, 7, content, motion).sample
    second = unet(x, 7, content, motion.flip(1) * 2).sample
    assert not torch.allclose(first, second, atol=1e-3)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    x, content, motion = inputs()
    gradients = []
    for checkpointing in (False, True):
        unet = tiny_unet()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(x, 7, content, motion).sample.square().mean().backward()
        gradients.append([p.grad for p in unet.parameters()])
    assert len(gradients[0]) > 100
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_without_its_temporal_layers_it_is_an_image_network() -> None:
    unet = tiny_unet(motion=False, temporal=False).eval()
    frames, text = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 5, unet.config.cross_attention_dim)
    with torch.no_grad():
        clip = unet(frames, 7, text).sample
        single = unet(frames[:, :, 1:2], 7, text).sample
    assert torch.allclose(clip[:, :, 1:2], single, atol=1e-5)


def test_a_frame_embedding_changes_nothing_until_it_is_trained() -> None:
    without = tiny_unet()
    sizes = {k: v for k, v in without.config.items() if not k.startswith("_")}
    told = DemoUNet(**{**sizes, "frame_embedding": True}).eval()
    told.load_state_dict(without.state_dict(), strict=False)
    x, content, motion = inputs()
    with torch.no_grad():
        assert torch.equal(
            told(x, 7, content, motion).sample, without(x, 7, content, motion).sample
        )


def test_a_frame_embedding_tells_frames_apart_that_look_alike(tmp_path: Path) -> None:
    alike = torch.randn(1, 4, 1, 8, 8).expand(2, 4, 3, 8, 8)
    text = torch.randn(2, 5, 24)
    for told in (False, True):
        unet = tiny_unet(motion=False, temporal=False, frame_embedding=told)
        unet.save_pretrained(tmp_path / str(told))
        saved = DemoUNet.from_pretrained(tmp_path / str(told)).eval()
        with torch.no_grad():
            clip = saved(alike, 7, text).sample
            assert torch.equal(clip, unet(alike, 7, text).sample)
        assert torch.allclose(clip[:, :, 0], clip[:, :, 2], atol=1e-5) is not told
        assert torch.allclose(clip[0], clip[1], atol=1e-5) is False  # the texts differ


def test_motion_starts_as_a_copy_of_content() -> None:
    unet = tiny_unet()
    unet.init_motion_from_content()
    for block in unet.blocks:
        copies, originals = block.motion_attentions.state_dict(), block.attentions.state_dict()
        assert all(torch.equal(copies[name], originals[name]) for name in originals)


def test_a_new_network_starts_without_its_transformers() -> None:
    """Every transformer's output is zero at first, so content states change nothing yet."""
    unet = DemoUNet(**{k: v for k, v in tiny_unet().config.items() if not k.startswith("_")}).eval()
    x, content, motion = inputs()
    with torch.no_grad():
        assert torch.equal(
            unet(x, 7, content, motion).sample, unet(x, 7, 2 * content, -motion).sample
        )


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 5), (1, 1)])
def test_sizes_that_do_not_fit_are_refused(height: int, width: int) -> None:
    x = torch.zeros(1, 4, 4, height, width)
    with pytest.raises(ValueError, match="multiples of 2"):
        tiny_unet()(x, 7, torch.zeros(1, 7, 24), torch.zeros(1, 7, 24))


@torch.no_grad()
def test_other_frame_counts_and_sizes_run() -> None:
    unet = tiny_unet()
    _, content, motion = inputs()
    assert unet(torch.randn(2, 4, 9, 6, 2), 7, content, motion).sample.shape == (2, 4, 9, 6, 2)


def test_save_and_load_keep_every_weight(tmp_path) -> None:
    unet = tiny_unet()
    unet.save_pretrained(tmp_path)
    loaded = DemoUNet.from_pretrained(tmp_path)
    assert loaded.config.motion is True
    for name, saved in unet.state_dict().items():
        assert torch.equal(saved, loaded.state_dict()[name]), name


def test_motion_states_for_each_frame() -> None:
    unet = small_network()
    unet.load_state_dict(denoiser_from_original(published_state(unet), unet))
    sample, content = make_input("x", (2, 4, 8, 16, 16)), make_input("content", (2, 77, 1024))
    motion, ends = make_input("motion", (2, 77, 1024)), torch.tensor([5, 9])

    def run(states: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            output = unet(sample, 500, content, states, eot_index=ends)
        return output.sample, *output.eot_attention

    one = run(motion, ends)
    repeated = run(motion[:, None].expand(-1, 8, -1, -1), ends[:, None].expand(-1, 8))
    for first, second in zip(one, repeated, strict=True):
        assert first.shape == second.shape
        assert relative_error(second, first) < 1e-5
    other = motion.flip(0)
    changed = torch.stack([motion] * 4 + [other] * 4, dim=1)
    assert relative_error(run(changed, ends[:, None].expand(-1, 8))[0], one[0]) > 1e-3


def test_a_frame_attends_to_its_own_states() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(16, 2, 8, 24)
    x, states = torch.randn(2 * 3, 4, 16), torch.randn(2, 4, 5, 24)  # 2 samples, 3 positions
    kv = block.attn2.keys_values(states)
    ends = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    with torch.no_grad():
        query = block.norm2(x)
        attended, token_map = block._cross_attention(query, kv, ends)
        for sample, frame in ((0, 0), (0, 3), (1, 2)):
            own = block.attn2.keys_values(states[sample, frame][None])
            rows = query[3 * sample : 3 * sample + 3, frame][None]
            alone, alone_map = block.attn2.with_map(rows, own, ends[sample, frame][None])
            torch.testing.assert_close(attended[3 * sample : 3 * sample + 3, frame], alone[0])
            torch.testing.assert_close(token_map.view(2, 3, 4)[sample, :, frame], alone_map[0])


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_all_convolutions_of_a_cpu_have_one_memory_layout(batch: int) -> None:
    unet, layouts = tiny_unet(), []
    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            module.register_forward_pre_hook(
                lambda _, args: layouts.append(
                    args[0].is_contiguous(memory_format=torch.channels_last)
                )
            )
    _, content, motion = inputs(batch)
    unet(torch.randn(batch, 4, 4, 8, 8), 7, content, motion)
    assert len(layouts) > 40
    assert all(layouts)


def test_hooks_may_copy_the_lists_that_blocks_get() -> None:
    """As those of DeepSpeed (ZeRO-3) and FSDP2 do."""
    unet = small_network()
    inputs = (
        make_input("x", (1, 4, 2, 16, 16)),
        10,
        make_input("content", (1, 77, 1024)),
        make_input("motion", (1, 77, 1024)),
    )
    with torch.no_grad():
        expected = unet(*inputs).sample
        for block in unet.blocks:
            block.register_forward_pre_hook(
                lambda _, args: tuple(list(a) if isinstance(a, list) else a for a in args)
            )
        assert torch.equal(unet(*inputs).sample, expected)
