"""Synchrony guidance on real ComfyUI: the formula, its passes, and the nodes that come with it."""

from __future__ import annotations

import pytest
import torch

from miniature import world
from ovi.model import References
from support import golden_loop
from support.sampling import (
    SHAPES,
    assert_equal,
    count_batches,
    counted_passes,
    empty,
    guide,
    joint,
    ksampler,
    on_cpu,
    prompts,
    split,
    unscaled,
    with_persons,
)

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

CUT = {"transformer_options": {"a2v_cross_attn": False, "v2a_cross_attn": False}}
CUT_VIDEO, CUT_AUDIO = ({"transformer_options": {key: False}} for key in CUT["transformer_options"])


@pytest.fixture(scope="module")
def persons():
    """A face, normalised, and a voice, as latents."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(1, 48, 1, *SHAPES[0][3:], generator=draw), torch.randn(1, 20, 5, generator=draw)


def steps_of(comfy, model, conds, latent=None, **options):
    """Sample with Euler; return (input, sigma, guided) of each step, packed, and the rows of the batches it took."""
    seen = []
    model, batches = count_batches(model.clone())
    model.set_model_sampler_post_cfg_function(
        lambda args: seen.append(on_cpu([args[key] for key in ("input", "sigma", "denoised")])) or args["denoised"]
    )
    ksampler(comfy, model, conds, latent, **options)
    return seen, batches


@pytest.fixture(scope="module")
def predicted(reference, loop, persons):
    """What plain PyTorch predicts for an input: (positive, negative, ...) by name, computed once for all tests."""
    found = {}
    positive = loop["cond.positive"][None]
    negative = loop["cond.video_negative"][None], loop["cond.audio_negative"][None]
    face, voice = persons
    passes = {
        "positive": ((positive,), {}, (face, voice)),
        "negative": (negative, {}, (face, voice)),
        "negative, block 1 skipped": (negative, {"skip_blocks": (1,)}, (face, voice)),
        "cut": ((positive,), CUT, (face, voice)),
        "no face": ((positive,), {}, (0 * face, voice)),
        "no voice": ((positive,), {}, (face, 0 * voice)),
    }

    def predict(x, sigma, referring, name):
        if (referring, name) not in found:
            texts, options, given = passes[name]
            references = References([given[0]], [given[1]]) if referring else None
            with torch.inference_mode():
                found[referring, name] = reference(split(x), 1000 * sigma, *texts, references=references, **options), x
        velocities, of_x = found[referring, name]
        assert torch.equal(of_x, x)
        return velocities

    return predict


@pytest.mark.parametrize(("scale", "direction"), [(0.0, "auto"), (2.0, "auto"), (2.0, "video"), (2.0, "audio")])
@pytest.mark.parametrize("referring", [False, True])
@pytest.mark.parametrize("skip", ["", "1"])
@pytest.mark.parametrize("audio_cfg", [1.0, 3.0])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_step_is_the_formula(
    comfy, model, loop, predicted, persons, cfg, audio_cfg, skip, scale, referring, direction
):
    """In plain PyTorch, to 1e-5; and as many passes as it has terms."""
    conds = with_persons(prompts(loop), [persons[0]], [persons[1]]) if referring else prompts(loop)
    more = {"video_reference_cfg": 1.5, "audio_reference_cfg": 2.0} if referring else {}
    guided = guide(comfy, model, audio_cfg, skip, sync_scale=scale, sync_direction=direction, **more)
    ((x, sigma, got),), batches = steps_of(comfy, guided, conds, cfg=cfg, steps=1, denoise=0.1)
    assert sum(batches) == 1 + ((cfg, audio_cfg) != (1.0, 1.0)) + 2 * referring + (scale > 0)

    def velocity(name, modality):
        return predicted(x, sigma, referring, name)[modality]

    below = "negative, block 1 skipped" if skip else "negative"
    terms = [[(cfg, below)], [(audio_cfg, below)]]  # each adds scale * (positive - that)
    if scale and direction != "audio":
        terms[0].append((scale, "cut"))
    if scale and direction != "video":
        terms[1].append((scale, "cut"))
    if referring:
        terms[0].append((1.5, "no face"))
        terms[1].append((2.0, "no voice"))
    expected = []
    for modality, added in enumerate(terms):
        positive = velocity("positive", modality)
        v = velocity(below, modality)
        expected.append(v + sum(each * (positive - velocity(name, modality)) for each, name in added))
    assert_equal([got], [x - sigma.view(-1, 1, 1) * golden_loop.pack(*expected)], 1e-5)


def given_latent(which):
    """A random clip that preserves its "video" or "audio"."""
    draw = torch.Generator().manual_seed(2)
    parts = [torch.randn(shape, generator=draw) for shape in SHAPES]
    masks = {"video": torch.ones(1, 1, *SHAPES[0][2:]), "audio": torch.ones(1, 1, SHAPES[1][2])}
    masks[which].zero_()
    return {"samples": joint(unscaled(parts[0]), parts[1]), "noise_mask": joint(*masks.values())}


@pytest.mark.parametrize(("given", "options"), [("audio", CUT_VIDEO), ("video", CUT_AUDIO)])
def test_what_is_given_is_not_guided(comfy, model, reference, loop, given, options):
    """Of the pass without fusion only the generated modality is used, so cutting its view of the other is enough."""
    index = ["video", "audio"].index(given)
    pushed, latent = guide(comfy, model, 1.0, "", sync_scale=2.0), given_latent(given)
    options_of_run = {"cfg": 1.0, "steps": 1, "denoise": 0.1}
    ((x, sigma, got),), batches = steps_of(comfy, pushed, prompts(loop), latent, **options_of_run)
    assert batches == [2]
    times = [1000 * sigma, 1000 * sigma]
    times[index] = 0 * times[index]
    pos, cut = (reference(split(x), tuple(times), loop["cond.positive"][None], **each) for each in ({}, options))
    expected = list(pos)
    expected[1 - index] = pos[1 - index] + 2 * (pos[1 - index] - cut[1 - index])
    assert_equal([got], [x - sigma * golden_loop.pack(*expected)], 1e-5)


@pytest.mark.parametrize("direction", ["video", "audio"])
def test_a_direction_that_is_given_takes_no_pass(comfy, model, loop, direction):
    guided = guide(comfy, model, 1.0, "", sync_scale=2.0, sync_direction=direction)
    _, batches = steps_of(comfy, guided, prompts(loop), given_latent(direction), cfg=1.0, steps=1)
    assert batches == [1]


# Four steps at percents 0, 0.25, 0.5 and 0.75.
@pytest.mark.parametrize(
    ("start", "end", "batches"),
    [(0.0, 1.0, [3, 3, 3, 3]), (0.2, 0.6, [2, 3, 3, 2]), (0.1, 0.2, [2, 2, 2, 2])],
)
def test_steps_outside_of_its_part_take_no_pass(comfy, model, loop, start, end, batches):
    guided = guide(comfy, model, sync_scale=2.0, sync_start_percent=start, sync_end_percent=end)
    seen, got = steps_of(comfy, guided, prompts(loop), cfg=4.0, steps=4)
    assert got == batches
    if batches == [2, 2, 2, 2]:
        plain, _ = steps_of(comfy, guide(comfy, model), prompts(loop), cfg=4.0, steps=4)
        assert all(torch.equal(a[2], b[2]) for a, b in zip(seen, plain, strict=True))


def test_where_neither_modality_is_guided_by_the_prompt(comfy, model, loop):
    """It still acts, without a negative pass, and any scale gives the same."""
    guided = guide(comfy, model, video=(0.1, 0.2), audio=(0.1, 0.2), sync_scale=2.0)
    seen, batches = steps_of(comfy, guided, prompts(loop), cfg=4.0, steps=1)
    plain, _ = steps_of(comfy, guide(comfy, model, 1.0, "", sync_scale=2.0), prompts(loop), cfg=1.0, steps=1)
    assert batches == [2]
    assert_equal([seen[0][2]], [plain[0][2]], 1e-6)


def modality_guidance(model, scale):
    """What core's LTXVModalityGuidance does from 0.33 on: a pass of its own after the guidance, in the same words."""
    from comfy import samplers

    def after(args):
        options = args["model_options"] | {}
        cut = {"a2v_cross_attn": False, "v2a_cross_attn": False}
        options["transformer_options"] = options["transformer_options"] | cut
        (severed,) = samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + (args["cond_denoised"] - severed) * (scale - 1)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(after)
    return model


