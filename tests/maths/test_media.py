"""Frames and audio in the rates of the latents, and which latents a time span touches."""

from __future__ import annotations

import math

import pytest
import torch
import torchaudio
from torch.utils._python_dispatch import TorchDispatchMode

from ovi import geometry, join, media
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
        (lambda wave: wave * 6e30, r"samples beyond 1e\+06"),
        (lambda wave: wave[..., :0], "lasts 0.000 s, but at least 0.032 s are needed"),
        (lambda wave: wave[..., :500], "lasts 0.031 s"),
        (lambda wave: wave * torch.nan, "NaN or infinity"),
        (lambda wave: wave / 0, "NaN or infinity"),
        (lambda wave: wave.expand(2, -1, -1), "one recording, got a batch of 2"),
        (lambda wave: wave.to(torch.float8_e4m3fn), r"waveform of torch\.float8_e4m3fn"),
        (lambda wave: wave[:0], "one recording, got a batch of 0"),
        (lambda wave: wave[:, :0], r"a waveform of shape \[1, 0, 16000\], but needs \[1, channels, samples\]"),
        (lambda wave: wave[0], r"a waveform of shape \[1, 16000\]"),
        (lambda wave: wave[0, 0], r"a waveform of shape \[16000\]"),
        (lambda wave: (wave * 32767).short(), "a waveform of torch.int16, but needs 16 to 64 bits"),
        (lambda wave: torch.where(wave > 0.4, -torch.inf, wave), "NaN or infinity"),
        (lambda wave: wave.numpy(), "no waveform"),
        (lambda wave: None, "no waveform"),
    ],
)
def test_broken_audio_is_refused(change, message):
    given = tone(1.0, 16000)
    with pytest.raises(ValueError, match=message):
        media.mono(given | {"waveform": change(given["waveform"])}, RATE)


@pytest.mark.parametrize("audio", [{}, None, [], {"sample_rate": 16000}, tone(1.0)["waveform"]])
def test_audio_without_a_waveform_is_refused(audio):
    with pytest.raises(ValueError, match=r"^The audio has no waveform; load it with 'Load Audio'\.$"):
        media.mono(audio, RATE)


@pytest.mark.parametrize(
    "rate",
    [0, -44100, 1, 999, 22050.5, math.nan, math.inf, "44100", None, True, [44100], 1_000_001, 10**12, 2**63, 1e300],
)
def test_an_impossible_sample_rate_is_refused(rate):
    """Before it sizes anything, in both users of the rate."""
    audio = tone(1.0) | {"sample_rate": rate}
    for user in (lambda: media.mono(audio, RATE), lambda: join.match_waves([None, audio], RATE)):
        with pytest.raises(ValueError, match=r"a sample rate of .+, but needs a whole number from 1000 to 1000000 Hz"):
            user()


def test_a_rate_may_be_any_whole_number():
    """Of any type: other packs pass floats and NumPy's integers."""
    for rate in (16000.0, torch.tensor(16000), torch.tensor(16000).numpy(), math.prod((16, 1000))):
        assert len(media.mono(tone(1.0, 16000) | {"sample_rate": rate}, RATE)) == RATE


class Numbers(TorchDispatchMode):
    """Counts the numbers that torch's operations return: in all, and by the largest."""

    def __init__(self):
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.total += result.numel()
            self.largest = max(self.largest, result.numel())
        return result


STANDARD = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000, 176400, 192000, 384000]
ODD = [11127, 44056, 44101, 22255, 46034, 44099, 5512, 1009, 100_003, 399_989, 999_983]  # the last four are primes


