"""Ovi Prompt: scene, speech and sound as one prompt, and the note about its length."""

from __future__ import annotations

import io as text_io
import logging
import sys
from types import SimpleNamespace

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


def run_parts(comfy, scene, speech, sound):
    output = comfy.node["OviPrompt"].execute(
        scene=scene, speech=speech, sound=sound, prompt_style="720x720_5s", length=121
    )
    return output.args[0], output.ui.as_dict()["text"][0].splitlines()


def test_pasted_parts_are_read_and_said(comfy):
    prompt, shown = run_parts(comfy, "A room. Audio: wind", "Anna: <s>Hi</s>", "rain")
    assert prompt == "A room. Anna says, <S>Hi<E>\n\n<AUDCAP>wind rain<ENDAUDCAP>"
    assert shown[1:] == [
        "The description of the audio in the scene was put at the end of the prompt",
        '"<s>" was read as "<S>"',
        '"</s>" was read as "<E>"',
        '"Anna: <s>Hi</s>" was read as "Anna says, <S>Hi<E>"',
    ]
    assert run_parts(comfy, "He says hi <E>", "", "")[1][1:] == ['"<E>" closes no speech: write <S>words<E>']


def test_a_caption_is_written_from_persons(comfy):
    parts = {"scene": "A pier.", "speech": "Tom: Ada, run!", "sound": ""}
    persons = {"persons": "Tom: A tall man\nAda: An old woman", "looks": "Tom is soaked.", "actions": "Tom sees Ada."}

    def run(style):
        output = comfy.node["OviPrompt"].execute(**parts, **persons, prompt_style=style, length=121)
        return output.args[0], output.ui.as_dict()["text"][0].splitlines()

    caption, shown = run("dreamid-omni")
    assert caption.splitlines() == [
        "<img1>: A tall man is identified as <sub1>.",
        "<img2>: An old woman is identified as <sub2>.",
        "**Overall Environment/Scene**: A pier.",
        "**Main Characters/Subjects Appearance**: <sub1> is soaked.",
        "**Main Characters/Subjects Actions**: <sub1> sees <sub2>.",
        "<sub1> says, <S>Ada, run!<E>",
    ]
    assert shown == ["Speech: 2 words, about 0.8 s of the clip's 5.0 s"]
    assert run("960x960_5s")[1][1:] == ["Persons, looks and actions are not read: only dreamid-omni has them"]


@pytest.mark.usefixtures("inference")
def test_text_encode_reads_and_names_the_tags(comfy, clip):
    def encode(prompt, style="720x720_5s"):
        output = comfy.node["OviTextEncode"].execute(
            clip=clip, prompt=prompt, video_negative="", audio_negative="", prompt_style=style
        )
        return output.args[0][0][0], output.ui.as_dict()["text"][0].splitlines()[:-1]

    meant, notes = encode("She says, <S>Hi<E> <AUDCAP>rain<ENDAUDCAP>")
    assert notes == []
    read, notes = encode("She says, < s >Hi</S> <AUDCAP>rain</audcap>")
    assert bool((read == meant).all())
    assert [note.split(" was read")[0] for note in notes] == ['"< s >"', '"</S>"', '"</audcap>"']
    assert encode("rain <E>")[1] == ['"<E>" closes no speech: write <S>words<E>']
    assert encode("<s>Hi", "as written")[1] == ['"<s>" stays as written: Ovi knows "<S>"']


@pytest.mark.parametrize("field", ["scene", "speech", "sound"])
def test_an_error_about_half_an_emoji_can_be_logged(comfy, field):
    """ComfyUI's worker logs the error strictly in UTF-8, in the thread that runs all prompts."""
    parts = {"scene": "A pier.", "speech": "Anna: Hi", "sound": "Rain."} | {field: "Anna \ud83d"}
    with pytest.raises(ValueError, match="half a character") as raised:
        run_parts(comfy, **parts)
    raw = text_io.BytesIO()
    handler = logging.StreamHandler(text_io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
    handler.handleError = lambda record: pytest.fail("the log cannot print the error")
    handler.emit(logging.LogRecord("comfy", logging.ERROR, "", 0, f"!!! {raised.value}", None, None))
    assert b"ud83d" in raw.getvalue()


class Server:
    def __init__(self, **client):
        self.sent = []
        self.__dict__.update(client)

    def send_progress_text(self, text, node_id, sid=None):
        self.sent.append((text.encode("utf-8"), node_id, sid))


@pytest.mark.parametrize(
    ("client", "sent"),
    [({"client_id": "alice"}, [(b"one\ntwo", "7", "alice")]), ({"client_id": None}, []), ({}, [])],
)
def test_notes_go_to_the_client_that_queued_the_prompt(comfy, monkeypatch, client, sent):
    """A prompt that came without a client has its notes in the history alone, as core's own messages."""
    server = Server(**client)
    assert show(comfy, monkeypatch, server, ["one", "two"]) == ("one\ntwo",)
    assert server.sent == sent


def test_notes_can_always_be_sent(comfy, monkeypatch):
    server = Server(client_id="alice")
    assert show(comfy, monkeypatch, server, ["\ud83d two"]) == ("\\ud83d two",)
    assert server.sent == [(b"\\ud83d two", "7", "alice")]


def show(comfy, monkeypatch, server, texts):
    notes = sys.modules[comfy.node["OviPrompt"].__module__.rpartition(".")[0] + ".notes"]
    monkeypatch.setattr(notes, "PromptServer", SimpleNamespace(instance=server))
    return notes.show(SimpleNamespace(hidden=SimpleNamespace(unique_id="7")), texts).as_dict()["text"]
