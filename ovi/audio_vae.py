"""The audio VAE: the released MMAudio 16 kHz VAE and BigVGAN vocoder as the one state dict that ComfyUI loads.

ComfyUI has the architecture (`comfy/ldm/mmaudio`) with plain convolutions. What the original code does to the weights
at run time is therefore done here: the VAE's magnitude-preserving normalisation and the vocoder's weight norm.
A latent [B, 20, L] decodes to a log10 mel spectrogram [B, 80, 2L], and that to a wave [B, 1, 512L] at 16 kHz.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .geometry import AUDIO_CHANNELS, SAMPLE_RATE

Shapes = dict[str, tuple[int, ...]]

VAE = "the MMAudio 16 kHz VAE"
VOCODER = "the BigVGAN vocoder"
MERGED = "a merged audio VAE"
SOURCES = {
    VAE: "hkchengrex/MMAudio ext_weights/v1-16.pth or Kijai/WanVideo_comfy Ovi/mmaudio_vae_16k_bf16.safetensors",
    VOCODER: (
        "hkchengrex/MMAudio ext_weights/best_netG.pt"
        " or Kijai/WanVideo_comfy Ovi/mmaudio_vocoder_bigvgan_best_netG_bf16.safetensors"
    ),
}

# What a file is, told by how some of its keys begin; the first that fits counts.
KINDS = (
    (MERGED, ("vae.encoder.learnable_gain", "vae.decoder.learnable_gain", "vocoder.activation_post.")),
    (VAE, ("encoder.learnable_gain", "decoder.learnable_gain", "data_mean")),
    (VOCODER, ("conv_pre.", "activation_post.")),
    ("an LTX-2 audio VAE", ("audio_vae.", "vocoder.")),
    ("an Ovi model", ("video_model.", "audio_model.")),
    ("a text encoder", ("encoder.block.", "shared.", "token_embedding.", "text_model.")),
    ("a diffusion model", ("model.diffusion_model.", "diffusion_model.", "blocks.", "double_", "transformer_blocks.")),
    ("the Wan 2.2 VAE", ("decoder.upsamples.0.upsamples.",)),
    ("the Wan 2.1 VAE", ("decoder.upsamples.",)),
    ("an image VAE", ("decoder.up.", "decoder.up_blocks.")),
)  # fmt: skip

MEL_BANDS = 80
FFT = 1024
VAE_WIDTHS = (384, 768, 1536)  # channels per level, from the finest
VOCODER_WIDTH = 1536  # halved by every upsampling
UPSAMPLING_KERNELS = (8, 8, 4, 4, 4, 4)
RESBLOCK_KERNELS = (3, 7, 11)
FILTER_TAPS = 12

NORM_EPS = 1e-4  # of the magnitude-preserving normalisation


def merge(vae_sd: Mapping[str, Any], vocoder_sd: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Return the 727 float32 tensors (`vae.*`, `vocoder.*`, `mel_converter.*`) that ComfyUI's VAE class expects.

    `vae_sd` is the VAE as released or normalised once; `vocoder_sd` is the vocoder, flat or under `generator`, with
    weight norm (old or new key names) or folded. Or `vae_sd` is an earlier result of this function and there is no
    vocoder. Tensors that need no change are passed on without a copy.

    Raises ValueError where a file is something else, where a tensor is missing, misshapen, unknown or not of numbers
    with a fraction, where one holds NaN or infinity, and where the VAE was normalised more than once, or was merged
    without having been normalised.
    """
    vae_sd = vae_sd.get("generator", vae_sd)
    vae_is = kind(vae_sd)
    if vae_is == MERGED:
        if vocoder_sd is not None:
            raise ValueError(f"The VAE file is {MERGED}, which contains a vocoder; choose no second file.")
        vae_file, vocoder_file = "The merged file's VAE", "The merged file's vocoder"
        vae = {key.removeprefix("vae."): vae_sd[key] for key in vae_sd if key.startswith("vae.")}
        rest = [key for key in vae_sd if not key.startswith(("vae.", "mel_converter."))]
        vocoder = {key.removeprefix("vocoder."): vae_sd[key] for key in rest}
    else:
        vae_file, vocoder_file = "The VAE file", "The vocoder file"
        vae, vocoder = dict(vae_sd), _vocoder_beside(vae_is, vocoder_sd)

    _check(vae, vae_shapes(), vae_file, VAE)
    vocoder = _fold(vocoder, vocoder_file)
    passes = normalisations(vae)
    if passes > 1 or (passes == 0 and vae_is == MERGED):
        raise ValueError(
            f"{vae_file} was {'normalised more than once' if passes else 'never normalised'}, so the audio would be "
            f"wrong; choose the original files instead: {SOURCES[VAE]}, with {SOURCES[VOCODER]}."
        )
    merged = {
        f"vae.{key}": _normalise(tensor) if passes == 0 and key.endswith(".weight") else tensor.float()
        for key, tensor in vae.items()
    }
    merged |= {f"vocoder.{key}": tensor for key, tensor in vocoder.items()}
    if bad := next((key for key, tensor in merged.items() if not torch.isfinite(tensor).all()), None):
        raise ValueError(
            f"{vae_file if bad.startswith('vae.') else vocoder_file} is damaged: {bad} holds NaN or infinity, or is 0 "
            f"where it must not be; download it again: {SOURCES[VAE]}, with {SOURCES[VOCODER]}."
        )
    # Always computed: where its file has no mel basis, core leaves it uninitialised, and may have saved it like that.
    merged["mel_converter.mel_basis"] = mel_basis()
    merged["mel_converter.hann_window"] = torch.hann_window(FFT)
    return merged


