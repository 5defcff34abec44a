"""Frames and audio in the rates of the latents, and which latents a time span touches."""

from __future__ import annotations

import pytest
import torch

from ovi import join, media
from support.media import RATE, tone


@pytest.mark.parametrize(
    ("fps", "frames", "first"),
    [
        (24.0, 500, [0, 1, 2, 3, 4, 5]),
        (24000 / 1001, 500, [0, 1, 2, 3, 4, 5]),
        (25.0, 521, [0, 1, 2, 3, 4, 5]),
        (30.0, 625, [0, 1, 3, 4, 5, 6]),
        (60.0, 1250, [0, 3, 5, 8, 10, 13]),
        (12.0, 250, [0, 1, 1, 2, 2, 3]),
    ],
)
def test_the_nearest_frame_is_shown_each_time(fps, frames, first):
    """For the duration of the video, and no longer."""
    indices = media.retimed(frames, fps)
    assert indices[:6].tolist() == first
    assert len(indices) == pytest.approx(frames * 24 / fps, abs=1)
    assert indices[-1] < frames
    late = indices.double() / fps - torch.arange(len(indices)).double() / 24
    assert late.abs().max() <= 0.5 / fps + 1e-9


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_audio_of_any_rate_and_channels_becomes_one_wave(rate, channels):
    """The channels' mean, at the VAE's rate; the ends, where a filter sees nothing, are left out."""
    given = tone(0.5, rate, channels)
    loudness = torch.linspace(0, 1, channels) if channels > 1 else torch.ones(1)
    given["waveform"] = given["waveform"] * loudness[:, None]
    wave = media.mono(given, RATE)
    expected = tone(0.5, amplitude=0.5 * loudness.mean().item())["waveform"][0, 0]
    assert len(wave) == len(expected)
    torch.testing.assert_close(wave[1000:-1000], expected[1000:-1000], atol=2e-3, rtol=0)


def test_audio_of_16_bits_is_resampled_in_32():
    """`--fp16-intermediates` makes it: a filter of 16 bits would add a hundred times their own rounding."""
    given = tone(0.5, 48000)
    rounded = given | {"waveform": given["waveform"].half()}
    for resampled in (lambda audio: media.mono(audio, RATE), lambda audio: join.match_waves([audio], RATE)[0]):
        torch.testing.assert_close(resampled(rounded).float(), resampled(given), atol=5e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda wave: wave[..., :0], "lasts 0.000 s, but at least 0.032 s are needed"),
        (lambda wave: wave[..., :500], "lasts 0.031 s"),
        (lambda wave: wave * torch.nan, "NaN or infinity"),
        (lambda wave: wave / 0, "NaN or infinity"),
        (lambda wave: wave.expand(2, -1, -1), "one recording, got a batch of 2"),
    ],
)
def test_broken_audio_is_refused(change, message):
    given = tone(1.0, 16000)
    with pytest.raises(ValueError, match=message):
        media.mono(given | {"waveform": change(given["waveform"])}, RATE)


@pytest.mark.parametrize(
    ("span", "video", "audio"),
    [
        ((0.0, 1 / 24), (0, 1), (0, 2)),
        ((0.0, 0.05), (0, 2), (0, 2)),
        ((1 / 24, 5 / 24), (1, 2), (1, 7)),
        ((1.0, 2.0), (6, 13), (31, 63)),
        ((4.9, 5.2), (30, 32), (153, 163)),
    ],
)
def test_a_span_has_every_latent_that_it_touches(span, video, audio):
    assert media.video_latents_between(*span) == video
    assert media.audio_latents_between(*span) == audio


@pytest.mark.parametrize(
    ("mask", "video", "audio"),
    [
        ([0, 0, 1, 1], "frames 1 to 5 of 13 are preserved", "seconds 0.00 to 0.06 of 0.13 are preserved"),
        (
            [0, 1, 1, 0],
            "frames 1 to 1 and 10 to 13 of 13 are preserved",
            "seconds 0.00 to 0.03 and 0.10 to 0.13 of 0.13 are preserved",
        ),
        ([1, 1, 1, 1], "all 13 frames are generated", "all 0.13 seconds are generated"),
    ],
)
def test_the_note_says_what_is_preserved(mask, video, audio):
    assert media.video_note(torch.tensor(mask)) == f"Video: {video}"
    assert media.audio_note(torch.tensor(mask)) == f"Audio: {audio}"
