"""What a language model answers to an idea, read as a prompt or a storyboard; a stand-in writes the answers."""

# ruff: noqa: RUF001  full-width colons are meant

from __future__ import annotations

import pytest

from ovi import answer, idea, spoken, storyboard
from ovi.idea import PROMPT, STORYBOARD
from ovi.parts import STYLES

OVI, DREAMID = "960x960_5s", "dreamid-omni"
RIGHT = "Scene: A man on a pier.\nSpeech:\nThe man: It is late.\nThe girl: Not yet!\nAudio: Waves, wind."
READ = "A man on a pier. The man says, <S>It is late.<E> The girl says, <S>Not yet!<E>\n\nAudio: Waves, wind."
CAPTION = (
    "<img1>: A tall man is identified as <sub1>.\n**Overall Environment/Scene**: A pier.\n"
    "**Main Characters/Subjects Actions**: <sub1> nods.\n<sub1> says, <S>You came, Tom.<E>"
)


def read(text, form=PROMPT, style=OVI):
    return answer.read(text, form, style)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("form", idea.FORMS)
def test_the_request_holds_idea_and_words_and_its_example_is_read_without_a_word(form, style):
    asked = idea.request("A fox by a brook.", form, style, 121)
    assert asked.endswith("The idea: A fox by a brook.")
    assert "at most 12," in asked
    assert "at most 25," in idea.request("A fox.", form, style, 241)
    assert ("<img" not in asked, "{" not in asked) == (True, True)
    example = asked.partition("for another idea:\n")[2].partition("\n\nThe idea:")[0]
    text, changes, doubts = read(example, form, style)
    assert (changes, doubts) == ((), ())
    assert ("<AUDCAP>" in text, "Audio:" in text, "<img1>" in text) == (
        style == "720x720_5s", style.startswith("960"), style == DREAMID
    )  # fmt: skip
    if form == STORYBOARD:
        board = storyboard.read(text, storyboard.Defaults(121, 25, 0, style))
        assert (len(board.shots), board.notes) == (2, ())
        assert all("a grey beard" in shot.prompt or "<img2>" in shot.prompt for shot in board.shots)


def test_without_an_idea_the_model_chooses():
    assert idea.request("  ", PROMPT, OVI, 121).endswith("Choose one yourself. It fits the image, if there is one.")


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (RIGHT, 0),
        (f"<think>Scene: a draft\nSpeech: Tom: No.</think>\n\n{RIGHT}", 0),
        (f"The user wants a pier.\n</think>\n{RIGHT}<|im_end|>", 0),
        (f"Sure! Here is your prompt:\n\n```text\n{RIGHT}\n```\nLet me know if you like it!", 2),
        (f"Here it is:\n\n{RIGHT}\n\nI hope this helps!", 2),
        (RIGHT.replace("Scene:", "**Scene:**").replace("Speech:", "### Speech").replace("Audio:", "**Audio**:"), 0),
        (RIGHT.replace("The man:", "- **The man**:").replace("The girl:", "- **The girl**:"), 0),
        (RIGHT.replace("It is late.", '"It is late."'), 1),
        (RIGHT.replace("Scene: ", ""), 0),
        (RIGHT.replace("Scene: ", "Sure! Here is the prompt:\n"), 1),
        (RIGHT.replace("Speech:\nThe man: ", "Speech (The man): "), 0),
        ("A man on a pier. The man says, <S>It is late.<E> The girl says, <s>Not yet!</s> Audio: Waves, wind.", 4),
        ('A man on a pier. The man says, "It is late." The girl says: “Not yet!”\nAudio: Waves, wind.', 2),
        ('Scene: A man on a pier.\nThe man: "It is late."\nThe girl: "Not yet!"\nAudio: Waves, wind.', 2),
    ],
)
def test_answers_that_mean_the_same_are_read_as_one_prompt(text, changes):
    found = read(text)
    assert " ".join(found.text.split()) == " ".join(READ.split())
    assert (len(found.notes), found.doubts) == (changes, ())


