"""Ovi on real ComfyUI: the golden model through core's samplers, guiders and patch nodes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from ovi import geometry
from support import GOLDEN, golden_loop, golden_model
from support.sampling import (
    SHAPES,
    TimestepSpy,
    assert_equal,
    count_batches,
    counted_passes,
    empty,
    forward,
    guide,
    joint,
    ksampler,
    noise,
    on_cpu,
    prompts,
    scaled,
    unscaled,
    windowed,
)

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

SHIFT = 5.0


@pytest.fixture(scope="module")
def i2v_loop():
    return load_file(GOLDEN / "D_i2v.safetensors")


def release_euler(reference, loop, *, steps=4, cfg=4.0, audio_cfg=3.0, skip=(1,), seed=7, denoise=1.0, latent=None):
    """Euler on the last part of core's simple schedule, guided by the release's formula, in plain PyTorch."""
    grid = torch.linspace(1, 0, int(steps / denoise) + 1)[-(steps + 1) :]
    sigmas = SHIFT * grid / (1 + (SHIFT - 1) * grid)
    x = list(noise(seed))
    if latent is not None:
        x = [sigmas[0] * n + (1 - sigmas[0]) * clean for n, clean in zip(x, latent, strict=True)]
    positive = loop["cond.positive"][None]
    negative = loop["cond.video_negative"][None], loop["cond.audio_negative"][None]
    for now, then in pairwise(sigmas):
        t = 1000 * now[None]
        pos, neg = reference(x, t, positive), reference(x, t, *negative, skip_blocks=skip)
        for i, scale in enumerate((cfg, audio_cfg)):
            x[i] = x[i] + (then - now) * (neg[i] + scale * (pos[i] - neg[i]))
    return x


def test_ksampler_with_guidance_is_the_guidance_formula(comfy, model, loop):
    """Euler to 1e-5, computed from what the model itself gave for the positive and the negative prompt."""
    guided, seen = guide(comfy, model), []

    def spy(args):
        seen.append(on_cpu((args["sigma"], *args["conds_out"])))
        return args["conds_out"]

    guided.set_model_sampler_pre_cfg_function(spy)
    video, audio = ksampler(comfy, guided, prompts(loop))
    size = video.numel()
    x = golden_loop.pack(*noise())
    sigmas = [step[0] for step in seen] + [torch.zeros(1)]
    for (_, pos, neg), now, then in zip(seen, sigmas, sigmas[1:], strict=False):
        x0 = neg + torch.cat([4 * (pos - neg)[..., :size], 3 * (pos - neg)[..., size:]], dim=-1)
        x = x + (then - now) * (x - x0) / now
    assert_equal([video, audio], [unscaled(x[..., :size].view(SHAPES[0])), x[..., size:].view(SHAPES[1])], 1e-5)


def test_ksampler_with_guidance_is_the_release_s_run(comfy, model, reference, loop):
    """The same against plain PyTorch, within the golden loops' bound, since a loop amplifies rounding."""
    got = ksampler(comfy, guide(comfy, model), prompts(loop))
    expected = release_euler(reference, loop)
    assert_equal(got, [unscaled(expected[0]), expected[1]], 5e-5)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "res_multistep", "lcm"])
def test_core_samplers(comfy, model, loop, sampler):
    video, audio = ksampler(comfy, guide(comfy, model), prompts(loop), sampler=sampler)
    assert (video.shape, audio.shape) == SHAPES
    assert torch.isfinite(video).all()
    assert torch.isfinite(audio).all()
    assert video.std() > 0.5


def test_audio_cfg_without_video_cfg(comfy, model, reference, loop):
    """With cfg 1 core leaves out the negative pass, unless the audio needs it."""
    got = ksampler(comfy, guide(comfy, model), prompts(loop), cfg=1.0, steps=1)
    expected = release_euler(reference, loop, cfg=1.0, steps=1)
    assert_equal(got, [unscaled(expected[0]), expected[1]], 5e-5)


