"""The workflows of given, continued, long and refined clips on a real ComfyUI server, with tiny random weights."""

from __future__ import annotations

import av
import numpy as np
import pytest
from media import pictures
from safetensors.torch import load_file
from test_server import fitted

from ovi import geometry

pytestmark = pytest.mark.server


def watched(path):
    """Frames [T, H, W, 3], wave [S], frames per second and seconds of sound of a film."""
    with av.open(path) as container:
        picture, audio = container.streams.video[0], container.streams.audio[0]
        wave = np.concatenate([block.to_ndarray()[0] for block in container.decode(audio)])
        container.seek(0)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(picture)])
        return frames, wave, picture.average_rate, float(audio.duration * audio.time_base)


@pytest.fixture
def given(server):
    """A film of 60 frames at 30 a second in ComfyUI's folder of inputs, for the time of a test."""
    path = server.base / "input" / "video.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("h264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 256, 192, "yuv420p"
        for frame in (pictures(60, 256, 192) * 255).byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    yield
    path.unlink()


@pytest.mark.usefixtures("given")
def test_a_video_gets_sound(server):
    """Its own frames, at its own rate, with the sound of a clip of 9 frames at 24."""
    (film,) = server.run(fitted("ovi_video_to_audio", length=9, steps=2))
    frames, wave, rate, seconds = watched(film)
    assert len(frames) == 60
    assert rate == 30
    assert seconds == pytest.approx(9 / 24, abs=1 / 24)
    assert np.abs(wave).max() > 0.01


def test_three_clips_go_on(server):
    """Three of 9 frames with 5 in common."""
    (film,) = server.run(fitted("ovi_three_clips", length=9, overlap=0.2, steps=2))
    frames, wave, rate, seconds = watched(film)
    assert len(frames) == 3 * 9 - 2 * 5
    assert rate == 24
    assert seconds == pytest.approx(17 / 24, abs=1 / 24)
    assert np.abs(wave).max() > 0.01


def test_twenty_seconds_in_windows(server):
    """All of the workflow but its sound's decoding, which takes the full-size vocoder minutes: latents are counted."""
    prompt = fitted("ovi_context_windows", width=32, height=32, length=481, steps=1, cfg=1.0, audio_cfg=1.0)
    del prompt["14"]["inputs"]["audio_vae"], prompt["15"]["inputs"]["audio"]
    prompt["parts"] = {"class_type": "LTXVSeparateAVLatent", "inputs": {"av_latent": ["13", 0]}}
    prompt["saved"] = {"class_type": "SaveLatent", "inputs": {"samples": ["parts", 1], "filename_prefix": "sound"}}
    sound, film = sorted(server.run(prompt), key=lambda path: path.suffix)
    with av.open(film) as container:
        assert sum(1 for _ in container.decode(video=0)) == 481
    assert load_file(sound)["latent_tensor"].shape == (1, 20, geometry.audio_latents(481))
    assert "Context window 5/5: frames 90-120 of 121" in server.log.read_text()


def test_a_clip_upscaled_at_48_frames_a_second(server):
    """Twice the size, twice the frames but one; the sound is as long as it was."""
    (film,) = server.run(fitted("ovi_upscale_48fps", length=5, steps=2))
    frames, wave, rate, seconds = watched(film)
    assert frames.shape == (9, 320, 512, 3)
    assert rate == 48
    assert seconds == pytest.approx(9 / 48, abs=1 / 24)
    assert np.abs(wave).max() > 0.01


def test_a_second_pass_leaves_the_sound(server):
    """The picture is larger; the sound is that of the first pass, sample for sample."""
    both_passes, first_pass = (fitted("ovi_second_pass", length=5, steps=2) for _ in range(2))
    first_pass["13"]["inputs"]["samples"] = ["12", 0]
    (film,), (first,) = server.run(both_passes), server.run(first_pass)
    frames, wave, *_ = watched(film)
    first_frames, first_wave, *_ = watched(first)
    assert (frames.shape, first_frames.shape) == ((5, 240, 384, 3), (5, 160, 256, 3))
    np.testing.assert_array_equal(wave, first_wave)
