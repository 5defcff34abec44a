"""The mistakes of a beginner, made in the text to video workflow: what is said, and that nothing was sampled before.

Two are ComfyUI's own to answer, and help pages name what it says: Ovi in Load Diffusion Model, and VAE Decode.
"""

from __future__ import annotations

import shutil

import av
import pytest

from support import ROOT, tiny
from support.comfy_server import ServerError, error
from support.workflows import fitted, id_of, node_of

pytestmark = pytest.mark.server


def text_to_video(**changes):
    """The workflow, fitted to tiny weights and little time."""
    return fitted("ovi_text_to_video", **{"width": 32, "height": 32, "length": 1, "steps": 1} | changes)


def unwired(prompt, kind, *names):
    """Take wires from the node of a class."""
    for name in names:
        del node_of(prompt, kind)["inputs"][name]
    return prompt


def swapped_vaes():
    prompt = text_to_video()
    inputs = node_of(prompt, "OviDecode")["inputs"]
    inputs["vae"], inputs["audio_vae"] = inputs["audio_vae"], inputs["vae"]
    return prompt


def images_without_vae():
    return unwired(text_to_video(), "OviDecode", "vae")


def audio_saved_without_vae():
    prompt = unwired(text_to_video(), "OviDecode", "audio_vae")
    audio = {"audio": [id_of(prompt, "OviDecode"), 1], "filename_prefix": "audio"}
    return prompt | {"saved": {"class_type": "SaveAudio", "inputs": audio}}


def speech(text):
    return text_to_video(prompt=f"A woman says, {text} Audio: rain.")


MISTAKES = {  # what was done, and what is said
    "VAEs swapped": (swapped_vaes, "The video VAE given is an audio VAE of 20 channels, but Ovi needs Wan 2.2's"),
    "no video VAE": (images_without_vae, "no video VAE connected, but its images go to CreateVideo: connect one"),
    "no audio VAE for an audio file": (
        audio_saved_without_vae,
        "no audio VAE connected, but its audio goes to SaveAudio: connect one",
    ),
    "unclosed tag": (lambda: speech("<S>Hello there."), 'The speech tag before "Hello there.'),
    "blocks": (lambda: text_to_video(skip_blocks="9-11"), "9-11"),
    "length": (lambda: text_to_video(length=120), "4n + 1 frames, got 120: use 117 or 121"),
    "size": (lambda: text_to_video(width=1280, height=720), "multiples of 32, got 1280x720: use width 1280 and height"),
}


def sampled(entry, prompt):
    """Whether the sampler of a prompt was executed before the failure."""
    return id_of(prompt, "SamplerCustomAdvanced") in entry["status"]["messages"][-1][1]["executed"]


def video_frames(clip):
    """Count the frames of a clip, which has no audio."""
    with av.open(clip) as container:
        assert not container.streams.audio
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_said_before_anything_is_sampled(server, mistake):
    make, said = MISTAKES[mistake]
    prompt = make()
    entry = server.wait(server.queue(prompt))
    assert said in error(entry)
    assert not sampled(entry, prompt)


@pytest.mark.parametrize(
    ("kind", "wires", "said"),
    [
        ("OviDecode", ("vae", "audio_vae"), "Ovi Decode has no VAE connected; it needs the video VAE"),
        ("CFGGuider", ("model",), "Required input is missing"),
        ("OviTextEncode", ("clip",), "Required input is missing"),
    ],
)
def test_a_missing_wire_is_said_when_the_prompt_is_queued(server, kind, wires, said):
    with pytest.raises(ServerError, match=said):
        server.queue(unwired(text_to_video(), kind, *wires))


def test_a_wire_of_another_type_is_said_when_the_prompt_is_queued(server):
    prompt = text_to_video()
    node_of(prompt, "OviDecode")["inputs"]["vae"] = [id_of(prompt, "CLIPLoader"), 0]
    with pytest.raises(ServerError, match="vae needs VAE, but CLIP is connected to it"):
        server.queue(prompt)


def test_a_file_of_another_model_is_said_by_the_loader(server):
    other = server.models / "diffusion_models" / "other.safetensors"
    shutil.copy(server.models / tiny.VIDEO_VAE, other)
    prompt = text_to_video(model_name=other.name)
    entry = server.wait(server.queue(prompt))
    other.unlink()
    assert error(entry).startswith("OviModelLoader: other.safetensors")
    assert not sampled(entry, prompt)


def test_a_clip_without_audio_vae_has_no_audio(server):
    """It is legal; the node says it."""
    prompt = unwired(text_to_video(length=5), "OviDecode", "audio_vae")
    entry = server.wait(server.queue(prompt))
    (clip,) = server.files(entry)
    assert video_frames(clip) == 5
    assert entry["outputs"][id_of(prompt, "OviDecode")]["text"] == ["5 frames, 0.21 s, no audio VAE"]


def test_a_closing_tag_of_another_kind_is_read_as_meant(server):
    prompt = speech("<S>Hello there.</S>")
    entry = server.wait(server.queue(prompt))
    assert entry["status"]["status_str"] == "success"
    assert '"</S>" was read as "<E>"' in entry["outputs"][id_of(prompt, "OviTextEncode")]["text"][0]


def test_a_guider_without_negative_is_said_before_the_first_step(server):
    prompt = text_to_video()
    guider = node_of(prompt, "CFGGuider")
    inputs = {"model": guider["inputs"]["model"], "conditioning": guider["inputs"]["positive"]}
    guider.update(class_type="BasicGuider", inputs=inputs)
    assert "the guider ran this step without a negative prompt" in error(server.wait(server.queue(prompt)))


def test_load_diffusion_model_says_what_the_help_says(server):
    prompt = text_to_video()
    loader = {"unet_name": node_of(prompt, "OviModelLoader")["inputs"]["model_name"], "weight_dtype": "default"}
    node_of(prompt, "OviModelLoader").update(class_type="UNETLoader", inputs=loader)
    entry = server.wait(server.queue(prompt))
    assert "Could not detect model type" in error(entry)
    assert not sampled(entry, prompt)
    assert "Could not detect model type" in (ROOT / "web" / "docs" / "OviModelLoader.md").read_text()


def test_vae_decode_decodes_the_video_alone_as_the_help_says(server):
    prompt = text_to_video(length=5)
    decode = node_of(prompt, "OviDecode")
    decode.update(class_type="VAEDecode", inputs={name: decode["inputs"][name] for name in ("samples", "vae")})
    del node_of(prompt, "CreateVideo")["inputs"]["audio"]
    (clip,) = server.run(prompt)
    assert video_frames(clip) == 5
    assert "VAE Decode" in (ROOT / "web" / "docs" / "OviDecode.md").read_text()
