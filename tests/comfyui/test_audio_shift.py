"""A shift of its own for the audio on real ComfyUI: against two schedules by hand, and as the nodes set it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from support import golden_loop
from support.sampling import (
    SHAPES,
    TimestepSpy,
    assert_equal,
    empty,
    guide,
    joint,
    ksampler,
    noise,
    predict_by,
    prompts,
    scaled,
    split,
    unscaled,
)

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

SHIFT = 5.0  # the MODEL's
GIVEN = {"none": slice(0), "a part": slice(5), "all": slice(None)}  # which latents of the audio are preserved


def shifted(grid, shift):
    """Sigmas of a schedule without a shift, shifted."""
    return shift * grid / (1 + (shift - 1) * grid)


def audio_times(times, audio_shift):
    """The audio's timesteps where the video's are `times`: float32, as are these."""
    return (1000 / (1 + SHIFT / audio_shift * (1000 / times.double() - 1))).float()


def start(given):
    """A random clip, its video normalised, and the audio's mask."""
    draw = torch.Generator().manual_seed(3)
    clean = [torch.randn(shape, generator=draw) for shape in SHAPES]
    mask = torch.ones(1, 1, SHAPES[1][2])
    mask[..., GIVEN[given]] = 0
    return clean, mask


def latent(given):
    """The same as a LATENT."""
    (video, audio), mask = start(given)
    masks = joint(torch.ones(1, 1, *SHAPES[0][2:]), mask)
    return {"samples": joint(unscaled(video), audio), "noise_mask": masks}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("audio_shift", [2.0, 9.0])
@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_euler_on_two_schedules(comfy, model, reference, loop, given, audio_shift, denoise):
    """Each modality by its own sigmas in plain PyTorch, to 1e-5. What is preserved has timestep 0 and comes back."""
    got = ksampler(
        comfy,
        guide(comfy, model, 1.0, "", audio_shift=audio_shift),
        prompts(loop),
        latent(given),
        steps=2,
        cfg=1.0,
        denoise=denoise,
    )
    grid = torch.linspace(1, 0, int(2 / denoise) + 1)[-3:].double()
    schedules = list(zip(shifted(grid, SHIFT).float(), shifted(grid, audio_shift).float(), strict=True))
    clean, mask = start(given)
    x = [s * n + (1 - s) * c for s, n, c in zip(schedules[0], noise(), clean, strict=True)]
    for now, then in pairwise(schedules):
        x[1] = mask * x[1] + (1 - mask) * clean[1]
        of_video = 1000 * now[0][None]
        times = of_video, audio_times(of_video, audio_shift)[:, None] * mask[:, 0]
        velocities = reference(x, times, loop["cond.positive"][None])
        x = [one + (b - a) * v for one, v, a, b in zip(x, velocities, now, then, strict=True)]
    x[1] = mask * x[1] + (1 - mask) * clean[1]
    assert_equal([scaled(got[0]), got[1]], x, 1e-5)
    assert torch.equal(got[1][..., GIVEN[given]], clean[1][..., GIVEN[given]])


@pytest.mark.parametrize("sampler", ["uni_pc", "dpmpp_2m", "res_multistep"])
def test_other_samplers(comfy, model, reference, loop, monkeypatch, sampler):
    """The same denoised latents by hand, put in their place in the same sampler."""
    guided = guide(comfy, model, 1.0, "", audio_shift=2.0)
    got = ksampler(comfy, guided, prompts(loop), sampler=sampler, cfg=1.0, steps=4)

    def predict(x, sigma):
        ratio = SHIFT / 2
        of_audio = 1 / (1 + ratio * (1 / sigma - 1))
        video, audio = split(x)
        audio = audio * of_audio / sigma
        times = 1000 * sigma, audio_times(1000 * sigma, 2.0)
        velocities = reference([video, audio], times, loop["cond.positive"][None])
        return golden_loop.pack(video - sigma * velocities[0], ratio * (audio - of_audio * velocities[1]))

    predict_by(monkeypatch, predict)
    expected = ksampler(comfy, guided, prompts(loop), sampler=sampler, cfg=1.0, steps=4)
    assert_equal([scaled(got[0]), got[1]], [scaled(expected[0]), expected[1]], 2e-5)


def test_equal_shifts_change_nothing(comfy, model, loop):
    """To the last bit."""
    plain = ksampler(comfy, guide(comfy, model), prompts(loop), latent("a part"), steps=2)
    equal = guide(comfy, model, audio_shift=SHIFT)
    assert_equal(ksampler(comfy, equal, prompts(loop), latent("a part"), steps=2), plain, 0.0)


