"""Ovi Guide: images, frames and audio at any time of a clip come back, and the model sees them at timestep 0."""

from __future__ import annotations

import re

import pytest
import torch

from support.media import RATE, BlockVAE, WindowVAE, random_frames, tone
from support.sampling import TimestepSpy, assert_equal, empty, guide, joint, ksampler, prompts

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

FIVE_SECONDS = ((1, 48, 31, 2, 2), (1, 20, 157))  # 121 frames of 32 x 32


def place(comfy, latent, frame, **given):
    """Ovi Guide with stand-in VAEs: LATENT, lines shown on the node."""
    vaes = {"vae": BlockVAE(), "audio_vae": WindowVAE()}
    settings = {"latent": latent, "frame": frame, "fit": "crop", "fps": 24.0}
    output = comfy.node["OviGuide"].execute(**settings | vaes | given)
    (text,) = output.ui.as_dict()["text"]
    return output.args[0], text.splitlines()


def preserved(latent):
    """The indices of the preserved latents of video and audio."""
    video, audio = latent["noise_mask"].unbind()
    assert (video == video[:1, :, :, :1, :1]).all()
    return [(mask == 0).nonzero().flatten().tolist() for mask in (video[0, 0, :, 0, 0], audio[0, 0])]


def test_guides_anywhere_come_back_and_have_timestep_0(comfy, model, loop, monkeypatch):
    """Images at frames 0, 40, 80 and 120, and a second of audio: to 1e-5."""
    latent, images = empty(shapes=FIVE_SECONDS), random_frames(4, 32, 32)
    for frame, image in zip((0, 40, 80, 120), images.split(1), strict=True):
        latent, _ = place(comfy, latent, frame, image=image)
    latent, _ = place(comfy, latent, 24, audio=tone(1.0))
    kept = preserved(latent)
    assert kept == [[0, 10, 20, 30], list(range(32, 62))]
    given = latent["samples"].unbind()
    still = [BlockVAE().encode(image.expand(5, -1, -1, -1))[:, :, 1:] for image in images.split(1)]
    assert_equal([given[0][:, :, kept[0]]], [torch.cat(still, dim=2)], 1e-6)
    spy = TimestepSpy(monkeypatch, model)
    made = ksampler(comfy, guide(comfy, model), prompts(loop), latent, steps=2)
    for got, part, indices in zip(made, given, kept, strict=True):
        assert_equal([got[:, :, indices]], [part[:, :, indices]], 1e-5)
    for seen in spy.seen:
        assert [(timestep == 0).nonzero()[:, 1].tolist() for timestep in seen] == [2 * indices for indices in kept]


@pytest.mark.parametrize(
    ("frame", "latents", "said"),
    [
        (0, [0], "frame 0"),
        (1, [1], "frames 1 to 4"),
        (40, [10], "frames 37 to 40"),
        (41, [11], "frames 41 to 44"),
        (-1, [30], "frames 117 to 120"),
        (-121, [0], "frame 0"),
    ],
)
def test_an_image_fills_the_latent_of_its_frame(comfy, frame, latents, said):
    latent, shown = place(comfy, empty(shapes=FIVE_SECONDS), frame, image=random_frames(1, 64, 48))
    assert preserved(latent) == [latents, []]
    assert shown == [f"Guide: {said} of 0 to 120"]


@pytest.mark.parametrize(
    ("frame", "count", "latents", "first", "used"),
    [
        (0, 11, [0, 1, 2], 0, 9),  # nine frames fill three latents
        (37, 8, [10, 11], 0, 8),
        (38, 11, [11, 12], 3, 8),  # the first three fill no latent
        (40, 9, [11, 12], 1, 8),
        (110, 30, [29, 30], 3, 8),  # the clip ends
    ],
)
def test_frames_fill_whole_latents_where_they_are(comfy, frame, count, latents, first, used):
    frames = random_frames(count, 32, 32)
    latent, _ = place(comfy, empty(shapes=FIVE_SECONDS), frame, image=frames)
    assert preserved(latent) == [latents, []]
    video = latent["samples"].unbind()[0][:, :, latents]
    in_front = frames[:0] if frame == 0 else frames[:1]  # the VAE begins with one frame
    expected = BlockVAE().encode(torch.cat([in_front, frames[first : first + used]]))
    assert_equal([video], [expected[:, :, len(in_front) :]], 1e-6)