def test_ltx_s_modality_guidance_is_ours(comfy, model, loop, monkeypatch):
    """Its scale is one more than ours. A compiled model takes options for constants, so arguments say what is cut."""
    expected = ksampler(comfy, guide(comfy, model, sync_scale=2.0), prompts(loop), steps=2)
    inner, given = model.model.diffusion_model, []
    original = inner._forward

    def forward(*args, **options):
        given.append(options.get("cut_rows"))
        return original(*args, **options)

    monkeypatch.setattr(inner, "_forward", forward)
    core = modality_guidance(guide(comfy, model), 3.0)
    assert_equal(ksampler(comfy, core, prompts(loop), steps=2), expected, 5e-5)
    assert given == [None, [True]] * 2


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("LTXVModalityGuidance", {"modality_scale": 3.0, "start_percent": 0.0, "end_percent": 1.0}),
        ("LTXVSpatioTemporalGuidance", {"scale": 1.0, "blocks": "1", "start_percent": 0.0, "end_percent": 1.0}),
    ],
)
def test_ltx_s_own_guidance_nodes(comfy, model, loop, node, inputs):
    """Where ComfyUI has them."""
    comfy.core("nodes_lt")
    if node not in comfy.node:
        pytest.skip(f"this ComfyUI has no {node}; 0.33 and later have")
    (patched,) = comfy.run(node, model=guide(comfy, model), **inputs)
    got = ksampler(comfy, patched, prompts(loop), steps=2)
    assert not torch.allclose(got[0], ksampler(comfy, guide(comfy, model), prompts(loop), steps=2)[0], atol=1e-2)
    if node == "LTXVModalityGuidance":
        expected = ksampler(comfy, guide(comfy, model, sync_scale=2.0), prompts(loop), steps=2)
        assert_equal(got, expected, 5e-5)