def test_cfg_1_for_both_needs_no_negative_pass(comfy, model, reference, loop):
    spied, batches = count_batches(guide(comfy, model, audio_cfg=1.0))
    got = ksampler(comfy, spied, prompts(loop), cfg=1.0, steps=1)
    expected = release_euler(reference, loop, cfg=1.0, audio_cfg=1.0, steps=1)
    assert_equal(got, [unscaled(expected[0]), expected[1]], 1e-5)
    assert batches == [1]


def test_positive_and_negative_share_a_batch(comfy, model, loop):
    """Prompts of different lengths too, and the skipped block of the negative one."""
    spied, batches = count_batches(guide(comfy, model))
    ksampler(comfy, spied, prompts(loop), steps=2)
    assert batches == [2, 2]


def test_skip_range(comfy, model, reference, loop):
    """Blocks are skipped only in the chosen part of the schedule: here in none of the steps' sigmas but the first."""
    first_only = ksampler(comfy, guide(comfy, model, end=0.1), prompts(loop), steps=1)
    assert_equal(first_only, ksampler(comfy, guide(comfy, model), prompts(loop), steps=1), 0.0)
    never = ksampler(comfy, guide(comfy, model, start=0.1), prompts(loop), steps=1)
    assert_equal(never, ksampler(comfy, guide(comfy, model, skip=""), prompts(loop), steps=1), 0.0)
    assert not torch.allclose(never[0], first_only[0], atol=1e-3)


# Where guidance is on in four steps at sigmas 1, 0.94, 0.83 and 0.63 (percents 0, 0.25, 0.5, 0.75), and the batches.
@pytest.mark.parametrize(
    ("video", "audio", "video_on", "audio_on", "batches"),
    [
        ((0.0, 1.0), (0.0, 1.0), [1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 2, 2]),
        ((0.0, 0.3), (0.0, 0.3), [1, 1, 0, 0], [1, 1, 0, 0], [2, 2, 1, 1]),
        ((0.4, 1.0), (0.6, 1.0), [0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 2, 2]),
        ((0.0, 1.0), (0.2, 0.6), [1, 1, 1, 1], [0, 1, 1, 0], [2, 2, 2, 2]),
        ((0.2, 0.3), (0.7, 0.8), [0, 1, 0, 0], [0, 0, 0, 1], [1, 2, 1, 2]),
        ((0.1, 0.2), (0.1, 0.2), [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]),
    ],
)
def test_guidance_in_a_part_of_the_schedule(comfy, model, loop, video, audio, video_on, audio_on, batches):
    """Inside it is the full guidance, outside the plain positive prediction, to the last bit."""
    guided, seen = count_batches(guide(comfy, model, video=video, audio=audio))
    steps = []
    guided.set_model_sampler_post_cfg_function(lambda args: steps.append(args) or args["denoised"])
    ksampler(comfy, guided, prompts(loop))
    assert seen == batches
    size = math.prod(SHAPES[0])
    for step, on in zip(steps, zip(video_on, audio_on, strict=True), strict=True):
        positive, negative = step["cond_denoised"], step["uncond_denoised"]
        for part, scale, is_on in zip((slice(size), slice(size, None)), (4.0, 3.0), on, strict=True):
            full = negative[..., part] + (positive[..., part] - negative[..., part]) * scale
            assert torch.equal(step["denoised"][..., part], full if is_on else positive[..., part])


def test_guidance_in_no_step_is_the_plain_model(comfy, model, loop):
    nowhere = guide(comfy, model, video=(0.1, 0.2), audio=(0.1, 0.2))
    plain = ksampler(comfy, model, prompts(loop), cfg=1.0)
    assert_equal(ksampler(comfy, nowhere, prompts(loop)), plain, 0.0)


def test_guidance_that_ends_before_it_starts(comfy, model):
    with pytest.raises(ValueError, match=r"from 0\.8 to 0\.2 ends before it starts"):
        guide(comfy, model, audio=(0.8, 0.2))


def test_guidance_needs_a_negative_prompt(comfy, model, loop):
    (guider,) = comfy.run("BasicGuider", model=guide(comfy, model), conditioning=prompts(loop)[0])
    with pytest.raises(ValueError, match="without a negative prompt"):
        custom(comfy, guider, "euler", [1.0, 0.0])


