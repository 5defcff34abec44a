"""The miniature: its world, its codecs, what is measured of it, and what it makes on real ComfyUI."""

from __future__ import annotations

import shutil
from itertools import pairwise
from statistics import median

import pytest
import torch
from test_native import windowed

from miniature import WEIGHTS, codecs, initial, measure, train, world

SEEDS = range(world.HELD_OUT, world.HELD_OUT + 12)
MODEL = WEIGHTS / "ovi_miniature.safetensors"


def through_codecs(scene):
    """A scene's picture [T, H, W, 3] and sound [samples], encoded and decoded."""
    pictures, sounds = codecs.VideoCodec(), codecs.AudioCodec()
    picture = 2 * world.frames(scene).movedim(-1, 0)[None] - 1
    decoded = pictures.decode(pictures.encode(picture))[0].movedim(0, -1) / 2 + 0.5
    return decoded, sounds.decode(sounds.encode(world.waveform(scene)[None]))[0]


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
        sound = world.waveform(scene)
        assert not sound[:first].any()
        assert sound[first : first + 400].abs().max() > 0.1


def test_latents_have_ovis_layout(decoded):
    video = codecs.VideoCodec().encode(torch.zeros(2, 3, 49, 96, 32))
    assert video.shape == (2, 48, 13, 6, 2)
    assert codecs.VideoCodec().decode(video).shape == (2, 3, 49, 96, 32)
    audio = codecs.AudioCodec().encode(torch.zeros(2, 32_667))
    assert audio.shape == (2, 20, 64)
    assert codecs.AudioCodec().decode(audio).shape == (2, 64 * 512)


def test_first_frame_alone_has_the_first_latent():
    """What image to video needs."""
    pictures = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    whole, first = (codecs.VideoCodec().encode(part) for part in (pictures, pictures[:, :, :1]))
    torch.testing.assert_close(first[:, :, 0], whole[:, :, 0])


def test_a_sine_is_as_loud_as_it_is(decoded):
    time = torch.arange(16_384) / world.RATE
    sound = codecs.AudioCodec()
    latents = sound.encode((0.5 * torch.sin(2 * torch.pi * 1000 * time))[None])
    parts = ((latents + codecs.AUDIO_MEAN) / codecs.AUDIO_GAIN).expm1() * codecs.SOFT
    assert parts[0, 8:12, 4:-4].mean().item() == pytest.approx(0.5, rel=0.02)
    assert sound.decode(latents)[0, 2000:-2000].abs().max().item() == pytest.approx(0.5, rel=0.05)


def test_events_are_measured_through_the_codecs(decoded):
    """Seen and heard to 10 ms, at most 20, none missed; and colour and pitch."""
    for scene, (picture, sound) in decoded.items():
        times = [time for time, _ in scene.impacts()]
        for found in (measure.bounces(picture), measure.onsets(sound)):
            pairs = measure.matched(times, found)
            assert not measure.unpaired(times, {time for time, _ in pairs})
            assert not measure.unpaired(found, {time for _, time in pairs})
            assert max(abs(a - b) for a, b in pairs) < 0.02
            assert median(abs(a - b) for a, b in pairs) < 0.01
        assert measure.colour(picture) == scene.colour
        assert measure.pitch(sound) == world.BELLS[scene.size]


def test_matching():
    """Nearest first, each in one pair; a tenth of a second apart is no pair."""
    assert measure.matched([0.5, 1.0], [0.52, 0.95, 1.5]) == [(0.5, 0.52), (1.0, 0.95)]
    assert measure.matched([0.5, 0.54], [0.55]) == [(0.54, 0.55)]
    assert measure.matched([0.5], [0.7]) == []
    assert measure.unpaired([0.5, 1.0, 1.5, 1.99], {1.0}) == 2


def test_shuffled_clips_are_at_chance(decoded):
    pictures, sounds = zip(*decoded.values(), strict=True)
    seen, heard = [measure.bounces(p) for p in pictures], [measure.onsets(s) for s in sounds]
    assert measure.nearest_distance(seen, heard) < 0.01
    assert measure.nearest_distance(seen, heard, 1) > 0.04


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


@pytest.fixture
def nodes(comfy):
    """The loaders, on real ComfyUI."""
    from miniature import nodes

    with torch.inference_mode():
        yield nodes


@pytest.mark.comfyui
def test_the_codecs_are_vaes_for_ovi_s_nodes(comfy, nodes, decoded):
    """A scene goes through their latents and Ovi Decode, whole and in tiles, as through the codecs alone."""
    from comfy.nested_tensor import NestedTensor

    scene, (picture, sound) = next(iter(decoded.items()))
    (video_vae,), (audio_vae,) = nodes.OviMiniatureVideoVAE.execute().args, nodes.OviMiniatureAudioVAE.execute().args
    video = video_vae.encode(world.frames(scene))
    audio = audio_vae.encode(world.waveform(scene)[None, :, None])
    latent = {"samples": NestedTensor([video, audio])}
    for tile_size in (0, 64):
        inputs = {"vae": video_vae, "audio_vae": audio_vae, "fps": 24.0, "tile_size": tile_size}
        images, heard = comfy.run("OviDecode", samples=latent, **inputs)
        if not tile_size:
            torch.testing.assert_close(images, picture, atol=1e-4, rtol=0)
        assert images.shape == picture.shape
        assert heard["sample_rate"] == world.RATE
        torch.testing.assert_close(heard["waveform"][0, 0], sound[: heard["waveform"].shape[-1]], atol=1e-5, rtol=0)
    start = video_vae.encode(world.frames(scene)[:1])
    torch.testing.assert_close(start[:, :, 0], video[:, :, 0], atol=1e-4, rtol=0)


