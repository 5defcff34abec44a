"""Ovi Reference: what is given is encoded where it belongs and kept, and the rest is made to go with it."""

from __future__ import annotations

import re

import pytest
import torch
from media import RATE, BlockVAE, WindowVAE, pictures, sound
from test_native import TimestepSpy, assert_equal, guide, ksampler, load, loop, model, prompts  # noqa: F401

from ovi import geometry, join, reference

SIZE = {"width": 128, "height": 96, "length": 13}  # 4 video latents, 17 audio latents
CLIP = {"fit": "crop", "fps": 24.0, "keep_frames": 0, "keep_seconds": 0.0, "batch_size": 1}
REMAKE = {"remake": "nothing", "remake_start": 0.0, "remake_end": 0.0}


@pytest.fixture(autouse=True)
def inference():
    """ComfyUI runs nodes in inference mode."""
    with torch.inference_mode():
        yield


def refer(comfy, **inputs):
    """Ovi Reference with stand-in VAEs: (video, audio), (video mask [F], audio mask [L]), lines shown on the node."""
    vaes = {"vae": BlockVAE(), "audio_vae": WindowVAE()}
    output = comfy.node["OviReference"].execute(**SIZE | CLIP | REMAKE | vaes | inputs)
    latent = output.args[0]
    (text,) = output.ui.as_dict()["text"]
    notes, trained = text.splitlines(), geometry.trained_for(*SIZE.values())
    assert notes[-len(trained) :] == trained
    video_mask, audio_mask = latent["noise_mask"].unbind()
    assert (video_mask == video_mask[:1, :, :, :1, :1]).all()
    return latent, (video_mask[0, 0, :, 0, 0].int().tolist(), audio_mask[0, 0].int().tolist()), notes[: -len(trained)]


# Frames and sounds in the rates of the latents


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
    """For all the time that the video lasts, and no longer."""
    indices = reference.retimed(frames, fps)
    assert indices[:6].tolist() == first
    assert len(indices) == pytest.approx(frames * 24 / fps, abs=1)
    assert indices[-1] < frames
    late = indices.double() / fps - torch.arange(len(indices)).double() / 24
    assert late.abs().max() <= 0.5 / fps + 1e-9


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_sound_of_any_rate_and_channels_becomes_one_wave(rate, channels):
    """The channels' mean, at the VAE's rate; the ends, where a filter sees nothing, are left out."""
    given = sound(0.5, rate, channels)
    loudness = torch.linspace(0, 1, channels) if channels > 1 else torch.ones(1)
    given["waveform"] = given["waveform"] * loudness[:, None]
    wave = reference.mono(given, RATE)
    expected = sound(0.5, amplitude=0.5 * loudness.mean().item())["waveform"][0, 0]
    assert len(wave) == len(expected)
    torch.testing.assert_close(wave[1000:-1000], expected[1000:-1000], atol=2e-3, rtol=0)


def test_a_sound_of_16_bits_is_resampled_in_32():
    """`--fp16-intermediates` makes it: a filter of 16 bits would add a hundred times their own rounding."""
    given = sound(0.5, 48000)
    rounded = given | {"waveform": given["waveform"].half()}
    for resampled in (lambda audio: reference.mono(audio, RATE), lambda audio: join.alike([audio], RATE)[0]):
        torch.testing.assert_close(resampled(rounded).float(), resampled(given), atol=5e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda wave: wave[..., :0], "lasts 0.000 s, but needs 0.032 s"),
        (lambda wave: wave[..., :500], "lasts 0.031 s"),
        (lambda wave: wave * torch.nan, "NaN or infinity"),
        (lambda wave: wave / 0, "NaN or infinity"),
        (lambda wave: wave.expand(2, -1, -1), "one recording, got a batch of 2"),
    ],
)
def test_what_is_no_sound_is_refused(change, message):
    given = sound(1.0, 16000)
    with pytest.raises(ValueError, match=message):
        reference.mono(given | {"waveform": change(given["waveform"])}, RATE)


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
    assert reference.video_span(*span) == video
    assert reference.audio_span(*span) == audio