def custom(comfy, guider, sampler, sigmas, latent=None, seed=7, noise_node="RandomNoise"):
    """SamplerCustomAdvanced: (output, denoised output), each [video, audio]."""
    (noise_source,) = comfy.run(noise_node, **({"noise_seed": seed} if noise_node == "RandomNoise" else {}))
    (sampler,) = (
        comfy.run(sampler) if sampler == "OviUniPCSampler" else comfy.run("KSamplerSelect", sampler_name=sampler)
    )
    outs = comfy.run(
        "SamplerCustomAdvanced",
        noise=noise_source,
        guider=guider,
        sampler=sampler,
        sigmas=torch.as_tensor(sigmas),
        latent_image=latent or empty(),
    )
    return [out["samples"].unbind() for out in outs]


@pytest.fixture
def embedded(model):
    """A list that grows by one entry each time a tower of the golden model embeds a text."""
    network, calls = model.model.diffusion_model, []
    towers = network.video_model, network.audio_model
    handles = [tower.text_embedding.register_forward_hook(lambda *_: calls.append(1)) for tower in towers]
    yield calls
    for handle in handles:
        handle.remove()


def test_texts_are_embedded_once_per_prompt(comfy, model, loop, embedded):
    """Positive and negative by each tower, however many steps follow."""
    ksampler(comfy, guide(comfy, model), prompts(loop), steps=4)
    assert len(embedded) == 4


def test_a_hooked_lora_changes_the_embedding_of_texts(comfy, model, loop, embedded):
    """Hooks patch weights within the run, so every step embeds the texts: the same as with the LoRA on the model."""
    from comfy import hooks, sd

    weight = model.model.diffusion_model.video_model.text_embedding[0].weight
    change = 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    lora = {"diffusion_model.video_model.text_embedding.0.diff": change}
    hooked = [hooks.set_hooks_for_conditioning(cond, hooks.create_hook_lora(lora, 1.0, 0.0)) for cond in prompts(loop)]
    got = ksampler(comfy, model, hooked, steps=2)
    assert len(embedded) > 4
    patched, _ = sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert_equal(got, ksampler(comfy, patched, prompts(loop), steps=2), 5e-5)
    assert not torch.allclose(got[0], ksampler(comfy, model, prompts(loop), steps=2)[0], atol=1e-2)


def test_training_changes_the_embedding_of_texts(comfy, model, loop, embedded, monkeypatch):
    """ComfyUI's own training takes gradients through it in every step."""
    from comfy import model_management

    expected = ksampler(comfy, model, prompts(loop), steps=2)
    embedded.clear()
    monkeypatch.setattr(model_management, "in_training", True)
    assert_equal(ksampler(comfy, model, prompts(loop), steps=2), expected, 5e-5)
    assert len(embedded) > 4


def test_one_tower_alone(model, x):
    """As `bench` runs it beside ComfyUI's Wan."""
    (video, audio), timestep, text = x
    for latents in ([video, None], [None, audio]):
        got = forward(model, latents, timestep, text)
        expected = golden_model.load()(latents, timestep, text)
        for one, other in zip(got, expected, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, atol=1e-5)


def cfg_guider(comfy, model, conds, cfg=4.0):
    (guider,) = comfy.run("CFGGuider", model=model, positive=conds[0], negative=conds[1], cfg=cfg)
    return guider


class FixedNoise:
    """The golden loop's own noise."""

    seed = 0

    def __init__(self, loop):
        self.loop = loop

    def generate_noise(self, latent):
        return joint(self.loop["init.video_noise"][None], self.loop["init.audio_noise"].T[None])


