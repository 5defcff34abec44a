"""Ovi Reference and Ovi Remake: what is connected is encoded and preserved, the rest is generated to match."""

from __future__ import annotations

import re

import pytest
import torch

from ovi import geometry, media
from ovi.given import between
from support.media import BlockVAE, WindowVAE, broken, random_frames, tone
from support.sampling import TimestepSpy, assert_equal, guide, joint, ksampler, prompts

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

SIZE = {"width": 128, "height": 96, "length": 13}  # 4 video latents, 17 audio latents
CLIP = {"fit": "crop", "fps": 24.0, "keep_frames": 0, "keep_seconds": 0.0, "batch_size": 1}
REMAKE = {"remake": "nothing", "remake_start": 0.0, "remake_end": 0.0}


def refer(comfy, **inputs):
    """Ovi Reference with stand-in VAEs: (video, audio), (video mask [F], audio mask [L]), lines shown on the node."""
    vaes = {"vae": BlockVAE(), "audio_vae": WindowVAE()}
    output = comfy.node["OviReference"].execute(**SIZE | CLIP | REMAKE | vaes | inputs)
    latent = output.args[0]
    (text,) = output.ui.as_dict()["text"]
    fit, *notes = text.splitlines()
    assert fit == geometry.fit_note(*SIZE.values())
    video_mask, audio_mask = latent["noise_mask"].unbind()
    assert (video_mask == video_mask[:1, :, :, :1, :1]).all()
    return latent, (video_mask[0, 0, :, 0, 0].int().tolist(), audio_mask[0, 0].int().tolist()), notes


# The modes

AUDIO = tone(2.0)
MADE = ([1] * 4, [1] * 17)
MODES = {  # inputs, and the masks that they give
    "start image": ({"start_image": random_frames(1)}, ([0, 1, 1, 1], MADE[1])),
    "first and last": (
        {"start_image": random_frames(1), "end_image": random_frames(1, seed=1)},
        ([0, 1, 1, 0], MADE[1]),
    ),
    "video to audio": ({"video": random_frames(13)}, ([0] * 4, MADE[1])),
    "audio to video": ({"audio": AUDIO}, (MADE[0], [0] * 17)),
    "image and audio": ({"start_image": random_frames(1), "audio": AUDIO}, ([0, 1, 1, 1], [0] * 17)),
    "voice carried on": ({"audio": AUDIO, "keep_seconds": 0.2}, (MADE[0], [0] * 6 + [1] * 11)),
    "video carried on": ({"video": random_frames(13), "keep_frames": 6}, ([0, 0, 1, 1], MADE[1])),
    "to an end image": ({"video": random_frames(5), "end_image": random_frames(1, seed=1)}, ([0, 0, 1, 0], MADE[1])),
    "video regenerated": (
        {"video": random_frames(13), "remake": "video", "remake_start": 0.05, "remake_end": 0.2},
        ([0, 1, 0, 0], MADE[1]),
    ),
    "audio regenerated": (
        {"video": random_frames(13), "audio": AUDIO, "remake": "audio", "remake_start": 0.1, "remake_end": 0.2},
        ([0] * 4, [0] * 3 + [1] * 4 + [0] * 10),
    ),
    "both regenerated": (
        {
            "video": random_frames(13),
            "audio": AUDIO,
            "remake": "both",
            "remake_start": 0.1,
            "remake_end": 0.0,
        },
        ([0, 1, 1, 1], [0] * 3 + [1] * 14),
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_what_is_preserved_comes_back_and_has_timestep_0(comfy, model, loop, monkeypatch, mode):
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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"audio": tone(1.0)}, {"audio": tone(1.0, amplitude=0.1)}),
        ({"video": random_frames(13)}, {"video": random_frames(13, seed=1)}),
    ],
)
def test_the_preserved_modality_changes_the_generated_one(comfy, model, loop, one, other):
    def run(given):
        made = ksampler(comfy, guide(comfy, model), prompts(loop), refer(comfy, **given)[0], steps=2)
        return made[0 if "audio" in given else 1]

    assert not torch.allclose(run(one), run(other), atol=1e-2)


