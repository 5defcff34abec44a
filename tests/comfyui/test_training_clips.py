"""Ovi Training Clips: a folder of videos of all kinds becomes the files that training reads."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from ovi import geometry
from ovi.files import read_safetensors
from ovi.tools import train
from ovi.tools.clips import Folder
from support import golden_model
from support.media import BlockVAE, WindowVAE, broken, random_frames, tone
from support.sampling import empty, prompts
from support.videos import SCALE, write_video

pytestmark = pytest.mark.comfyui

VIDEOS = {  # by name: its seconds, and what else is odd
    "wide": dict(seconds=5.2, fps=30.0, size=(160, 90), channels=2),
    "tall": dict(seconds=2.2, fps=25.0, size=(90, 160), rate=44_100),
    "square": dict(seconds=2.2, size=(200, 200)),
    "cinema": dict(seconds=2.2, fps=24000 / 1001),
    "fast": dict(seconds=2.2, fps=60.0),
    "slow": dict(seconds=2.2, fps=12.0, rate=16_000),
    "very_wide": dict(seconds=2.2, size=(320, 64)),
    "long": dict(seconds=9.0, cuts=(3.0,)),
    "silent": dict(seconds=2.2, loudness=0.0),
    "no_audio": dict(seconds=2.2, rate=None),
    "short": dict(seconds=0.5),
    "broken": dict(seconds=2.2),
    "matroska": dict(seconds=2.2),
}
SETTINGS = dict(
    prompt_style="960x960_5s", size=64, length=97, shortest=49, cut="pieces", without_audio="skip", preview_only=False
)


@pytest.fixture(scope="module")
def folder(comfy):
    """A folder of ComfyUI's input folder, with videos and captions."""
    folder = comfy.base / "input" / "footage"
    folder.mkdir(parents=True)
    for name, kind in VIDEOS.items():
        write_video(folder / f"{name}.{'mkv' if name == 'matroska' else 'mp4'}", **kind)
        (folder / f"{name}.txt").write_text(f"This is {name}. <AUDCAP>A tone.<ENDAUDCAP>")
    path = folder / "broken.mp4"
    path.write_bytes(path.read_bytes()[:2000])
    return folder


@pytest.fixture
def given(comfy, folder):
    """The list of videos and the list of captions, as ComfyUI's own node returns them."""
    comfy.core("nodes_dataset")
    if "LoadVideoTextDataSetFromFolder" not in comfy.node:
        pytest.skip("this ComfyUI has no such node")
    return comfy.run("LoadVideoTextDataSetFromFolder", folder=folder.name)


@pytest.fixture
def make(comfy, clip, inference, request):
    """Run the node on videos and captions; return its contact sheet, its report and the folder."""
    into = f"clips/{request.node.name}"
    shutil.rmtree(comfy.base / "output" / into, ignore_errors=True)

    def make(videos, texts, vae=None, audio_vae=None, **changed):
        given = {"clip": clip, "folder": into} | SETTINGS | changed
        given = {name: [value] for name, value in given.items()}
        vaes = {"vae": [vae or BlockVAE()], "audio_vae": [audio_vae or WindowVAE()]} if videos else {}
        sheet, report = comfy.run("OviTrainingClips", texts=texts, videos=videos, **vaes, **given)
        return sheet, report.splitlines(), comfy.base / "output" / into

    return make


def of(file):
    """Load the video from its file as a VIDEO."""
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(file))


def brightness(video):
    """Return the mean of each frame of a clip's latent, as BlockVAE encoded it."""
    from comfy.latent_formats import Wan22

    return Wan22().process_out(video[None]).mean((0, 1, 3, 4))


