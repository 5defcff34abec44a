"""Ovi Prompt: scene, speech and sound as one prompt, and the note about its length."""

from __future__ import annotations

import pytest

from ovi.prompt import compose

pytestmark = pytest.mark.comfyui

SPEECH, SOUND = "The man: It is 10:30.\n\n  The girl : Late!  ", "Waves.\nWind."


def run(comfy, scene, clip=None):
    output = comfy.node["OviPrompt"].execute(
        scene=scene, speech=SPEECH, sound=SOUND, prompt_style="720x720_5s", length=121, clip=clip
    )
    (text,) = output.ui.as_dict()["text"]
    return *output.args, text.splitlines()


def test_the_node_shows_speech_and_tokens(comfy, clip):
    prompt, shown = run(comfy, "A pier.")
    assert prompt == compose("A pier.", SPEECH, SOUND, "720x720_5s")
    assert shown == ["Speech: 4 words, about 1.6 s of the clip's 5.0 s"]
    tokens = sum(token != 0 for token, _ in clip.tokenize(" ".join(prompt.split()))["umt5xxl"][0])
    assert run(comfy, "A pier.", clip)[1][1:] == [f"Prompt: {tokens} of 512 tokens"]
    assert ": the last " in run(comfy, "x " * 600, clip)[1][1]


def test_speech_in_the_scene_counts_and_must_be_closed(comfy):
    assert run(comfy, "He shouts, <S>Run, all of you!<E>")[1][0].startswith("Speech: 8 words")
    with pytest.raises(ValueError, match="not closed"):
        run(comfy, "He shouts, <S>Run!")
