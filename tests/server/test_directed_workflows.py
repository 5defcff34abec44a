"""The workflows that dub, continue, lengthen, enlarge and refine a clip, and the one that makes clips for training.

On a real server with tiny random weights.
"""

from __future__ import annotations

import av
import numpy as np
import pytest
from safetensors.torch import load_file

from ovi import geometry
from support import tiny
from support.comfy_server import error
from support.media import read_clip
from support.workflows import fitted, id_of, ids, node_of

pytestmark = pytest.mark.server


@pytest.mark.usefixtures("input_video")
def test_a_video_gets_audio(server):
    """Its own frames, at its own rate, with the audio of a clip of 9 frames at 24 per second."""
    (clip,) = server.run(fitted("ovi_video_to_audio", length=9, steps=2))
    frames, wave, rate, seconds = read_clip(clip)
    assert len(frames) == 60
    assert rate == 30
    assert seconds == pytest.approx(9 / 24, abs=1 / 24)
    assert np.abs(wave).max() > 0.01


def test_three_clips_continue_each_other(server):
    """Three of 9 frames with 5 in common."""
    (clip,) = server.run(fitted("ovi_three_clips", length=9, overlap=0.2, steps=2))
    frames, wave, rate, seconds = read_clip(clip)
    assert len(frames) == 3 * 9 - 2 * 5
    assert rate == 24
    assert seconds == pytest.approx(17 / 24, abs=1 / 24)
    assert np.abs(wave).max() > 0.01


def test_ten_seconds_in_windows(server):
    """The whole workflow, half as long, but the decoding of its audio by the full-size vocoder: latents are counted."""
    changes = {"width": 32, "height": 32, "length": 241, "steps": 1, "cfg": 1.0, "audio_cfg": 1.0}
    prompt = fitted("ovi_context_windows", prompt="A pier.\n--- from 5s\nA door.", **changes)
    del node_of(prompt, "OviDecode")["inputs"]["audio_vae"], node_of(prompt, "CreateVideo")["inputs"]["audio"]
    sampled = [id_of(prompt, "SamplerCustomAdvanced"), 0]
    prompt["parts"] = {"class_type": "LTXVSeparateAVLatent", "inputs": {"av_latent": sampled}}
    prompt["saved"] = {"class_type": "SaveLatent", "inputs": {"samples": ["parts", 1], "filename_prefix": "audio"}}
    audio, clip = sorted(server.run(prompt), key=lambda path: path.suffix)
    with av.open(clip) as container:
        assert sum(1 for _ in container.decode(video=0)) == 241
    assert load_file(audio)["latent_tensor"].shape == (1, 20, geometry.audio_latents(241))
    assert "Context window 3/3: frames 30-60 of 61" in server.log.read_text()


def test_a_clip_from_an_idea(server):
    """The whole workflow, with a stand-in for the language model: what it answers is what is encoded."""
    prompt = fitted("ovi_idea", width=32, height=32, length=5, steps=1)
    entry = server.wait(server.queue(prompt))
    (clip,) = server.files(entry)
    frames, wave, rate, _ = read_clip(clip)
    assert (len(frames), rate) == (5, 24)
    assert np.abs(wave).max() > 0.01
    shown = {key: output["text"][0] for key, output in entry["outputs"].items() if "text" in output}
    assert (
        shown[id_of(prompt, "PreviewAny")]
        == "A red ball on a stage. The ball says, <S>It rains.<E>\n\nAudio: A high clear bell."
    )
    assert shown[id_of(prompt, "OviAnswer")].startswith("Speech: 2 words, about 0.8 s of the clip's 0.2 s")