@pytest.mark.parametrize(
    "text",
    [
        "Szene: Ein Pier.\nSprechtext: Tom: Es ist spät.\nTon: Wellen.",
        "Scène : Ein Pier.\nDialogue : Tom: Es ist spät.\nSon : Wellen.",
        "场景：Ein Pier.\n台词：\nTom：Es ist spät.\n声音：Wellen.",
    ],
)
def test_labels_in_another_language_are_known(text):
    assert read(text).text == "Ein Pier. Tom says, <S>Es ist spät.<E>\n\nAudio: Wellen."


@pytest.mark.parametrize("none", ["none", "None.", "(none)", "Nobody speaks", "no dialogue", "", "-"])
def test_nobody_speaks(none):
    assert read(f"Scene: A pier.\nSpeech: {none}\nAudio: Waves.") == ("A pier.\n\nAudio: Waves.", (), ())


@pytest.mark.parametrize(
    ("text", "spoken_words", "note"),
    [
        ('Scene: A.\nSpeech: "Who\'s there?"\nAudio: a', "A voice says, <S>Who's there?<E>", "has no speaker"),
        ('Scene: A.\nSpeech: "None"\nAudio: a', "A voice says, <S>None<E>", "has no speaker"),
        ("Scene: A.\nSpeech: Tom: (softly) Hi.\nAudio: a", "Tom (softly) says, <S>Hi.<E>", "taken out"),
        ('Scene: "Go home," she whispers.\nAudio: a', "<S>Go home,<E> she whispers.", "read as speech"),
        ("Scene: Tom says, 'It's me.'\nAudio: a", "Tom says, <S>It's me.<E>", "read as speech"),
        ("Scene: A man <S>Hi<E>.\nSpeech: The man: Hi.\nAudio: a", "A man <S>Hi<E>.", "spoken once"),
        ("<S>Hi<E> he says.\n\nScene: A.\nAudio: a", "<S>Hi<E> he says.", None),
    ],
)
def test_speech_is_repaired_and_that_is_said(text, spoken_words, note):
    found = read(text)
    assert spoken_words in found.text
    assert found.text.count("<S>") == 1
    assert note is None or any(note in each for each in found.notes)


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ('Scene: A voice behind him, "Go away now".\nAudio: a', '"Go away now" was not read as speech'),
        ("Scene: A pier.\nAnna: Go away now!\nAudio: a", '"Anna: Go away now!" was not read as speech'),
        ('Scene: A pier.\nAudio: A voice, "Go away now".', '"Go away now" was not read as speech'),
        ("Scene: A pier.\nSpeech: none", "There is no description of the audio"),
    ],
)
def test_what_may_be_lost_is_said(text, doubt):
    assert [each for each in read(text).doubts if doubt in each]


def test_quotations_whose_words_are_spoken_anyway_stay():
    found = read('Scene: Tom says, "No." and "It is very late."\nSpeech:\nTom: No.\nTom: It is very late.\nAudio: a')
    assert found.text.startswith('Tom says, "No." and "It is very late." Tom says, <S>No.<E> Tom says, <S>It is')
    assert (found.notes, found.doubts) == ((), ())
    assert spoken.read('He says, "Hi there."').text == "He says, <S>Hi there.<E>"
    assert spoken.missed('A sign reads "OPEN". At 10:30 he waits.') == ()


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("", PROMPT, "The answer is empty"),
        (" <|im_end|>\n", STORYBOARD, "The answer is empty"),
        ("<think>A pier at", PROMPT, "still reasons: raise max_length"),
        ('{"scene": "A pier."}', PROMPT, "is JSON"),
        ("Scene:\nSpeech: none\nAudio: none", PROMPT, "has no prompt in it"),
        ("Scene: A man says, <S>Hi", PROMPT, "is not closed"),
        ("Scene: A man.\nSpeech: Anna", PROMPT, 'The speech line "Anna" has no speaker'),
        ("--- cut\nScene: A.\n--- cut\nScene: B.\nSpeech: Anna", STORYBOARD, "Shot 2: The speech line"),
        ("--- all\nScene: A man.", STORYBOARD, "has no shot in it"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text, form, message):
    with pytest.raises(ValueError, match=message) as refused:
        read(text, form)
    assert str(refused.value).count("\n") == 0


