"""Clips joined without a doubled frame or a click."""

from __future__ import annotations

import pytest
import torch

from ovi.join import cross, join_frames, join_waves, match_waves, parse_cuts, starts
from support.media import RATE, slices, tone


def test_starts_of_three_clips_of_121_frames():
    assert starts([121, 121, 121], [25, 25]) == [0, 96, 192, 313]
    assert starts([5, 9, 4], [2, 0]) == [0, 3, 12, 16]


def counted(first, count):
    """Frames whose every number is their place in time."""
    return torch.arange(first, first + count).float().view(-1, 1, 1, 1).expand(-1, 4, 4, 3)


@pytest.mark.parametrize("lengths", [(121, 121, 121), (26, 200, 26, 27), (50, 50)])
def test_no_frame_is_doubled_or_lost(lengths):
    for overlaps in ([25] * (len(lengths) - 1), [0] * (len(lengths) - 1), [25, *[0] * (len(lengths) - 2)]):
        *begins, total = starts(lengths, overlaps)
        clips = [counted(begin, length) for begin, length in zip(begins, lengths, strict=True)]
        torch.testing.assert_close(join_frames(clips, overlaps), counted(0, total), atol=1e-4, rtol=0)


def test_clips_that_differ_dissolve():
    joined = join_frames([torch.zeros(30, 4, 4, 3), torch.ones(30, 4, 4, 3)], [25])
    steps = joined[:, 0, 0, 0].diff()
    assert len(joined) == 35
    assert steps.min() >= 0
    assert steps.max() < 1 / 25


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_audio_cut_up_is_joined_to_itself(rate):
    """Three clips of 121 frames: the expected number of samples, each where it was."""
    lengths = (121, 121, 121)
    wave = tone(313 / 24, rate, 2)["waveform"][0]
    joined = join_waves(slices(wave, lengths, 25, rate), lengths, [25, 25], rate)
    assert joined.shape == (2, round(313 / 24 * rate))
    torch.testing.assert_close(joined[:, : wave.shape[1]], wave, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("hertz", "phase"), [(440.0, 0.5), (440.0, 1.0), (443.0, 0.3), (100.0, 0.25)])
def test_no_click_where_two_clips_cross(hertz, phase):
    """Tones of another phase or pitch: no step beyond √2 of the tones' own, as much as equal power adds to them."""
    lengths = (49, 49)
    old = tone(49 / 24)["waveform"][0]
    new = tone(50 / 24, hertz=hertz)["waveform"][0][:, round(phase * RATE / hertz) :]
    joined = join_waves([old, new], lengths, [25], RATE)
    own = max(old.diff().abs().max(), new.diff().abs().max())
    assert joined.diff().abs().max() <= 2**0.5 * own


def test_audio_is_whole_and_without_a_click_at_a_cut():
    """All but 5 ms on each side is as it was; the step from one clip to the other is gone."""
    lengths, rate = (49, 25), 48000
    waves = [level * torch.ones(2, round(length / 24 * rate)) for length, level in zip(lengths, (1, -1), strict=True)]
    joined = join_waves(waves, lengths, [0], rate)
    cut = round(49 / 24 * rate)
    assert joined.shape == (2, round(74 / 24 * rate))
    assert (joined[:, : cut - 240] == 1).all()
    assert (joined[:, cut + 240 :] == -1).all()
    assert joined.diff().abs().max() < 0.01


def test_cuts_are_numbers_of_clips_that_follow_another():
    assert parse_cuts("", 3) == set()
    assert parse_cuts(" 2, 3 ", 3) == {2, 3}
    for text, clips in (("1", 3), ("4", 3), ("x", 3), ("2", 1)):
        with pytest.raises(ValueError, match=f"^'{text}' in cuts is no clip that follows another"):
            parse_cuts(text, clips)


def test_unlike_audio_crosses_with_equal_power():
    old, new = torch.randn(2, 2, RATE, generator=torch.Generator().manual_seed(0))
    power = cross(old, new).square().view(2, 10, -1).mean((0, 2))
    torch.testing.assert_close(power, torch.ones(10), atol=0.05, rtol=0)
    torch.testing.assert_close(cross(old, old), old, atol=1e-5, rtol=0)
    assert not cross(torch.zeros(1, 9), torch.zeros(1, 9)).any()


def test_short_and_long_audio_is_fitted_to_its_frames():
    """Half a second of a clip of two seconds, then silence; too much of the next is cut."""
    joined = join_waves([torch.ones(1, 100), torch.ones(1, 9000)], (48, 24), [1], 240)
    assert joined.shape == (1, 710)
    assert joined[:, :100].all()
    assert not joined[:, 100:470].any()
    assert joined[:, 480:].all()


def test_clips_take_the_dtype_of_the_first():
    """`--fp16-intermediates` makes frames of 16 bits; a loaded video has 32."""
    half, single = (counted(0, 30).to(dtype) for dtype in (torch.float16, torch.float32))
    for clips in ([half, half], [half, single], [single, half]):
        joined = join_frames(clips, [25])
        assert joined.dtype == clips[0].dtype
        assert joined[[0, -1], 0, 0, 0].tolist() == [0.0, 29.0]
    assert {wave.dtype for wave in match_waves([None, tone(1.0) | {"waveform": half.view(1, 1, -1)}], 44100)} == {
        half.dtype
    }


def test_audio_gets_one_rate_and_the_same_channels():
    waves = match_waves([tone(1.0, 48000, 1), None, tone(1.0, 44100, 2)], 48000)
    assert [wave.shape for wave in waves] == [(2, 48000), (2, 0), (2, 48000)]
    with pytest.raises(ValueError, match="audio has 1 and 2 and 6 channels"):
        match_waves([tone(1.0, channels=channels) for channels in (6, 1, 2)], 44100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda wave: wave.expand(2, -1, -1), "audio of clip 2 must be one recording, got a batch of 2"),
        (lambda wave: wave * torch.nan, "audio of clip 2 contains NaN or infinity"),
        (lambda wave: wave[:, :0], "audio of clip 2 has a waveform of shape"),
        (lambda wave: wave[0], "audio of clip 2 has a waveform of shape"),
        (lambda wave: wave.short(), "audio of clip 2 has a waveform of torch.int16"),
    ],
)
def test_a_clip_with_broken_audio_is_named(change, message):
    """A second recording of a batch would be dropped."""
    good = tone(1.0)
    with pytest.raises(ValueError, match=message):
        match_waves([good, good | {"waveform": change(good["waveform"])}], RATE)


def test_audio_without_samples_is_silence():
    good = tone(1.0, 48000)
    empty = tone(0.0, 44101)
    assert [len(wave[0]) for wave in match_waves([good, empty], 48000)] == [48000, 0]
