"""Scenes of the miniature that it was not trained on."""

from __future__ import annotations

from miniature import codecs, world

SEEDS = range(world.HELD_OUT, world.HELD_OUT + 12)


def through_codecs(scene):
    """Return a scene's frames [T, H, W, 3] and wave [samples], encoded and decoded."""
    video, audio = codecs.VideoCodec(), codecs.AudioCodec()
    frames = 2 * world.frames(scene).movedim(-1, 0)[None] - 1
    decoded = video.decode(video.encode(frames))[0].movedim(0, -1) / 2 + 0.5
    return decoded, audio.decode(audio.encode(world.waveform(scene)[None]))[0]
