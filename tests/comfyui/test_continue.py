"""Ovi Continue and Ovi Join: a clip that goes on from another, and clips joined without a doubled frame or a click."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
import torch
from media import RATE, BlockVAE, WindowVAE, pictures, sound
from test_native import TimestepSpy, assert_equal, guide, ksampler, load, loop, model, prompts  # noqa: F401

from ovi.join import alike, cross, join_frames, join_waves, overlap_frames, starts


@pytest.fixture(autouse=True)
def inference():
    """ComfyUI runs nodes in inference mode."""
    with torch.inference_mode():
        yield


# Joining


@pytest.mark.parametrize(("seconds", "frames"), [(0.2, 5), (0.5, 13), (1.0, 25), (1.04, 25), (2.0, 49), (5.0, 121)])
def test_an_overlap_is_the_nearest_that_latents_hold(seconds, frames):
    assert overlap_frames(seconds) == frames


def test_starts_of_three_published_clips():
    assert starts([121, 121, 121], 25) == [0, 96, 192, 313]
    assert starts([5, 9], 2) == [0, 3, 12]


def counted(first, count):
    """Frames whose every number is their place in time."""
    return torch.arange(first, first + count).float().view(-1, 1, 1, 1).expand(-1, 4, 4, 3)


@pytest.mark.parametrize("lengths", [(121, 121, 121), (26, 200, 26, 27), (50, 50)])
def test_no_frame_is_doubled_or_lost(lengths):
    *begins, total = starts(lengths, 25)
    clips = [counted(begin, length) for begin, length in zip(begins, lengths, strict=True)]
    assert_equal([join_frames(clips, 25)], [counted(0, total)], 1e-4)


def test_clips_that_differ_dissolve():
    joined = join_frames([torch.zeros(30, 4, 4, 3), torch.ones(30, 4, 4, 3)], 25)
    steps = joined[:, 0, 0, 0].diff()
    assert len(joined) == 35
    assert steps.min() >= 0
    assert steps.max() < 1 / 25


def slices(wave, lengths, overlap, rate):
    """The sounds of clips that play a wave [C, S] in turn."""
    *begins, _ = starts(lengths, overlap)
    ends = [begin + length for begin, length in zip(begins, lengths, strict=True)]
    return [wave[:, round(a / 24 * rate) : round(b / 24 * rate)] for a, b in zip(begins, ends, strict=True)]


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_sound_cut_up_is_joined_to_itself(rate):
    """Three clips of 121 frames: the expected number of samples, each where it was."""
    lengths = (121, 121, 121)
    wave = sound(313 / 24, rate, 2)["waveform"][0]
    joined = join_waves(slices(wave, lengths, 25, rate), lengths, 25, rate)
    assert joined.shape == (2, round(313 / 24 * rate))
    assert_equal([joined[:, : wave.shape[1]]], [wave], 1e-5)


@pytest.mark.parametrize(("hertz", "phase"), [(440.0, 0.5), (440.0, 1.0), (443.0, 0.3), (100.0, 0.25)])
def test_no_click_where_two_sounds_cross(hertz, phase):
    """Tones of another phase or pitch: no step beyond √2 of the tones' own, as much as equal power adds to them."""
    lengths = (49, 49)
    old = sound(49 / 24)["waveform"][0]
    new = sound(50 / 24, hertz=hertz)["waveform"][0][:, round(phase * RATE / hertz) :]
    joined = join_waves([old, new], lengths, 25, RATE)
    own = max(old.diff().abs().max(), new.diff().abs().max())
    assert joined.diff().abs().max() <= 2**0.5 * own


def test_unlike_sounds_cross_with_equal_power():
    old, new = torch.randn(2, 2, RATE, generator=torch.Generator().manual_seed(0))
    power = cross(old, new).square().view(2, 10, -1).mean((0, 2))
    torch.testing.assert_close(power, torch.ones(10), atol=0.05, rtol=0)
    assert_equal([cross(old, old)], [old], 1e-5)
    assert not cross(torch.zeros(1, 9), torch.zeros(1, 9)).any()


def test_short_and_long_sounds_are_fitted_to_their_frames():
    """Half a second of a clip of two seconds, then silence; too much of the next is cut."""
    joined = join_waves([torch.ones(1, 100), torch.ones(1, 9000)], (48, 24), 1, 240)
    assert joined.shape == (1, 710)
    assert joined[:, :100].all()
    assert not joined[:, 100:470].any()
    assert joined[:, 480:].all()


