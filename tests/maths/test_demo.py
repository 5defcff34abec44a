"""The demo's part that needs no server: what may be said, and what it prints of a clip."""

from __future__ import annotations

import pytest
from PIL import Image

from authoring import demo
from miniature import speech, voice, world


def test_syllables_to_say():
    assert demo.said(" ma so  ti ") == ["ma", "so", "ti"]
    assert "fast voice" in demo.talking(demo.said("ma so ti tu me si ta su")).prompt
    clip = demo.talking(["ma", "so", "ti", "tu"])
    assert "says <S> ma so ti tu <E> ." in clip.prompt
    assert clip.settings()["EmptyOviLatent"] == {"width": 96, "height": 64, "length": 49}


@pytest.mark.parametrize("text", ["", "ma so", " ".join(["ma"] * 9), "ma so ba", "MA so ti", "ma,so,ti", "masoti"])
def test_anything_else_is_one_sentence(text, capsys):
    with pytest.raises(SystemExit) as refusal:
        demo.main(["comfyui", "--say", text])
    assert refusal.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"says 3 to 8 of the syllables ma, me, mi, mo, mu, sa, se, si, so, su, ta, te, ti, to, tu, not {text!r}" in said
    )


def test_the_real_weights_say_what_their_graphs_say(capsys):
    with pytest.raises(SystemExit):
        demo.main(["comfyui", "weights", "--say", "ma so ti"])
    assert "--say is for the miniature" in capsys.readouterr().err


def test_what_is_printed_of_a_talking_clip(tmp_path, monkeypatch, capsys):
    """What is heard in it, and a page with the frames of the face."""
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    scene = speech.scene(world.HELD_OUT)
    video, audio = speech.latents([scene])
    frames, waveform = speech.decoded(video, audio)[0][0], voice.VoiceCodec().decode(audio)[0]
    demo.talking().describe(frames, waveform, tmp_path / "page.png")
    said = " ".join(scene.syllables)
    assert f"the prompt says {said}, the recogniser hears {said}" in capsys.readouterr().out
    with Image.open(tmp_path / "page.png") as page:
        assert page.width > 4 * page.height
