"""The merge of the MMAudio VAE and the BigVGAN vocoder: buffers, layouts, normalisation, and what is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
from safetensors.torch import load_file

from ovi import audio_vae
from ovi.audio_vae import merge, normalisations
from support.golden_audio import draw, draw_row, published_vae, published_vocoder


@pytest.fixture(scope="module")
def expected(golden):
    """The golden tensors of case E."""
    return load_file(golden / "E_mmaudio.safetensors")


@pytest.fixture(scope="module")
def merged():
    """What the published layout merges to."""
    return merge(published_vae(draw_checked), {"generator": published_vocoder(draw_checked), "steps": 5})


def draw_checked(key, shape, scale=1.0):
    """Draw the tensors that the golden data checks in full, and one row of all others."""
    checked = "encoder.conv_in. decoder.mid.attn_1.qkv. conv_pre. ups.0.0. resblocks.17.convs1.2."
    return (draw if key.startswith(tuple(checked.split())) else draw_row)(key, shape, scale)


def normalised(vae, passes, dtype=torch.float32):
    """The VAE with each convolution normalised so often, by the formula on a single row; stored in `dtype`."""
    result = dict(vae)
    for key, weight in vae.items():
        if key.endswith(".weight"):
            row = weight[:1]
            for _ in range(passes):
                row = row / (1e-4 + row.norm() / math.sqrt(row.numel())) / math.sqrt(row.numel())
            result[key] = row.to(dtype).expand(weight.shape)
    return result


def without(sd, *parts):
    """The state dict without the keys that contain one of these."""
    return {key: tensor for key, tensor in sd.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize(
    ("buffer", "name"),
    [(audio_vae.mel_basis, "mel_basis"), (audio_vae.lowpass_filter, "filter.kaiser_sinc_12")],
)
def test_computed_buffers_are_the_reference_s(buffer, name, expected):
    torch.testing.assert_close(buffer(), expected[name], rtol=0, atol=1e-8)


def test_shapes_count_the_published_numbers():
    assert len(audio_vae.vae_shapes()) == 57
    assert sum(math.prod(shape) for shape in audio_vae.vae_shapes().values()) == 171_657_378
    assert len(audio_vae.vocoder_shapes()) == 668
    assert sum(math.prod(shape) for shape in audio_vae.vocoder_shapes().values()) == 112_202_089


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("passes", "counted"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_normalisations_are_counted_by_row_norms(passes, counted, dtype):
    small = {key: weight for key, weight in published_vae(draw_row).items() if weight.numel() < 1_000_000}
    assert normalisations(normalised(small, passes, dtype)) == counted


def test_published_layout_merges_to_what_comfyui_loads(merged, expected):
    assert len(merged) == 727
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    assert torch.equal(merged["mel_converter.hann_window"], expected["hann_window"])
    checks = {key.split(".", 1)[1].removesuffix(".first16"): key for key in expected if key.startswith("weightcheck.")}
    assert len(checks) == 5
    for key, check in checks.items():
        torch.testing.assert_close(merged[key].flatten()[:16], expected[check], rtol=0, atol=1e-7)


def test_new_key_names_and_absent_filters_merge_to_the_same(merged):
    vocoder = without(published_vocoder(draw_checked), ".filter")
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        vocoder = {key.replace(old, f"parametrizations.weight.{new}"): tensor for key, tensor in vocoder.items()}
    again = merge(normalised(published_vae(draw_row), 1), vocoder)
    assert again.keys() == merged.keys()
    assert all(torch.equal(again[key], merged[key]) for key in merged if key.startswith("vocoder."))


def test_finished_tensors_are_handed_on(merged):
    vae = {key.removeprefix("vae."): merged[key] for key in merged if key.startswith("vae.")}
    vocoder = {key.removeprefix("vocoder."): merged[key] for key in merged if key.startswith("vocoder.")}
    for again in (merge(vae, vocoder), merge(merged), merge(without(merged, "mel_converter"))):
        assert again.keys() == merged.keys()
        assert all(again[key] is merged[key] for key in merged if not key.startswith("mel_converter."))
        assert all(torch.equal(again[key], merged[key]) for key in merged if key.startswith("mel_converter."))


def test_uninitialised_mel_basis_is_replaced(merged, expected):
    again = merge(merged | {"mel_converter.mel_basis": torch.full((80, 513), float("nan"))})
    torch.testing.assert_close(again["mel_converter.mel_basis"], expected["mel_basis"], rtol=0, atol=1e-8)


def meta(key, shape, scale=1.0):
    """A tensor without numbers, for files that are refused by their keys and shapes."""
    return torch.empty(shape, device="meta")


ONE = torch.zeros(1)
VAE = published_vae(meta)
VOCODER = published_vocoder(meta)
FOLDED = {key: ONE.expand(shape) for key, shape in audio_vae.vocoder_shapes().items()}


def as_merged(vae, vocoder=FOLDED):
    """The two parts as one file."""
    return {f"vae.{key}": vae[key] for key in vae} | {f"vocoder.{key}": vocoder[key] for key in vocoder}


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ([], "an empty file"),
        (["video_model.patch_embedding.weight"], "an Ovi model"),
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"],
            "a diffusion model",
        ),
        (["blocks.0.self_attn.q.weight"], "a diffusion model"),
        (["decoder.conv1.weight", "decoder.upsamples.0.upsamples.0.residual.2.weight"], "the Wan 2.2 VAE"),
        (["decoder.conv1.weight", "decoder.upsamples.0.residual.2.weight"], "the Wan 2.1 VAE"),
        (["decoder.conv_in.weight", "decoder.up.0.block.0.norm1.weight"], "an image VAE"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "a text encoder"),
        (["audio_vae.decoder.conv_in.conv.weight", "vocoder.conv_pre.weight"], "an LTX-2 audio VAE"),
        (["model", "optimizer"], "an unknown file that begins with 'model'"),
    ],
)
def test_other_files_are_named(keys, name):
    other = dict.fromkeys(keys, ONE)
    with pytest.raises(
        ValueError, match=f"^The VAE file is {name}; it must be the MMAudio 16 kHz VAE: .*v1-16.pth or .*"
    ):
        merge(other, VOCODER)
    with pytest.raises(
        ValueError, match=f"^The vocoder file is {name}; it must be the BigVGAN vocoder: .*best_netG.pt or"
    ):
        merge(VAE, other)


@pytest.mark.parametrize(
    ("vae", "vocoder", "message"),
    [
        (
            VOCODER,
            VAE,
            "The two files are swapped: the VAE file is the vocoder, the vocoder file the VAE; exchange them.",
        ),
        (VOCODER, None, "The VAE file is the BigVGAN vocoder; it must be the MMAudio 16 kHz VAE: "),
        ({"generator": VOCODER, "steps": 5}, None, "The VAE file is the BigVGAN vocoder; it must be "),
        (VAE, VAE, "The vocoder file is the MMAudio 16 kHz VAE; it must be the BigVGAN vocoder: "),
        (VAE, as_merged(VAE), "The vocoder file is a merged audio VAE; it must be the BigVGAN vocoder: "),
        (VAE, None, "The VAE file contains no vocoder; choose the BigVGAN vocoder as the second file: "),
        (
            as_merged(VAE),
            VOCODER,
            "The VAE file is a merged audio VAE, which contains a vocoder; choose no second file",
        ),
        (without(VAE, "data_mean"), VOCODER, "The VAE file lacks data_mean; it must be the MMAudio 16 kHz VAE: "),
        (without(VAE, "conv_in"), VOCODER, "The VAE file lacks decoder.conv_in.weight and 1 more; it must be "),
        (VAE | {"encoder.norm.weight": ONE}, VOCODER, "The VAE file has encoder.norm.weight, which is unknown; "),
        (
            VAE | {"data_mean": torch.zeros(1, 80, 1, dtype=torch.int32)},
            VOCODER,
            "The VAE file has data_mean of type torch.int32 instead of floating-point numbers; it must be ",
        ),
        (
            VAE | {"data_mean": ONE},
            VOCODER,
            "The VAE file has data_mean of shape [1] instead of [1, 80, 1]; it must be ",
        ),
        (
            VAE,
            without(VOCODER, "conv_pre.bias"),
            "The vocoder file lacks conv_pre.bias; it must be the BigVGAN vocoder: ",
        ),
        (VAE, without(VOCODER, "conv_post.weight_g"), "The vocoder file lacks conv_post.weight_g; it must be "),
        (VAE, without(VOCODER, "conv_post.weight_v"), "The vocoder file lacks conv_post.weight_v; it must be "),
        (VAE, VOCODER | {"mpd.weight_v": ONE}, "The vocoder file has mpd.weight_v, which is unknown; it must be "),
        (
            VAE,
            VOCODER | {"conv_post.weight_g": ONE},
            "The vocoder file has conv_post.weight_g of shape [1] instead of [1, 1, 1]",
        ),
        (without(as_merged(VAE), "data_std"), None, "The merged file's VAE lacks data_std; it must be "),
        (
            without(as_merged(VAE), "conv_post.bias"),
            None,
            "The merged file's vocoder lacks conv_post.bias; it must be ",
        ),
        (
            as_merged(VAE) | {"optimizer": ONE},
            None,
            "The merged file's vocoder has optimizer, which is unknown; it must be ",
        ),
    ],
)
def test_unfit_files_are_refused_in_one_sentence(vae, vocoder, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        merge(vae, vocoder)


@pytest.mark.parametrize(
    ("passes", "pack", "message"),
    [
        (0, lambda vae: (as_merged(vae), None), "The merged file's VAE was never normalised, "),
        (2, lambda vae: (as_merged(vae), None), "The merged file's VAE was normalised more than once, "),
        (2, lambda vae: (vae, FOLDED), "The VAE file was normalised more than once, "),
    ],
)
def test_wrong_number_of_normalisations_is_refused(passes, pack, message):
    wrong = normalised(published_vae(draw_row), passes)
    with pytest.raises(ValueError, match=f"^{message}.*choose the original files instead: .*v1-16.pth.*best_netG.pt"):
        merge(*pack(wrong))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"vae.data_std": torch.full((1, 80, 1), math.inf)},
            "The merged file's VAE is damaged: vae.data_std holds NaN or",
        ),
        (
            {"vocoder.conv_pre.bias": torch.full((1536,), math.nan)},
            "The merged file's vocoder is damaged: vocoder.conv_pre",
        ),
    ],
)
def test_nan_is_refused(merged, changed, message):
    with pytest.raises(ValueError, match=f"^{message}.*download it again: .*v1-16.pth"):
        merge(merged | changed)