@pytest.mark.parametrize(
    ("mask", "video", "audio"),
    [
        ([0, 0, 1, 1], "frames 1 to 5 of 13", "seconds 0.00 to 0.06 of 0.13"),
        ([0, 1, 1, 0], "frames 1 to 1 and 10 to 13 of 13", "seconds 0.00 to 0.03 and 0.10 to 0.13 of 0.13"),
        ([1, 1, 1, 1], "no frames of 13", "no seconds of 0.13"),
    ],
)
def test_what_is_kept_is_said(mask, video, audio):
    assert reference.video_note(torch.tensor(mask)) == f"Picture: kept are {video}"
    assert reference.audio_note(torch.tensor(mask)) == f"Sound: kept are {audio}"


# The modes

AUDIO = sound(2.0)
MADE = ([1] * 4, [1] * 17)
MODES = {  # inputs, and the masks that they give
    "start image": ({"start_image": pictures(1)}, ([0, 1, 1, 1], MADE[1])),
    "first and last": ({"start_image": pictures(1), "end_image": pictures(1, seed=1)}, ([0, 1, 1, 0], MADE[1])),
    "video to audio": ({"video": pictures(13)}, ([0] * 4, MADE[1])),
    "audio to video": ({"audio": AUDIO}, (MADE[0], [0] * 17)),
    "image and sound": ({"start_image": pictures(1), "audio": AUDIO}, ([0, 1, 1, 1], [0] * 17)),
    "voice carried on": ({"audio": AUDIO, "keep_seconds": 0.2}, (MADE[0], [0] * 6 + [1] * 11)),
    "video carried on": ({"video": pictures(13), "keep_frames": 6}, ([0, 0, 1, 1], MADE[1])),
    "to an end image": ({"video": pictures(5), "end_image": pictures(1, seed=1)}, ([0, 0, 1, 0], MADE[1])),
    "picture remade": (
        {"video": pictures(13), "remake": "picture", "remake_start": 0.05, "remake_end": 0.2},
        ([0, 1, 0, 0], MADE[1]),
    ),
    "sound remade": (
        {"video": pictures(13), "audio": AUDIO, "remake": "sound", "remake_start": 0.1, "remake_end": 0.2},
        ([0] * 4, [0] * 3 + [1] * 4 + [0] * 10),
    ),
    "both remade": (
        {"video": pictures(13), "audio": AUDIO, "remake": "picture and sound", "remake_start": 0.1, "remake_end": 0.0},
        ([0, 1, 1, 1], [0] * 3 + [1] * 14),
    ),
}