def test_clips_take_the_dtype_of_the_first():
    """`--fp16-intermediates` makes frames of 16 bits; a loaded video has 32."""
    half, single = (counted(0, 30).to(dtype) for dtype in (torch.float16, torch.float32))
    for clips in ([half, half], [half, single], [single, half]):
        joined = join_frames(clips, 25)
        assert joined.dtype == clips[0].dtype
        assert_equal([joined[[0, -1], 0, 0, 0].float()], [torch.tensor([0.0, 29.0])], 0.0)
    assert {wave.dtype for wave in alike([None, sound(1.0) | {"waveform": half.view(1, 1, -1)}], 44100)} == {half.dtype}


def test_sounds_get_one_rate_and_the_same_channels():
    waves = alike([sound(1.0, 48000, 1), None, sound(1.0, 44100, 2)], 48000)
    assert [wave.shape for wave in waves] == [(2, 48000), (2, 0), (2, 48000)]
    with pytest.raises(ValueError, match="sounds have 1 and 2 and 6 channels"):
        alike([sound(1.0, channels=channels) for channels in (6, 1, 2)], 44100)


# The nodes


def video(frames, audio=None, fps=24):
    from comfy_api.latest import InputImpl, Types

    return InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, audio=audio, frame_rate=Fraction(fps)))


def go_on(comfy, clip, length=13, overlap=0.2):
    """Ovi Continue with stand-in VAEs: LATENT, frames of overlap, lines shown on the node."""
    output = comfy.node["OviContinue"].execute(
        clip=clip, vae=BlockVAE(), audio_vae=WindowVAE(), length=length, overlap=overlap
    )
    (text,) = output.ui.as_dict()["text"]
    return *output.args, text.splitlines()


def joined(comfy, *clips, overlap=25):
    (clip,) = comfy.run("OviJoin", clips={f"clip{i}": clip for i, clip in enumerate(clips)}, overlap_frames=overlap)
    return clip.get_components()


@pytest.mark.comfyui
def test_the_next_clip_begins_with_the_end_of_the_last(comfy, model, loop, monkeypatch):  # noqa: F811
    """Picture and sound, which sampling keeps and the model sees at timestep 0."""
    frames, audio = pictures(30), sound(30 / 24)
    audio["waveform"] = audio["waveform"] * torch.linspace(0, 1, audio["waveform"].shape[-1])
    latent, shared, shown = go_on(comfy, video(frames, audio))
    assert shared == 5
    assert shown[:3] == [
        "Overlap: 5 frames; 8 are added, 0.33 s",
        "Picture: kept are frames 1 to 5 of 13",
        "Sound: kept are seconds 0.00 to 0.16 of 0.54",
    ]
    given = latent["samples"].unbind()
    end = audio["waveform"][..., round(25 / 24 * RATE) : round((30 / 24 - 0.032) * RATE)]
    assert_equal([given[0][:, :, :2]], [BlockVAE().encode(frames[-5:])], 1e-6)
    assert_equal([given[1][:, :, :5]], [WindowVAE().encode(end.movedim(1, -1))], 1e-6)
    spy = TimestepSpy(monkeypatch, model)
    made = ksampler(comfy, guide(comfy, model), prompts(loop), latent, steps=2)
    assert_equal([made[0][:, :, :2], made[1][:, :, :5]], [given[0][:, :, :2], given[1][:, :, :5]], 1e-5)
    for of_video, of_audio in spy.seen:
        assert (of_video > 0).tolist() == [[False] * 2 + [True] * 2] * 2
        assert (of_audio > 0).tolist() == [[False] * 5 + [True] * 12] * 2


@pytest.mark.comfyui
def test_a_sound_that_ended_before_the_overlap_is_not_kept(comfy):
    latent, _, shown = go_on(comfy, video(pictures(30), sound(1.05)))
    assert latent["noise_mask"].unbind()[1].all()
    assert shown[2] == "Sound: kept are no seconds of 0.54"


