"""Ovi with core nodes and packs that were not made for joint latents: what works, and what they are told."""

from __future__ import annotations

import pytest
import torch

from support import ROOT
from support.sampling import SHAPES, assert_equal, empty, guide, ksampler, noise, prompts

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]


def advanced(comfy, model, conds, latent, *, add_noise, steps=4, start=0, end=10000, leftover="disable"):
    """Sample with core's KSampler (Advanced); return the LATENT."""
    (out,) = comfy.run(
        "KSamplerAdvanced",
        model=model,
        add_noise=add_noise,
        noise_seed=7,
        steps=steps,
        cfg=4.0,
        sampler_name="euler",
        scheduler="simple",
        positive=conds[0],
        negative=conds[1],
        latent_image=latent,
        start_at_step=start,
        end_at_step=end,
        return_with_leftover_noise=leftover,
    )
    return out


@pytest.mark.parametrize("batch", [1, 2])
def test_two_advanced_ksamplers_equal_one(comfy, model, loop, batch):
    """The second adds no noise: core's zeros have the shape of the video alone."""
    guided, conds, latent = guide(comfy, model), prompts(loop), empty(batch=batch)
    whole = advanced(comfy, guided, conds, latent, add_noise="enable")
    first = advanced(comfy, guided, conds, latent, add_noise="enable", end=2, leftover="enable")
    second = advanced(comfy, guided, conds, first, add_noise="disable", start=2)
    assert_equal(second["samples"].unbind(), whole["samples"].unbind(), 2e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_noise_for_the_video_alone_is_refused(comfy, model, loop, batch):
    """As Easy-Use's samplers make it: of the shape that the joint latent says it has."""
    from comfy.sample import sample

    latent = empty(batch=batch)["samples"]
    plain = torch.randn(latent.size(), generator=torch.Generator().manual_seed(0))
    conds = prompts(loop)
    with pytest.raises(ValueError, match=f"made {plain.numel()} numbers of noise, but video and audio together have"):
        sample(model, plain, 2, 4.0, "euler", "simple", conds[0], conds[1], latent)


def test_vae_decode_tiled(comfy, vae):
    """Refused up to ComfyUI 0.33.0; from then on the video half, as if it had been separated."""
    joint = empty(batch=2)
    video, _ = joint["samples"].unbind()
    tiles = {"vae": vae, "tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    if "is_nested" not in comfy.node["VAEDecodeTiled"].decode.__code__.co_names:
        with pytest.raises(AttributeError):
            comfy.run("VAEDecodeTiled", samples=joint, **tiles)
        return
    (frames,) = comfy.run("VAEDecodeTiled", samples=joint, **tiles)
    assert torch.equal(frames, comfy.run("VAEDecodeTiled", samples={"samples": video}, **tiles)[0])


def test_attention_of_other_nodes(comfy, model, loop):
    """Nodes that replace ComfyUI's attention are asked for each of Ovi's: in every block, six, with step and block."""
    seen = []

    def attention(original, *args, **kwargs):
        options = kwargs["transformer_options"]
        seen.append((options["block_index"], float(options["sigmas"][0])))
        return original(*args, **kwargs)

    changed = guide(comfy, model, skip="")
    changed.model_options["transformer_options"]["optimized_attention_override"] = attention
    (plain, changed) = (
        ksampler(comfy, each, prompts(loop), steps=2) for each in (guide(comfy, model, skip=""), changed)
    )
    assert_equal(changed, plain, 0.0)
    assert {block for block, _ in seen} == {0, 1, 2}
    assert len({sigma for _, sigma in seen}) == 2


@pytest.mark.parametrize("cache", [None, "LazyCache"])
def test_a_split_over_gpus(comfy, over_two_devices, load, golden_file, loop, cache):
    """It changes nothing."""
    comfy.core("nodes_easycache")
    alone = guide(comfy, load(golden_file))
    if cache:
        options = {"start_percent": 0.0, "end_percent": 1.0, "verbose": False, "reuse_threshold": 0.2}
        (alone,) = comfy.run(cache, model=alone, **options)
    shared = over_two_devices(alone)
    assert len(shared.get_additional_models_with_key("multigpu")) == 1
    assert_equal(*(ksampler(comfy, each, prompts(loop), steps=4) for each in (shared, alone)), 5e-5)


def preview(latent_format, latents):
    """What core's previewer makes of latents: an image."""
    import latent_preview

    factors, bias = latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    core = latent_preview.Latent2RGBPreviewer(factors, bias, latent_format.latent_rgb_factors_reshape)
    return core.decode_latent_to_preview(latents)


def test_previews_of_videos_frames_and_packed_latents(comfy, model, loop):
    """Frames [N, 48, H, W], as VideoHelperSuite hands them over, are all kept; anything else gives one of its own."""
    latent_format = comfy.module("ovi.native.latent").OviLatent()
    video, audio = noise()
    latent_format.shapes = [video.shape, audio.shape]
    packed = torch.cat([part.flatten(1)[:, None] for part in (video, audio)], dim=-1)
    frames = video.movedim(2, 1).flatten(0, 1)
    assert latent_format.latent_rgb_factors_reshape(frames) is frames
    for latents in (video, packed):
        shown = [latent_format.latent_rgb_factors_reshape(latents) for _ in range(len(frames))]
        assert_equal([torch.cat(shown)], [frames], 0.0)
    height, width = SHAPES[0][-2:]
    assert {preview(latent_format, latents).size for latents in (video, packed, frames)} == {(width, height)}


def test_concatenated_prompts_are_refused(comfy, model, loop):
    """Both are padded to the full length, however short they are."""
    text = torch.nn.functional.pad(loop["cond.positive"][None], (0, 0, 0, 32 - len(loop["cond.positive"])))
    (joined,) = comfy.run("ConditioningConcat", conditioning_to=[[text, {}]], conditioning_from=[[text, {}]])
    with pytest.raises(ValueError, match=r"64 tokens.*at most 32.*'Conditioning \(Concat\)'.*padded to 32.*one prompt"):
        advanced(comfy, model, (joined, joined), empty(), add_noise="enable")


def guided_by(comfy, guider):
    """Sample with a guider; return [video, audio]."""
    (source,) = comfy.run("RandomNoise", noise_seed=7)
    (sampler,) = comfy.run("KSamplerSelect", sampler_name="euler")
    out, _ = comfy.run(
        "SamplerCustomAdvanced",
        noise=source,
        guider=guider,
        sampler=sampler,
        sigmas=torch.tensor([1.0, 0.8, 0.5, 0.0]),
        latent_image=empty(),
    )
    return out["samples"].unbind()


def test_a_guider_that_drops_the_negative_prompt(comfy, model, loop):
    """As KJNodes' ScheduledCFGGuidance, which has one and ends early."""
    from comfy import samplers

    class EndsEarly(samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            late = timestep.max() < 0.7
            negative, cfg = (None, 1.0) if late else (self.conds["negative"], self.cfg)
            return samplers.sampling_function(
                self.inner_model, x, timestep, negative, self.conds["positive"], cfg, model_options, seed
            )

    def ending_early(patched):
        guider = EndsEarly(patched)
        guider.set_conds(*prompts(loop))
        guider.set_cfg(4.0)
        return guider

    with pytest.raises(ValueError, match=r"ran this step without a negative prompt.*audio_end_percent"):
        guided_by(comfy, ending_early(guide(comfy, model)))
    end = 0.6  # between the sigmas 0.8 and 0.5 on the schedule of shift 5
    advised = guide(comfy, model, video=(0.0, end), audio=(0.0, end))
    (guider,) = comfy.run("CFGGuider", model=advised, positive=prompts(loop)[0], negative=prompts(loop)[1], cfg=4.0)
    assert_equal(guided_by(comfy, ending_early(advised)), guided_by(comfy, guider), 1e-5)


def test_perp_neg(comfy, model, loop):
    """The guider works; the older node, which core deprecates, passes too little to the model."""
    comfy.core("nodes_perpneg")
    positive, negative = prompts(loop)
    guided = guide(comfy, model)
    (guider,) = comfy.run(
        "PerpNegGuider",
        model=guided,
        positive=positive,
        negative=negative,
        empty_conditioning=[[torch.zeros_like(positive[0][0]), {}]],
        cfg=4.0,
        neg_scale=1.0,
    )
    assert all(torch.isfinite(part).all() for part in guided_by(comfy, guider))
    (patched,) = comfy.run("PerpNeg", model=guided, empty_conditioning=positive, neg_scale=1.0)
    with pytest.raises(ValueError, match=r"in the middle of sampling.*'Perp-Neg Guider' instead of 'Perp-Neg'"):
        advanced(comfy, patched, (positive, negative), empty(), add_noise="enable")


# Core nodes that edit a latent, by id: inputs beside the latent, and how docs/other_nodes.md names the node.
ALIKE = {
    "LatentAdd": ({}, "LatentAdd"),
    "LatentSubtract": ({}, "LatentSubtract"),
    "LatentMultiply": ({"multiplier": 0.5}, "LatentMultiply"),
    "LatentBlend": ({"blend_factor": 0.5}, "Latent Blend"),
    "LatentBatchSeedBehavior": ({"seed_behavior": "fixed"}, "LatentBatchSeedBehavior"),
}
REFUSED = {
    "LatentUpscale": (
        {"upscale_method": "bilinear", "width": 64, "height": 64, "crop": "disabled"},
        "Upscale Latent",
    ),
    "LatentUpscaleBy": ({"upscale_method": "bilinear", "scale_by": 2.0}, "Upscale Latent By"),
    "LatentCrop": ({"width": 32, "height": 32, "x": 0, "y": 0}, "Crop Latent"),
    "LatentFlip": ({"flip_method": "x-axis: vertically"}, "Flip Latent"),
    "LatentRotate": ({"rotation": "90 degrees"}, "Rotate Latent"),
    "LatentComposite": ({"x": 0, "y": 0, "feather": 0}, "Latent Composite"),
    "LatentCompositeMasked": ({"x": 0, "y": 0, "resize_source": False}, "Latent Composite Masked"),
    "LatentConcat": ({"dim": "t"}, "LatentConcat"),
    "LatentCut": ({"dim": "t", "index": 0, "amount": 1}, "LatentCut"),
    "LatentCutToBatch": ({"dim": "t", "slice_size": 1}, "LatentCutToBatch"),
    "LatentInterpolate": ({"ratio": 0.5}, "LatentInterpolate"),
    "LatentApplyOperation": ({"operation": abs}, "LatentApplyOperation"),
    "LatentBatch": ({}, "Batch Latents"),
    "RebatchLatents": ({"batch_size": [1]}, "Rebatch Latents"),
    "RepeatLatentBatch": ({"amount": 2}, "Repeat Latent Batch"),
    "LatentFromBatch": ({"batch_index": 0, "length": 1}, "Get Latent From Batch"),
    "ReplaceVideoLatentFrames": ({"index": 0}, "Replace Video Latent Frames"),
    "NormalizeVideoLatentStart": ({"start_frame_count": 1, "reference_frame_count": 1}, "NormalizeVideoLatentStart"),
    "SaveLatent": ({"filename_prefix": "latent"}, "Save Latent"),
}
MODULES = ("nodes_latent", "nodes_mask", "nodes_rebatch", "nodes_kandinsky5", "nodes_wan")


@pytest.fixture(scope="module")
def editors(comfy):
    """Core's nodes that take a LATENT, with the name of each such input."""
    for module in MODULES:
        comfy.core(module)

    def run(node, inputs):
        cls = comfy.node[node].INPUT_TYPES()
        of_node = {**cls["required"], **cls.get("optional", {})}
        latents = {name: empty(batch=2) for name, declared in of_node.items() if declared[0] == "LATENT"}
        if node == "RebatchLatents":
            latents = {name: [latent] for name, latent in latents.items()}
        return comfy.run(node, **latents, **inputs)

    return run


@pytest.fixture(scope="module")
def rows():
    """The rows of the tables in docs/other_nodes.md, by the cell in front."""
    lines = (ROOT / "docs" / "other_nodes.md").read_text(encoding="utf-8").splitlines()
    return {cells[1].strip(): cells[2] for line in lines if len(cells := line.split("|")) == 4}


@pytest.mark.parametrize("node", ALIKE)
def test_core_nodes_that_edit_both_parts(comfy, editors, rows, node):
    inputs, name = ALIKE[node]
    if node not in comfy.node:
        pytest.skip("this ComfyUI has no such node")
    (out, *_) = editors(node, inputs)
    assert [part.shape[1:] for part in out["samples"].unbind()] == [shape[1:] for shape in map(torch.Size, SHAPES)]
    assert f"*{name}*" in rows["work on video and audio alike"]


@pytest.mark.parametrize("node", REFUSED)
def test_core_nodes_that_need_the_parts_separated(comfy, editors, rows, node):
    inputs, name = REFUSED[node]
    if node not in comfy.node:
        pytest.skip("this ComfyUI has no such node")
    with pytest.raises((AttributeError, TypeError, IndexError)):
        editors(node, inputs)
    (row,) = (nodes for start, nodes in rows.items() if start.startswith("need *Separate AV Latent* before them"))
    assert f"*{name}*" in row


def test_trim_video_latent_says_nothing(editors, rows):
    """It cuts a latent of each, though one of video lasts as long as five of audio."""
    (out,) = editors("TrimVideoLatent", {"trim_amount": 1})
    assert [part.shape[2] for part in out["samples"].unbind()] == [SHAPES[0][2] - 1, SHAPES[1][2] - 1]
    (row,) = (nodes for start, nodes in rows.items() if start.endswith("**and says nothing**"))
    assert "*Trim Video Latent*" in row
