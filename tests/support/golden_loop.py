"""The release's denoising loop (golden D) through the public functions: model, schedule, UniPC and guidance."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from ovi import guidance
from ovi.sampling import flow_sigmas, flow_timesteps, sample_unipc

from . import GOLDEN, golden_model

STEPS, SHIFT, VIDEO_CFG, AUDIO_CFG, SKIPPED = 6, 5.0, 4.0, 3.0, (1,)


def run(case, dtype=torch.float32, whole_timesteps=True):
    """Run the release's loop from the golden noise: packed latents [1, 1, N] (video, then audio), and the golden data.

    `whole_timesteps`: as in the Ovi release, 1000 * sigma truncated; else 1000 * sigma itself, as ComfyUI has it.
    """
    data = load_file(GOLDEN / f"D_{case}.safetensors")
    video, audio = data["init.video_noise"].to(dtype)[None], data["init.audio_noise"].to(dtype).T[None]
    positive, video_negative, audio_negative = (
        data[f"cond.{name}"].to(dtype)[None] for name in ("positive", "video_negative", "audio_negative")
    )
    first = data["cond.first_frame_latent"].to(dtype)[None] if case == "i2v" else None
    model = golden_model.load(dtype)
    sigmas, timesteps = flow_sigmas(STEPS, SHIFT), flow_timesteps(STEPS, SHIFT)
    torch.testing.assert_close(sigmas, data["sched.sigmas"], atol=0.0, rtol=0.0)
    torch.testing.assert_close(timesteps, data["sched.timesteps"], atol=0.0, rtol=0.0)
    steps = iter(timesteps if whole_timesteps else 1000 * sigmas[:-1])

    def unpack(packed):
        return [packed[..., : video.numel()].view(video.shape), packed[..., video.numel() :].view(audio.shape)]

    def with_first_frame(packed):
        if first is None:
            return packed
        frames, wave = unpack(packed)
        return pack(torch.cat([first, frames[:, :, 1:]], dim=2), wave)

    def denoise(x, sigma):
        """One step of the release: impose the first frame, run both passes, guide each modality by its scale."""
        x = with_first_frame(x)
        t = next(steps)[None]
        video_time = t[:, None].repeat(1, video.shape[2])
        if first is not None:
            video_time[:, 0] = 0
        pos, neg = (
            x - sigma.to(dtype) * pack(*velocity)
            for velocity in (
                model(unpack(x), (video_time, t), positive),
                model(unpack(x), (video_time, t), video_negative, audio_negative, skip_blocks=SKIPPED),
            )
        )
        return guidance.guide_parts(neg + VIDEO_CFG * (pos - neg), pos, neg, video.numel(), AUDIO_CFG)

    # The sampler keeps a history of its own of the first frame; only what the model sees, and the end, is imposed.
    return with_first_frame(sample_unipc(denoise, pack(video, audio), sigmas, disable=True)), data


def pack(video, audio):
    """Return a joint latent as samplers see it, [B, 1, N]."""
    return torch.cat([video.flatten(1), audio.flatten(1)], dim=1)[:, None]