@pytest.mark.parametrize("kind", [{}, {"audio": False}, {"video": False}])
@pytest.mark.parametrize("span", [(0.0, 0.2), (0.1, 0.35), (0.3, 13 / 24)])
def test_training_gives_the_same_passage(span, kind):
    """What a LoRA learns from (`ovi.given`) is what these nodes ask for."""
    from ovi.native.joint import regenerate_between

    masks = torch.zeros(1, 1, 4, 2, 2), torch.zeros(1, 1, 17)
    regenerate_between(*masks, *span, **{"video": True, "audio": True} | kind)
    for mask, taught in zip((masks[0][0, 0, :, 0, 0], masks[1][0, 0]), between(4, 17, *span, **kind), strict=True):
        assert torch.equal(mask, taught)


@pytest.mark.parametrize(
    ("inputs", "masks"),
    [
        (("audio", 0.0, 0.0), ([0] * 4, [1] * 17)),
        (("video", 0.0, 0.0), ([1] * 4, [0] * 17)),
        (("video", 0.3, 0.4), ([0, 0, 1, 1], [0] * 17)),
        (("both", 0.1, 0.2), ([0, 1, 0, 0], [0] * 3 + [1] * 4 + [0] * 10)),
    ],
)
def test_a_part_of_a_finished_clip_is_regenerated(comfy, model, loop, inputs, masks):
    """Whatever mask it was made with; the rest comes back to 1e-5 though the noise is another."""
    clip, *_ = refer(comfy, start_image=random_frames(1))
    clip["samples"] = type(clip["samples"])(ksampler(comfy, guide(comfy, model), prompts(loop), clip, steps=2))
    remake, start, end = inputs
    (masked,) = comfy.run("OviRemake", samples=clip, remake=remake, remake_start=start, remake_end=end)
    assert clip["noise_mask"].unbind()[0].mean() == 0.75  # as it was
    made = ksampler(comfy, guide(comfy, model), prompts(loop), masked, steps=2, seed=8)
    for got, given, mask in zip(made, clip["samples"].unbind(), masks, strict=True):
        changed = (got - given).abs().amax([dim for dim in range(got.ndim) if dim != 2]) > 1e-5
        assert changed.int().tolist() == mask


def test_remake_refuses_what_is_no_clip_and_no_time(comfy):
    with pytest.raises(ValueError, match="joint latent"):
        comfy.run(
            "OviRemake", samples={"samples": torch.zeros(1, 4, 8, 8)}, remake="audio", remake_start=0.0, remake_end=0.0
        )
    clip, *_ = refer(comfy, video=random_frames(13))
    with pytest.raises(ValueError, match=r"remake_start is 2\.00 s, but must lie between 0 and .* 0\.54 s"):
        comfy.run("OviRemake", samples=clip, remake="audio", remake_start=2.0, remake_end=3.0)


# Images and videos


def test_images_come_back_at_their_ends(comfy):
    """Decoded: the start image is the first frame, the end image the last four."""
    start, end = random_frames(1), random_frames(1, seed=1)
    latent, *_ = refer(comfy, start_image=start, end_image=end, batch_size=2)
    frames = BlockVAE().decode(latent["samples"].unbind()[0][1:])[0]
    assert_equal([frames[:1], frames[-4:]], [start, end.expand(4, -1, -1, -1)], 1e-6)


@pytest.mark.parametrize(
    ("count", "fps", "kept", "said"),
    [
        (1, 24.0, 1, []),
        (2, 24.0, 1, []),
        (5, 24.0, 5, []),
        (12, 24.0, 9, []),
        (500, 24.0, 13, ["The video has 500 frames: the first 13 are used"]),
        (500, 23.976, 13, ["500 frames at 23.976 fps are used as 501 at 24 fps", "first 13"]),
        (10, 25.0, 9, ["10 frames at 25 fps are used as 10 at 24 fps"]),
        (10, 30.0, 5, ["used as 8 at 24 fps"]),
        (20, 60.0, 5, ["used as 8 at 24 fps"]),
    ],
)
def test_videos_in_the_wild(comfy, count, fps, kept, said):
    video = random_frames(count)
    latent, (mask, _), shown = refer(comfy, video=video, fps=fps)
    assert geometry.frames(mask.count(0)) == kept
    assert shown[0] == f"Preserved: frames {'1' if kept == 1 else f'1 to {kept}'} of 13, no audio"
    assert len(shown) == 1 + len(said)
    assert all(words in line for words, line in zip(said, shown[1:], strict=True))
    used = video[media.retimed(count, fps)[:kept]]
    assert_equal([latent["samples"].unbind()[0][:, :, : mask.count(0)]], [BlockVAE().encode(used)], 1e-6)