def test_another_model_does_not_inherit_it(comfy, model, loop):
    plain = ksampler(comfy, model, prompts(loop), steps=1, cfg=1.0)
    shifted_audio = guide(comfy, model, 1.0, "", audio_shift=2.0)
    ksampler(comfy, shifted_audio, prompts(loop), latent("all"), steps=1, cfg=1.0)
    assert_equal(ksampler(comfy, model, prompts(loop), steps=1, cfg=1.0), plain, 0.0)


def times_of(comfy, model, loop, monkeypatch):
    """The timesteps of video and audio in two steps."""
    spy = TimestepSpy(monkeypatch, model)
    ksampler(comfy, model, prompts(loop), steps=2, cfg=1.0)
    return [(video[0].item(), audio[0].item()) for video, audio in spy.seen]


@pytest.mark.parametrize("first", [True, False])
def test_it_counts_beside_the_models_shift(comfy, model, loop, monkeypatch, first):
    """That of ModelSamplingSD3, before Ovi Guidance or after it."""
    comfy.core("nodes_model_advanced")
    nodes = [
        lambda model: comfy.run("ModelSamplingSD3", model=model, shift=8.0)[0],
        lambda model: guide(comfy, model, 1.0, "", audio_shift=2.0),
    ]
    for change in nodes if first else reversed(nodes):
        model = change(model)
    seen = times_of(comfy, model, loop, monkeypatch)
    half = torch.tensor(0.5)
    expected = [(1000.0, 1000.0), tuple(1000 * shifted(half, shift).item() for shift in (8.0, 2.0))]
    assert seen == [pytest.approx(pair, rel=1e-5) for pair in expected]


def test_the_sampling_of_core_may_have_both(comfy, model, loop):
    """As core's ModelSamplingAV from 0.33 on; Ovi Guidance comes first where it sets one, too."""
    import comfy.model_sampling as core

    class Both(core.ModelSamplingDiscreteFlow, core.CONST):
        audio_shift = 2.0

    patched = model.clone()
    sampling = Both(model.model.model_config)
    sampling.set_parameters(shift=SHIFT)
    patched.add_object_patch("model_sampling", sampling)
    expected = ksampler(comfy, guide(comfy, model, audio_shift=2.0), prompts(loop), steps=2)
    assert_equal(ksampler(comfy, guide(comfy, patched), prompts(loop), steps=2), expected, 0.0)
    expected = ksampler(comfy, guide(comfy, model, audio_shift=3.0), prompts(loop), steps=2)
    assert_equal(ksampler(comfy, guide(comfy, patched, audio_shift=3.0), prompts(loop), steps=2), expected, 0.0)


def test_the_node_of_core(comfy, model, loop):
    """Where ComfyUI has it."""
    import comfy.model_sampling as core

    if not hasattr(core, "ModelSamplingAV"):
        pytest.skip("this ComfyUI has no ModelSamplingAV; 0.33 and later have")
    comfy.core("nodes_minimax_h3")
    (patched,) = comfy.run("MiniMaxH3SigmaShift", model=model, shift_video=SHIFT, shift_audio=2.0)
    expected = ksampler(comfy, guide(comfy, model, audio_shift=2.0), prompts(loop), steps=2)
    assert_equal(ksampler(comfy, guide(comfy, patched), prompts(loop), steps=2), expected, 0.0)


def test_two_stages_equal_one(comfy, model, loop):
    """The first hands on its noise; the denoised output of the second is the result, in the VAEs' scale."""
    guided = guide(comfy, model, audio_shift=2.0)
    positive, negative = prompts(loop)
    (guider,) = comfy.run("CFGGuider", model=guided, positive=positive, negative=negative, cfg=4.0)
    (sampler,) = comfy.run("KSamplerSelect", sampler_name="euler")
    (with_noise,), (without,) = comfy.run("RandomNoise", noise_seed=7), comfy.run("DisableNoise")

    def custom(source, sigmas, samples):
        inputs = {"noise": source, "guider": guider, "sampler": sampler, "latent_image": samples}
        return comfy.run("SamplerCustomAdvanced", sigmas=torch.tensor(sigmas), **inputs)

    whole, denoised = custom(with_noise, [1.0, 0.8, 0.5, 0.0], empty())
    assert_equal(denoised["samples"].unbind(), whole["samples"].unbind(), 1e-5)
    first, _ = custom(with_noise, [1.0, 0.8], empty())
    second, _ = custom(without, [0.8, 0.5, 0.0], first)
    assert_equal(second["samples"].unbind(), whole["samples"].unbind(), 5e-5)


def test_a_model_without_a_shift_is_refused(comfy, model, loop):
    import comfy.model_sampling as core

    class Other(core.ModelSamplingFlux, core.CONST):
        pass

    guided = guide(comfy, model, audio_shift=2.0)
    guided.add_object_patch("model_sampling", Other(model.model.model_config))
    with pytest.raises(ValueError, match="audio has a shift of 2, but the MODEL's sampling has none"):
        ksampler(comfy, guided, prompts(loop), steps=1)
