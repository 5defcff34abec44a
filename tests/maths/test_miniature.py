"""The miniature: its world, its codecs, what is measured of it, and what it makes on real ComfyUI."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import pytest
import torch

from miniature import WEIGHTS, codecs, initial, measure, references, world
from support.scenes import SEEDS, through_codecs


@pytest.fixture(scope="module")
def decoded():
    """By scene: what its codecs leave of it."""
    return {world.scene(seed): through_codecs(world.scene(seed)) for seed in SEEDS}


def test_a_scene_is_its_seed():
    assert world.scene(5) == world.scene(5) != world.scene(6)


def test_the_ball_bounces():
    """It touches the floor at each impact, never goes below, and every hop is lower than the one before."""
    for scene in map(world.scene, SEEDS):
        times = torch.tensor([time for time, _ in scene.impacts()])
        assert scene.heights(times).abs().max() < 1e-2
        moments = torch.linspace(0, world.SECONDS, 500)
        heights = scene.heights(moments)
        assert heights.min() >= 0
        hops = [heights[(moments > a) & (moments < b)].max() for a, b in pairwise(times)]
        assert all(high > low for high, low in pairwise([scene.height, *hops]))


def test_it_sounds_when_it_bounces_and_not_before():
    for scene in map(world.scene, SEEDS):
        first = int(scene.impacts()[0][0] * world.RATE)
        wave = world.waveform(scene)
        assert not wave[:first].any()
        assert wave[first : first + 400].abs().max() > 0.1


def test_latents_have_ovis_layout(decoded):
    video = codecs.VideoCodec().encode(torch.zeros(2, 3, 49, 96, 32))
    assert video.shape == (2, 48, 13, 6, 2)
    assert codecs.VideoCodec().decode(video).shape == (2, 3, 49, 96, 32)
    audio = codecs.AudioCodec().encode(torch.zeros(2, 32_667))
    assert audio.shape == (2, 20, 64)
    assert codecs.AudioCodec().decode(audio).shape == (2, 64 * 512)


def test_first_frame_alone_has_the_first_latent():
    """What image to video needs."""
    frames = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    whole, first = (codecs.VideoCodec().encode(part) for part in (frames, frames[:, :, :1]))
    torch.testing.assert_close(first[:, :, 0], whole[:, :, 0])


def test_a_sine_is_as_loud_as_it_is(decoded):
    time = torch.arange(16_384) / world.RATE
    codec = codecs.AudioCodec()
    latents = codec.encode((0.5 * torch.sin(2 * torch.pi * 1000 * time))[None])
    bands = codecs.BELLS
    parts = ((latents + bands.mean) / bands.gain).expm1() * bands.soft
    assert parts[0, 8:12, 4:-4].mean().item() == pytest.approx(0.5, rel=0.02)
    assert codec.decode(latents)[0, 2000:-2000].abs().max().item() == pytest.approx(0.5, rel=0.05)


def test_events_are_measured_through_the_codecs(decoded):
    """Seen and heard to 10 ms, at most 20, none missed; and colour and pitch."""
    for scene, (frames, wave) in decoded.items():
        times = [time for time, _ in scene.impacts()]
        for found in (measure.bounces(frames), measure.onsets(wave)):
            pairs = measure.matched(times, found)
            assert not measure.unpaired(times, {time for time, _ in pairs})
            assert not measure.unpaired(found, {time for _, time in pairs})
            assert max(abs(a - b) for a, b in pairs) < 0.02
            assert median(abs(a - b) for a, b in pairs) < 0.01
        assert measure.colour(frames) == scene.colour
        assert measure.pitch(wave) == scene.pitch


def test_matching():
    """Nearest first, each in one pair; a tenth of a second apart is no pair."""
    assert measure.matched([0.5, 1.0], [0.52, 0.95, 1.5]) == [(0.5, 0.52), (1.0, 0.95)]
    assert measure.matched([0.5, 0.54], [0.55]) == [(0.54, 0.55)]
    assert measure.matched([0.5], [0.7]) == []
    assert measure.unpaired([0.5, 1.0, 1.5, 1.99], {1.0}) == 2


def test_shuffled_clips_are_at_chance(decoded):
    videos, waves = zip(*decoded.values(), strict=True)
    seen, heard = [measure.bounces(video) for video in videos], [measure.onsets(wave) for wave in waves]
    assert measure.nearest_distance(seen, heard) < 0.01
    assert measure.nearest_distance(seen, heard, 1) > 0.04


def test_the_prompt_of_a_scene_with_references_tells_neither_colour_nor_pitch():
    """Nor does the ball's size: every pitch occurs with it. All else is as in the scene of the same seed."""
    scenes = [references.scene(seed) for seed in range(100)]
    assert len({(scene.size, scene.pitch) for scene in scenes}) == len(world.RADII) * len(world.PITCHES)
    assert {scene.caption for scene in scenes} == {
        f"A {size} ball falls and bounces. Audio: a bell rings." for size in world.RADII
    }
    for seed, scene in enumerate(scenes):
        plain = world.scene(seed)
        assert torch.equal(world.frames(scene), world.frames(plain))
        assert scene.impacts() == plain.impacts()


def test_references_show_colour_and_pitch_alone():
    """Through the codecs; the ball has another size than in the clip, the bell is struck at another time."""
    for seed, scene in ((seed, references.scene(seed)) for seed in SEEDS):
        image, recording = references.image(scene, seed), references.recording(scene, seed)
        video, audio = codecs.VideoCodec(), codecs.AudioCodec()
        seen = video.decode(video.encode(2 * image.movedim(-1, 0)[None] - 1))[0].movedim(0, -1) / 2 + 0.5
        heard = audio.decode(audio.encode(recording[None]))[0]
        assert measure.colour(seen) == scene.colour
        assert measure.pitch(heard) == scene.pitch
        pixels = [
            ((frame - world.background()).abs().amax(-1) > 0.1).sum() for frame in (image[0], world.frames(scene)[0])
        ]
        assert abs(pixels[0] - pixels[1]) > 100
        assert measure.onsets(recording) != measure.onsets(world.waveform(scene))


def test_the_weights_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 32_000_000


def test_training_begins_with_what_it_is_given():
    """At first the video's head gives back the noise that came in, and the audio's nearly so."""
    model = initial.new_model()
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randn(2, 48, 3, 6, 2, generator=draw), torch.randn(2, 20, 16, generator=draw)]
    text = torch.randn(2, 5, 64, generator=draw)
    with torch.no_grad():
        got = model(noise, torch.full((2,), 1000.0), text)
    for given, back in zip(noise, got, strict=True):
        assert torch.cosine_similarity(given.flatten(), back.flatten(), 0) > 0.6