def test_frames_of_another_size_are_fitted_like_images(comfy):
    from ovi.image import fit_image

    video = torch.rand(5, 31, 33, 4)
    latent, *_ = refer(comfy, video=video, fit="pad")
    fitted = torch.cat([fit_image(frame, 128, 96, "pad") for frame in video.split(1)])
    assert_equal([latent["samples"].unbind()[0][:, :, :2]], [BlockVAE().encode(fitted)], 1e-6)


# Audio


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(("seconds", "kept"), [(0.2, 6), (0.54, 16), (60.0, 17)])
def test_audio_in_the_wild(comfy, rate, channels, seconds, kept):
    latent, (_, mask), shown = refer(comfy, audio=tone(seconds, rate, channels))
    assert mask == [0] * kept + [1] * (17 - kept)
    assert shown[0] == f"Preserved: no frames, audio 0.00 to {kept / 31.25:.2f} of 0.54 s"
    assert shown[1:] == ([] if seconds < 1 else ["The audio lasts 60.00 s: the first 0.54 s are used"])
    audio = latent["samples"].unbind()[1]
    plain = refer(comfy, audio=tone(seconds))[0]["samples"].unbind()[1]
    torch.testing.assert_close(audio[..., 1 : kept - 1], plain[..., 1 : kept - 1], atol=0.02, rtol=0)
    assert not audio[..., kept:].any()


def test_silence_is_a_sound_and_clipping_is_said(comfy):
    assert refer(comfy, audio=tone(0.54, amplitude=0.0))[1][1] == [0] * 16 + [1]
    for amplitude, said in ((1.0, []), (3.2, ["The audio peaks at 3.20: everything beyond 1 is clipped"])):
        assert refer(comfy, audio=tone(0.54, amplitude=amplitude))[2][1:] == said


# What is refused


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "nothing to preserve"),
        ({"start_image": random_frames(1), "vae": None}, "images but no VAE"),
        ({"audio": AUDIO, "audio_vae": None}, "audio but no VAE"),
        ({"start_image": random_frames(1), "vae": WindowVAE()}, "video VAE given is an audio VAE"),
        ({"audio": AUDIO, "audio_vae": BlockVAE()}, "audio VAE given is a video VAE"),
        ({"start_image": random_frames(1), "video": random_frames(5)}, "the clip can start with only one"),
        ({"start_image": random_frames(2)}, "start image must be one image, got a batch of 2"),
        ({"end_image": random_frames(2)}, "end image must be one image, got a batch of 2"),
        ({"end_image": random_frames(1), "length": 1}, "no room for an end image"),
        ({"end_image": random_frames(1), "video": random_frames(13)}, "no room for an end image"),
        ({"end_image": random_frames(1, 64, 64), "fit": "refuse"}, "The end image is 64x64, the video 128x96"),
        ({"video": random_frames(5, 64, 64), "fit": "refuse"}, "The reference video is 64x64, the video 128x96"),
        ({"video": random_frames(5), "keep_frames": 9}, "keep_frames is 9, but the video has 5 frames"),
        (
            {"video": random_frames(50), "fps": 60.0, "keep_frames": 21},
            "keep_frames is 21, but the video has 20 frames",
        ),
        ({"audio": AUDIO, "keep_seconds": 0.03}, "keep_seconds is 0.03, but an audio latent lasts 0.032 s"),
        ({"audio": AUDIO, "keep_seconds": 3.0}, "keep_seconds is 3.00, but the audio lasts 2.00 s"),
        (
            {"audio": AUDIO, "remake": "audio", "remake_start": 0.3, "remake_end": 0.2},
            "remake_start is 0.30 s, but must lie between 0 and the end of the part to regenerate, 0.20 s",
        ),
        (
            {"audio": AUDIO, "remake": "audio", "remake_start": 0.6},
            "remake_start is 0.60 s, but must lie between 0 and the end of the part to regenerate, 0.54 s",
        ),
        ({"audio": AUDIO, "length": 12}, "use 9 or 13"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(comfy, inputs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        refer(comfy, **inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"start_image": broken(random_frames(1))}, "The start image contains NaN or infinity"),
        ({"end_image": broken(random_frames(1), torch.inf)}, "The end image contains NaN or infinity"),
        ({"video": broken(random_frames(5), -torch.inf)}, "The reference video contains NaN or infinity"),
        ({"audio": AUDIO | {"waveform": broken(AUDIO["waveform"])}}, "The audio contains NaN or infinity"),
        ({"start_image": random_frames(1)[..., :2]}, "The start image must be [batch, height, width, 3 or 4 channels]"),
        ({"end_image": random_frames(1)[..., :1]}, "The end image must be"),
        ({"end_image": random_frames(1)[..., 0]}, "The end image must be"),
        ({"video": random_frames(5)[..., 0]}, "The reference video must be"),
        ({"video": random_frames(5)[:0]}, "The reference video is empty, [0, 96, 128, 3]"),
        ({"video": (random_frames(5) * 255).byte()}, "got [5, 96, 128, 3] of torch.uint8"),
        ({"video": random_frames(5), "fps": 0.0}, "The reference video has 0 frames per second"),
        ({"video": random_frames(5), "fps": float("nan")}, "The reference video has nan frames per second"),
        ({"video": random_frames(5), "keep_frames": -1}, "keep_frames is -1"),
        ({"audio": {}}, "The audio has no waveform"),
        ({"audio": {"waveform": AUDIO["waveform"]}}, 'The audio has a sample rate of "None"'),
        ({"audio": AUDIO | {"waveform": AUDIO["waveform"][:, :0]}}, "The audio has a waveform of shape [1, 0, 88200]"),
        ({"audio": AUDIO, "keep_seconds": float("nan")}, "keep_seconds is nan"),
        ({"audio": AUDIO, "remake": "audio", "remake_start": float("nan")}, "remake_start is nan s"),
        ({"audio": AUDIO, "remake": "audio", "remake_start": -1.0}, "remake_start is -1.00 s"),
    ],
)
def test_broken_input_is_named(comfy, inputs, message):
    """Before sampling, which would blame the model for a NaN."""
    with pytest.raises(ValueError, match=re.escape(message)):
        refer(comfy, **inputs)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("start image", {"start_image": random_frames(1)}),
        ("end image", {"end_image": random_frames(1)}),
        ("reference video", {"video": random_frames(5)}),
        ("audio", {"audio": AUDIO}),
    ],
)
def test_a_vae_that_encodes_to_nan_is_named(comfy, monkeypatch, name, inputs):
    for kind in (BlockVAE, WindowVAE):
        encode = kind.encode
        monkeypatch.setattr(kind, "encode", lambda vae, given, encode=encode: broken(encode(vae, given)))
    with pytest.raises(
        ValueError, match=f"^The VAE turned the {name} into NaN or infinity; look for a damaged VAE file"
    ):
        refer(comfy, **inputs)


