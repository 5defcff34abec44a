"""The miniature on real ComfyUI: its loaders, and what it generates."""

from __future__ import annotations

import dataclasses
import shutil
from statistics import median

import pytest
import torch
from safetensors.torch import load_file

from miniature import WEIGHTS, measure, recogniser, references, speech, text, train, train_references, world
from support.sampling import windowed
from support.scenes import SEEDS, through_codecs

pytestmark = pytest.mark.comfyui

MODEL, LORA = WEIGHTS / "ovi_miniature.safetensors", WEIGHTS / "references_lora.safetensors"


@pytest.fixture
def nodes(comfy):
    """The loaders, on real ComfyUI."""
    from miniature import nodes

    with torch.inference_mode():
        yield nodes


def test_the_codecs_are_vaes_for_ovi_s_nodes(comfy, nodes):
    """A scene goes through their latents and Ovi Decode, whole and in tiles, as through the codecs alone."""
    from comfy.nested_tensor import NestedTensor

    scene = world.scene(SEEDS[0])
    frames, wave = through_codecs(scene)
    (video_vae,), (audio_vae,) = nodes.OviMiniatureVideoVAE.execute().args, nodes.OviMiniatureAudioVAE.execute().args
    video = video_vae.encode(world.frames(scene))
    audio = audio_vae.encode(world.waveform(scene)[None, :, None])
    latent = {"samples": NestedTensor([video, audio])}
    for tile_size in (0, 64):
        inputs = {"vae": video_vae, "audio_vae": audio_vae, "fps": 24.0, "tile_size": tile_size}
        images, heard = comfy.run("OviDecode", samples=latent, **inputs)
        torch.testing.assert_close(images, frames, atol=0.1 if tile_size else 1e-4, rtol=0)  # seams differ
        assert heard["sample_rate"] == world.RATE
        torch.testing.assert_close(heard["waveform"][0, 0], wave[: heard["waveform"].shape[-1]], atol=1e-5, rtol=0)
    start = video_vae.encode(world.frames(scene)[:1])
    torch.testing.assert_close(start[:, :, 0], video[:, :, 0], atol=1e-4, rtol=0)


def test_the_text_encoder_tells_the_captions_apart(nodes):
    """One token for each word, and no two captions alike."""
    clip = nodes.OviMiniatureText.execute().args[0]
    captions = [*train.CAPTIONS, *train_references.CAPTIONS]
    encoded = [clip.encode_from_tokens(clip.tokenize(caption)) for caption in captions]
    assert [(row.abs().sum(-1) > 0).sum().item() for (row,) in encoded] == [16] * 12 + [14] * 3
    apart = torch.cdist(*2 * [torch.cat(encoded).flatten(1)]) + 1e9 * torch.eye(len(encoded))
    assert apart.min() > 1


def test_the_text_encoder_of_the_talking_world(nodes):
    """It gives what the training computes without ComfyUI: padding is zero, and an empty prompt has one token."""
    clip = nodes.OviMiniatureText.execute("talking").args[0]
    captions = ["", "small says ma", *(speech.scene(seed).caption for seed in SEEDS)]
    encoded = [clip.encode_from_tokens(clip.tokenize(caption, disable_weights=True)) for caption in captions]
    wanted = text.contexts(captions, load_file(text.TALKING))
    torch.testing.assert_close(torch.cat(encoded), wanted, atol=1e-5, rtol=0)


def test_the_audio_codec_of_the_talking_world(nodes):
    """It decodes to a voice that says the same."""
    scene = speech.scene(SEEDS[0])
    vae = nodes.OviMiniatureAudioVAE.execute("talking").args[0]
    latents = vae.encode(speech.waveforms([scene])[..., None])
    torch.testing.assert_close(latents, speech.audio_latents([scene]), atol=1e-4, rtol=0)
    (heard,) = recogniser.hear(vae.decode(latents)[..., 0])
    assert (heard.syllables, heard.voice) == (scene.syllables, scene.voice)


def test_loaders_without_a_world_load_the_ball(nodes):
    """As in graphs that were saved before there was a choice."""
    for loader in (nodes.OviMiniatureText, nodes.OviMiniatureAudioVAE):
        (world_input,) = loader.define_schema().inputs
        assert world_input.optional
        assert world_input.default == "ball"