def test_ltx_s_dual_cfg_guider(comfy, model, loop):
    """Where ComfyUI has it: a scale for each modality, as Ovi Guidance gives it."""
    comfy.core("nodes_lt")
    if "LTXVDualCFGGuider" not in comfy.node:
        pytest.skip("this ComfyUI has no LTXVDualCFGGuider; 0.33 and later have")
    positive, negative = prompts(loop)
    (guider,) = comfy.run(
        "LTXVDualCFGGuider", model=model, positive=positive, negative=negative, video_cfg=4.0, audio_cfg=3.0
    )
    (source,) = comfy.run("RandomNoise", noise_seed=7)
    (sampler,) = comfy.run("KSamplerSelect", sampler_name="euler")
    (sigmas,) = comfy.run("BasicScheduler", model=model, scheduler="simple", steps=2, denoise=1.0)
    out, _ = comfy.run(
        "SamplerCustomAdvanced", noise=source, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=empty()
    )
    assert_equal(out["samples"].unbind(), ksampler(comfy, guide(comfy, model, skip=""), prompts(loop), steps=2), 5e-5)


def test_blocks_whose_self_attention_passes_values(comfy, model, reference, loop):
    """As core's LTXVSpatioTemporalGuidance asks for them."""
    patched = model.clone()
    patched.model_options["transformer_options"]["stg_self_attn_blocks"] = frozenset({1})
    ((x, sigma, guided),), _ = steps_of(comfy, patched, prompts(loop), cfg=1.0, steps=1)
    v = reference(split(x), 1000 * sigma, loop["cond.positive"][None], pass_blocks=(1,))
    assert_equal([guided], [x - sigma * golden_loop.pack(*v)], 1e-5)


def test_easycache_saves_as_many_steps(comfy, model, loop):
    comfy.core("nodes_easycache")

    def passes(**more):
        guided = guide(comfy, model, **more)
        options = {"reuse_threshold": 10.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
        (cached,) = comfy.run("EasyCache", model=guided, **options)
        with counted_passes(model) as calls:
            ksampler(comfy, cached, prompts(loop), steps=6)
        return len(calls)

    assert 0 < passes(sync_scale=2.0) == passes() < 6


@pytest.mark.parametrize("scales", [{"sync_scale": 2.0}, {"video_reference_cfg": 1.5, "audio_reference_cfg": 2.0}])
def test_split_over_devices(comfy, over_two_devices, golden_file, load, loop, persons, scales):
    model, conds = load(golden_file), prompts(loop)
    if "sync_scale" not in scales:
        conds = with_persons(conds, [persons[0]], [persons[1]])
    expected = ksampler(comfy, guide(comfy, model, **scales), conds)
    assert_equal(ksampler(comfy, over_two_devices(guide(comfy, model, **scales)), conds), expected, 2e-5)


def test_bounces_meet_a_given_audio(comfy):
    """In 16 clips of the miniature: nearer to its onsets, and with fewer that have none."""
    from bench import quality
    from bench.rows import Row, sampled
    from miniature import nodes
    from ovi import native

    scenes = [world.scene(world.HELD_OUT + 1000 + i) for i in range(16)]
    model, clip = native.load([str(quality.MODEL)]), nodes.OviMiniatureText.execute().args[0]
    rows = [Row("", steps=6, sync_scale=scale, given="audio") for scale in (0.0, 2.0)]
    without, pushed = (quality.scores(scenes, *sampled(model, row, scenes, clip, seed=0)) for row in rows)
    assert pushed["nearest_ms"] <= 0.9 * without["nearest_ms"]
    assert pushed["extra"] <= without["extra"] / 3