def test_frames_of_another_rate_are_shown_at_24(comfy):
    frames = random_frames(12, 32, 32)
    latent, shown = place(comfy, empty(shapes=FIVE_SECONDS), 1, image=frames, fps=48.0)
    assert preserved(latent) == [[1], []]
    assert shown == ["Guide: frames 1 to 4 of 0 to 120"]


def test_audio_begins_at_the_time_of_its_frame(comfy):
    """A step in loudness is in the latent of its time, though the audio begins between two latents."""
    wave = torch.cat([torch.full((RATE // 2,), 0.1), torch.full((RATE,), 0.9)])
    audio = {"waveform": wave[None, None], "sample_rate": RATE}
    for frame in (0, 7, 40):
        latent, shown = place(comfy, empty(shapes=FIVE_SECONDS), frame, audio=audio)
        _, (first, *_) = preserved(latent)
        assert 0 <= first / 31.25 - frame / 24 < 0.032
        assert shown[0].startswith(f"Guide: audio {first / 31.25:.2f} to ")
        loud = (latent["samples"].unbind()[1][0].mean(0) > 0.5).nonzero().flatten()
        assert abs(loud[0].item() / 31.25 - (frame / 24 + 0.5)) <= 0.032


def test_a_guide_keeps_what_the_latent_has(comfy):
    """Its numbers, its mask, what else it carries; and its own tensors stay as they are."""
    video, audio = torch.randn(2, 48, 4, 2, 2), torch.randn(2, 20, 17)
    masks = torch.ones(2, 1, 4, 2, 2), torch.zeros(2, 1, 17)
    latent = {"samples": joint(video, audio), "noise_mask": joint(*masks), "more": 1}
    guided, _ = place(comfy, latent, 12, image=random_frames(1, 32, 32))
    assert guided["more"] == 1
    assert preserved(guided) == [[3], list(range(17))]
    assert torch.equal(guided["samples"].unbind()[0][:, :, :3], video[:, :, :3])
    assert torch.equal(guided["samples"].unbind()[1], audio)
    assert latent["noise_mask"].unbind()[0].all()
    assert latent["samples"].unbind()[0] is video


def test_an_empty_latent_stays_empty_below_sigma_1(comfy, model):
    """Where a sampler starts later, what is not guided is zero for the model, as in an empty latent."""
    guided, _ = place(comfy, empty(shapes=FIVE_SECONDS), 40, image=random_frames(1, 32, 32))
    scaled = model.model.process_latent_in(guided["samples"]).unbind()[0]
    others = [index for index in range(31) if index != 10]
    assert scaled[:, :, others].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("frame", "given", "said"),
    [
        (0, {}, "Ovi Guide has neither an image nor audio"),
        (121, {"image": random_frames(1)}, "The guide begins at frame 121, but the clip has the frames 0 to 120"),
        (-122, {"image": random_frames(1)}, "The guide begins at frame -122"),
        (38, {"image": random_frames(6)}, "The guide's 6 frames from frame 38 on fill no latent, which holds four: 7"),
        (118, {"image": random_frames(9)}, "The guide's 3 frames from frame 118 on fill no latent"),
        (120, {"audio": tone(1.0)}, "The guide's audio lasts 1.00 s and begins at 5.00 s of the clip's 5.04 s"),
        (0, {"image": random_frames(1), "vae": None}, "Ovi Guide has an image but no VAE"),
        (0, {"audio": tone(1.0), "audio_vae": None}, "Ovi Guide has audio but no VAE"),
        (0, {"image": random_frames(1), "fit": "refuse"}, "The guide is 128x96, the video 32x32"),
        (0, {"image": random_frames(1)[..., 0]}, "The guide must be [batch, height, width"),
    ],
)
def test_a_guide_that_does_not_fit(comfy, frame, given, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        place(comfy, empty(shapes=FIVE_SECONDS), frame, **given)


def test_a_mask_of_another_form_is_named(comfy):
    latent = empty(shapes=FIVE_SECONDS) | {"noise_mask": torch.ones(1, 1, 32, 32)}
    with pytest.raises(ValueError, match=r"noise mask of the shape \[1, 1, 32, 32\], but one for each half is needed"):
        place(comfy, latent, 0, image=random_frames(1))