def kind(sd: Mapping[str, Any]) -> str:
    """Say what a state dict is, by its keys."""
    for name, beginnings in KINDS:
        if any(key.startswith(beginnings) for key in sd):
            return name
    return f"an unknown file that begins with {next(iter(sd))!r}" if sd else "an empty file"


def normalisations(vae: Mapping[str, Tensor]) -> int:
    """Count how often the VAE's convolutions were normalised: 0, 1, or 2 for more than once.

    A pass turns a row of N weights and norm n into one of norm n / (n + eps √N). Rows start training at n near √N, for
    which the first pass leaves 1 - eps; each one after it takes another eps √N, which is 0.0008 to 0.0068. The median
    of that shortfall over the 58,488 rows, in units of eps √N, is thus near 0 after one pass and near 1 after two.
    Rounding to bfloat16 moves single rows by up to some 1e-4, and the median by far less. Rows that had a norm of
    0.95 to 1.05 before any pass cannot be told from normalised ones.
    """
    weights = [tensor.flatten(1) for key, tensor in vae.items() if key.endswith(".weight")]
    norms = [torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32) for weight in weights]
    if not 0.95 < torch.cat(norms).median() < 1.05:
        return 0
    passes = [(1 - norm) / (NORM_EPS * math.sqrt(weight.shape[1])) for norm, weight in zip(norms, weights, strict=True)]
    return 1 if torch.cat(passes).median() < 0.5 else 2


def vae_shapes() -> Shapes:
    """Return the keys and shapes of the VAE: 53 convolutions without bias, two gains, and the mel statistics."""
    fine, middle, coarse = VAE_WIDTHS
    shapes: Shapes = {
        "data_mean": (1, MEL_BANDS, 1),
        "data_std": (1, MEL_BANDS, 1),
        "encoder.learnable_gain": (),
        "encoder.conv_in.weight": (fine, MEL_BANDS, 3),
        "encoder.down.0.downsample.conv1.weight": (fine, fine, 1),
        "encoder.down.0.downsample.conv2.weight": (fine, fine, 1),
        "encoder.conv_out.weight": (2 * AUDIO_CHANNELS, coarse, 3),
        "decoder.learnable_gain": (),
        "decoder.conv_in.weight": (coarse, AUDIO_CHANNELS, 3),
        "decoder.up.1.upsample.conv.weight": (middle, middle, 3),
        "decoder.conv_out.weight": (MEL_BANDS, fine, 3),
    }

    def residual(name: str, inner: int, outer: int) -> None:
        shapes[f"{name}.conv1.weight"] = (outer, inner, 3)
        shapes[f"{name}.conv2.weight"] = (outer, outer, 3)
        if inner != outer:
            shapes[f"{name}.nin_shortcut.weight"] = (outer, inner, 1)

    for half in ("encoder", "decoder"):
        residual(f"{half}.mid.block_1", coarse, coarse)
        residual(f"{half}.mid.block_2", coarse, coarse)
        shapes[f"{half}.mid.attn_1.qkv.weight"] = (3 * coarse, coarse, 1)
        shapes[f"{half}.mid.attn_1.proj_out.weight"] = (coarse, coarse, 1)
    for level, width in enumerate(VAE_WIDTHS):
        finer, coarser = VAE_WIDTHS[max(level - 1, 0)], VAE_WIDTHS[min(level + 1, 2)]
        for block in range(2):
            residual(f"encoder.down.{level}.block.{block}", width if block else finer, width)
        for block in range(3):
            residual(f"decoder.up.{level}.block.{block}", width if block else coarser, width)
    return shapes