@pytest.mark.comfyui
@pytest.mark.parametrize("mode", MODES)
def test_what_is_kept_comes_back_and_has_timestep_0(comfy, model, loop, monkeypatch, mode):  # noqa: F811
    """In latents to 1e-5; the model sees timestep 0 exactly where a latent is kept, and the step's elsewhere."""
    inputs, expected = MODES[mode]
    latent, masks, _ = refer(comfy, **inputs)
    assert masks == expected
    spy = TimestepSpy(monkeypatch, model)
    made = ksampler(comfy, guide(comfy, model), prompts(loop), latent, steps=2)
    for got, given, mask in zip(made, latent["samples"].unbind(), masks, strict=True):
        kept = torch.tensor(mask) == 0
        assert_equal([got[:, :, kept]], [given[:, :, kept]], 1e-5)
        if not kept.all():
            assert (got[:, :, ~kept] - given[:, :, ~kept]).abs().max() > 0.1
    assert len(spy.seen) == 2
    for seen in spy.seen:
        step = max(times.max() for times in seen)
        assert step > 0
        for times, mask in zip(seen, masks, strict=True):
            assert torch.equal(times, (torch.tensor(mask) * step).expand(2, -1))


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"audio": sound(1.0)}, {"audio": sound(1.0, amplitude=0.1)}),
        ({"video": pictures(13)}, {"video": pictures(13, seed=1)}),
    ],
)
def test_the_kept_modality_changes_the_made_one(comfy, model, loop, one, other):  # noqa: F811
    def run(given):
        made = ksampler(comfy, guide(comfy, model), prompts(loop), refer(comfy, **given)[0], steps=2)
        return made[0 if "audio" in given else 1]

    assert not torch.allclose(run(one), run(other), atol=1e-2)


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("inputs", "masks"),
    [
        (("sound", 0.0, 0.0), ([0] * 4, [1] * 17)),
        (("picture", 0.0, 0.0), ([1] * 4, [0] * 17)),
        (("picture", 0.3, 0.4), ([0, 0, 1, 1], [0] * 17)),
        (("picture and sound", 0.1, 0.2), ([0, 1, 0, 0], [0] * 3 + [1] * 4 + [0] * 10)),
    ],
)
def test_a_part_of_a_finished_clip_is_made_anew(comfy, model, loop, inputs, masks):  # noqa: F811
    """Whatever mask it was made with; the rest comes back to 1e-5 though the noise is another."""
    clip, *_ = refer(comfy, start_image=pictures(1))
    clip["samples"] = type(clip["samples"])(ksampler(comfy, guide(comfy, model), prompts(loop), clip, steps=2))
    remake, start, end = inputs
    (masked,) = comfy.run("OviRemake", samples=clip, remake=remake, remake_start=start, remake_end=end)
    assert clip["noise_mask"].unbind()[0].mean() == 0.75  # as it was
    made = ksampler(comfy, guide(comfy, model), prompts(loop), masked, steps=2, seed=8)
    for got, given, mask in zip(made, clip["samples"].unbind(), masks, strict=True):
        changed = (got - given).abs().amax([dim for dim in range(got.ndim) if dim != 2]) > 1e-5
        assert changed.int().tolist() == mask


@pytest.mark.comfyui
def test_remake_refuses_what_is_no_clip_and_no_time(comfy):
    with pytest.raises(ValueError, match="joint latent"):
        comfy.run(
            "OviRemake", samples={"samples": torch.zeros(1, 4, 8, 8)}, remake="sound", remake_start=0.0, remake_end=0.0
        )
    clip, *_ = refer(comfy, video=pictures(13))
    with pytest.raises(ValueError, match=r"begins at 2\.00 s, but ends at 0\.54 s"):
        comfy.run("OviRemake", samples=clip, remake="sound", remake_start=2.0, remake_end=3.0)


# Pictures


@pytest.mark.comfyui
def test_images_come_back_at_their_ends(comfy):
    """Decoded: the start image is the first frame, the end image the last four."""
    start, end = pictures(1), pictures(1, seed=1)
    latent, *_ = refer(comfy, start_image=start, end_image=end, batch_size=2)
    frames = BlockVAE().decode(latent["samples"].unbind()[0][1:])[0]
    assert_equal([frames[:1], frames[-4:]], [start, end.expand(4, -1, -1, -1)], 1e-6)


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("count", "fps", "kept", "said"),
    [
        (1, 24.0, 1, []),
        (2, 24.0, 1, []),
        (5, 24.0, 5, []),
        (12, 24.0, 9, []),
        (500, 24.0, 13, ["The video has 500 frames: the first 13 are used"]),
        (500, 23.976, 13, ["500 frames at 23.976 per second are shown as 501 at 24", "first 13"]),
        (10, 25.0, 9, ["10 frames at 25 per second are shown as 10 at 24"]),
        (10, 30.0, 5, ["shown as 8 at 24"]),
        (20, 60.0, 5, ["shown as 8 at 24"]),
    ],
)
def test_videos_in_the_wild(comfy, count, fps, kept, said):
    video = pictures(count)
    latent, (mask, _), shown = refer(comfy, video=video, fps=fps)
    assert geometry.frames(mask.count(0)) == kept
    assert shown[0] == f"Picture: kept are frames 1 to {kept} of 13"
    assert len(shown) == 2 + len(said)
    assert all(words in line for words, line in zip(said, shown[2:], strict=True))
    used = video[reference.retimed(count, fps)[:kept]]
    assert_equal([latent["samples"].unbind()[0][:, :, : mask.count(0)]], [BlockVAE().encode(used)], 1e-6)


