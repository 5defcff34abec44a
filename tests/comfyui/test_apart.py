"""Guidance functions of core's own nodes on joint latents, on real ComfyUI: video and audio do not mix in them."""

from __future__ import annotations

import pytest
import torch

from support.sampling import SHAPES, assert_equal, guide, ksampler, prompts, split

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

# By node: its module, its inputs, and whether it takes statistics of a whole sample.
NODES = {
    "APG": ("nodes_apg", {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.5}, True),
    "CFGNorm": ("nodes_cfg", {"strength": 1.0, "pre_cfg": False}, False),
    "CFGNorm, before": ("nodes_cfg", {"strength": 1.0, "pre_cfg": True}, False),
    "CFGZeroStar": ("nodes_cfg", {}, False),
    "FreSca": ("nodes_fresca", {"scale_low": 1.0, "scale_high": 1.5, "freq_cutoff": 1}, False),
    "Mahiro": ("nodes_mahiro", {}, False),
    "RescaleCFG": ("nodes_model_advanced", {"multiplier": 0.7}, True),
    "TCFG": ("nodes_tcfg", {}, False),
}
HOOKS = ("sampler_pre_cfg_function", "sampler_cfg_function", "sampler_post_cfg_function")


def patched(comfy, model, node):
    """The MODEL after one of the nodes."""
    module, inputs, _ = NODES[node]
    comfy.core(module)
    (model,) = comfy.run(node.split(",")[0], model=model, **inputs)
    return model


def hook(options):
    """The one function that a node put in model_options, and its key."""
    ((key, value),) = [(key, options[key]) for key in HOOKS if key in options]
    return key, value if callable(value) else value[0]


def arguments(key, model, parts, scale):
    """What core gives such a function; `parts` are the input, the positive and the negative prediction."""
    x, positive, negative = parts
    args = {"input": x, "sigma": torch.tensor([0.8]), "timestep": torch.tensor([0.8]), "cond_scale": scale}
    args |= {"model": model.model, "model_options": model.model_options}
    if key == HOOKS[0]:
        return args | {"conds": [[{}], [{}]], "conds_out": [positive, negative]}
    args |= {"cond_denoised": positive, "uncond_denoised": negative}
    if key == HOOKS[1]:
        return args | {"cond": x - positive, "uncond": x - negative}
    return args | {"cond": [{}], "uncond": [{}], "denoised": negative + scale * (positive - negative)}


def pack(parts):
    """Parts [video, audio] packed."""
    return torch.cat([part.flatten(1)[:, None] for part in parts], dim=-1)


def first(result):
    """The tensor that a function changed, of those that it returns."""
    return torch.cat(result) if isinstance(result, list) else result


@pytest.mark.parametrize("node", NODES)
def test_each_modality_is_as_the_function_makes_it_alone(comfy, model, node):
    """With a scale for both, and in two steps, since APG remembers the first."""
    changed = patched(comfy, model, node)
    key, _ = hook(changed.model_options)
    options = dict(changed.model_options)
    comfy.module("ovi.native.apart").separate(options, None)
    _, apart = hook(options)
    model.model.latent_format.shapes = [torch.Size(shape) for shape in SHAPES]
    draw = torch.Generator().manual_seed(5)
    steps = [[[torch.randn(shape, generator=draw) for shape in SHAPES] for _ in range(3)] for _ in range(2)]
    together = [first(apart(arguments(key, changed, [pack(each) for each in step], 4.0))) for step in steps]
    for i, modality in enumerate(("video", "audio")):
        _, alone = hook(patched(comfy, model, node).model_options)  # which remembers nothing yet
        for step, packed in zip(steps, together, strict=True):
            parts = [each[i].flatten(2)[..., None] if NODES[node][2] else each[i] for each in step]
            expected = first(alone(arguments(key, changed, parts, 4.0)))
            got = torch.cat([split(row[None])[i] for row in packed])
            torch.testing.assert_close(got.flatten(), expected.flatten(), atol=1e-5, rtol=1e-5, msg=modality)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("node", NODES)
def test_each_changes_the_clip(comfy, model, loop, node, guided):
    """With Ovi Guidance and without it, and with Ovi Guidance before it or after it alike."""
    plain = guide(comfy, model) if guided else model
    got = ksampler(comfy, patched(comfy, plain, node), prompts(loop), steps=2)
    without = ksampler(comfy, plain, prompts(loop), steps=2)
    for one, other in zip(got, without, strict=True):
        assert torch.isfinite(one).all()
        assert not torch.allclose(one, other, atol=1e-3)
    if guided:
        after = ksampler(comfy, guide(comfy, patched(comfy, model, node)), prompts(loop), steps=2)
        assert_equal(after, got, 0.0)


@pytest.mark.parametrize("node", ["APG", "CFGNorm", "RescaleCFG"])
def test_what_is_not_guided_stays_the_positive_prediction(comfy, model, loop, node):
    """The video is guided and changed, the audio is neither."""
    guided = guide(comfy, model, audio_cfg=1.0, skip="")
    _, plain = ksampler(comfy, guided, prompts(loop), steps=1)
    video, audio = ksampler(comfy, patched(comfy, guided, node), prompts(loop), steps=1)
    assert torch.equal(audio, plain)
    assert not torch.allclose(video, ksampler(comfy, guided, prompts(loop), steps=1)[0], atol=1e-3)


def test_the_audio_gets_its_own_scale(comfy, model, loop):
    """RescaleCFG that rescales nothing is the plain guidance, of the audio by Ovi Guidance's cfg."""
    comfy.core("nodes_model_advanced")
    (same,) = comfy.run("RescaleCFG", model=guide(comfy, model), multiplier=0.0)
    expected = ksampler(comfy, guide(comfy, model), prompts(loop), steps=2)
    assert_equal(ksampler(comfy, same, prompts(loop), steps=2), expected, 5e-5)


def test_functions_of_other_packs_see_the_packed_latent(comfy, model, loop):
    """And nothing is left behind in the MODEL."""
    seen = []
    other = patched(comfy, model, "CFGNorm")
    other.set_model_sampler_post_cfg_function(lambda args: seen.append(args["denoised"].shape) or args["denoised"])
    before = list(other.model_options["sampler_post_cfg_function"])
    ksampler(comfy, other, prompts(loop), steps=1)
    assert seen == [(1, 1, sum(torch.Size(shape[1:]).numel() for shape in SHAPES))]
    assert other.model_options["sampler_post_cfg_function"] == before
