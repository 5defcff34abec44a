"""Training of the miniature that speaks, on a few clips and for a few steps."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from miniature import speech, text, train, train_speech
from ovi.model import OviModel


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Train on 32 clips and measure on four, with all files in a folder, which is returned."""
    numbers = {"CLIPS": 32, "HELD_OUT": 4, "SHOWN": 2, "SHOWN_STEPS": 1, "EVERY": 2}
    for name, value in (numbers | {"CACHE": tmp_path, "WEIGHTS": tmp_path, "FIGURE": tmp_path / "curves.png"}).items():
        monkeypatch.setattr(train_speech, name, value)
    monkeypatch.setattr(train, "CACHE", tmp_path)
    return tmp_path


def test_samples():
    """One in eight has a prompt without its syllables; without videos they train the audio tower alone."""
    seeds = range(9)
    latents = train_speech.latents(seeds)
    samples, alone = (train_speech.Samples(seeds, latents, video=video) for video in (True, False))
    assert samples[3].video.shape == (48, 13, 4, 6)
    assert alone[3].video is None
    scenes = [speech.scene(seed) for seed in seeds]
    captions = [scene.caption for scene in scenes]
    captions[0], captions[8] = scenes[0].wordless, scenes[8].wordless
    expected = text.contexts(captions, load_file(text.TALKING)).half()
    assert all(torch.equal(samples[i].context, expected[i]) for i in seeds)


def test_both_stages(few):
    """The audio tower changes in the first, both in the second, which goes on from it; the file is an Ovi model."""
    train_speech.main(["--alone", "2", "--steps", "2", "--batch", "4", "--device", "cpu", "--threads", "1"])
    first, second = (
        torch.load(few / f"speech_{stage}state.pt", weights_only=True)["averaged"] for stage in ("alone_", "")
    )
    start = train_speech.initial.new_model(train_speech.CONFIG, train_speech.ROWS).state_dict()
    assert {name.split(".")[0] for name in start if not torch.equal(first[name], start[name])} == {"audio_model"}
    assert {name.split(".")[0] for name in start if not torch.equal(second[name], first[name])} == {
        "audio_model",
        "video_model",
    }
    log = json.loads((few / "speech_log.jsonl").read_text())
    assert {"step", "order gap", "video gap", "syllables", "correlation"} <= log.keys()
    OviModel(train_speech.CONFIG, device="meta").load_state_dict(
        load_file(few / "ovi_talking.safetensors"), assign=True
    )