def test_a_clip_in_few_steps(server):
    """With a LoRA that says how it is to be sampled."""
    prompt = fitted("ovi_fast", width=32, height=32, length=5, steps=2)
    entry = server.wait(server.queue(prompt))
    assert entry["status"]["status_str"] == "success", error(entry)
    (clip,) = server.files(entry)
    assert len(read_clip(clip)[0]) == 5
    (text,) = entry["outputs"][id_of(prompt, "OviLoraLoader")]["text"]
    assert text.splitlines() == [
        "Made for 6 steps of unipc, shift 6, cfg 1, audio cfg 1; solver unipc",
        "Patched: 1 video weights at 1, 0 audio weights at 1",
    ]


def test_a_clip_upscaled_at_48_frames_a_second(server):
    """Twice the size, twice the frames but one; the audio lasts as long as before."""
    (clip,) = server.run(fitted("ovi_upscale_48fps", length=5, steps=2))
    frames, wave, rate, seconds = read_clip(clip)
    assert frames.shape == (9, 320, 512, 3)
    assert rate == 48
    assert seconds == pytest.approx(9 / 48, abs=1 / 24)
    assert np.abs(wave).max() > 0.01


def test_one_gpu_where_several_are_asked_for(server):
    """The node says what there is; with one GPU the workflow runs, whatever device is chosen for the VAE."""
    prompt = fitted("ovi_several_gpus", width=32, height=32, length=5, steps=1)
    entry = server.wait(server.queue(prompt))
    assert "Ovi Parallel is set to 2 GPUs, but ComfyUI has 1" in error(entry)
    node_of(prompt, "OviParallel")["inputs"]["gpus"] = 1
    (clip,) = server.run(prompt)
    assert len(read_clip(clip)[0]) == 5


def test_a_second_pass_leaves_the_audio(server):
    """The frames are larger; the audio is that of the first pass, sample for sample."""
    both_passes, first_pass = (fitted("ovi_second_pass", length=5, steps=2) for _ in range(2))
    sampled = node_of(first_pass, "LTXVSeparateAVLatent")["inputs"]["av_latent"]
    node_of(first_pass, "OviDecode")["inputs"]["samples"] = sampled
    (clip,), (first,) = server.run(both_passes), server.run(first_pass)
    frames, wave, *_ = read_clip(clip)
    first_frames, first_wave, *_ = read_clip(first)
    assert (frames.shape, first_frames.shape) == ((5, 240, 384, 3), (5, 160, 256, 3))
    np.testing.assert_array_equal(wave, first_wave)


@pytest.mark.usefixtures("input_voices")
def test_a_dialogue(server):
    """Two faces and two voices, with guidance by both: four passes a step."""
    prompt = fitted("ovi_dialogue", width=64, height=96, length=5, steps=2)
    entry = server.wait(server.queue(prompt))
    assert entry["status"]["status_str"] == "success", error(entry)
    (clip,) = server.files(entry)
    assert read_clip(clip)[0].shape == (5, 96, 64, 3)
    persons = [entry["outputs"][key] for key in ids(prompt, "OviPerson")]
    assert [person["text"] for person in persons] == [["<sub1>: a face and a voice"], ["<sub2>: a face and a voice"]]
    assert all(len(person["images"]) == 1 for person in persons)


@pytest.mark.usefixtures("input_videos")
def test_videos_become_clips_for_training(server):
    """By the VAEs of the graph; the one without audio is left out, and the page of first frames is shown."""
    prompt = fitted("ovi_training_clips", size=64, length=25, shortest=25)
    entry = server.wait(server.queue(prompt))
    assert entry["status"]["status_str"] == "success", error(entry)
    assert len(entry["outputs"][id_of(prompt, "PreviewImage")]["images"]) == 1
    (text,) = entry["outputs"][id_of(prompt, "OviTrainingClips")]["text"]
    assert "1 encoded, 0 already there, 1 left out" in text
    tensors = load_file(server.base / "output" / "clips" / "my_clips" / "one_001.safetensors")
    assert tensors["video"].shape == (48, 7, 4, 4)
    assert tensors["audio"].shape == (20, geometry.audio_latents(25))
    assert tensors["context"].shape[1] == tiny.TEXT_DIM