@pytest.mark.parametrize("case", ["t2v", "i2v"])
def test_release_run(comfy, model, loop, i2v_loop, case):
    """Ovi Scheduler, Ovi UniPC and Ovi Guidance against the release's loop, to 2e-3 of the latent's spread.

    ComfyUI begins with 0.9998 x noise at sigma 0.9998, and feeds 1000 x sigma where the release truncates it.
    """
    data = loop if case == "t2v" else i2v_loop
    latent = empty() if case == "t2v" else first_frame_latent(data)
    (sigmas,) = comfy.run("OviScheduler", steps=6, shift=SHIFT, solver="unipc", denoise=1.0)
    (sampler,) = comfy.run("OviUniPCSampler")
    out, _ = comfy.run(
        "SamplerCustomAdvanced",
        noise=FixedNoise(data),
        guider=cfg_guider(comfy, guide(comfy, model), prompts(data)),
        sampler=sampler,
        sigmas=sigmas,
        latent_image=latent,
    )
    video, audio = out["samples"].unbind()
    expected, _ = golden_loop.run(case, whole_timesteps=False)
    assert_equal([golden_loop.pack(scaled(video), audio)], [expected], 2e-3 * expected.std().item())
    if case == "i2v":
        assert_equal([scaled(video)[:, :, 0]], [data["cond.first_frame_latent"][None, :, 0]], 1e-5)


def test_first_frame_has_timestep_0(comfy, model, i2v_loop, monkeypatch):
    spy = TimestepSpy(monkeypatch, model)
    latent = first_frame_latent(i2v_loop)
    video, _ = ksampler(comfy, guide(comfy, model), prompts(i2v_loop), latent, steps=2)
    assert_equal([video[:, :, :1]], [latent["samples"].unbind()[0][:, :, :1]], 1e-5)
    for of_video, of_audio in spy.seen:
        assert of_video.shape == (2, SHAPES[0][2])
        assert (of_video[:, 0] == 0).all()
        assert (of_video[:, 1:] == of_audio[:, :1]).all()
        assert (of_audio > 0).all()


@pytest.mark.parametrize("kept", ["audio", "video"])
def test_a_preserved_modality_is_unchanged_and_seen_by_the_other(comfy, model, loop, kept):
    """Mask 0 over one modality: it is returned unchanged, is at timestep 0, and affects the other one."""

    def run(scale):
        generator = torch.Generator().manual_seed(1)
        parts = [scale * torch.randn(shape, generator=generator) for shape in SHAPES]
        masks = [torch.ones(1, 1, *SHAPES[0][2:]), torch.ones(1, 1, SHAPES[1][2])]
        index = ["video", "audio"].index(kept)
        masks[index].zero_()
        latent = {"samples": joint(*parts), "noise_mask": joint(*masks)}
        out = ksampler(comfy, guide(comfy, model), prompts(loop), latent, steps=2)
        assert_equal([out[index]], [parts[index]], 1e-5)
        return out[1 - index]

    assert not torch.allclose(run(1.0), run(0.5), atol=1e-2)


def first_frame_latent(data):
    """Image to video from a golden loop's first frame."""
    video, audio = empty()["samples"].unbind()
    video[:, :, :1] = data["cond.first_frame_latent"][None]
    mask = torch.ones(1, 1, *SHAPES[0][2:])
    mask[:, :, 0] = 0
    return {"samples": joint(unscaled(video), audio), "noise_mask": joint(mask, torch.ones(1, 1, SHAPES[1][2]))}


def test_two_stages_equal_one(comfy, model, loop):
    """SamplerCustomAdvanced, then another with DisableNoise on the rest of the schedule."""
    guider = cfg_guider(comfy, guide(comfy, model), prompts(loop))
    (sigmas,) = comfy.run("OviScheduler", steps=4, shift=SHIFT, solver="euler", denoise=1.0)
    whole, _ = custom(comfy, guider, "euler", sigmas)
    first, _ = custom(comfy, guider, "euler", sigmas[:3])
    second, _ = custom(comfy, guider, "euler", sigmas[2:], {"samples": joint(*first)}, noise_node="DisableNoise")
    assert_equal(second, whole, 5e-5)