def test_dreamid_s_persons_are_numbered_and_its_captions_read():
    labelled = (
        "Persons:\n1. Ann: A tall man\nScene: A pier.\nActions: Ann nods.\nSpeech:\n- Ann: You came, Tom.\nAudio: Wind."
    )
    found = read(labelled, style=DREAMID)
    assert found.text == CAPTION
    assert [each for each in found.notes if "description of the audio was left out" in each]
    again = read(CAPTION, style=DREAMID)
    assert " ".join(again.text.split()) == " ".join(CAPTION.split())
    assert again.doubts == ()
    assert "no persons" in read("Scene: A pier.", style=DREAMID).doubts[0]
    assert read(labelled).text == "Ann: A tall man A pier. Ann nods. Ann says, <S>You came, Tom.<E>\n\nAudio: Wind."


SHOTS = (
    "--- all\nScene: A keeper.\n{0}\nScene: He climbs.\nSpeech: none\nAudio: Steps.\n{1}\nScene: He stops.\n"
    "Speech: The keeper: Hello.\nAudio: Wind."
)
BOARD = (
    "{0}\nA keeper.\nHe climbs.\n\nAudio: Steps.\n{1}\nA keeper.\nHe stops. The keeper says, <S>Hello.<E>\n\n"
    "Audio: Wind."
)


@pytest.mark.parametrize(
    ("opened", "written"),
    [
        (("--- cut", "--- continue 4s"), ("--- cut", "--- continue 4s")),
        (("**Shot 1 (cut, 5 s):**", "### Shot 2: continue"), ("--- cut 5s", "--- continue")),
        (("---\nShot 1", "---\n**Shot 2** - continue, image = 2"), ("---", "--- continue image=2")),
        (("镜头 1", "镜头 2：cut"), ("---", "--- cut")),
        (("--- continue", "--- Continued"), ("--- cut", "--- continue")),
    ],
)
def test_shots_are_opened_in_many_ways(opened, written):
    found = read(SHOTS.format(*opened), STORYBOARD)
    assert found.text == BOARD.format(*written)
    assert len(found.notes) == (opened[0] == "--- continue")
    assert answer.shots_note(found.text) == "2 shots, 1 turn of speech"


def test_a_storyboard_without_lines_for_shots_has_one_for_each_scene():
    text = "Persons:\nTom: A man\nScene: A pier.\nSpeech: Tom: Hi.\nScene: A road.\nSpeech: none"
    found = read(text, STORYBOARD, DREAMID)
    assert found.text.count("--- cut\n<img1>: A man is identified as <sub1>.") == 2
    assert found.notes == ("The answer opens no shots: it was read as 2",)
    assert read("A lone paragraph.", STORYBOARD).text == "--- cut\nA lone paragraph."


def test_headings_chatter_and_words_in_a_shot_s_line_are_kept_or_said():
    text = 'Title: Sea\n--- cut wide\nHe climbs. He says, "Hi there."\nShot 2: The sea.\n```'
    found = read(f"Of course!\n```\n{text}", STORYBOARD)
    assert found.text == "--- cut\nwide\nHe climbs. He says, <S>Hi there.<E>\n---\nThe sea."
    assert '"Of course!" was left out: it is no part of the prompt' in found.notes
    assert [each for each in found.notes if each.startswith('"Title: Sea" was left out')]


def test_several_shots_for_one_prompt_are_said():
    found = read(SHOTS.format("--- cut", "--- cut"))
    assert "<S>Hello.<E>" in found.text
    assert "---" not in found.text
    assert "The answer has 3 shots: they were read as one prompt" in found.notes
