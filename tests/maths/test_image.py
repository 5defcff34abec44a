"""The start image at the video's size: the release's resampling (golden F), and what each fit preserves."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest
import torch
from safetensors.torch import load_file

from ovi.image import fit_face, fit_frames, fit_image


def random_image(width, height):
    """An image whose every pixel differs: red counts columns, green rows."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns / width, rows / height, torch.full((height, width), 0.5)], dim=-1)[None]


@pytest.mark.parametrize("case", range(4))
def test_stretch_is_the_release_s_resampling(golden, case):
    """The release's values run from -1 to 1 and overshoot there too."""
    data = load_file(golden / "F_preprocess.safetensors")
    expected = data[f"{case}.out"].movedim(1, -1)
    image = fit_image(data[f"{case}.in_uint8_hwc"][None] / 255, expected.shape[2], expected.shape[1], "stretch")
    torch.testing.assert_close(image * 2 - 1, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad", "refuse"])
def test_an_image_of_the_size_is_kept_to_the_bit(fit):
    image = random_image(96, 64)
    assert torch.equal(fit_image(image, 96, 64, fit), image)


@pytest.mark.parametrize(("width", "height", "kept"), [(64, 64, (slice(None), slice(16, 80))), (96, 32, slice(16, 48))])
def test_crop_keeps_the_centre(width, height, kept):
    image = random_image(96, 64)
    assert torch.equal(fit_image(image, width, height, "crop")[0], image[0][kept])


@pytest.mark.parametrize(("width", "height"), [(96, 128), (192, 64)])
def test_pad_keeps_the_whole_between_black_bars(width, height):
    image = random_image(96, 64)
    padded = fit_image(image, width, height, "pad")
    top, left = (height - 64) // 2, (width - 96) // 2
    assert torch.equal(padded[:, top : top + 64, left : left + 96], image)
    assert padded.sum().item() == pytest.approx(image.sum().item())


def test_crop_and_pad_resample_without_distortion():
    """Both are a stretch at one scale: of a part with the aspect of the video, into a part with that of the image."""
    image = random_image(96, 64)
    cropped, padded = (fit_image(image, 192, 256, fit) for fit in ("crop", "pad"))
    assert torch.equal(cropped, fit_image(image[:, :, 24:72], 192, 256, "stretch"))
    assert torch.equal(padded[:, 64:192], fit_image(image, 192, 128, "stretch"))


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (1, 3000), (33, 31)])
def test_any_image_gets_the_size_and_loses_alpha(size, fit):
    image = torch.cat([random_image(*size), torch.zeros(1, size[1], size[0], 1)], dim=-1)
    assert fit_image(image, 64, 96, fit).shape == (1, 96, 64, 3)


def test_a_batch_is_refused():
    with pytest.raises(
        ValueError, match=r"^The start image must be one image, got a batch of 2: pick one with ImageFrom"
    ):
        fit_image(torch.zeros(2, 8, 8, 3), 8, 8)


def test_another_size_is_refused_where_that_is_asked():
    sentence = "The start image is 768x512, the video 1280x704: make them equal, or choose crop, stretch or pad."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        fit_image(torch.zeros(1, 512, 768, 3), 1280, 704, "refuse")


SIDES = [1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 63, 64, 65, 69, 70]


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_every_size_comes_out_as_asked(fit):
    """Each side of 1 to 70 pixels against each other one, beside a drawn other side; bars are even to a pixel."""
    draw = random.Random(0)
    for given, asked in itertools.product(range(1, 71), range(1, 71)):
        (width, wanted_width), (height, wanted_height) = draw.sample(
            [(given, asked), (draw.choice(SIDES), draw.choice(SIDES))], 2
        )
        fitted = fit_image(torch.ones(1, height, width, 3), wanted_width, wanted_height, fit)
        assert fitted.shape == (1, wanted_height, wanted_width, 3)
        filled = fitted[0, ..., 0] > 0.5
        for line in (filled.any(0), filled.any(1)):
            inside = line.nonzero().flatten().tolist()
            left, right = inside[0], len(line) - 1 - inside[-1]
            assert right - left in (0, 1)
            assert fit == "pad" or left == right == 0


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (9000, 1), (1, 9000), (1279, 703), (1281, 705)])
def test_extreme_shapes_come_out_as_asked(fit, size):
    for width, height in ((1280, 704), (32, 1024)):
        assert fit_image(torch.ones(1, size[1], size[0], 3), width, height, fit).shape == (1, height, width, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 8, 8, 1), r"must be \[batch, height, width, 3 or 4 channels\].*got \[1, 8, 8, 1\]"),
        (torch.zeros(1, 8, 8, 2), r"got \[1, 8, 8, 2\] of torch.float32"),
        (torch.zeros(1, 8, 8, 5), r"got \[1, 8, 8, 5\]"),
        (torch.zeros(1, 8, 8), r"got \[1, 8, 8\] of torch.float32; .*'Convert Mask to Image' for a mask"),
        (torch.zeros(1, 1, 8, 8, 3), r"got \[1, 1, 8, 8, 3\]"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), r"of floating point, 0 to 1, got \[1, 8, 8, 3\] of torch.uint8"),
        (torch.zeros(0, 8, 8, 3), r"is empty, \[0, 8, 8, 3\]"),
        (torch.zeros(1, 0, 8, 3), r"is empty, \[1, 0, 8, 3\]"),
        (torch.zeros(1, 8, 0, 3), r"is empty, \[1, 8, 0, 3\]"),
        (torch.zeros(1, 8, 8, 0), r"is empty, \[1, 8, 8, 0\]"),
        (None, "got NoneType"),
        ([torch.zeros(8, 8, 3)], "got list"),
        (torch.full((1, 8, 8, 3), torch.nan), "contains NaN or infinity"),
        (torch.full((1, 8, 8, 4), -torch.inf), "contains NaN or infinity"),
    ],
)
@pytest.mark.parametrize("fit", ["crop", "refuse"])
def test_a_broken_image_is_refused(image, message, fit):
    with pytest.raises(ValueError, match=f"^The end image .*{message}"):
        fit_image(image, 8, 8, fit, "end image")