def test_two_stages_preserve_what_the_mask_does(comfy, model, loop):
    """The first stage ends above sigma 0 and hands on what its mask preserves unchanged."""
    masks = [torch.ones(1, 1, *SHAPES[0][2:]), torch.ones(1, 1, SHAPES[1][2])]
    masks[0][:, :, 0] = 0
    masks[1][..., :5] = 0
    masked = {"noise_mask": joint(*masks)}
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in SHAPES]
    guider = cfg_guider(comfy, guide(comfy, model), prompts(loop))
    (sigmas,) = comfy.run("OviScheduler", steps=4, shift=SHIFT, solver="euler", denoise=1.0)
    whole, _ = custom(comfy, guider, "euler", sigmas, {"samples": joint(*given)} | masked)
    first, _ = custom(comfy, guider, "euler", sigmas[:3], {"samples": joint(*given)} | masked)
    assert_equal([first[0][:, :, 0], first[1][..., :5]], [given[0][:, :, 0], given[1][..., :5]], 0.0)
    second, _ = custom(
        comfy, guider, "euler", sigmas[2:], {"samples": joint(*first)} | masked, noise_node="DisableNoise"
    )
    assert_equal(second, whole, 5e-5)


def test_denoised_output_is_scaled(comfy, model, loop):
    """The last step's denoised output is the result: both are handed on in the VAE's scale."""
    out, denoised = custom(comfy, cfg_guider(comfy, guide(comfy, model), prompts(loop)), "euler", [1.0, 0.5, 0.0])
    assert_equal(denoised, out, 1e-5)


def test_batch(comfy, model, loop):
    """Both clips of a batch are sampled; the first equals a run of its own from the same noise."""
    batch = ksampler(comfy, guide(comfy, model), prompts(loop), empty(batch=2), steps=2)
    assert [len(part) for part in batch] == [2, 2]
    both = noise(shapes=[(2, *shape[1:]) for shape in SHAPES])

    class First:
        seed = 0

        def generate_noise(self, latent):
            return joint(*(part[:1] for part in both))

    (sigmas,) = comfy.run("BasicScheduler", model=model, scheduler="simple", steps=2, denoise=1.0)
    (sampler,) = comfy.run("KSamplerSelect", sampler_name="euler")
    out, _ = comfy.run(
        "SamplerCustomAdvanced",
        noise=First(),
        guider=cfg_guider(comfy, guide(comfy, model), prompts(loop)),
        sampler=sampler,
        sigmas=sigmas,
        latent_image=empty(),
    )
    assert_equal([part[:1] for part in batch], out["samples"].unbind(), 5e-5)


def test_partial_denoise(comfy, model, reference, loop):
    """A latent is changed, not replaced, and its video part scaled on the way in and out."""
    parts = [part.clone() for part in noise(seed=8)]
    latent = {"samples": joint(unscaled(parts[0]), parts[1])}
    got = ksampler(comfy, guide(comfy, model), prompts(loop), latent, steps=2, denoise=0.5)
    expected = release_euler(reference, loop, steps=2, denoise=0.5, latent=parts)
    assert_equal(got, [unscaled(expected[0]), expected[1]], 5e-5)


@pytest.mark.parametrize(("height", "width"), [(5, 8), (6, 7)])
def test_odd_latents(comfy, model, loop, height, width):
    shapes = ((1, 48, 3, height, width), (1, 20, 15))
    video, audio = ksampler(comfy, guide(comfy, model), prompts(loop), empty(shapes=shapes), steps=1)
    assert (video.shape, audio.shape) == shapes


def test_model_sampling_sd3_shifts_the_schedule(comfy, model, loop, monkeypatch):
    comfy.core("nodes_model_advanced")
    (shifted,) = comfy.run("ModelSamplingSD3", model=model, shift=3.0)
    spy = TimestepSpy(monkeypatch, model)
    ksampler(comfy, guide(comfy, shifted), prompts(loop), steps=2)
    assert [t[0][0].item() for t in spy.seen] == pytest.approx([1000.0, 750.0])


