"""The two VAEs as ComfyUI's VAE objects: checked, loaded, and used to decode a joint latent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.mmaudio.vae.autoencoder import AudioAutoencoder
from torch import Tensor
from torch.nn.functional import pad

from .. import audio_vae, geometry, media
from ..files import naming
from .files import read


def require_video_vae(vae: Any, has: str = "There are images") -> None:
    """Raise ValueError for a VAE whose latents are not Wan 2.2's, and for none; `has` says what needs one."""
    if vae is None:
        raise ValueError(f"{has} but no VAE: connect 'Load VAE' to vae.")
    if (vae.latent_dim, vae.latent_channels) != (3, geometry.VIDEO_CHANNELS):
        raise ValueError(
            f"The video VAE given is {_describe(vae)}, but Ovi needs Wan 2.2's of {geometry.VIDEO_CHANNELS} channels: "
            "load wan2.2_vae.safetensors (Comfy-Org/Wan_2.2_ComfyUI_Repackaged) with 'Load VAE'."
        )


def require_audio_vae(vae: Any, has: str = "There is audio") -> None:
    """Raise ValueError for a VAE whose latents are not MMAudio's at 16 kHz, and for none; `has` says what needs one."""
    if vae is None:
        raise ValueError(f"{has} but no VAE: connect 'Load Ovi Audio VAE' to audio_vae.")
    if (vae.latent_dim, vae.latent_channels) != (1, geometry.AUDIO_CHANNELS):
        raise ValueError(
            f"The audio VAE given is {_describe(vae)}, but Ovi needs MMAudio's 16 kHz VAE with its vocoder: "
            "load v1-16.pth and best_netG.pt (hkchengrex/MMAudio) with 'Load Ovi Audio VAE'."
        )


def require_vaes(video_vae: Any, audio_vae: Any) -> None:
    """Raise ValueError unless both VAEs are those that Ovi needs."""
    require_video_vae(video_vae)
    require_audio_vae(audio_vae)


def _describe(vae: Any) -> str:
    kind = {1: "an audio VAE", 2: "an image VAE", 3: "a video VAE"}.get(vae.latent_dim, "a VAE")
    wan21 = " (such as Wan 2.1's)" if (vae.latent_dim, vae.latent_channels) == (3, 16) else ""
    return f"{kind} of {vae.latent_channels} channels{wan21}"


def load_audio_vae(vae_path: str, vocoder_path: str | None = None) -> comfy.sd.VAE:
    """Return the audio VAE and its vocoder as one VAE, which ComfyUI can load again for another device."""
    vae_sd, _ = read(vae_path, audio_vae.SOURCES[audio_vae.VAE])
    vocoder_sd = None if vocoder_path is None else read(vocoder_path, audio_vae.SOURCES[audio_vae.VOCODER])[0]
    # Always float32: in 16 bits, which --bf16-vae asks of every VAE, decoding gives wrong audio and encoding fails.
    with naming(*[Path(path) for path in (vae_path, vocoder_path) if path is not None]):
        merged = audio_vae.merge(vae_sd, vocoder_sd)
    vae = comfy.sd.VAE(sd=merged, dtype=torch.float32)
    vae.throw_exception_if_invalid()
    vae.patcher.cached_patcher_init = (_load_patcher, (vae_path, vocoder_path))
    return vae


def _load_patcher(
    vae_path: str, vocoder_path: str | None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """Load again. ComfyUI passes `disable_dynamic` to every loader; its own VAE loader ignores it as well."""
    return load_audio_vae(vae_path, vocoder_path).patcher


def encode(vae: Any, given: Tensor, what: str) -> Tensor:
    """Encode frames [T, H, W, 3] to [1, 48, F, h, w], or a wave [1, S, 1] to [1, 20, L].

    Raises ValueError, naming the input as `what`, where the VAE gives NaN or infinity.
    """
    return _checked(vae.encode(given), what)


def encode_voice(vae: Any, voice: Any, start: float, seconds: float) -> Tensor:
    """Cut `seconds` out of a recording, from `start` on, and encode them: [1, 20, L].

    MMAudio's encoder works at 16 kHz, but ComfyUI's VAE takes 44.1 kHz: a recording at 16 kHz would be resampled twice,
    and lose its highest frequencies. So its encoder is called as that VAE calls it. Others get their own rate. Raises
    ValueError where `media.cut` does, and where the VAE gives NaN or infinity.
    """
    if not isinstance(vae, comfy.sd.VAE) or not isinstance(vae.first_stage_model, AudioAutoencoder):
        wave = media.cut(voice, start, seconds, vae.audio_sample_rate, "voice")
        return encode(vae, wave.view(1, -1, 1), "voice")
    wave = media.cut(voice, start, seconds, geometry.SAMPLE_RATE, "voice")
    memory = vae.memory_used_encode((1, 1, len(wave)), vae.vae_dtype)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)
    latent = vae.first_stage_model.encode_audio(wave[None].to(vae.device, vae.vae_dtype)).mean
    return _checked(latent.to(vae.output_device, torch.float32), "voice")


def _checked(result: Tensor, what: str) -> Tensor:
    """Return what a VAE gave for `what`; raise ValueError for NaN or infinity."""
    if not media.is_finite(result):
        raise ValueError(
            f"The VAE turned the {what} into NaN or infinity; look for a damaged VAE file, or for --fp16-vae among "
            "ComfyUI's options."
        )
    return result


def decode_video(vae: Any, latent: Tensor, tile_size: int) -> Tensor:
    """Decode one clip's video latent [1, 48, F, h, w] to frames [T, H, W, 3].

    Tiles of `tile_size` pixels (0: none) divide the frames but never the time, where their seams would flicker. Raises
    ValueError where the VAE gives NaN or infinity.
    """
    if tile_size:
        tile = tile_size // vae.spacial_compression_decode()
        frames = vae.decode_tiled(
            latent,
            tile_x=tile,
            tile_y=tile,
            overlap=tile // 4,
            tile_t=latent.shape[2],  # core's default of 999 latents would divide longer clips
        )
    else:
        frames = vae.decode(latent)
    return _checked(frames, "video half of the latent").flatten(0, 1)


def decode_audio(vae: Any, latent: Tensor, seconds: float) -> Tensor:
    """Decode one clip's audio latent [1, 20, L] to a waveform [1, channels, samples] of exactly `seconds`.

    Raises ValueError where the VAE gives NaN or infinity.
    """
    waveform = _checked(vae.decode(latent), "audio half of the latent").movedim(-1, 1)
    return pad(waveform, (0, round(seconds * vae.audio_sample_rate) - waveform.shape[-1]))