@pytest.mark.comfyui
def test_what_ovi_decode_fills_up_is_not_kept(comfy):
    """The silence of less than a latent that may end a decoded clip: no kept latent has it."""
    for length in (61, 65, 69, 73, 121, 241):
        (audio_latents,) = {round((length - 1) * 31.25 / 24 + 1)}
        audio = sound(length / 24)
        audio["waveform"][..., math.ceil(audio_latents / 31.25 * RATE) :] = 0
        for overlap in (0.2, 0.5, 0.7, 1.0):
            latent, *_ = go_on(comfy, video(pictures(length, 32, 32), audio), 61, overlap)
            (_, mask), (_, encoded) = latent["noise_mask"].unbind(), latent["samples"].unbind()
            assert encoded[mask.expand_as(encoded) == 0].min() > 0


@pytest.mark.comfyui
def test_three_clips_of_121_frames(comfy):
    """Joined: 313 frames and their sound, every flash of the picture within a frame of its beep, before as after."""
    whole, beat = torch.zeros(313, 32, 32, 3), torch.zeros(1, 1, round(313 / 24 * RATE))
    flashes = [10, 60, 100, 108, 150, 200, 204, 300]
    for frame in flashes:
        whole[frame] = 1
        beat[..., round(frame / 24 * RATE)] = 1
    lengths = (121, 121, 121)
    *begins, _ = starts(lengths, 25)
    clips = [
        video(whole[begin : begin + 121], {"waveform": wave[None], "sample_rate": RATE})
        for begin, wave in zip(begins, slices(beat[0], lengths, 25, RATE), strict=True)
    ]
    made = joined(comfy, *clips)
    assert (made.images.shape, made.frame_rate) == ((313, 32, 32, 3), 24)
    assert made.audio["waveform"].shape == (1, 1, 575138)
    assert made.images[:, 0, 0, 0].gt(0.5).nonzero().flatten().tolist() == flashes
    beeps = made.audio["waveform"][0, 0].gt(0.5).nonzero().flatten() / RATE * 24
    torch.testing.assert_close(beeps, torch.tensor(flashes).float(), atol=0.01, rtol=0)


@pytest.mark.comfyui
def test_clips_of_another_rate_are_shown_at_24(comfy):
    """Continued and joined: 60 frames of two seconds at 30 are 48."""
    clip = video(pictures(60), sound(2.0, 48000), 30)
    latent, shared, _ = go_on(comfy, clip)
    last = pictures(60)[[54, 55, 56, 58, 59]]
    assert_equal([latent["samples"].unbind()[0][:, :, :2]], [BlockVAE().encode(last)], 1e-6)
    made = joined(comfy, clip, video(pictures(13)), overlap=shared)
    assert len(made.images) == 48 + 8
    assert made.audio["sample_rate"] == 48000
    assert made.audio["waveform"].shape[-1] == round(56 / 24 * 48000)


@pytest.mark.comfyui
def test_clips_without_sound(comfy):
    """Their picture alone is kept and joined."""
    latent, _, shown = go_on(comfy, video(pictures(9)))
    assert latent["noise_mask"].unbind()[1].all()
    assert shown[2] == "Sound: kept are no seconds of 0.54"
    assert joined(comfy, video(pictures(9)), video(pictures(9)), overlap=5).audio is None


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"clip": (24, 128, 96), "overlap": 1.0}, "The overlap of 1 s is 25 frames, but the clip has 24"),
        ({"clip": (50, 128, 96), "overlap": 0.5}, "the next one 13: overlap less"),
        ({"clip": (50, 100, 96)}, "must be multiples of 32, got 100x96"),
        ({"clip": (50, 128, 96), "length": 15}, "take 13 or 17"),
    ],
)
def test_a_clip_that_cannot_go_on(comfy, inputs, message):
    count, width, height = inputs["clip"]
    with pytest.raises(ValueError, match=re.escape(message)):
        go_on(comfy, **inputs | {"clip": video(pictures(count, width, height))})


@pytest.mark.comfyui
def test_clips_that_do_not_join(comfy):
    with pytest.raises(ValueError, match="Clip 2 is 64x96, but the first is 128x96"):
        joined(comfy, video(pictures(30)), video(pictures(30, 64)))
    with pytest.raises(ValueError, match="Clip 3 has 25 frames, no more than the overlap of 25"):
        joined(comfy, *(video(pictures(count)) for count in (30, 30, 25)))