def test_what_a_node_does_to_the_inputs_stays_there(comfy, model, loop):
    """EasyCache adds to them in place, and the sampler has its own latent still to denoise."""
    from comfy.patcher_extension import WrappersMP

    def meddle(executor, x, *args, **kwargs):
        out = executor(x, *args, **kwargs)
        for part in x:
            part += 1
        return out

    changed = model.clone()
    changed.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "meddle", meddle)
    expected = ksampler(comfy, model, prompts(loop), steps=2)
    assert_equal(ksampler(comfy, changed, prompts(loop), steps=2), expected, 0.0)


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.0, 0.7)], ids=["guided", "guided-in-part"])
def test_caches_save_calls(comfy, model, loop, node, part):
    """A threshold of 0 changes nothing, a high one saves calls: EasyCache in steps with both prompts alone."""
    comfy.core("nodes_easycache")
    guided = guide(comfy, model, video=part, audio=part)
    options = {"start_percent": 0.0, "end_percent": 1.0, "verbose": False}
    (never,) = comfy.run(node, model=guided, reuse_threshold=0.0, **options)
    assert_equal(ksampler(comfy, never, prompts(loop), steps=6), ksampler(comfy, guided, prompts(loop), steps=6), 0.0)
    (cached,) = comfy.run(node, model=guided, reuse_threshold=10.0, **options)
    with counted_passes(model) as calls:
        ksampler(comfy, cached, prompts(loop), steps=6)
    assert 0 < len(calls) < 6


def test_skip_layer_guidance_of_core_is_ours(comfy, model, loop):
    """Core's SkipLayerGuidanceDiTSimple patches the same blocks, in a pass of its own."""
    comfy.core("nodes_slg")
    plain = guide(comfy, model, skip="")
    (core,) = comfy.run(
        "SkipLayerGuidanceDiTSimple",
        model=plain,
        double_layers="1",
        single_layers="",
        start_percent=0.0,
        end_percent=1.0,
    )
    expected = ksampler(comfy, guide(comfy, model), prompts(loop), steps=2)
    assert_equal(ksampler(comfy, core, prompts(loop), steps=2), expected, 5e-5)
    assert not torch.allclose(ksampler(comfy, plain, prompts(loop), steps=2)[0], expected[0], atol=1e-2)


def test_guidance_of_the_audio_comes_before_what_other_nodes_add(comfy, model, loop):
    """Whatever their order: here core's SkipLayerGuidanceDiT, which changes video and audio."""
    comfy.core("nodes_slg")
    settings = {"double_layers": "1", "single_layers": "", "scale": 3.0}
    settings |= {"start_percent": 0.0, "end_percent": 1.0, "rescaling_scale": 0.0}
    (before,) = comfy.run("SkipLayerGuidanceDiT", model=model, **settings)
    (after,) = comfy.run("SkipLayerGuidanceDiT", model=guide(comfy, model, skip=""), **settings)
    expected = ksampler(comfy, after, prompts(loop), steps=2)
    assert_equal(ksampler(comfy, guide(comfy, before, skip=""), prompts(loop), steps=2), expected, 0.0)


def test_one_guidance_is_enough(comfy, model):
    with pytest.raises(ValueError, match="has been through an Ovi Guidance already"):
        guide(comfy, guide(comfy, model))


def test_torch_compile(comfy, load, golden_file, loop):
    """With a CPU's own attention, at which the graph breaks each time; `test_compile` has all blocks in one graph."""
    comfy.core("nodes_torch_compile")
    model = load(golden_file)
    towers = model.model.diffusion_model
    for tower in (towers.video_model, towers.audio_model):
        del tower.blocks[1:]  # compiling takes long for each
    expected = ksampler(comfy, guide(comfy, model, skip=""), prompts(loop), steps=1)
    (compiled,) = comfy.run("TorchCompileModel", model=guide(comfy, model, skip=""), backend="eager")
    assert_equal(ksampler(comfy, compiled, prompts(loop), steps=1), expected, 5e-5)


@pytest.mark.parametrize(("version", "decoder"), [([0, 27], None), ([0, 30], "lighttaew2_2")])
def test_small_decoders_of_previews(comfy, monkeypatch, version, decoder):
    """An older ComfyUI passes them the packed latent, which they cannot read."""
    latent = comfy.module("ovi.native.latent")
    monkeypatch.setattr(latent, "COMFYUI", version)
    assert latent.OviLatent().taesd_decoder_name == decoder