def test_halves_that_do_not_belong_together_are_refused(comfy):
    for shapes in (((1, 48, 4, 6, 8), (2, 20, 17)), ((1, 48, 4, 6, 8), (1, 20, 0)), ((0, 48, 4, 6, 8), (0, 20, 17))):
        latent = {"samples": joint(*map(torch.zeros, shapes))}
        with pytest.raises(ValueError, match=r"^The halves of the joint latent do not belong together: video \["):
            comfy.run("OviRemake", samples=latent, remake="audio", remake_start=0.0, remake_end=0.0)
    latent = {"samples": joint(torch.zeros(1, 48, 4, 6, 8), torch.full((1, 20, 17), torch.nan))}
    with pytest.raises(ValueError, match=r"^The audio half of the latent contains NaN or infinity"):
        comfy.run("OviRemake", samples=latent, remake="audio", remake_start=0.0, remake_end=0.0)


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (48_000, 1), (16_000, 1)])
def test_the_audio_itself_is_handed_on(comfy, rate, channels):
    """Of 30 seconds those of the clip, sample for sample as given: what Create Video gets, before any encoding."""
    draw = torch.Generator().manual_seed(0)
    given = {"waveform": torch.randn(1, channels, 40 * rate, generator=draw).clamp(-1, 1), "sample_rate": rate}
    inputs = SIZE | CLIP | REMAKE | {"width": 32, "height": 32, "length": 721, "audio_vae": WindowVAE()}
    latent, own_audio = comfy.run("OviReference", **inputs, audio=given)
    assert (latent["noise_mask"].unbind()[1] == 0).all()
    (video,) = comfy.run("CreateVideo", images=torch.zeros(721, 32, 32, 3), audio=own_audio, fps=24.0)
    saved = video.get_components().audio
    assert saved["sample_rate"] == rate
    assert torch.equal(saved["waveform"], given["waveform"][..., : round(721 / 24 * rate)])


def test_without_audio_none_is_handed_on(comfy):
    _, own_audio = comfy.run("OviReference", **SIZE | CLIP | REMAKE, vae=BlockVAE(), video=random_frames(5))
    assert own_audio is None
