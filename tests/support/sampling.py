"""Sampling with the golden model on real ComfyUI: latents, prompts, the nodes around a sampler, and comparisons.

ComfyUI is imported where it is needed, since it must be started first (fixture `comfy`).
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.utils._pytree import tree_map

from . import golden_model

SHAPES = ((1, 48, 4, 6, 8), (1, 20, 21))


def joint(*parts):
    """Return a joint latent of (video, audio)."""
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(parts)


def empty(batch=1, shapes=SHAPES):
    """Return a LATENT of zeros."""
    return {"samples": joint(*(torch.zeros(batch, *shape[1:]) for shape in shapes))}


def noise(seed=7, shapes=SHAPES):
    """Return core's own noise for a seed, [video, audio]."""
    import comfy.sample

    return comfy.sample.prepare_noise(joint(*(torch.zeros(shape) for shape in shapes)), seed).unbind()


def prompts(loop):
    """Return a golden loop's positive and negative conditioning; the negative holds both towers' texts side by side."""
    texts = [golden_model.pad(loop[f"cond.{which}_negative"], 32) for which in ("video", "audio")]
    return [[loop["cond.positive"][None], {}]], [[torch.cat(texts, dim=-1), {}]]


def guide(comfy, model, audio_cfg=3.0, skip="1", start=0.0, end=1.0, video=(0.0, 1.0), audio=(0.0, 1.0), **more):
    """Return the MODEL after Ovi Guidance, whose negative pass skips the blocks `skip` from `start` to `end`.

    `more` are inputs that graphs may leave out.
    """
    (guided,) = comfy.run(
        "OviGuidance",
        model=model,
        audio_cfg=audio_cfg,
        skip_blocks=skip,
        skip_start_percent=start,
        skip_end_percent=end,
        video_start_percent=video[0],
        video_end_percent=video[1],
        audio_start_percent=audio[0],
        audio_end_percent=audio[1],
        **more,
    )
    return guided


def ksampler(comfy, model, conds, latent=None, *, sampler="euler", steps=4, cfg=4.0, denoise=1.0, seed=7):
    """Sample with core's KSampler; return [video, audio]."""
    (out,) = comfy.run(
        "KSampler",
        model=model,
        seed=seed,
        steps=steps,
        cfg=cfg,
        sampler_name=sampler,
        scheduler="simple",
        positive=conds[0],
        negative=conds[1],
        latent_image=latent or empty(),
        denoise=denoise,
    )
    return out["samples"].unbind()


def windowed(comfy, model, **options):
    """Return the MODEL after core's Context Windows, five video latents each with two in common, or as in `options`."""
    from comfy import context_windows

    if not hasattr(context_windows, "WindowingState"):
        pytest.skip("this ComfyUI has no context windows for joint latents; 0.27 and later have")
    comfy.core("nodes_context_windows")
    (model,) = comfy.run(
        "ContextWindowsManual",
        model=model,
        **{
            "context_length": 5,
            "context_overlap": 2,
            "context_schedule": "standard_static",
            "context_stride": 1,
            "closed_loop": False,
            "fuse_method": "pyramid",
            "dim": 2,
            "freenoise": False,
            "cond_retain_index_list": "",
            "split_conds_to_windows": False,
            "latent_retain_index_list": "",
            "causal_window_fix": True,
        }
        | options,
    )
    return model


def on_cpu(value):
    """Return the tensors of a value, in whatever it holds them, on the CPU: ComfyUI may compute on another device."""
    return tree_map(lambda each: each.cpu() if isinstance(each, torch.Tensor) else each, value)


def forward(model, latents, timestep, text):
    """Run a MODEL's diffusion model on ComfyUI's device, both towers on one text; return the velocities on the CPU."""
    from comfy import model_management

    model_management.load_models_gpu([model])
    latents = [each if each is None else each.to(model.load_device) for each in latents]
    timestep, text = timestep.to(model.load_device), text.to(model.load_device)
    return on_cpu(model.model.diffusion_model(latents, timestep, text, audio_context=text))


def predict_by(monkeypatch, predict):
    """Put a function of a packed latent and sigma, on the CPU, in the place of core's guided prediction."""

    def predict_noise(_, x, sigma, *args, **options):
        return predict(*on_cpu((x, sigma))).to(x.device)

    monkeypatch.setattr("comfy.samplers.CFGGuider.predict_noise", predict_noise)


def split(packed):
    """Return the video and the audio of a packed latent [B, 1, N]."""
    import comfy.utils

    return comfy.utils.unpack_latents(packed, [(len(packed), *shape[1:]) for shape in SHAPES])


def scaled(video):
    """Undo `unscaled`."""
    import comfy.latent_formats

    return comfy.latent_formats.Wan22().process_in(video)


def unscaled(video):
    """Return a normalised video latent in the scale of the VAE, as ComfyUI hands it on."""
    import comfy.latent_formats

    return comfy.latent_formats.Wan22().process_out(video)


def with_persons(conds, faces, sounds):
    """Both prompts with references in them, as Ovi Person puts them there."""
    values = {"reference_latents": [unscaled(face) for face in faces], "reference_voices": sounds}
    values = {key: latents for key, latents in values.items() if latents}
    return [[[text, old | values] for text, old in prompt] for prompt in conds]


def assert_equal(got, expected, atol):
    """Compare two sequences of tensors, to an absolute tolerance."""
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0.0)


@contextmanager
def counted_passes(model):
    """Yield a list that gets an entry for each pass of a MODEL."""
    passes = []
    block = model.model.diffusion_model.video_model.blocks[0]
    handle = block.norm1.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()


def count_batches(model):
    """The model, and a list that gets the batch size of each call of it."""
    batches = []

    def spy(run, args):
        batches.append(len(args["input"]))
        return run(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(spy)
    return model, batches


class TimestepSpy:
    """Records the timesteps that the diffusion model is called with."""

    def __init__(self, monkeypatch, model):
        self.seen = []
        inner = model.model.diffusion_model
        original = inner._forward

        def forward(x, timestep, *args, **kwargs):
            self.seen.append(on_cpu(timestep))
            return original(x, timestep, *args, **kwargs)

        monkeypatch.setattr(inner, "_forward", forward)


def error(got, expected):
    """Return the relative error of the worse of both modalities."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True))