def vocoder_shapes() -> Shapes:
    """Return the keys and shapes of the vocoder, convolutions folded; transposed ones, `ups`, are [in, out, kernel]."""
    shapes: Shapes = {}

    def convolution(name: str, weight: tuple[int, int, int], bias: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = (bias,)

    def activation(name: str, width: int) -> None:
        shapes[f"{name}.act.alpha"] = shapes[f"{name}.act.beta"] = (width,)
        shapes[f"{name}.upsample.filter"] = shapes[f"{name}.downsample.lowpass.filter"] = (1, 1, FILTER_TAPS)

    convolution("conv_pre", (VOCODER_WIDTH, MEL_BANDS, 7), VOCODER_WIDTH)
    width = VOCODER_WIDTH
    for level, upsampling in enumerate(UPSAMPLING_KERNELS):
        width //= 2
        convolution(f"ups.{level}.0", (2 * width, width, upsampling), width)
        for i, kernel in enumerate(RESBLOCK_KERNELS, start=level * len(RESBLOCK_KERNELS)):
            for conv in range(3):
                convolution(f"resblocks.{i}.convs1.{conv}", (width, width, kernel), width)
                convolution(f"resblocks.{i}.convs2.{conv}", (width, width, kernel), width)
            for act in range(6):
                activation(f"resblocks.{i}.activations.{act}", width)
    activation("activation_post", width)
    convolution("conv_post", (1, width, 7), 1)
    return shapes


def lowpass_filter() -> Tensor:
    """Return the vocoder's anti-aliasing filter [1, 1, 12]: a sinc of cutoff 0.25, Kaiser window of half width 0.3."""
    half = FILTER_TAPS // 2
    attenuation = 2.285 * (half - 1) * math.pi * (4 * 0.3) + 7.95  # dB; above 50, where Kaiser's beta is linear in it
    window = torch.kaiser_window(FILTER_TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
    taps = window * torch.sinc(2 * 0.25 * (torch.arange(-half, half) + 0.5))
    return (taps / taps.sum()).view(1, 1, -1)


def mel_basis() -> Tensor:
    """Return the mel filter bank [80, 513] of 0 to 8000 Hz on Slaney's scale, each triangle of unit area.

    Slaney's scale is linear up to 1000 Hz (15 mel) and logarithmic above, with 27 mel for a factor of 6.4.
    """
    top = 15 + 27 * math.log(SAMPLE_RATE / 2 / 1000) / math.log(6.4)
    mels = torch.linspace(0, top, MEL_BANDS + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27)).unsqueeze(1)  # [82, 1] Hz
    bins = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


def _vocoder_beside(vae_is: str, vocoder_sd: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Return the vocoder's tensors; raise ValueError unless the two files are a VAE and its vocoder."""
    vocoder = None if vocoder_sd is None else vocoder_sd.get("generator", vocoder_sd)
    vocoder_is = None if vocoder is None else kind(vocoder)
    if (vae_is, vocoder_is) == (VOCODER, VAE):
        raise ValueError(
            "The two files are swapped: the VAE file is the vocoder, the vocoder file the VAE; exchange them."
        )
    if vae_is != VAE:
        raise ValueError(f"The VAE file is {vae_is}; it must be {VAE}: {SOURCES[VAE]}.")
    if vocoder is None:
        raise ValueError(f"The VAE file contains no vocoder; choose {VOCODER} as the second file: {SOURCES[VOCODER]}.")
    if vocoder_is != VOCODER:
        raise ValueError(f"The vocoder file is {vocoder_is}; it must be {VOCODER}: {SOURCES[VOCODER]}.")
    return dict(vocoder)


def _check(sd: Mapping[str, Tensor], shapes: Shapes, file: str, needed: str) -> None:
    """Raise ValueError unless the keys and shapes are exactly those."""
    if missing := shapes.keys() - sd.keys():
        got = f"lacks {_named(missing)}"
    elif unknown := sd.keys() - shapes.keys():
        got = f"has {_named(unknown)}, which is unknown"
    elif wrong := [key for key, shape in shapes.items() if sd[key].shape != shape]:
        got = f"has {wrong[0]} of shape {list(sd[wrong[0]].shape)} instead of {list(shapes[wrong[0]])}"
    elif wrong := [key for key in shapes if not sd[key].is_floating_point()]:
        got = f"has {wrong[0]} of type {sd[wrong[0]].dtype} instead of floating-point numbers"
    else:
        return
    raise ValueError(f"{file} {got}; it must be {needed}: {SOURCES[needed]}.")


def _named(keys: Iterable[str]) -> str:
    first, *others = sorted(keys)
    return f"{first} and {len(others)} more" if others else first


def _normalise(weight: Tensor) -> Tensor:
    """Normalise a weight [out, in, kernel]: each row w of N weights and norm n becomes w / (eps + n / √N) / √N."""
    weight = weight.float()
    root = math.sqrt(weight[0].numel())
    norm = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
    return weight / ((NORM_EPS + norm / root) * root)


def _fold(vocoder: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Return the vocoder with its filters and plain convolutions: g v / |v|, the norm taken over all but dim 0."""
    shapes = vocoder_shapes()
    tensors = {key: lowpass_filter() for key in shapes if key.endswith(".filter")}
    for key, tensor in vocoder.items():
        key = key.replace("parametrizations.weight.original0", "weight_g")
        tensors[key.replace("parametrizations.weight.original1", "weight_v")] = tensor
    for key in [key for key in shapes if f"{key}_g" in tensors or f"{key}_v" in tensors]:
        shape = shapes[f"{key}_v"] = shapes.pop(key)
        shapes[f"{key}_g"] = (shape[0], 1, 1)
    _check(tensors, shapes, file, VOCODER)
    folded = {}
    for key, tensor in tensors.items():
        if key.endswith(".weight_v"):
            v, g = tensor.float(), tensors[f"{key[:-1]}g"].float()
            folded[key[:-2]] = v * (g / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True))
        elif not key.endswith(".weight_g"):
            folded[key] = tensor.float()
    return folded
