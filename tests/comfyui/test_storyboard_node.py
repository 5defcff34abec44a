"""Ovi Storyboard on ComfyUI's own executor: which shots are generated, and how they are joined."""

from __future__ import annotations

import json
from itertools import pairwise

import av
import pytest
import torch

from ovi import join
from support import tiny
from support.executor import VALUES, Executor
from support.media import RATE, BlockVAE, WindowVAE, random_frames, read_clip, tone
from support.sampling import guide

pytestmark = pytest.mark.comfyui

SHOTS = """\
--- cut 13f seed=1
A pier.
--- continue 9f seed=2
Waves.
--- continue 13f seed=3
A gull.
--- continue 9f seed=4
It flies.
--- cut 9f seed=5 image=1
A door.
"""
LENGTHS, OVERLAPS = [13, 9, 13, 9, 9], [5, 5, 5, 0]
FRAMES = sum(LENGTHS) - sum(OVERLAPS)


@pytest.fixture(scope="module")
def nodes(comfy, load, clip):
    """What the nodes `Given` return, with a model of two layers; and a node that keeps the clips that it gets."""
    tiny.ovi_model(comfy.models / "diffusion_models" / "two_layers.safetensors", dim=128, ffn=128, layers=2)
    with torch.inference_mode():
        model = load("two_layers.safetensors")
    VALUES.update(model=model, clip=clip, vae=BlockVAE(), audio_vae=WindowVAE(), clips=[])
    VALUES.update(image=random_frames(1, 64, 64), face=random_frames(1, 64, 64, seed=1), voice=tone(1.0))

    class Keep:
        CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "tests", "keep", (), True

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI calls it so
            return {"required": {"video": ("VIDEO",)}}

        def keep(self, video):
            VALUES["clips"].append(video.get_components())
            return {}

    comfy.node["Keep"] = Keep


@pytest.fixture(scope="module")
def encoded():
    """Prompts by their text: most tests encode the same few."""
    return {}


@pytest.fixture
def executor(comfy, nodes, encoded, monkeypatch, request):
    """An executor with an empty cache, of the kind that a test asks for."""
    text = comfy.module("nodes.text")
    encode = text.encode

    def encode_once(clip, words):
        if words not in encoded:
            encoded[words] = encode(clip, words)
        return encoded[words]

    monkeypatch.setattr(text, "encode", encode_once)
    return Executor(comfy, monkeypatch, getattr(request, "param", "CLASSIC"))


in_each_cache = pytest.mark.parametrize("executor", ["CLASSIC", "RAM_PRESSURE"], indirect=True)  # both were the default


@pytest.fixture
def seeds(monkeypatch, comfy):
    """The seed of each run of a sampler, in order, and its masks; at the seed `seeds.stop` there is a cancel."""
    from comfy.samplers import CFGGuider

    import nodes as comfyui_nodes

    class Seeds(list):
        stop = None

    seeds, sample = Seeds(), CFGGuider.sample
    seeds.masks = []

    def spy(guider, *args, **kwargs):
        seeds.append(kwargs["seed"])
        seeds.masks.append(kwargs["denoise_mask"])
        if kwargs["seed"] == seeds.stop:
            comfyui_nodes.interrupt_processing()
        return sample(guider, *args, **kwargs)

    monkeypatch.setattr(CFGGuider, "sample", spy)
    return seeds


def prompt(shots=SHOTS, **changes):
    """A storyboard of tiny shots, in API form."""
    given = {name: {"class_type": "Given", "inputs": {"name": name}} for name in ("model", "clip", "vae", "audio_vae")}
    inputs = {name: [name, 0] for name in given}
    inputs |= {"sampler": ["sampler", 0], "sigmas": ["sigmas", 0], "cfg": 2.0, "seed": 100, "shots": shots}
    inputs |= {"video_negative": "", "audio_negative": "", "prompt_style": "960x960_5s", "width": 64, "height": 64}
    inputs |= {"length": 9, "overlap": 0.2, "fit": "crop", "filename_prefix": "", "tile_size": 0}
    inputs |= {"voice_start": 0.0, "voice_seconds": 0.1, "images.image1": ["image", 0]}
    media = {name: {"class_type": "Given", "inputs": {"name": name}} for name in ("image", "face", "voice", "track")}
    return {
        **given,
        **media,
        "sampler": {"class_type": "OviUniPCSampler", "inputs": {}},
        "sigmas": {"class_type": "OviScheduler", "inputs": {"steps": 1, "shift": 5.0, "solver": "unipc", "denoise": 1}},
        "board": {"class_type": "OviStoryboard", "inputs": inputs | changes},
        "keep": {"class_type": "Keep", "inputs": {"video": ["board", 0]}},
    }


@pytest.fixture
def finished(monkeypatch, comfy):
    """The components of each shot that was done, in order, none of which is encoded as mp4."""
    done, expansion = [], comfy.module("ovi.native.storyboard")

    def keep(video, prefix, hidden):
        done.append(video.get_components())
        return ui.PreviewVideo([])

    from comfy_api.latest import ui

    monkeypatch.setattr(expansion, "save", keep)
    return done


