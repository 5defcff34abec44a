"""What the training of the miniature that speaks starts from: marks at the ends, a clock, and heads that find words."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from miniature import initial, initial_speech, speech, text, train_speech
from ovi.model import modulate


@pytest.fixture(scope="module")
def texts():
    """Texts of captions with five syllables."""
    captions = [scene.caption for scene in map(speech.scene, range(300)) if len(scene.syllables) == 5]
    return text.contexts(captions, load_file(train_speech.TEXT_ENCODER))


@pytest.fixture(scope="module")
def made(texts):
    """Make a model to start from."""
    return lambda **options: initial_speech.new_model(texts, train_speech.PLACES, **options).requires_grad_(False)


@pytest.fixture(scope="module")
def noise():
    return torch.randn(96, 20, 64, generator=torch.Generator().manual_seed(0))


def test_the_ends_are_marked(noise):
    """The first three tokens in one direction, the last three in the other, and no other token in either."""
    with torch.no_grad():
        tower = initial.new_model(initial_speech.CONFIG, initial_speech.ROWS).audio_model
        marks = torch.stack(list(initial_speech._mark_ends(tower)))
        found = tower.patch_embedding(noise).transpose(1, 2) @ marks.T  # [96, 64, 2]
        others = initial.new_model(initial_speech.CONFIG, initial_speech.ROWS).audio_model.patch_embedding(noise)
        found -= others.transpose(1, 2) @ marks.T
    # As many of the three latents on the other side are missing there.
    steps = torch.tensor([3.0, 2.0, 1.0]) * F.silu(torch.tensor(initial.GATE_INPUT)) * initial_speech.MARK_GAIN
    deviation = found - found[:, 20:40].mean(1, keepdim=True)
    torch.testing.assert_close(deviation[:, :3, 0].mean(0), steps, atol=1.0, rtol=0)
    torch.testing.assert_close(deviation[:, -3:, 1].mean(0), steps.flip(0), atol=1.0, rtol=0)


def test_heads_find_words(made, texts):
    """Heads of the text attention look at the syllable of their place, whatever it is."""
    tower = made().audio_model
    context = tower.text_embedding(texts[:40])
    x = torch.randn(40, 8, initial_speech.CONFIG.dim, generator=torch.Generator().manual_seed(1))
    for i, block in enumerate(tower.blocks):
        attention = block.cross_attn
        q, k = attention.norm_q(attention.q(x)), attention.norm_k(attention.k(context))
        q, k = (part.unflatten(2, (attention.heads, -1)).transpose(1, 2) for part in (q, k))
        shares = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)  # [B, heads, L, T]
        for head in range(3):
            assert shares[:, head, :, train_speech.PLACES[(i + head) % 5]].mean() > 0.99


def test_heads_tell_the_time(made, noise):
    """A linear reader of the second block's self-attention tells a token's place far better than without the clock."""
    errors = {}
    for clock in (True, False):
        tower = made(clock=clock).audio_model
        tokens, stream = tower.embed(noise, torch.full((96,), 950.0), torch.zeros(96, 32, initial_speech.CONFIG.dim))
        tokens = tower.blocks[0](tokens, stream, {})
        shift, scale, *_ = tower.blocks[1].modulation(stream.modulation)
        found = tower.blocks[1].self_attn(modulate(tower.blocks[1].norm1(tokens), shift, scale), stream, {})
        told = torch.cat([found.flatten(0, 1), torch.ones(96 * 64, 1)], dim=1).double()
        places = torch.arange(64.0).repeat(96)[:, None].double()
        read = 72 * 64  # the rows that the reader is fitted to
        weights = torch.linalg.lstsq(told[:read], places[:read]).solution
        errors[clock] = (told[read:] @ weights - places[read:]).square().mean().sqrt()
    assert errors[True] < 0.5 * errors[False]


def test_samples():
    """Most are short at first; then all have their syllables, except for one in eight, whose prompt has none."""
    seeds = range(16)
    samples = train_speech.Samples(seeds, train_speech.latents(seeds), video=True)
    assert all(sample.video.shape == (48, 13, 4, 6) for sample in map(samples.__getitem__, seeds))
    weights = load_file(train_speech.TEXT_ENCODER)
    for i in (0, 3):
        caption = samples.scenes[i].wordless if i == 0 else samples.scenes[i].caption
        torch.testing.assert_close(samples[i].context, text.contexts([caption], weights)[0].half())
    samples.whole = False
    short = [torch.equal(samples[i].audio, samples.latents["short"][i]) for i in range(4)]
    assert short == [False, True, True, True]
