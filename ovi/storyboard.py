"""A storyboard: one text for several shots.

A line such as "--- continue 5s" or "--- cut 4s seed=7 image=2" opens a shot, whose prompt is below it (see `lines`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NamedTuple

from . import geometry, join, lines, media, prompt

SEEDS = 2**64  # ComfyUI's seeds are below
SHORTEST_PART = 2  # frames of a track that a shot follows
CONTINUE = "continue"

FORM = lines.Form.of(
    part="shot",
    options={
        "join": r"(cut|continue)",
        "seconds": lines.SECONDS,
        "frames": r"(\d{1,9})(?:f|frames?)",
        "seed": r"seed=(\d{1,30})",
        "image": r"image=([1-9]\d{0,8})",
    },
    known="write cut or continue, and 5s, seed=7 or image=1",
    words="cut|continue",
)


@dataclass(frozen=True)
class Shot:
    """One shot: a clip of `frames`, which begin with the `overlap` last frames of the shot before; 0 is a cut.

    `key` names the shot by its prompt, whatever shots stand around it; `image` is the number of its start image.
    """

    line: int
    prompt: str
    frames: int
    overlap: int
    seed: int
    image: int | None
    key: str


class Track(NamedTuple):
    """Audio that the shots follow: its length and the begins and ends of its pauses, in frames."""

    frames: int
    pauses: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, audio: Any) -> Track:
        """Return that of ComfyUI's AUDIO. Raises ValueError for what is no recording, or too short to follow."""
        waveform, rate = media.recording(audio)
        frames = int(waveform.shape[1] / rate * geometry.FPS)
        if frames < SHORTEST_PART:
            raise ValueError(
                f"The audio lasts {waveform.shape[1] / rate:.2f} s, but shots follow at least "
                f"{geometry.seconds(SHORTEST_PART):.2f} s: connect a longer one, or none."
            )
        pauses = media.pauses(waveform.float().mean(0), rate)
        return cls(frames, tuple((start * geometry.FPS, end * geometry.FPS) for start, end in pauses))


class Storyboard(NamedTuple):
    """The shots of a storyboard, what there is to say about them, and the audio that they follow."""

    shots: tuple[Shot, ...]
    notes: tuple[str, ...]
    track: Track | None = None

    @property
    def starts(self) -> list[int]:
        """The frames where the shots begin, and last the frame where the last one ends."""
        return join.starts([shot.frames for shot in self.shots], self.overlaps)

    @property
    def overlaps(self) -> list[int]:
        """The overlap of each shot but the first with the one before."""
        return [shot.overlap for shot in self.shots[1:]]

    @property
    def frames(self) -> int:
        """The length of all shots, joined."""
        return self.starts[-1]

    def follows(self, shot: Shot, begin: int) -> bool:
        """Say whether a shot that begins at a frame has a part of the track to follow, behind its overlap."""
        return self.track is not None and self.track.frames - begin - shot.overlap >= SHORTEST_PART


class Defaults(NamedTuple):
    """What holds for shots that do not say otherwise."""

    frames: int
    overlap: int  # of a shot that continues
    seed: int  # of the first shot after a cut; each that continues it has the next one
    style: str  # of the prompts


def read(text: str, defaults: Defaults, images: Collection[int] = (), track: Track | None = None) -> Storyboard:
    """Read a storyboard; `images` are the numbers of the start images that there are.

    Where the shots follow a track, each that does not say its length ends in the last pause that it reaches, and the
    last one with the track.

    Raises ValueError, naming the line of each problem, for unknown or contradictory options, a length that no latent
    holds or that is no longer than an overlap, a missing image, a shot without text, speech that is not closed, and
    where there is no shot or more than `join.MOST_CLIPS`.
    """
    problems: list[str] = []
    parts, common = lines.divided(text, FORM, problems)
    lines.refuse(problems)
    if not parts:
        raise ValueError('The storyboard has no shot: write a prompt, and a line "---" in front of each further one.')
    if len(parts) > join.MOST_CLIPS:
        raise ValueError(f"The storyboard has {len(parts)} shots, but may have {join.MOST_CLIPS}: use two storyboards.")
    shots: list[Shot] = []
    notes: list[str] = []
    seen: Counter[str] = Counter()
    for part in parts:
        with lines.collected(problems, part.line):
            if part is parts[0] and part.options.get("join") == CONTINUE:
                raise ValueError("The first shot has none before it to continue: write cut")
            shot = _shot(part, common, shots[-1] if shots else None, defaults, images, seen)
            if track and not part.options.keys() & {"seconds", "frames"}:
                begin = Storyboard((*shots, shot), ()).starts[-2]
                shot = replace(shot, frames=_following(shot, begin, track, is_last=part is parts[-1]))
            shots.append(shot)
            doubts = (*lines.almost_opens(part.text, FORM), *_doubts(shot, defaults.style))
            notes += [f"Line {part.line}: {note}" for note in doubts]
    lines.refuse(problems)
    board = Storyboard(tuple(shots), tuple(notes), track)
    return board._replace(notes=(*notes, *_unused_notes(board, images), *_track_notes(board)))


