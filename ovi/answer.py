"""The answer of a language model, read as a prompt or a storyboard.

`idea` asks for parts with labels: "Scene: …", "Speech: …", "Audio: …", below lines such as "--- cut" in a storyboard.
Models add reasoning, greetings, Markdown and labels in other languages, and forget labels, tags and speakers. What is
repaired or left out is said; speech is never left out in silence.
"""

# ruff: noqa: RUF001  full-width colons and brackets are meant

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from . import caption, parts, spoken, tags
from .idea import STORYBOARD
from .quote import check_characters, quoted
from .tags import Reading

AGAIN = "run 'Generate Text' with another seed"
_NO_AUDIO = (
    "There is no description of the audio, so Ovi chooses it: if the answer was cut off, raise max_length of 'Generate "
    "Text'"
)
_LABELS = {
    label: part
    for part, labels in {
        "scene": "scene|scenes|setting|video|visual|visuals|description|prompt|video prompt|environment|camera|style"
        "|lighting|overall environment/scene|szene|scène|escena|场景|画面|シーン|장면",
        "speech": "speech|dialogue|dialogues|dialog|spoken words|sprechtext|sprache|paroles|diálogo|diálogos"
        "|台词|对白|对话|セリフ|台詞|대사",
        "audio": "audio|sound|sound effects|sounds|soundscape|sfx|music|audio description|ton|geräusche|son|sonido"
        "|声音|音频|音声|サウンド|소리|오디오",
        "persons": "persons|people|characters|personen|personnes|personnages|personas|personajes"
        "|人物|角色|登場人物|인물",
        "looks": "looks|appearance|main characters/subjects appearance|aussehen|apparence|aspecto|外貌|外見|외모",
        "actions": "actions|action|main characters/subjects actions|handlung|acciones|动作|動作|동작",
    }.items()
    for label in labels.split("|")
}
_LABEL = re.compile(
    r"(?P<marks>[\s>#*_\d.)•-]*)(?P<label>[^\W\d_][^:：\n*_#()（）]{0,40})(?:[(（](?P<more>[^()（）\n]{1,40})[)）])?"
    r"[\s*_]*(?P<colon>[:：]?)[\s*_]*(?P<rest>.*)"
)
_SHOT = re.compile(
    r"[\s#*_>]*(?:-{3,}|(?:shot|scene|einstellung|szene|plan|scène|toma|escena|镜头|ショット|シーン|샷|장면)\s*#?\d+\b)"
    r"(?P<rest>.*)",
    re.IGNORECASE,
)
_ALL = re.compile(r"[\s*:：]*all[\s*:：-]*", re.IGNORECASE)
_OPTION = re.compile(
    r"\b(?:cut|continue[sd]?|(?:seed|image)\s*=\s*\d+|(?<![-–—.,])(?:\d+[.,])?\d+\s*(?:s|secs?|seconds?|f|frames?))\b",
    re.IGNORECASE,
)
_EMPTY = re.compile(r"[(\[（][\s,;–—-]*[)\]）]")
_PERSON = re.compile(r"\s*<img\d+>")  # of a caption
_RULE = re.compile(r"\s*(?:[*_=]{3,}|-{3,}.*)")
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_REASONING = re.compile(r"(</?(?:think|thinking|reasoning)>)", re.IGNORECASE)
_TOKEN = re.compile(r"<\|[^<>|\n]{1,30}\|>|</?(?:start|end)_of_turn>|</?answer>", re.IGNORECASE)  # of chat templates
_NONE = re.compile(
    r"[^\w\"“„«「『]*(?:none|no one|nobody|no(?: one|body)? (?:speech|speaks|is speaking|dialogues?|words|audio)|n/a"
    r"|empty|keine?r?|niemand|aucune?|personne|ninguno|nadie|无|無|なし|없음)?[^\w\"“„«「『]*",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"\W*(?:sure|certainly|of course|okay|absolutely|great|here(?:'s|’s| is| are))\b.*"
    r"|.*\b(?:prompt|answer|version|storyboard|description)\b.*[:：]\W*",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\W*(?:let me know|i hope|hope (?:this|you)|feel free|would you like|if you|please|note\b|explanation|this "
    r"(?:prompt|version|answer|storyboard)|enjoy)",
    re.IGNORECASE,
)
_DIRECTION = re.compile(r"([^:：<]+?)\s*[:：]\s*([(（][^()（）]{1,60}[)）])\s*(.+)")
_BARE = re.compile(r"\s*[\"“„«「『]([^\"“„”«»「」『』]+)[\"”“»」』]\s*")


class _Shot(NamedTuple):
    options: list[str]
    text: str
    is_common: bool = False


def read(answer: str, form: str, style: str) -> Reading:
    """Read an answer to `idea.request`, as a prompt of a `style` or as the text of a storyboard of such prompts.

    Raises ValueError for an answer that is empty, ends while the model reasons, or is JSON, and what `parts.read`
    refuses.
    """
    check_characters(answer)
    notes: list[str] = []
    text = _answered(answer, notes)
    if form == STORYBOARD:
        return _read_storyboard(text, style, notes)
    lines = [line for line in text.splitlines() if not _RULE.fullmatch(line)]
    if (shots := sum(_SHOT.fullmatch(line) is not None for line in text.splitlines() if line.strip("- "))) > 1:
        notes.append(f"The answer has {shots} shots: they were read as one prompt")
    fields = _fields("\n".join(lines), notes)
    if not any(fields.values()):
        raise ValueError(f"The answer has no prompt in it: {AGAIN}.")
    composed = _compose(fields, style)
    return Reading(composed.text, tags.few([*notes, *composed.notes]), composed.doubts)


def _answered(answer: str, notes: list[str]) -> str:
    """Return the answer without the model's reasoning, tokens of its template, and what stands around a code block."""
    text, reasons = _without_reasoning(answer)
    if reasons and not text.strip():
        raise ValueError(
            "The answer ends while the model still reasons: raise max_length of 'Generate Text', or turn thinking off."
        )
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[^\S\n]+", " ", _TOKEN.sub("", text))).strip()
    pieces = [piece.strip() for piece in _FENCE.split(text)]
    wanted = [piece for piece in pieces if _is_labelled(piece)] or [*filter(None, pieces[1::2])] or pieces
    notes += [_left_out(piece) for piece in pieces if piece and piece not in wanted]
    text = "\n".join(wanted).strip()
    if not text:
        raise ValueError(f"The answer is empty: {AGAIN}, or raise its max_length.")
    if text[0] == "{" or text.startswith("[{"):
        raise ValueError(f"The answer is JSON, not parts with labels such as Scene: {AGAIN}, or use a larger model.")
    return text


def _without_reasoning(answer: str) -> tuple[str, bool]:
    """Return what stands outside of the model's reasoning, which a template may have opened, and whether it ends in it.

    Linear in the length, as a model that repeats itself fills it with tags.
    """
    kept: list[str] = []
    reasons = False
    for piece in _REASONING.split(answer):
        if not _REASONING.fullmatch(piece):
            kept += [] if reasons else [piece]
        elif piece[1] != "/":
            reasons = True
        else:
            kept = kept if reasons else []
            reasons = False
    return "".join(kept), reasons


def _left_out(text: str) -> str:
    return f"{quoted(text)} was left out: it is no part of the prompt"


def _is_labelled(text: str) -> bool:
    return any(_labelled(line) or _SHOT.fullmatch(line) for line in text.splitlines())


def _labelled(line: str) -> tuple[str, str] | None:
    """Return the part that a line opens, and what of it stands in the line."""
    match = _LABEL.fullmatch(line)
    part = _LABELS.get(match["label"].strip().casefold()) if match else None
    if not match or not part:
        return None
    rest = match["rest"].strip()
    if not match["colon"] and (rest or not set(match["marks"]) & set("#*")):
        return None
    if part == "speech" and match["more"] and rest and not re.search("[:：]", rest):
        rest = f"{match['more']}: {rest}"  # Speech (Anna): words
    return part, rest


def _fields(text: str, notes: list[str]) -> dict[str, str]:
    """Return the parts of a prompt by their names: scene, speech, audio, persons, looks, actions."""
    lines: dict[str, list[str]] = {part: [] for part in (*dict.fromkeys(_LABELS.values()), "")}
    part = ""
    for line in text.splitlines():
        if opened := _labelled(line):
            part, rest = opened
            lines[part].append(rest)
        elif _PERSON.match(line):
            lines["persons"].append(line)
        else:
            lines[part].append(line)
    if part:
        lines[part] = _without_closing(lines[part], part, notes)
    fields = {part: "\n".join(found).replace("**", "").strip() for part, found in lines.items()}
    fields = {part: "" if _NONE.fullmatch(found) else found for part, found in fields.items()}
    before = fields.pop("")
    if not part:
        notes.append("The answer has no labels such as Scene: it was read as one text")
    if before and (not fields["scene"] or any(tag.kind == tags.SPEECH for tag in tags.find(before))):
        first, _, rest = before.partition("\n")
        if _OPENING.fullmatch(first) and spoken.read(first).text == first and (rest.strip() or part):
            notes.append(_left_out(first))
            before = rest
        if not part:
            before = "\n".join(_without_closing(before.splitlines(), "", notes))
        fields["scene"] = f"{before.strip()} {fields['scene']}".strip()
    elif before:
        notes.append(_left_out(before))
    return fields


def _without_closing(lines: list[str], part: str, notes: list[str]) -> list[str]:
    """Leave out what follows the last part: comments, and all behind the first paragraph of an audio description."""
    while lines and not lines[0].strip():
        lines = lines[1:]
    for index, line in enumerate(lines):
        follows = index and not lines[index - 1].strip() and line.strip()
        if follows and (part == "audio" or _CLOSING.match(line)):
            rest = "\n".join(lines[index:])
            if not any(tag.kind == tags.SPEECH for tag in tags.find(rest)):
                notes.append(_left_out(rest))
                return lines[:index]
    return lines


def _compose(fields: Mapping[str, str], style: str) -> Reading:
    """Compose the parts of one prompt."""
    notes: list[str] = []
    speech = _turns(fields["speech"], notes)
    persons = "\n".join(parts.BULLET.sub("", line, count=1) for line in fields["persons"].splitlines())
    scene, actions, looks = fields["scene"], fields["actions"], fields["looks"]
    if style != caption.STYLE:
        scene, persons, looks, actions = " ".join(filter(None, [persons, looks, scene, actions])), "", "", ""
    in_scene = spoken.read(scene, speech)
    in_actions = spoken.read(actions, speech)
    once = [line for line in speech.splitlines() if not spoken.repeats(line, f"{in_scene.text}\n{in_actions.text}")]
    if len(once) < len(speech.splitlines()):
        notes.append("Speech that the scene holds too is spoken once")
    speech = "\n".join(once)
    notes += [*in_scene.notes, *in_actions.notes]
    composed = parts.read(in_scene.text, speech, fields["audio"], style, persons, looks, in_actions.text)
    heard = fields["audio"] if style == caption.STYLE else ""  # is in no prompt
    doubts = (*spoken.missed(f"{composed.text}\n{heard}"), *composed.doubts)
    if style == caption.STYLE and not persons:
        doubts = (*doubts, f"The answer has no persons, to whom faces and voices belong: {AGAIN}")
    elif style != caption.STYLE and not re.search("<AUDCAP>|Audio:", composed.text):
        doubts = (*doubts, _NO_AUDIO)
    return Reading(composed.text, (*notes, *composed.notes), tags.few(doubts))


def _turns(speech: str, notes: list[str]) -> str:
    """Give each line of speech the form that `parts` reads, "speaker: words", without bullets and directions."""
    turns = []
    for line in speech.splitlines():
        turn = parts.BULLET.sub("", line, count=1)
        if directed := _DIRECTION.fullmatch(turn):
            turn = f"{directed[1]} {directed[2]}: {directed[3]}"
            notes.append(f"{quoted(directed[2])} was taken out of the spoken words")
        elif alone := _BARE.fullmatch(turn):
            turn = f"A voice: {alone[1]}"
            notes.append(f"{quoted(alone[1])} has no speaker: it was given to a voice")
        if not _NONE.fullmatch(turn):
            turns.append(turn)
    return "\n".join(turns)


def _read_storyboard(text: str, style: str, notes: list[str]) -> Reading:
    """Read each shot, and write the storyboard with the text of "--- all" in every prompt."""
    common: dict[str, str] = {}
    written: list[str] = []
    doubts: list[str] = []
    for shot in _shots(text, notes):
        of_fields: list[str] = []
        fields = _fields(shot.text, of_fields)
        if shot.is_common:
            common = fields
            notes += of_fields
            continue
        number = len(written) + 1
        merged = {part: f"{common.get(part, '')}\n{words}".strip() for part, words in fields.items()}
        try:
            composed = _compose(merged, style)
        except ValueError as refusal:
            raise ValueError(f"Shot {number}: {refusal}") from None
        options = shot.options
        if not written and "continue" in options:
            options = ["cut", *(each for each in options if each != "continue")]
            notes.append("The first shot has none before it to continue: it became a cut")
        written.append(f"{' '.join(['---', *options])}\n{composed.text}")
        notes += [f"Shot {number}: {note}" for note in (*of_fields, *composed.notes)]
        doubts += [f"Shot {number}: {doubt}" for doubt in composed.doubts]
    if not written:
        raise ValueError(f"The answer has no shot in it: {AGAIN}, or raise its max_length.")
    return Reading("\n".join(written), tags.few(notes), tags.few(doubts))


def _shots(text: str, notes: list[str]) -> list[_Shot]:
    """Split an answer where shots begin; headings without text belong to the shot that follows."""
    lines = text.splitlines()
    if not any(map(_SHOT.fullmatch, lines)):
        lines = _with_cuts(lines, notes)
    shots: list[_Shot] = []
    options: list[str] = []
    words: list[str] = []
    is_common = opened = False
    for line in [*lines, "---"]:
        match = _SHOT.fullmatch(line)
        if not match:
            words.append(line)
            continue
        body = "\n".join(words).strip()
        if not opened and body and not _is_labelled(body):
            notes.append(_left_out(body))
        elif body:
            shots.append(_Shot(options, body, is_common))
        if body or not opened:
            options, is_common = [], False
        found, rest = _options(match["rest"])
        is_common = is_common or bool(_ALL.fullmatch(match["rest"]))
        options, opened = options or found, True
        words = [rest] if rest and not is_common else []
    return shots


def _with_cuts(lines: list[str], notes: list[str]) -> list[str]:
    """Open a shot in front of each scene of an answer that has no lines for shots."""
    scenes = [index for index, line in enumerate(lines) if (found := _labelled(line)) and found[0] == "scene"]
    notes.append(f"The answer opens no shots: it was read as {max(1, len(scenes))}")
    first = ["--- all"] if scenes and _is_labelled("\n".join(lines[: scenes[0]])) else []
    cut = [text for index, line in enumerate(lines) for text in (["--- cut"] * (index in scenes) + [line])]
    return [*first, *cut] if scenes else ["--- cut", *lines]


def _options(written: str) -> tuple[list[str], str]:
    """Return the options in the line that opens a shot, and the text in it."""
    head, *tails = re.split("[:：]", written, maxsplit=1)
    tail = tails[0].strip(" *_") if tails else ""
    if not _OPTION.sub("", tail).strip(" ,;"):
        head, tail = f"{head} {tail}", ""
    found: dict[str, str] = {}
    for option in _OPTION.findall(head):
        plain = re.sub(r"\s+", "", option.lower())
        plain = "continue" if plain.startswith("continue") else plain
        kind = "length" if plain[0].isdigit() else plain.partition("=")[0] if "=" in plain else "join"
        found.setdefault(kind, plain)
    title = _EMPTY.sub("", _OPTION.sub("", head)).strip(" -–—*_#.,;")
    return list(found.values()), f"{title}: {tail}" if title and tail else title or tail


def shots_note(storyboard: str) -> str:
    """Say how many shots and turns of speech a storyboard that `read` returned has."""
    shots = sum(line.startswith("---") for line in storyboard.splitlines())
    turns = storyboard.count(tags.SPEECH)
    return f"{shots} shot{'s' * (shots != 1)}, {turns} turn{'s' * (turns != 1)} of speech"