def test_previews(comfy, model, loop, monkeypatch):
    """Each step sends a preview of another frame."""
    import latent_preview
    from comfy import utils

    previews = []
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(utils, "PROGRESS_BAR_HOOK", lambda *args, **_: previews.append(args[2]))
    monkeypatch.setattr(utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)
    ksampler(comfy, guide(comfy, model), prompts(loop), steps=3)
    images = [preview[1] for preview in previews if preview is not None]
    assert len(images) > 1
    assert all(image.width > image.height for image in images)
    latent = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(SHAPES[0])
    frames = [model.model.latent_format.preview_frame(latent).unique().item() for _ in range(4)]
    assert sorted(frames) == [0, 1, 2, 3]


def test_cancel_stops_within_a_block(comfy, model, loop):
    """An interrupt in the middle of a block ends the run there."""
    from comfy import model_management as management

    seen = []
    blocks = model.model.diffusion_model.video_model.blocks

    def interrupt(*_):
        management.interrupt_current_processing(True)

    handles = [blocks[1].self_attn.q.register_forward_hook(interrupt)]
    handles += [block.ffn[-1].register_forward_hook(lambda *_, i=i: seen.append(i)) for i, block in enumerate(blocks)]
    try:
        with pytest.raises(management.InterruptProcessingException):
            ksampler(comfy, guide(comfy, model), prompts(loop))
    finally:
        management.interrupt_current_processing(False)
        for handle in handles:
            handle.remove()
    assert seen == [0]


def test_plain_latent_is_refused(comfy, model, loop):
    with pytest.raises(ValueError, match=r"joint latent.*got \[1, 48, 4, 6, 8\].*Empty Ovi Latent"):
        ksampler(comfy, model, prompts(loop), {"samples": torch.zeros(SHAPES[0])})


def test_nan_in_the_result_is_refused(comfy, model, loop):
    conds = prompts(loop)
    conds[0][0][0] = torch.full_like(conds[0][0][0], torch.nan)
    with pytest.raises(ValueError, match="Sampling gave NaN"):
        ksampler(comfy, guide(comfy, model), conds, steps=1)


@pytest.mark.parametrize(
    ("tokens", "width", "message"), [(33, 64, "33 tokens.*at most 32"), (8, 32, "32 wide.*64 wide")]
)
def test_text_that_does_not_fit_is_refused(comfy, model, tokens, width, message):
    conds = [[torch.zeros(1, tokens, width), {}]]
    with pytest.raises(ValueError, match=message):
        ksampler(comfy, model, (conds, conds), steps=1)


@pytest.mark.parametrize("skip", ["0", "3", "x", "1;2", "-1"])
def test_blocks_that_cannot_be_skipped(comfy, model, skip):
    with pytest.raises(ValueError, match="numbers from 1 to 2"):
        guide(comfy, model, skip=skip)


LONG = ((1, 48, 13, 4, 6), (1, 20, 64))  # 49 frames


@pytest.mark.parametrize("anchored", [True, False])
def test_context_windows_see_the_same_time_in_both_modalities(comfy, model, loop, monkeypatch, anchored):
    """A window has the audio of its frames, at their positions; an anchor has no audio of its own."""
    inner, video_lengths, audio_starts, audio_lengths = model.model.diffusion_model, [], [], []
    embed_video, embed_audio = inner.video_model.embed, inner.audio_model.embed

    def video_spy(latent, *args):
        video_lengths.append(latent.shape[2])
        return embed_video(latent, *args)

    def audio_spy(latent, timestep, context, start, references):
        audio_lengths.append(latent.shape[2])
        audio_starts.append(start)
        return embed_audio(latent, timestep, context, start, references)

    monkeypatch.setattr(inner.video_model, "embed", video_spy)
    monkeypatch.setattr(inner.audio_model, "embed", audio_spy)
    in_windows = windowed(comfy, guide(comfy, model), causal_window_fix=anchored)
    video, audio = ksampler(comfy, in_windows, prompts(loop), empty(shapes=LONG), steps=1)
    assert (video.shape, audio.shape) == LONG
    assert torch.isfinite(video).all()
    assert torch.isfinite(audio).all()
    assert video_lengths[0] == 5
    assert set(video_lengths[1:]) == {6 if anchored else 5}
    spans = [geometry.latents_during_frame(index) for index in range(13)]
    assert audio_lengths[0] == spans[4][1] - spans[0][0]
    assert audio_starts[0] == 0
    # The first latent of a later window begins a frame after the anchor's, or three before its own last one.
    assert set(audio_starts[1:]) == {31.25 / 24 if anchored else -3 * 31.25 / 24}