def _shot(
    part: lines.Part,
    common: str,
    before: Shot | None,
    defaults: Defaults,
    images: Collection[int],
    seen: Counter[str],
) -> Shot:
    options = part.options
    if {"seconds", "frames"} <= options.keys():
        raise ValueError("The length is given in seconds and in frames: leave one of them out")
    if not part.text:
        raise ValueError("The shot has no text: write its prompt below the line")
    continues = options.get("join") == CONTINUE
    image = int(options["image"]) if "image" in options else None
    if image is not None and continues:
        raise ValueError("A shot that continues begins with the frames before it, not with an image: write cut")
    if image is not None and image not in images:
        given = ", ".join(f"image{number}" for number in sorted(images)) or "no image"
        raise ValueError(f"image={image} is asked for, but {given} is connected: connect image{image}")
    frames = _frames(options, defaults.frames)
    overlap = defaults.overlap if continues else 0
    shorter = min(frames, before.frames) if before and continues else frames
    if overlap >= shorter:
        raise ValueError(
            f"The overlap is {overlap} frames, but this shot or the one before has {shorter}: lengthen it, or shorten "
            "the overlap"
        )
    words = f"{common}\n{part.text}".strip()
    prompt.format_prompt(words, defaults.style)  # raises for speech that is not closed
    seed = before.seed + 1 if continues and before else defaults.seed
    seed = int(options["seed"]) if "seed" in options else seed
    if seed >= SEEDS:
        raise ValueError(f"The seed {seed} is too large: write one below {SEEDS}")
    digest = sha256(words.encode()).hexdigest()[:12]
    seen[digest] += 1
    key = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return Shot(part.line, words, frames, overlap, seed, image, key)


def _frames(options: Mapping[str, str], default: int) -> int:
    if "seconds" in options:
        seconds = lines.number(options["seconds"])
        frames = geometry.nearest_frames(seconds) if seconds else 0
    else:
        frames = int(options.get("frames", default))
        geometry.check_length(frames)
    if not 0 < frames <= geometry.MAX_SIZE:
        raise ValueError(f"A shot has 1 to {geometry.MAX_SIZE} frames, not {frames}")
    return frames


def _following(shot: Shot, begin: int, track: Track, *, is_last: bool) -> int:
    """Return the frames of a shot that begins at a frame of the track and may be as long as it is."""
    rest = track.frames - begin  # with the overlap
    if is_last and rest > shot.overlap:
        return min(shot.frames, geometry.frames(geometry.video_latents(rest + geometry.FRAMES_PER_LATENT - 1)))
    step = geometry.FRAMES_PER_LATENT
    for frames in range(shot.frames, max(shot.frames // 2, shot.overlap), -step):
        if any(start <= begin + frames <= end for start, end in track.pauses):
            return frames
    return shot.frames


def _unused_notes(board: Storyboard, images: Collection[int]) -> list[str]:
    """Say which start images no shot begins with."""
    unused = sorted({*images} - {shot.image for shot in board.shots})
    names = ", ".join(f"image{number}" for number in unused)
    return [f'No shot begins with {names}: write "image={unused[0]}" in the line of one'] if unused else []


def _track_notes(board: Storyboard) -> list[str]:
    """Say what of the track no shot follows, or which shots have no track to follow."""
    if board.track is None:
        return []
    lasts, used = geometry.seconds(board.track.frames), geometry.seconds(board.frames)
    *begins, _ = board.starts
    silent = [shot.line for shot, begin in zip(board.shots, begins, strict=True) if not board.follows(shot, begin)]
    if silent:
        return [f"Line {silent[0]}: The audio lasts {lasts:.2f} s, and ends before this shot: it is silent"]
    if lasts > used:
        return [f"The audio lasts {lasts:.2f} s: the first {used:.2f} s are used"]
    return []


def _doubts(shot: Shot, style: str) -> list[str]:
    """Say what of a shot's prompt may not be as meant: too many words for its time, and tags."""
    fresh = shot.frames - shot.overlap
    too_long = prompt.speech_seconds(shot.prompt) > geometry.seconds(fresh)
    return [prompt.speech_note(shot.prompt, fresh)] * too_long + list(prompt.doubts(shot.prompt, style))
