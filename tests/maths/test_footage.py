"""Videos as clips to train on: buckets, where a video is cut, names, audio."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ovi import footage, geometry, media
from support.media import tone


@pytest.mark.parametrize("side", [720, 960])
def test_every_bucket_is_one_of_the_checkpoint_s_sizes(side):
    sizes = {footage.bucket(width, height, side * side) for width, height in footage.SHAPES}
    assert len(sizes) == len(footage.SHAPES)
    for size in sizes:
        geometry.check_size(*size)
        assert f"{side}x{side}_5s" in geometry.fits(*size, 121)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (1920, 1080, (1280, 704)),
        (3840, 2160, (1280, 704)),
        (1080, 1920, (704, 1280)),
        (500, 500, (960, 960)),
        (640, 480, (1120, 832)),
    ],
)
def test_a_video_goes_to_the_bucket_of_its_shape(width, height, size):
    assert footage.bucket(width, height, 960 * 960) == size
    assert footage.cropped(width, height, size) < 0.05


def test_what_is_cropped():
    assert footage.cropped(1000, 1000, (960, 960)) == pytest.approx(0)
    assert footage.cropped(2000, 1000, (960, 960)) == pytest.approx(0.5)
    assert footage.cropped(1000, 4000, (960, 960)) == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"^The video is 0x1080"):
        footage.bucket(0, 1080, 960 * 960)


def test_lengths_are_few_and_what_latents_hold():
    assert footage.lengths(121, 49) == [121, 97, 73, 49]
    assert footage.lengths(121, 121) == [121]
    assert footage.lengths(117, 5) == [117, 97, 73, 49, 25, 5]
    for frames in footage.lengths(241, 1):
        geometry.check_length(frames)
    with pytest.raises(ValueError, match=r"^The shortest clip has 121 frames, the longest 49: lower shortest\.$"):
        footage.lengths(49, 121)
    with pytest.raises(ValueError, match="4n \\+ 1"):
        footage.lengths(120, 49)


@pytest.mark.parametrize("fps", [12.5, 24.0, 24000 / 1001, 25.0, 30.0, 60.0])
def test_pieces_follow_one_another_and_all_their_frames_are_there(fps):
    after = round(13 * fps)
    pieces = list(footage.cut(0, after, fps, [121, 97, 73, 49]))
    assert [piece.frames for piece in pieces] == [121, 121, 49]  # 13 s: 5, 5 and 2 of the last 3
    for piece, following in zip(pieces, [*pieces[1:], footage.Piece(after, 0)], strict=True):
        shown = piece.begin + media.retimed(after - piece.begin, fps)[: piece.frames]
        assert len(shown) == piece.frames
        assert shown[-1] < following.begin  # no frame is in two clips
        if following.frames:
            assert following.begin - shown[-1] <= fps / 24 + 1


def test_a_scene_is_cut_within_itself():
    assert list(footage.cut(100, 230, 24.0, [121, 49])) == [footage.Piece(100, 121)]
    assert list(footage.cut(100, 330, 24.0, [49], once=True)) == [footage.Piece(100, 49)]
    assert list(footage.cut(100, 148, 24.0, [121, 49])) == []


def test_names_tell_videos_apart():
    paths = [Path("/a/one two.mp4"), None, Path("/b/one two.mov"), Path("/c/../x.mp4"), Path("/a/one_two-2.mp4")]
    assert footage.names(paths) == ["one_two", "video2", "one_two-2", "x", "one_two-2-2"]


def test_fingerprints_differ_by_what_they_are_of():
    made_from = footage.fingerprint(piece=footage.Piece(0, 121), text="a")
    assert made_from == footage.fingerprint(text="a", piece=(0, 121))
    assert made_from != footage.fingerprint(piece=footage.Piece(1, 121), text="a")


@pytest.mark.parametrize("frames", [1, 49, 121])
def test_audio_is_long_enough_for_its_latents_and_silent_beyond_its_end(frames):
    rate = 44_100
    wave, notes = footage.wave(tone(10.0, channels=2), frames, rate)
    assert len(wave) / rate * geometry.AUDIO_LATENT_RATE >= geometry.audio_latents(frames) + 1
    assert (notes, footage.is_silent(wave)) == ([], False)
    torch.testing.assert_close(wave, tone(10.0)["waveform"][0, 0, : len(wave)])
    for nothing in (None, tone(0.01)):
        silence, notes = footage.wave(nothing, frames, rate)
        assert footage.is_silent(silence)
        assert len(silence) == len(wave)


def test_what_is_odd_about_audio_is_said():
    _, notes = footage.wave(tone(3.0, amplitude=1.5), 121, 44_100)
    assert notes == ["its audio peaks at 1.50: everything beyond 1 is clipped", "its last 2.04 s have no audio"]
    assert footage.is_silent(tone(1.0, amplitude=9e-4)["waveform"])


def test_contact_sheets():
    tiles = [torch.full((90, 160, 3), 1.0), torch.full((300, 100, 4), 0.5)]
    sheet = footage.contact_sheet(iter(tiles), ["1", "2"])
    assert sheet.shape == (1, 248, 492, 3)
    assert sheet[0, 124, 124].tolist() == [1.0, 1.0, 1.0]
    assert sheet[0, 124, 368].tolist() == pytest.approx([128 / 255] * 3)
    assert footage.contact_sheet([], []).any().item() is False
    assert footage.some(7) == list(range(7))
    assert footage.some(600) == list(range(0, 600, 10))