@pytest.mark.parametrize("fuse", ["pyramid", "flat", "relative"])
def test_context_windows_agree_on_a_constant(comfy, model, loop, fuse, monkeypatch):
    """Where every window gives the same, so does their overlap."""
    monkeypatch.setattr(
        model.model.diffusion_model, "_forward", lambda x, *_, **__: [torch.full_like(part, 0.5) for part in x]
    )
    got = ksampler(comfy, windowed(comfy, model, fuse_method=fuse), prompts(loop), empty(shapes=LONG), steps=1)
    expected = [part - 0.5 for part in noise(shapes=LONG)]
    assert_equal([scaled(got[0]), got[1]], expected, 1e-5)


def test_context_windows_cut_the_masks(comfy, model, loop, monkeypatch):
    """Preserved frames stay so in the window that they fall in, and nowhere else."""
    masks = [torch.ones(1, 1, *LONG[0][2:]), torch.ones(1, 1, LONG[1][2])]
    masks[0][:, :, 0] = 0
    masks[1][..., -1] = 0
    latent = {"samples": joint(*(torch.randn(shape) for shape in LONG)), "noise_mask": joint(*masks)}
    spy = TimestepSpy(monkeypatch, model)
    got = ksampler(comfy, windowed(comfy, model, causal_window_fix=False), prompts(loop), latent, cfg=1.0, steps=1)
    assert_equal([got[0][:, :, 0]], [latent["samples"].unbind()[0][:, :, 0]], 1e-5)
    of_video, of_audio = zip(*spy.seen, strict=True)
    assert [int((t == 0).sum()) for t in of_video] == [1] + [0] * (len(of_video) - 1)
    assert [int((t == 0).sum()) for t in of_audio] == [0] * (len(of_audio) - 1) + [1]


def test_memory_outside_a_run_counts_everything_as_video(comfy, model, loop, monkeypatch):
    """No node has sampled yet: the estimate is near that within a run, and not an error."""
    ksampler(comfy, model, prompts(loop), steps=1)
    whole = sum(math.prod(shape[1:]) for shape in SHAPES)
    within = model.model.memory_required([1, 1, whole])
    monkeypatch.setattr(model.model.latent_format, "shapes", None)
    assert model.model.memory_required([1, 1, whole]) == pytest.approx(within, rel=0.5)
    assert model.model.memory_required([2, 1, whole]) > 1.5 * model.model.memory_required([1, 1, whole])


def test_memory_follows_the_tokens(comfy, model, loop):
    """A batch of two needs twice the memory, but for the rotations, which it shares; a window needs its part."""
    ksampler(comfy, model, prompts(loop), steps=1)
    whole = sum(torch.Size(shape[1:]).numel() for shape in SHAPES)
    one = model.model.memory_required([1, 1, whole])
    assert 1.5 * one < model.model.memory_required([2, 1, whole]) <= 2 * one
    assert model.model.memory_required([1, 1, whole // 2]) == pytest.approx(one / 2)


def test_nan_in_a_latent_is_refused_before_sampling(comfy, model, loop):
    """It comes from the node before; the sampler would blame the model."""
    latent = empty()
    latent["samples"].unbind()[1][0, 3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"latent to sample contains NaN or infinity"):
        ksampler(comfy, model, prompts(loop), latent, steps=1)