@in_each_cache
@pytest.mark.usefixtures("finished")
def test_a_shot_that_changes_is_generated_anew_with_those_that_continue_it(executor, seeds):
    """A change of one, a shot in between, and that shot taken out again, if the cache keeps what was not run since."""
    shots = SHOTS
    assert executor.run(prompt(shots)) is None
    assert seeds == [1, 2, 3, 4, 5]
    for old, new, expected in (
        ("A gull.", "A crow.", [3, 4]),
        ("A door.", "A gate.", [5]),
        ("9f seed=2", "13f seed=22", [22, 3, 4]),
        ("--- cut 9f", "--- cut 9f seed=6\nA cat.\n--- cut 9f", [6]),
        ("--- cut 9f seed=6\nA cat.\n", "", []),
    ):
        assert old in shots
        shots = shots.replace(old, new)
        del seeds[:]
        assert executor.run(prompt(shots)) is None
        assert seeds == expected, new


@pytest.mark.usefixtures("finished")
def test_another_image_changes_the_shot_that_begins_with_it(executor, seeds):
    assert executor.run(prompt()) is None
    del seeds[:]
    other = prompt()
    other["image"]["inputs"]["name"] = "face"
    assert executor.run(other) is None
    assert seeds == [5]


@in_each_cache
def test_a_cancel_keeps_the_shots_that_are_done(executor, seeds, finished):
    seeds.stop = 4
    assert executor.run(prompt())[0] == "execution_interrupted"
    assert (seeds, len(finished)) == ([1, 2, 3, 4], 3)
    del seeds[:]
    seeds.stop = None
    assert executor.run(prompt()) is None
    assert (seeds, len(finished)) == ([4, 5], 5)


def test_shots_are_joined_as_by_ovi_join(comfy, executor, finished):
    """Frame by frame and sample by sample; the last shot, after a cut, begins with its image."""
    assert executor.run(prompt()) is None
    clip = VALUES["clips"][-1]
    assert (clip.images.shape, clip.frame_rate) == ((FRAMES, 64, 64, 3), 24)
    assert clip.audio["waveform"].shape == (1, 1, round(FRAMES / 24 * RATE))
    assert [len(shot.images) for shot in finished] == LENGTHS
    waves = [shot.audio["waveform"][0] for shot in finished]
    assert torch.equal(clip.images, join.join_frames([shot.images for shot in finished], OVERLAPS))
    assert torch.equal(clip.audio["waveform"][0], join.join_waves(waves, LENGTHS, OVERLAPS, RATE))
    torch.testing.assert_close(clip.images[-9], VALUES["image"][0], atol=1e-5, rtol=0)
    for before, after in pairwise(finished[:4]):
        torch.testing.assert_close(after.images[:5], before.images[-5:], atol=1e-4, rtol=0)


def test_what_it_takes_is_said_before_the_first_shot(executor, finished):
    """With what may not fit; then each shot by its number. Prompts are encoded before anything is sampled."""
    shots = SHOTS.replace("Waves.", "A man says, <S>One two three four.<E>")
    assert executor.run(prompt(shots)) is None
    first = executor.executed(".sampled")[0]
    ran = executor.executed()
    assert max(ran.index(node) for node in executor.executed(".text")) < ran.index("board.0.0.plan") < ran.index(first)
    texts = executor.shown("board")
    plan = f"5 shots, {FRAMES} frames, {FRAMES / 24:.2f} s: 5 steps, 10 passes of the model"
    warning = "Line 3: Speech: 4 words, about 1.6 s of the clip's 0.2 s: too many, so shorten them or lengthen the clip"
    assert texts[0].splitlines()[:2] == [warning, plan]
    assert plan in texts[1:]


def test_guidance_sets_the_passes(comfy, model):
    """Two a step; one where nothing is guided; one more for each kind of reference and for synchrony."""
    passes = comfy.module("ovi.native.guidance").passes
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    with torch.inference_mode():
        for cfg, guided, expected in (
            (4.0, model, 8),
            (1.0, model, 4),
            (1.0, guide(comfy, model), 8),
            (1.0, guide(comfy, model, audio_cfg=1.0), 4),
            (4.0, guide(comfy, model, video=(0.0, 0.0), audio=(0.0, 0.0)), 5),
            (4.0, guide(comfy, model, video_reference_cfg=1.5, audio_reference_cfg=2.0), 16),
            (4.0, guide(comfy, model, sync_scale=1.0), 12),
            (1.0, guide(comfy, model, audio_cfg=1.0, sync_scale=1.0, sync_end_percent=0.0), 5),
        ):
            assert passes(guided, cfg, sigmas) == expected