def loaded(nodes):
    """The model and its text encoder."""
    from ovi import native

    return native.load([str(MODEL)]), nodes.OviMiniatureText.execute().args[0]


def test_video_and_audio_meet(comfy, nodes):
    """In ten steps, for captions of scenes that were not trained on; without the fusion they meet by chance alone."""
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


@pytest.mark.parametrize("anchored", [True, False])
def test_they_meet_in_later_context_windows(comfy, nodes, anchored):
    """Six seconds in windows of two: beyond the first window, too, a bell rings within a frame of its bounce."""
    from bench.rows import Row, sampled

    def change(model):
        return windowed(comfy, model, context_length=13, context_overlap=3, causal_window_fix=anchored)

    (model, clip), row = loaded(nodes), Row("in windows", steps=10, change=change)
    distances = []
    for seed in range(3):
        scene = world.scene(world.HELD_OUT + seed)
        (frames,), (wave,) = sampled(model, row, [scene], clip, seed, length=145)
        later = [time for time in measure.bounces(frames) if time > 2]
        distances += [b - a for a, b in measure.matched(later, measure.onsets(wave))]
    assert len(distances) > 6
    assert abs(median(distances)) < 1 / 24


def test_the_audio_for_a_video_meets_it(comfy, nodes):
    """Through the nodes of the workflow that generates audio for a video."""
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
        latent, _ = comfy.run("OviReference", **size, **keep, vae=video_vae, video=world.frames(scene))
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


def test_colour_and_pitch_follow_the_references(comfy, nodes):
    """The prompt tells neither. Another image changes the colour alone, another recording the pitch alone."""
    from bench import quality
    from bench.rows import reference_rows, sampled

    scenes = [references.scene(world.HELD_OUT + i) for i in range(8)]
    model, clip = loaded(nodes)
    for row in reference_rows(LORA)[:3]:
        row = dataclasses.replace(row, steps=4)
        scores = quality.scores(list(map(row.vary, scenes)), *sampled(model, row, scenes, clip, seed=0))
        assert scores["colour"] >= 0.85, row.name
        assert scores["pitch"] >= 0.85, row.name
        assert scores["nearest_ms"] < scores["shuffled_ms"] / 2, row.name


def test_ovi_person_gives_the_ball_its_colour_and_the_bell_its_pitch(comfy, nodes):
    """Through the nodes of a graph: core's LoRA loader, Ovi Person, KSampler; the same prompt and seed for all."""
    shutil.copy(MODEL, comfy.models / "diffusion_models" / MODEL.name)
    shutil.copy(LORA, comfy.models / "loras" / LORA.name)
    (model,) = comfy.run("OviModelLoader", model_name=MODEL.name, second_model_name="none", weight_dtype="default")
    (model,) = comfy.run("LoraLoaderModelOnly", model=model, lora_name=LORA.name, strength_model=1.0)
    (clip,) = nodes.OviMiniatureText.execute().args
    (video_vae,), (audio_vae,) = nodes.OviMiniatureVideoVAE.execute().args, nodes.OviMiniatureAudioVAE.execute().args
    vaes = {"vae": video_vae, "audio_vae": audio_vae}
    size = {"width": world.WIDTH, "height": world.HEIGHT, "length": world.FRAMES, "batch_size": 1}
    (latent,) = comfy.run("EmptyOviLatent", **size)
    first = references.scene(world.HELD_OUT)
    (prompt,) = comfy.run("CLIPTextEncode", clip=clip, text=first.caption)
    sampling = {"seed": 0, "steps": 6, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    for colour, pitch in (("red", "low"), ("blue", "high"), ("green", "middle")):
        scene = dataclasses.replace(first, colour=colour, pitch=pitch)
        voice = {"waveform": references.recording(scene, 0)[None, None], "sample_rate": world.RATE}
        given = {"face": references.image(scene, 0), "voice": voice, "voice_start": 0.0, "voice_seconds": 0.5}
        conds = comfy.run("OviPerson", positive=prompt, negative=prompt, latent=latent, **vaes, **given)
        named = dict(zip(("positive", "negative"), conds, strict=True))
        (out,) = comfy.run("KSampler", model=model, latent_image=latent, **named, **sampling)
        images, heard = comfy.run("OviDecode", samples=out, **vaes, fps=24.0, tile_size=0)
        assert measure.colour(images) == colour
        assert measure.pitch(heard["waveform"][0, 0]) == pitch