@pytest.mark.parametrize("rate", STANDARD)
def test_standard_rates_are_resampled_by_torchaudio_to_the_bit(rate):
    wave = torch.randn(2, rate // 10, generator=torch.Generator().manual_seed(0))
    for other in (16000, 44100, 48000):
        assert torch.equal(media.resampled(wave, rate, other), torchaudio.functional.resample(wave, rate, other))


@pytest.mark.parametrize("rate", [8000, 11025, 48000, 96000, 384000])
def test_both_ways_to_resample_are_one_filter(monkeypatch, rate):
    wave = torch.randn(2, rate // 10, generator=torch.Generator().manual_seed(0))
    expected = media.resampled(wave, rate, RATE)
    monkeypatch.setattr(media, "LARGEST_TERM", 0)
    torch.testing.assert_close(media.resampled(wave, rate, RATE), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", ODD)
def test_any_rate_is_resampled_exactly(rate):
    """Without drift: three seconds of a tone end where they should, to less than a hundredth of a sample."""
    for rates in ((rate, RATE), (RATE, rate)):
        wave = media.resampled(tone(3.0, rates[0], hertz=300.0)["waveform"][0], *rates)
        expected = tone(3.0, rates[1], hertz=300.0)["waveform"][0]
        assert wave.shape == expected.shape
        ends = rates[1] // 50
        torch.testing.assert_close(wave[:, ends:-ends], expected[:, ends:-ends], atol=3e-3, rtol=0)


@pytest.mark.parametrize("rate", ODD)
def test_the_cost_of_resampling_depends_on_the_duration_alone(rate):
    """A quarter of a second, whatever the two rates have in common; torchaudio would make 1.9 billion weights of it."""
    audio = tone(0.25, rate, 2)
    for resample in (lambda: media.mono(audio, RATE), lambda: join.match_waves([tone(0.1), audio], RATE)):
        with Numbers() as numbers:
            resample()
        assert numbers.largest < 5_000_000
        assert numbers.total < 2000 * max(rate // 4, RATE // 4)


@pytest.mark.parametrize("rate", [0, -24, 0.0999, 1000.5, 1e9, math.nan, math.inf, None, "fast", 10**400])
def test_an_impossible_frame_rate_is_refused(rate):
    with pytest.raises(ValueError, match=r"^The video has .+ frames per second, but needs 0.1 to 1000; check"):
        media.at_24(torch.zeros(9, 4, 4, 3), rate)


@pytest.mark.parametrize(("latents", "seconds"), [(157, 121 / 24), (314, 241 / 24), (1, 1 / 24), (22, 17 / 24)])
def test_audio_of_the_right_length_needs_no_note(latents, seconds):
    assert media.gap_notes(latents, seconds) == []


def test_silence_and_cuts_are_said():
    assert media.gap_notes(2, 37 / 24) == ["The audio lasts 0.06 s, the video 1.54 s: 1.48 s of silence follow"]
    assert media.gap_notes(157, 61 / 24) == ["The audio lasts 5.02 s, the video 2.54 s: its last 2.48 s are cut"]


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
    assert geometry.video_latents_between(*span) == video
    assert geometry.audio_latents_between(*span) == audio


@pytest.mark.parametrize(
    ("video", "audio", "note"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], "frames 1 to 5 of 13, audio 0.00 to 0.06 of 0.13 s"),
        ([0, 1, 1, 0], [0, 1, 1, 0], "frames 1 and 10 to 13 of 13, audio 0.00 to 0.03 and 0.10 to 0.13 of 0.13 s"),
        ([1, 1, 1, 1], [0, 0, 0, 0], "no frames, audio 0.00 to 0.13 of 0.13 s"),
        ([0, 0, 0, 0], [1, 1, 1, 1], "frames 1 to 13 of 13, no audio"),
        ([1, 1, 1, 1], [1, 1, 1, 1], "nothing"),
    ],
)
def test_the_note_says_what_is_preserved(video, audio, note):
    assert media.preserved_note(torch.tensor(video), torch.tensor(audio)) == f"Preserved: {note}"


def spoken(*parts, rate=16000, noise=0.003):
    """Return a wave: noise, over which each stretch of `parts`, in seconds, is loud and then quiet in turn."""
    draw = torch.Generator().manual_seed(0)
    loudness = [torch.full((round(part * rate),), 0.3 * (index % 2 == 0)) for index, part in enumerate(parts)]
    wave = torch.cat(loudness)
    return (wave + noise) * torch.randn(len(wave), generator=draw)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_pauses_are_found(rate):
    """Those of 0.2 s and more, to a window; also where the recording is not silent between words."""
    wave = spoken(1.0, 0.5, 0.8, 0.1, 0.7, 0.3, 1.2, rate=rate)
    found = media.pauses(wave, rate)
    assert len(found) == 2
    for (start, end), expected in zip(found, ((1.0, 1.5), (3.1, 3.4)), strict=True):
        assert (start, end) == pytest.approx(expected, abs=0.025)


def test_audio_without_pauses_has_none():
    assert media.pauses(torch.randn(32000), 16000) == []
    assert media.pauses(torch.zeros(32000), 16000) == []
    assert media.pauses(torch.randn(10), 16000) == []