def test_a_folder_becomes_clips_that_training_reads(make, given):
    sheet, report, folder = make(*given)
    clips = Folder(folder, golden_model.load().config)
    named = {path.stem: clips[index] for index, path in enumerate(clips.paths)}
    shapes = {name: (*sample.video.shape[1:], sample.audio.shape[1]) for name, sample in named.items()}
    assert shapes == {
        "wide_001": (25, 4, 6, 126),
        "tall_001": (13, 6, 4, 64),
        "square_001": (13, 4, 4, 64),
        "cinema_001": (13, 4, 4, 64),
        "fast_001": (13, 4, 4, 64),
        "slow_001": (13, 4, 4, 64),
        "very_wide_001": (13, 2, 6, 64),
        "long_001": (25, 4, 4, 126),
        "long_002": (25, 4, 4, 126),
        "matroska_001": (13, 4, 4, 64),
    }
    for sample in named.values():
        assert 0 < len(sample.context) <= 512
        assert sample.context.shape[1] == 64
        assert sample.context.abs().amax(1).min() > 0  # no padding
    assert report[:3] == ["10 clips, 26.4 s", "64x64, 49 frames: 5 clips", "64x64, 97 frames: 2 clips"]
    assert "96x64, 97 frames: 1 clip" in report
    assert "10 encoded, 0 already there, 4 left out" in report
    assert "broken is left out: it cannot be read (Invalid data found when processing input)" in report
    assert "short is left out: it lasts 0.50 s, the shortest clip 2.04 s" in report
    assert "no_audio_001 is left out: it has no audio (without_audio is skip)" in report
    assert "silent_001 is left out: its audio is silent (without_audio is skip)" in report
    assert "fast: 60 frames per second become 24: the nearest frames are used" in report
    assert "long: its 2 clips have the same caption" in report
    assert any(line.startswith("very_wide: 40% of each image is cropped") for line in report)
    assert any("tall_001: 0.00 to 2.04 s, 49 frames, 64x96: " in line and "Audio: A tone." in line for line in report)
    assert sheet.shape == (1, 2 * 244 + 4, 6 * 244 + 4, 3)