@pytest.mark.comfyui
def test_frames_of_another_size_are_fitted_like_images(comfy):
    from ovi.image import fit_image

    video = torch.rand(5, 31, 33, 4)
    latent, *_ = refer(comfy, video=video, fit="pad")
    fitted = torch.cat([fit_image(frame, 128, 96, "pad") for frame in video.split(1)])
    assert_equal([latent["samples"].unbind()[0][:, :, :2]], [BlockVAE().encode(fitted)], 1e-6)


# Sounds


@pytest.mark.comfyui
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(("seconds", "kept"), [(0.2, 6), (0.54, 16), (60.0, 17)])
def test_sounds_in_the_wild(comfy, rate, channels, seconds, kept):
    latent, (_, mask), shown = refer(comfy, audio=sound(seconds, rate, channels))
    assert mask == [0] * kept + [1] * (17 - kept)
    assert shown[1] == f"Sound: kept are seconds 0.00 to {kept / 31.25:.2f} of 0.54"
    assert shown[2:] == ([] if seconds < 1 else ["The audio lasts 60.00 s: the first 0.54 s are used"])
    audio = latent["samples"].unbind()[1]
    plain = refer(comfy, audio=sound(seconds))[0]["samples"].unbind()[1]
    torch.testing.assert_close(audio[..., 1 : kept - 1], plain[..., 1 : kept - 1], atol=0.02, rtol=0)
    assert not audio[..., kept:].any()


@pytest.mark.comfyui
def test_silence_is_a_sound_and_clipping_is_said(comfy):
    assert refer(comfy, audio=sound(0.54, amplitude=0.0))[1][1] == [0] * 16 + [1]
    for amplitude, said in ((1.0, []), (3.2, ["The audio peaks at 3.20: what is beyond 1 is clipped"])):
        assert refer(comfy, audio=sound(0.54, amplitude=amplitude))[2][2:] == said


# What is refused


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "nothing to keep"),
        ({"start_image": pictures(1), "vae": None}, "a picture but no VAE"),
        ({"audio": AUDIO, "audio_vae": None}, "audio but no VAE"),
        ({"start_image": pictures(1), "vae": WindowVAE()}, "video VAE given is an audio VAE"),
        ({"audio": AUDIO, "audio_vae": BlockVAE()}, "audio VAE given is a video VAE"),
        ({"start_image": pictures(1), "video": pictures(5)}, "which both begin the clip"),
        ({"start_image": pictures(2)}, "start image must be one image, got a batch of 2"),
        ({"end_image": pictures(2)}, "end image must be one image, got a batch of 2"),
        ({"end_image": pictures(1), "length": 1}, "no room for an end image"),
        ({"end_image": pictures(1), "video": pictures(13)}, "no room for an end image"),
        ({"end_image": pictures(1, 64, 64), "fit": "refuse"}, "The end image is 64x64, the video 128x96"),
        ({"video": pictures(5, 64, 64), "fit": "refuse"}, "The reference video is 64x64, the video 128x96"),
        ({"video": pictures(5), "keep_frames": 9}, "keep_frames is 9, but the video has 5 frames"),
        ({"video": pictures(50), "fps": 60.0, "keep_frames": 21}, "keep_frames is 21, but the video has 20 frames"),
        ({"audio": AUDIO, "keep_seconds": 3.0}, "keep_seconds is 3.00, but the audio lasts 2.00 s"),
        ({"audio": AUDIO, "remake": "sound", "remake_start": 0.3, "remake_end": 0.2}, "at 0.30 s, but ends at 0.20 s"),
        (
            {"audio": AUDIO, "remake": "sound", "remake_start": 0.6},
            "at 0.60 s, but ends at 0.54 s",
        ),
        ({"audio": AUDIO, "length": 12}, "take 9 or 13"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(comfy, inputs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        refer(comfy, **inputs)
