"""Instructions for a language model that turns an idea into a prompt or a storyboard.

ComfyUI's "Generate Text" takes one text, so an instruction and the idea are joined here. The instructions ask for parts
with labels, which small models keep to more often than to tags; `answer` reads them, and writes the tags.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import caption
from .geometry import seconds
from .prompt import WORDS_PER_SECOND
from .quote import check_characters

PROMPT, STORYBOARD = FORMS = ("prompt", "storyboard")

_TASK = (
    "You write the text from which a video model generates a short clip: video and audio together, with speech. Write "
    "it for the idea at the end of this message."
)
_FORM = (
    "Answer with exactly the labelled parts below, in this order, each label at the start of a line. Write nothing "
    "before or after them: no greeting, no comment, no list, no Markdown."
)
_RULES = (
    "Rules:\n"
    "- Write in English, whatever the language of the idea. Spoken words keep the language that the idea asks for, and "
    "words that the idea has in quotation marks are spoken exactly as they are.\n"
    '- Speech has one line for each turn: who speaks, a colon, the spoken words, such as "The old man: It is late." '
    "Write no directions among the spoken words.\n"
    "- Let people speak only if the idea has speech or asks for it; otherwise write: Speech: none\n"
    "- {words}\n"
    "- Describe only what is seen and heard, in plain words and in the present tense. Keep everything that the idea "
    "names.\n"
    "- If an image comes with this message, the {clip} begins with it: describe what it shows, and what happens then."
)
_WORDS = "All spoken words together are at most {words}, because the {clip} lasts {seconds} seconds."
_OVI = (
    "Scene: one paragraph with the people and what they look like, the place, the light, the camera, and what happens "
    "in {seconds} seconds without a cut.\n"
    "Speech: the turns, in the order in which they are spoken.\n"
    "Audio: one paragraph with the voice of each speaker, noises and music."
)
_OVI_EXAMPLE = (
    "Scene: A lighthouse keeper with a grey beard and a blue coat stands in the lamp room at night while rain runs "
    "down the windows behind him. In a medium shot he turns to the camera, then he reaches for a lever.\n"
    "Speech:\n"
    "The lighthouse keeper: The storm will pass before morning.\n"
    "Audio: A deep, calm, elderly male voice; steady rain on glass; a distant roll of thunder."
)
_DREAMID = (
    "Persons: one line for each person: a name, a colon, and a description of body, face and age.\n"
    "Scene: one paragraph with the place, the light and the camera.\n"
    "Looks: the clothes and the place in the frame of each person, by name.\n"
    "Actions: what each person does in {seconds} seconds without a cut, by name.\n"
    "Speech: the turns, in the order in which they are spoken, each with the name of the speaker."
)
_DREAMID_EXAMPLE = (
    "Persons:\n"
    "Tom: A tall man of about fifty with grey hair\n"
    "Ada: An old woman with a narrow face\n"
    "Scene: A pier at dawn in soft grey light. Upper-body close-up.\n"
    "Looks: Tom, on the left, wears a wet raincoat. Ada wears a black coat.\n"
    "Actions: Tom looks at Ada, who nods slowly.\n"
    "Speech:\n"
    "Tom: You came, Ada.\n"
    "Ada: I said I would."
)
_SHOTS = (
    "The idea is told in 2 to 6 shots. Open each shot with a line of its own: --- cut where the shot begins anew, or "
    "--- continue where it goes on, without a cut, from the end of the shot before it. The first shot is a cut. Below "
    "that line come the labelled parts of the shot. Only if the idea gives the length of a shot, add it to the line, "
    "such as: --- cut 4s"
)
_COMMON: Mapping[bool, str] = {  # by whether the style is DreamID-Omni's
    False: "Before the first shot, write a line --- all and below it: Scene: what the people and the places look like. "
    "That text is put in front of every shot, so the shots only name them.",
    True: "Before the first shot, write a line --- all and below it the Persons, once for all shots.",
}


def request(idea: str, form: str, style: str, frames: int) -> str:
    """Return the instruction for a `form` and a prompt style, and the idea, as one text for a language model.

    `frames` is the length of the clip, or of each shot of a storyboard. Without an idea, the model chooses one.
    """
    check_characters(idea)
    in_dreamid = style == caption.STYLE
    lasts = round(seconds(frames))
    clip = "clip" if form == PROMPT else "shot"
    words = _WORDS.format(words=max(1, int(seconds(frames) * WORDS_PER_SECOND)), clip=clip, seconds=lasts)
    parts = (_DREAMID if in_dreamid else _OVI).format(seconds=lasts)
    example = _DREAMID_EXAMPLE if in_dreamid else _OVI_EXAMPLE
    if form == STORYBOARD:
        parts = f"{_SHOTS}\n\n{_COMMON[in_dreamid]}\n\n{parts}"
        example = _board_example(example, in_dreamid)
    given = idea.strip() or "Choose one yourself. It fits the image, if there is one."
    rules = _RULES.format(words=words, clip="clip" if form == PROMPT else "first shot")
    return "\n\n".join([_TASK, _FORM, parts, rules, f"An example, for another idea:\n{example}", f"The idea: {given}"])


def _board_example(example: str, in_dreamid: bool) -> str:
    """Put an example of one clip into the form of a storyboard."""
    if in_dreamid:
        persons, _, shot = example.partition("Scene:")
        last = (
            "Scene: The end of the pier. Wide shot.\nLooks: Both are seen from behind.\n"
            "Actions: Tom and Ada walk away.\nSpeech: none"
        )
        return f"--- all\n{persons}--- cut\nScene:{shot}\n--- cut\n{last}"
    common = "Scene: The lighthouse keeper has a grey beard and a blue coat."
    last = (
        "Scene: The lighthouse keeper walks to the window and looks out.\nSpeech: none\n"
        "Audio: Slow steps, rain on glass."
    )
    return f"--- all\n{common}\n--- cut\n{example}\n--- continue\n{last}"
