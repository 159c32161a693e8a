"""Prompts to tokens to states."""

from __future__ import annotations

import logging
import unicodedata

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from demo_t2v.models.text import TextConditioner, penultimate_states
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.tasks.clip import train_tokenizer
from helpers.tiny_networks import CAPTIONS

LENGTH = 16


@pytest.fixture(scope="module")
def condition(tiny_pipeline: DemoPipeline) -> TextConditioner:
    return TextConditioner(
        tiny_pipeline.tokenizer, tiny_pipeline.content_encoder, tiny_pipeline.motion_encoder
    )


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(CAPTIONS, vocab_size=600, length=LENGTH)


@torch.no_grad()
def test_states_are_the_last_but_one_layer_through_the_last_norm(
    condition: TextConditioner,
) -> None:
    """The encoder layer by layer, by hand: all layers but the last, then the final norm."""
    encoder, ids = condition.content_encoder, condition.tokens(CAPTIONS)
    causal = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)[None, None]
    hidden = encoder.embeddings(input_ids=ids)
    for layer in encoder.encoder.layers[:-1]:
        answer = layer(hidden, attention_mask=causal)
        hidden = answer if isinstance(answer, torch.Tensor) else answer[0]
    weights = encoder.final_layer_norm
    mean, variance = hidden.mean(-1, keepdim=True), hidden.var(-1, keepdim=True, correction=0)
    by_hand = (hidden - mean) / (variance + weights.eps).sqrt() * weights.weight + weights.bias
    states = penultimate_states(encoder, ids)
    torch.testing.assert_close(states, by_hand, rtol=1e-4, atol=1e-5)
    last = encoder(input_ids=ids).last_hidden_state
    assert not torch.allclose(states, last, atol=1e-2)


@torch.no_grad()
def test_each_prompt_goes_to_its_own_encoder(condition: TextConditioner) -> None:
    first, second = ["a car falls"], ["a fish grows slowly"]
    both = condition(first, second)
    torch.testing.assert_close(both.content, condition(first).content)
    torch.testing.assert_close(both.motion, condition(second).motion)
    assert not torch.allclose(both.motion, condition(first).motion, atol=1e-2)
    # The two encoders have weights of their own.
    assert not torch.allclose(condition(first).content, condition(first).motion, atol=1e-2)
    assert both.eot_index.tolist() == condition(second).eot_index.tolist()
    assert both.eot_index.tolist() != condition(first).eot_index.tolist()


@torch.no_grad()
def test_without_a_motion_encoder_there_are_no_motion_states(condition: TextConditioner) -> None:
    alone = TextConditioner(condition.tokenizer, condition.content_encoder, None)
    states = alone(CAPTIONS, ["a pear"] * 3)
    assert states.motion is None
    assert torch.equal(states.content, condition(CAPTIONS).content)


def test_a_short_prompt_is_whole_and_padded(
    condition: TextConditioner, caplog: pytest.LogCaptureFixture
) -> None:
    ids = condition.tokens(["a car", ""])
    start, end = condition.tokenizer.bos_token_id, condition.tokenizer.eos_token_id
    assert ids.shape == (2, LENGTH)
    assert ids[1].tolist() == [start] + [end] * (LENGTH - 1)
    text = condition.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert text == "a car"
    assert not caplog.records


def test_a_long_prompt_is_cut_with_a_warning_that_shows_what_was_dropped(
    condition: TextConditioner, caplog: pytest.LogCaptureFixture
) -> None:
    """14 tokens fit between start and end; every word here is a token of its own."""
    words = ["moves", "slowly", "a"] * 5
    fits, long = " ".join(words[:14]), " ".join([*words[:14], "slowly", "grows"])
    with caplog.at_level(logging.WARNING):
        whole, cut, again = condition.tokens([fits, long, long])
    assert torch.equal(whole, cut)
    assert torch.equal(whole, again)
    assert int(condition.eot_index(cut[None])) == LENGTH - 1
    assert len(caplog.records) == 1
    assert caplog.messages[0].endswith("longer than 14 tokens; dropped: 'slowly grows'")


def test_eot_index_is_the_first_end_of_text(condition: TextConditioner) -> None:
    end = condition.tokenizer.eos_token_id
    ids = torch.tensor([[1, end, end, end], [1, 2, 3, end], [1, 2, end, 4]])
    assert condition.eot_index(ids).tolist() == [1, 3, 2]


def test_the_end_of_text_is_the_highest_token_and_not_2(tokenizer: CLIPTokenizer) -> None:
    """CLIPTextModel reads an end-of-text id of 2 as 'unknown, take the highest'."""
    ids = tokenizer.get_vocab().values()
    assert tokenizer.eos_token_id == max(ids) == len(tokenizer) - 1 > 2
    assert sorted(ids) == list(range(len(tokenizer)))
    assert tokenizer.bos_token_id == tokenizer.eos_token_id - 1


def test_words_of_the_captions_are_learned(tokenizer: CLIPTokenizer) -> None:
    pieces = tokenizer.tokenize("a car moves slowly")
    assert pieces == ["a</w>", "car</w>", "moves</w>", "slowly</w>"]
    assert len(tokenizer) <= 600


def bare(text: str) -> str:
    """Without case and white space, which a CLIP tokenizer does not keep."""
    folded = unicodedata.normalize("NFC", text)
    return "".join("".join(letter.lower() for letter in folded).split())


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30).filter(lambda text: "<|" not in text))
@example(text="the pear's GLÜCK, 子犬が走る 🚗🏽 100%!")
@example(text="\x00\x1f\u200b")
def test_no_text_is_unknown(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    inner = ids[1:-1]
    assert tokenizer.eos_token_id not in inner
    assert tokenizer.bos_token_id not in inner
    assert bare(tokenizer.decode(inner)) == bare(text)


def test_a_saved_tokenizer_says_the_same(tokenizer: CLIPTokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    for text in [*CAPTIONS, "Glück 🚗!", ""]:
        assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == LENGTH