def test_persons_are_in_every_shot(executor, finished, seeds):
    shots = "--- 9f\n<sub1> waves.\n--- cut 9f\n<sub2> waves."
    persons = {f"{kind}s.{kind}{number}": [kind, 0] for kind in ("face", "voice") for number in (1, 2)}
    assert executor.run(prompt(shots, prompt_style="dreamid-omni", **persons)) is None
    assert [len(executor.executed(f".person{number}")) for number in (1, 2)] == [2, 2]
    assert "Shot 2 of 2: <sub2>: a face and a voice" in executor.notes
    assert len(seeds) == 2
    failed, why = executor.run(prompt(shots, **{"faces.face2": ["face", 0]}))
    assert failed == "execution_error"
    assert "Person 2 is connected, but face1 and voice1 are not" in why["exception_message"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shots": "--- image=2\nA pier."}, "Line 1: image=2 is asked for, but image1 is connected: connect image2."),
        ({"vae": ["audio_vae", 0]}, "The video VAE given is an audio VAE of 20 channels"),
        ({"filename_prefix": "../take"}, "filename_prefix is '../take', outside of ComfyUI's output folder"),
        ({"width": 72}, "Width and height must be multiples of 32, got 72x64"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_generated(executor, seeds, changes, said):
    failed, why = executor.run(prompt(**changes))
    assert failed == "execution_error"
    assert why["exception_message"].startswith(said)
    assert why["node_id"] == "board"
    assert seeds == []


def test_a_schedule_without_a_step_is_refused(executor, seeds):
    VALUES["no step"] = torch.zeros(0)  # as ComfyUI's schedulers give with a denoise of 0
    board = prompt()
    board["sigmas"] = {"class_type": "Given", "inputs": {"name": "no step"}}
    failed, why = executor.run(board)
    assert failed == "execution_error"
    assert why["exception_message"].startswith("The sigmas have no step")
    assert seeds == []


def test_each_shot_is_saved_with_the_graph_as_it_is_done(comfy, executor):
    given = prompt("--- 9f\nA pier.\n--- 5f\nA door.", filename_prefix="scene/take")
    assert executor.run(given) is None
    files = sorted((comfy.base / "output" / "scene").iterdir())
    assert [path.name for path in files] == ["take_shot01_00001_.mp4", "take_shot02_00001_.mp4"]
    for path, frames in zip(files, (9, 5), strict=True):
        assert len(read_clip(path)[0]) == frames
        with av.open(path) as container:
            assert json.loads(container.metadata["prompt"]) == given
    assert [preview["filename"] for preview in executor.videos("board")] == [path.name for path in files]


def test_an_empty_prefix_saves_nothing_but_a_preview(comfy, executor):
    assert executor.run(prompt("--- 5f\nA pier.")) is None
    assert [preview["type"] for preview in executor.videos("board")] == ["temp"]
    assert len(VALUES["clips"][-1].images) == 5


def test_notes_of_all_shots_are_on_the_storyboard(executor, finished):
    assert executor.run(prompt("--- 9f\nA pier.\n--- continue 9f\nWaves.")) is None
    assert {node for node, _ in executor.progress} == {"board"}
    assert [note for note in executor.notes if note.startswith("Shot 2 of 2") and "adds 0.17 s" in note]
    assert executor.notes[-2:] == ["Shot 2 of 2: done", "13 frames, 0.54 s"]


def test_a_track_is_the_audio_of_the_result_and_its_parts_drive_the_shots(executor, seeds, finished):
    """Stereo at 48 kHz, unchanged; each shot is as long as its part, which the sampler preserves."""
    wave = torch.randn(1, 2, 48_000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    wave[..., 10_000:22_000] *= 0.001  # a pause, in frames 5 to 11
    VALUES["track"] = {"waveform": wave, "sample_rate": 48_000}
    shots = "A\n--- continue\nB\n--- cut 5f\nC\n--- cut\nD"
    assert executor.run(prompt(shots, length=13, audio=["track", 0])) is None
    assert [len(shot.images) for shot in finished] == [9, 13, 5, 5]
    clip = VALUES["clips"][-1]
    assert len(clip.images) == 27
    assert clip.audio["sample_rate"] == 48_000
    assert torch.equal(clip.audio["waveform"], wave)
    for shot, begin in zip(finished, (0, 4, 17, 22), strict=True):
        own, first = shot.audio["waveform"], begin * 2000
        assert torch.equal(own, wave[..., first : first + own.shape[-1]])
    assert [bool(mask.unbind()[1].any()) for mask in seeds.masks] == [False] * 3 + [True]


def test_shots_of_a_track_stay_in_the_cache_too(executor, seeds, finished):
    VALUES["track"] = tone(2.0)
    shots = "--- 9f seed=1\nA\n--- continue 9f seed=2\nB\n--- cut 9f seed=3\nC"
    for text in (shots, shots.replace("B", "D")):
        del seeds[:]
        assert executor.run(prompt(text, audio=["track", 0])) is None
    assert seeds == [2]
    assert "The audio lasts 2.00 s: the first 0.92 s are used" in executor.shown("board")[0]
