"""Ovi Continue and Ovi Join: a clip that goes on from another, and clips joined without a doubled frame or a click."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
import torch

from ovi import geometry
from ovi.given import prefix
from ovi.join import starts
from support.media import RATE, BlockVAE, WindowVAE, broken, random_frames, slices, tone
from support.sampling import TimestepSpy, assert_equal, guide, ksampler, prompts

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]


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


def joined(comfy, *clips, overlap=25, **more):
    clips = {f"clip{i}": clip for i, clip in enumerate(clips)}
    (clip,) = comfy.run("OviJoin", clips=clips, overlap_frames=overlap, **more)
    return clip.get_components()


def test_the_next_clip_begins_with_the_end_of_the_last(comfy, model, loop, monkeypatch):
    """Picture and sound, which sampling keeps and the model sees at timestep 0."""
    frames, audio = random_frames(30), tone(30 / 24)
    audio["waveform"] = audio["waveform"] * torch.linspace(0, 1, audio["waveform"].shape[-1])
    latent, shared, shown = go_on(comfy, video(frames, audio))
    assert shared == 5
    assert shown[1] == "Overlap: 5 frames with audio; adds 0.33 s"
    video_mask, audio_mask = latent["noise_mask"].unbind()
    assert video_mask[0, 0, :, 0, 0].tolist() == [0] * 2 + [1] * 2
    assert audio_mask[0, 0].tolist() == [0] * 5 + [1] * 12
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


@pytest.mark.parametrize("overlap", [0.05, 0.2, 0.5, 1.0, 2.4])
def test_training_gives_the_same_beginning(comfy, overlap):
    """What a LoRA learns from (`ovi.given`) is what this node asks for."""
    latent, shared, _ = go_on(comfy, video(random_frames(61, 32, 32), tone(61 / 24)), 61, overlap)
    of_video, of_audio = latent["noise_mask"].unbind()
    masks = of_video[0, 0, :, 0, 0], of_audio[0, 0]
    place = (geometry.video_latents(shared) - 0.5) / 15  # the middle of those that give so many of 16 latents
    for mask, taught in zip(masks, prefix(*map(len, masks), place), strict=True):
        assert torch.equal(mask, taught)


def test_a_sound_that_ended_before_the_overlap_is_not_kept(comfy):
    latent, _, shown = go_on(comfy, video(random_frames(30), tone(1.05)))
    assert latent["noise_mask"].unbind()[1].all()
    assert shown[1] == "Overlap: 5 frames without audio; adds 0.33 s"


def test_what_ovi_decode_fills_up_is_not_kept(comfy):
    """The silence of less than a latent that may end a decoded clip: no kept latent has it."""
    for length in (61, 65, 69, 73, 121, 241):
        (audio_latents,) = {round((length - 1) * 31.25 / 24 + 1)}
        audio = tone(length / 24)
        audio["waveform"][..., math.ceil(audio_latents / 31.25 * RATE) :] = 0
        for overlap in (0.2, 0.5, 0.7, 1.0):
            latent, *_ = go_on(comfy, video(random_frames(length, 32, 32), audio), 61, overlap)
            (_, mask), (_, encoded) = latent["noise_mask"].unbind(), latent["samples"].unbind()
            assert encoded[mask.expand_as(encoded) == 0].min() > 0


def test_three_clips_of_121_frames(comfy):
    """Joined: 313 frames and their sound, every flash of the picture within a frame of its beep, before as after."""
    whole, beat = torch.zeros(313, 32, 32, 3), torch.zeros(1, 1, round(313 / 24 * RATE))
    flashes = [10, 60, 100, 108, 150, 200, 204, 300]
    for frame in flashes:
        whole[frame] = 1
        beat[..., round(frame / 24 * RATE)] = 1
    lengths = (121, 121, 121)
    *begins, _ = starts(lengths, [25, 25])
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


def test_clips_of_another_rate_are_shown_at_24(comfy):
    """Continued and joined: 60 frames of two seconds at 30 are 48."""
    clip = video(random_frames(60), tone(2.0, 48000), 30)
    latent, shared, _ = go_on(comfy, clip)
    last = random_frames(60)[[54, 55, 56, 58, 59]]
    assert_equal([latent["samples"].unbind()[0][:, :, :2]], [BlockVAE().encode(last)], 1e-6)
    made = joined(comfy, clip, video(random_frames(13)), overlap=shared)
    assert len(made.images) == 48 + 8
    assert made.audio["sample_rate"] == 48000
    assert made.audio["waveform"].shape[-1] == round(56 / 24 * 48000)


def test_clips_without_tone(comfy):
    """Their picture alone is kept and joined."""
    latent, _, shown = go_on(comfy, video(random_frames(9)))
    assert latent["noise_mask"].unbind()[1].all()
    assert shown[1] == "Overlap: 5 frames without audio; adds 0.33 s"
    assert joined(comfy, video(random_frames(9)), video(random_frames(9)), overlap=5).audio is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"clip": (24, 128, 96), "overlap": 1.0}, "The overlap of 1 s is 25 frames, but the clip has 24"),
        ({"clip": (50, 128, 96), "overlap": 0.5}, "the next one 13: shorten the overlap"),
        ({"clip": (50, 100, 96)}, "must be multiples of 32, got 100x96"),
        ({"clip": (50, 128, 96), "length": 15}, "use 13 or 17"),
    ],
)
def test_a_clip_that_cannot_go_on(comfy, inputs, message):
    count, width, height = inputs["clip"]
    with pytest.raises(ValueError, match=re.escape(message)):
        go_on(comfy, **inputs | {"clip": video(random_frames(count, width, height))})


def test_clips_that_do_not_join(comfy):
    with pytest.raises(ValueError, match="Clip 2 is 64x96, but the first is 128x96"):
        joined(comfy, video(random_frames(30)), video(random_frames(30, 64)))
    with pytest.raises(ValueError, match="Clip 3 has 25 frames, no more than the overlap of 25"):
        joined(comfy, *(video(random_frames(count)) for count in (30, 30, 25)))


def test_a_cut_between_clips(comfy):
    """The third begins anew, so it may be as short as it likes; every frame and sample of it is there."""
    frames = random_frames(30)
    clips = [video(part, tone(len(part) / 24)) for part in (frames[:13], frames[8:26], frames[26:])]
    made = joined(comfy, *clips, overlap=5, cuts="3")
    assert_equal([made.images], [frames], 1e-6)
    assert made.audio["waveform"].shape[-1] == round(30 / 24 * RATE)
    with pytest.raises(ValueError, match="Clip 3 has 4 frames, no more than the overlap of 5"):
        joined(comfy, *clips, overlap=5, cuts="2")


CLIP, TONE = random_frames(30), tone(30 / 24)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((broken(CLIP), TONE), "{video} contains NaN or infinity"),
        ((CLIP, TONE | {"waveform": broken(TONE["waveform"], torch.inf)}), "{audio} contains NaN or infinity"),
        ((CLIP[:0], TONE), "{video} is empty, [0, 96, 128, 3]"),
        ((torch.zeros(0, 0, 0, 3), None), "{video} is empty, [0, 0, 0, 3]"),
        ((CLIP[..., 0], TONE), "{video} must be [batch, height, width, 3 or 4 channels]"),
        ((CLIP, TONE, 0), "{video} has 0 frames per second, but needs 0.1 to 1000"),
        ((CLIP, TONE, -24), "{video} has -24 frames per second"),
        ((CLIP, TONE, 90000), "{video} has 90000 frames per second"),
        ((CLIP, {}), "{audio} has"),
        ((CLIP, TONE | {"waveform": TONE["waveform"][:, :0]}), "{audio} has a waveform of shape [1, 0, 55125]"),
        ((CLIP, TONE | {"waveform": TONE["waveform"].expand(2, -1, -1)}), "{audio} must be one recording"),
        ((CLIP, TONE | {"sample_rate": 0}), '{audio} has a sample rate of "0"'),
    ],
)
def test_a_broken_clip_is_named(comfy, inputs, message):
    """By both nodes that take one: the clip to continue, or which of those to join."""
    with pytest.raises(ValueError, match=re.escape(message.format(video="The clip", audio="The clip's audio"))):
        go_on(comfy, video(*inputs))
    said = message.format(video="The video of clip 2", audio="The audio of clip 2")
    with pytest.raises(ValueError, match=re.escape(said)):
        joined(comfy, video(CLIP, TONE), video(*inputs))


def test_the_audio_of_the_first_clip_is_checked_too(comfy):
    for audio in ({}, TONE | {"sample_rate": math.inf}):
        with pytest.raises(ValueError, match="has a sample rate of"):
            joined(comfy, video(CLIP, audio), video(CLIP, TONE))


def test_alpha_is_dropped_from_clips(comfy):
    """As from images; a clip with alpha joins one without."""
    with_alpha = torch.cat([CLIP, CLIP[..., :1]], dim=-1)
    made = joined(comfy, video(with_alpha), video(CLIP), overlap=25)
    assert made.images.shape == (35, 96, 128, 3)
    assert torch.equal(
        go_on(comfy, video(with_alpha))[0]["samples"].unbind()[0], go_on(comfy, video(CLIP))[0]["samples"].unbind()[0]
    )


@pytest.mark.parametrize("rate", [11127, 44101, 46034])
def test_audio_of_an_odd_rate_is_continued_and_joined(comfy, rate):
    clip = video(CLIP, tone(30 / 24, rate))
    latent, *_ = go_on(comfy, clip)
    plain, *_ = go_on(comfy, video(CLIP, TONE))
    assert_equal([latent["samples"].unbind()[1]], [plain["samples"].unbind()[1]], 0.02)
    assert joined(comfy, clip, video(CLIP, TONE)).audio["waveform"].shape[-1] == round(35 / 24 * rate)
    assert joined(comfy, video(CLIP, TONE), clip).audio["waveform"].shape[-1] == round(35 / 24 * RATE)