@pytest.mark.parametrize("fps", [24.0, 30.0, 12.5])
def test_frames_and_audio_of_a_later_piece_are_those_of_its_time(make, tmp_path, fps):
    video = of(write_video(tmp_path / "time.mp4", 5.5, fps))
    _, _, folder = make([video], ["A clip"], length=49)
    second = load_file(folder / "time_002.safetensors")
    begin = -(-49 * fps // 24) / fps
    times = begin + torch.tensor([0.0, *(torch.arange(1, 49) / 24).view(-1, 4).mean(1)])
    torch.testing.assert_close(brightness(second["video"]), times / SCALE, atol=1 / fps / SCALE + 0.006, rtol=0)
    loudness = second["audio"].mean(0)
    times = begin + (torch.arange(len(loudness)) + 0.5) / geometry.AUDIO_LATENT_RATE
    torch.testing.assert_close(loudness[2:-2], times[2:-2] / SCALE * 2 / torch.pi, atol=0.004, rtol=0)


def test_a_lora_is_trained_on_the_clips_and_loads(comfy, make, tmp_path):
    """From videos to a LoRA that changes weights of both towers, through the node and the command line."""
    video = of(write_video(tmp_path / "one.mp4", 2.2))
    _, _, folder = make([video], ["A clip"])
    out = comfy.models / "loras" / "of_clips.safetensors"
    paths = [str(golden_model.MODEL), "--clips", str(folder), "--out", str(out)]
    with torch.inference_mode(mode=False):
        assert train.main([*paths, "--device", "cpu", "--lr", "0.01", "--steps", "2", "--rank", "2"]) == 0
    shutil.copy(golden_model.MODEL, comfy.models / "diffusion_models" / "of_clips.safetensors")
    names = {"model_name": "of_clips.safetensors", "second_model_name": "none", "weight_dtype": "default"}
    (model,) = comfy.run("OviModelLoader", **names)
    said = comfy.node["OviLoraLoader"].execute(model, out.name, 1.0, 1.0).ui.as_dict()["text"][0]
    assert "Patched: 36 video weights at" in said
    assert "Not loaded" not in said


def test_what_is_written_is_not_encoded_again(make, tmp_path):
    """Unless its caption changes; and a file that is none of a run's clips is named."""
    videos = [of(write_video(tmp_path / f"{name}.mp4", 2.2)) for name in ("one", "two")]
    _, _, folder = make(videos, ["First", "Second"])
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    vae = BlockVAE()
    vae.encode = None
    _, report, _ = make(videos, ["First", "Second"], vae=vae)
    assert "0 encoded, 2 already there, 0 left out" in report
    _, report, _ = make(videos, ["First", "Other"])
    assert "1 encoded, 1 already there, 0 left out" in report
    changed = {path.name for path in folder.iterdir() if before[path.name] != path.stat().st_mtime_ns}
    assert changed == {"two_001.safetensors"}
    (folder / "one_001.safetensors").write_bytes(b"half a file")
    _, report, _ = make(videos[:1], ["First"])
    assert "1 encoded, 0 already there, 0 left out" in report
    assert any(line.startswith("A file in the folder from another run (two_001.safetensors)") for line in report)


def test_a_run_that_was_cancelled_goes_on(comfy, make, tmp_path):
    import comfy.model_management as management

    videos = [of(write_video(tmp_path / f"{number}.mp4", 2.2)) for number in range(2)]
    vae = BlockVAE()
    encode = vae.encode

    def once(pixels):
        management.interrupt_current_processing()
        return encode(pixels)

    vae.encode = once
    with pytest.raises(management.InterruptProcessingException):
        make(videos, ["A clip"], vae=vae)
    _, report, folder = make(videos, ["A clip"])
    assert "1 encoded, 1 already there, 0 left out" in report
    assert sorted(path.name for path in folder.iterdir()) == ["0_001.safetensors", "1_001.safetensors"]


def test_silence_is_learned_on_request(make, tmp_path):
    kinds = {"none": dict(rate=None), "quiet": dict(loudness=0.0)}
    videos = [of(write_video(tmp_path / f"{name}.mp4", 2.2, **kind)) for name, kind in kinds.items()]
    _, report, folder = make(videos, ["A clip"], without_audio="silence")
    assert "2 encoded, 0 already there, 0 left out" in report
    assert {"none_001: it has no audio", "quiet_001: its audio is silent"} <= set(report)
    for name in kinds:
        assert load_file(folder / f"{name}_001.safetensors")["audio"].abs().max() < 1e-3


def test_a_preview_writes_nothing(make, tmp_path):
    video = of(write_video(tmp_path / "one.mp4", 9.0))
    sheet, report, folder = make([video], ["A clip"], preview_only=True)
    assert report[:3] == ["2 clips, 8.1 s", "64x64, 97 frames: 2 clips", "0 encoded, 0 already there, 0 left out"]
    assert sheet.shape[2] == 2 * 244 + 4
    assert not folder.exists()


def test_videos_in_memory(comfy, make):
    (video,) = comfy.run("CreateVideo", images=random_frames(130, 64, 64), audio=tone(6.0, channels=2), fps=24.0)
    _, report, folder = make([video], ["A clip"], length=49)
    assert "2 encoded, 0 already there, 0 left out" in report
    second = load_file(folder / "video1_002.safetensors")
    torch.testing.assert_close(brightness(second["video"])[0], random_frames(130, 64, 64)[49].mean(), atol=1e-5, rtol=0)
    assert second["audio"].shape[1] == geometry.audio_latents(49)


def test_prompts_alone(make):
    texts = ["A cat. Audio: Purring.\n\nA dog. <AUDCAP>Barking.<ENDAUDCAP>\n", "She says, <S>never closed"]
    _, report, folder = make(None, texts)
    assert report[0] == "2 encoded, 0 already there, 1 left out"
    assert report[1].startswith("prompt_00003 is left out: ")
    for name in ("prompt_00001", "prompt_00002"):
        tensors, _ = read_safetensors(folder / f"{name}.safetensors")
        assert {key: tensor.ndim for key, tensor in tensors.items()} == {"context": 2}
    assert make(None, texts)[1][0] == "0 encoded, 2 already there, 1 left out"


def test_scenes_without_pyscenedetect(make, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    videos = [of(write_video(tmp_path / f"{number}.mp4", 2.2)) for number in range(2)]
    _, report, _ = make(videos, ["A clip"], cut="scenes")
    (said,) = [line for line in report if "PySceneDetect" in line]
    assert said.startswith("Videos were cut one piece after another: to cut them at scene changes, install")
    assert "2 encoded, 0 already there, 0 left out" in report


def test_scenes(make, tmp_path):
    pytest.importorskip("scenedetect", reason="PySceneDetect is not installed")
    video = of(write_video(tmp_path / "scenes.mp4", 8.0, cuts=(3.0,)))
    _, report, folder = make([video], ["A clip"], cut="scenes")
    spans = [line.partition(": ")[2].partition(", ")[0] for line in report if ". scenes_" in line]
    assert spans == ["0.00 to 2.04 s", "3.00 to 7.04 s"]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("videos", "texts", "changed", "message"),
    [
        (3, ["a", "b"], {}, r"^There are 3 videos and 2 texts: connect both outputs of 'Load Video-Text"),
        (1, ["a"], {"folder": "../elsewhere"}, r'^The folder is "../elsewhere", but must be one inside of ComfyUI'),
        (1, ["a"], {"folder": ""}, r"^The folder is"),
        (1, ["a"], {"shortest": 121}, r"^The shortest clip has 121 frames, the longest 97: lower shortest\.$"),
        (1, ["a"], {"length": 96}, r"^The length must be 4n \+ 1 frames, got 96"),
        (0, ["a"], {"preview_only": True}, r"^There are no videos to preview"),
        (1, None, {}, r"^There are no texts: connect captions for videos, or prompts, to texts\.$"),
        (1, ["a"], {"clip": None}, r"^There are texts but no CLIP: connect 'Load CLIP'"),
    ],
)
def test_what_is_refused_before_anything_is_read(make, videos, texts, changed, message):
    with pytest.raises(ValueError, match=message):
        make([of("none.mp4")] * videos, texts, **changed)


def test_a_vae_that_fails_costs_one_clip(make, tmp_path):
    videos = [of(write_video(tmp_path / f"{number}.mp4", 2.2)) for number in range(2)]
    audio_vae = WindowVAE()
    encode, calls = audio_vae.encode, iter((True, False))
    audio_vae.encode = lambda wave: broken(encode(wave)) if next(calls) else encode(wave)
    _, report, _ = make(videos, ["A clip"], audio_vae=audio_vae)
    assert "1 encoded, 0 already there, 1 left out" in report
    assert any(line.startswith("0_001 is left out: The VAE turned the audio of 0_001 into NaN") for line in report)


def test_a_file_says_what_it_was_made_from(make, tmp_path):
    video = of(write_video(tmp_path / "one.mp4", 2.2))
    _, _, folder = make([video], ["A clip"])
    tensors, metadata = read_safetensors(folder / "one_001.safetensors")
    assert set(tensors) == {"video", "audio", "context"}
    assert set(metadata) == {"made_from"}
    assert len(json.dumps(metadata)) < 200


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (1, "Number of positive conditions .1. does not match number of images .0."),
        (2, "expected Tensor as element 0 in argument 0, but got NestedTensor"),
    ],
)
def test_comfyui_s_own_training_takes_no_joint_latents(comfy, model, loop, clips, message):
    """As docs/training.md says: it stops before anything of this pack runs."""
    comfy.core("nodes_train")
    positive, _ = prompts(loop)
    options = {
        "batch_size": 1, "steps": 1, "grad_accumulation_steps": 1, "learning_rate": 1e-3, "rank": 2, "seed": 0,
        "optimizer": "AdamW", "loss_function": "MSE", "training_dtype": "fp32", "lora_dtype": "fp32",
        "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": True, "checkpoint_depth": 1,
        "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
    }  # fmt: skip
    given = {"model": [model], "latents": [empty()] * clips, "positive": [positive] * clips}
    with pytest.raises((ValueError, TypeError), match=message):
        comfy.run("TrainLoraNode", **given, **{name: [value] for name, value in options.items()})