def test_one_bad_number_is_found():
    """In every dtype that ComfyUI's images have."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for bad in (torch.nan, torch.inf, -torch.inf):
            frames = torch.rand(3, 8, 8, 3).to(dtype)
            assert fit_frames(frames, 8, 8, "crop", "video").isfinite().all()
            frames[1, 2, 3, 1] = bad
            with pytest.raises(ValueError, match=r"^The video contains NaN or infinity"):
                fit_frames(frames, 8, 8, "crop", "video")


@pytest.mark.parametrize("case", ["square_in_wide", "tall_rgba_in_wide", "wide_in_tall", "larger", "grey"])
def test_a_face_is_dreamid_omni_s_to_the_bit(golden, case):
    data = load_file(golden / "dreamid" / "A_preprocess.safetensors")
    cases = json.loads((golden / "dreamid" / "manifest.json").read_text(encoding="utf-8"))["preprocess"]["images"]
    height, width = cases[case]["canvas_hw"]
    face = fit_face(data[f"image.{case}.pixels"][None] / 255, width, height)
    assert torch.equal(face[0].movedim(-1, 0), data[f"image.{case}.to_vae_u8"] / 255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_face_stands_between_white_bars_in_whole_numbers(dtype):
    """One of the size is only rounded and clamped; alpha does not darken, whatever it is."""
    image = (random_image(64, 96) * 1.5 - 0.25).to(dtype)
    face = fit_face(torch.cat([image, torch.zeros_like(image[..., :1])], dim=-1), 64, 96)
    assert face.dtype == torch.float32
    assert torch.equal(face, (image.float().clamp(0, 1) * 255).round().byte() / 255)
    wide = fit_face(image, 191, 96)
    assert torch.equal(wide[:, :, 63:127], face)
    assert wide[:, :, :63].eq(1).all()
    assert wide[:, :, 127:].eq(1).all()


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.zeros(2, 8, 8, 3), "The face must be one image, got a batch of 2: pick one with ImageFromBatch."),
        (torch.zeros(1, 900, 2, 3), "The face is 2x900, so narrow that nothing of it would remain in 64x96: crop it"),
        (torch.zeros(1, 2, 900, 3), "The face is 900x2, so narrow that nothing of it would remain in 64x96: crop it"),
        (torch.full((1, 8, 8, 3), torch.nan), "The face contains NaN or infinity"),
        (torch.zeros(1, 8, 8, 2), "The face must be [batch, height, width, 1, 3 or 4 channels] of floating point"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "The face must be [batch, height, width, 1, 3 or 4 channels] of"),
        (None, "The face must be [batch, height, width, 1, 3 or 4 channels] of floating point, 0 to 1, got NoneType"),
    ],
)
def test_a_broken_face_is_refused(image, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        fit_face(image, 64, 96)


@pytest.mark.parametrize(("size", "rows", "columns"), [((7, 5), (25, 45), (0, 64)), ((4, 7), (0, 96), (5, 54))])
def test_a_face_is_never_wider_than_its_shape_allows(size, rows, columns):
    """45.7 rows become 45, 54.9 columns 54; of an odd remainder the smaller half stands before it."""
    filled = fit_face(torch.zeros(1, size[1], size[0], 3), 64, 96)[0, ..., 0].eq(0)
    for line, expected in ((filled.any(1), rows), (filled.any(0), columns)):
        assert (line.int().argmax().item(), line.sum().item()) == expected
