"""From an idea to a prompt through ComfyUI's own text generation, with a stand-in for the language model."""

from __future__ import annotations

import pytest

from ovi import idea, storyboard

pytestmark = pytest.mark.comfyui

IDEA = 'A fox by a brook says, "Who is there?"'
CLIP = "<think>a fox</think>Sure:\nScene: A fox by a brook.\nSpeech: The fox: Who is there?\nAudio: Water."
BOARD = '--- cut\nScene: A fox.\nAudio: Water.\n--- continue\nScene: It says, "Who is there?"\nAudio: Water.'


def write(comfy, form, answer):
    """Run an idea through the three nodes; return what the model was asked, the result, and what Ovi Answer shows."""
    core = pytest.importorskip("comfy_extras.nodes_textgen", reason="this ComfyUI generates no text")
    from support.stand_ins import LanguageModel

    settings = {"form": form, "prompt_style": "960x960_5s", "length": 121}
    (request,) = comfy.node["OviIdea"].execute(idea=IDEA, **settings).args
    model = LanguageModel(answer)
    (written,) = core.TextGenerate.execute(model, request, 512, {"sampling_mode": "off"}).args
    output = comfy.node["OviAnswer"].execute(answer=written, **settings)
    return model.asked, output.args[0], output.ui.as_dict()["text"][0].splitlines()


def test_an_idea_becomes_a_prompt(comfy):
    asked, prompt, shown = write(comfy, "prompt", CLIP)
    assert asked == idea.request(IDEA, "prompt", "960x960_5s", 121)
    assert prompt == "A fox by a brook. The fox says, <S>Who is there?<E>\n\nAudio: Water."
    assert shown == [
        "Speech: 3 words, about 1.2 s of the clip's 5.0 s",
        '"Sure:" was left out: it is no part of the prompt',
    ]


def test_an_idea_becomes_a_storyboard(comfy):
    asked, text, shown = write(comfy, "storyboard", BOARD)
    assert asked == idea.request(IDEA, "storyboard", "960x960_5s", 121)
    first, second = storyboard.read(text, storyboard.Defaults(121, 25, 0, "960x960_5s")).shots
    assert (first.overlap, second.overlap) == (0, 25)
    assert second.prompt == "It says, <S>Who is there?<E>\n\nAudio: Water."
    assert shown == ["2 shots, 1 turn of speech", 'Shot 2: "Who is there?" was read as speech']


def test_text_goes_from_core_s_node_to_ours(comfy):
    """Their sockets are all STRING."""
    core = pytest.importorskip("comfy_extras.nodes_textgen", reason="this ComfyUI generates no text")
    inputs = {each.id: each.get_io_type() for each in core.TextGenerate.define_schema().inputs}
    assert (inputs["clip"], inputs["prompt"], inputs["image"]) == ("CLIP", "STRING", "IMAGE")
    for node in (core.TextGenerate, comfy.node["OviIdea"], comfy.node["OviAnswer"]):
        assert [each.get_io_type() for each in node.define_schema().outputs] == ["STRING"]