@pytest.mark.comfyui
def test_the_text_encoder_tells_the_captions_apart(nodes):
    """One token for each word, and no two captions alike."""
    clip = nodes.OviMiniatureText.execute().args[0]
    encoded = [clip.encode_from_tokens(clip.tokenize(caption)) for caption in train.CAPTIONS]
    assert {(row.abs().sum(-1) > 0).sum().item() for (row,) in encoded} == {16}
    apart = torch.cdist(*2 * [torch.cat(encoded).flatten(1)]) + 1e9 * torch.eye(len(encoded))
    assert apart.min() > 1


def loaded(nodes):
    """The model and its text encoder."""
    from ovi import native

    return native.load([str(MODEL)]), nodes.OviMiniatureText.execute().args[0]


@pytest.mark.comfyui
def test_picture_and_sound_meet(comfy, nodes):
    """In ten steps, of captions whose scenes were not trained on; without the fusion they are near chance."""
    from bench import quality
    from bench.rows import TO_AUDIO, TO_VIDEO, Row, cut, sampled

    scenes = [world.scene(world.HELD_OUT + i) for i in range(12)]
    model, clip = loaded(nodes)
    rows = Row("fused", steps=10), Row("unfused", steps=10, change=cut(TO_VIDEO, TO_AUDIO))
    fused, unfused = (quality.scores(scenes, *sampled(model, row, scenes, clip, seed=0)) for row in rows)
    assert fused["error_ms"] < 30
    assert fused["missed"] + fused["extra"] < 0.3
    assert fused["nearest_ms"] < fused["shuffled_ms"] / 3
    assert fused["colour"] >= 0.9
    assert fused["pitch"] >= 0.95
    assert unfused["nearest_ms"] > unfused["shuffled_ms"] / 2


@pytest.mark.comfyui
@pytest.mark.parametrize("anchored", [True, False])
def test_they_meet_in_later_context_windows(comfy, nodes, anchored):
    """Six seconds in windows of two: beyond the first window, too, a sound is within a frame of its bounce."""
    from bench.rows import Row, sampled

    def change(model):
        return windowed(comfy, model, context_length=13, context_overlap=3, causal_window_fix=anchored)

    (model, clip), row = loaded(nodes), Row("in windows", steps=10, change=change)
    distances = []
    for seed in range(3):
        scene = world.scene(world.HELD_OUT + seed)
        (picture,), (sound,) = sampled(model, row, [scene], clip, seed, length=145)
        later = [time for time in measure.bounces(picture) if time > 2]
        distances += [b - a for a, b in measure.matched(later, measure.onsets(sound))]
    assert len(distances) > 6
    assert abs(median(distances)) < 1 / 24


@pytest.mark.comfyui
def test_the_sound_of_a_given_video_meets_it(comfy, nodes):
    """Through the nodes of the workflow that makes sound for a video."""
    shutil.copy(MODEL, comfy.models / "diffusion_models" / MODEL.name)
    (model,) = comfy.run("OviModelLoader", model_name=MODEL.name, second_model_name="none", weight_dtype="default")
    (clip,) = nodes.OviMiniatureText.execute().args
    (video_vae,), (audio_vae,) = nodes.OviMiniatureVideoVAE.execute().args, nodes.OviMiniatureAudioVAE.execute().args
    size = {"width": world.WIDTH, "height": world.HEIGHT, "length": world.FRAMES, "batch_size": 1, "fit": "refuse"}
    keep = {"fps": world.FPS, "keep_frames": 0, "keep_seconds": 0.0}
    keep |= {"remake": "nothing", "remake_start": 0.0, "remake_end": 0.0}
    sampling = {"steps": 10, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    distances = []
    for seed in SEEDS[:6]:
        scene = world.scene(seed)
        (latent,) = comfy.run("OviReference", **size, **keep, vae=video_vae, video=world.frames(scene))
        (prompt,) = comfy.run("CLIPTextEncode", clip=clip, text=scene.caption)
        conds = {"positive": prompt, "negative": prompt}
        (latent,) = comfy.run("KSampler", model=model, seed=seed, latent_image=latent, **conds, **sampling)
        images, heard = comfy.run(
            "OviDecode", samples=latent, vae=video_vae, audio_vae=audio_vae, fps=24.0, tile_size=0
        )
        seen, rung = measure.bounces(images), measure.onsets(heard["waveform"][0, 0])
        pairs = measure.matched(seen, rung)
        assert not measure.unpaired(seen, {time for time, _ in pairs})
        distances += [b - a for a, b in pairs]
    assert abs(median(distances)) < 0.02
    assert median(map(abs, distances)) < 0.03
