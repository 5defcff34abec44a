"""The fused towers against the reference's numbers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from ovi.config import OviConfig
from ovi.model import OviModel
from support import GOLDEN, golden_model

CASES = ["a1", "a2", "a3", "a3b", "a4", "a5_audio", "a5_video", "a6", "a7"]
PRECISION = [(torch.float32, 1e-5, "out"), (torch.float64, 1e-6, "out_f64run")]


@pytest.fixture(scope="module", params=PRECISION, ids=["float32", "float64"])
def precision(request):
    dtype, tolerance, outputs = request.param
    return golden_model.load(dtype), dtype, tolerance, outputs


def inputs(case, i, dtype):
    """Sample i of a case: the arguments of forward, with the frames' own timesteps where the first frame is clean."""
    data = load_file(GOLDEN / f"A_{case}.safetensors")
    kwargs = json.loads((GOLDEN / "manifest.json").read_text())["A"]["cases"][case]["forward_kwargs"]
    video, audio = data.get(f"in.video.{i}"), data.get(f"in.audio.{i}")
    time = data["in.t"][i : i + 1]
    video_time = time
    if kwargs.get("first_frame_is_clean"):
        video_time = time[:, None].repeat(1, video.shape[1])
        video_time[:, 0] = 0
    text, audio_text = data.get(f"in.vid_context.{i}"), data.get(f"in.audio_context.{i}")
    layer = kwargs.get("slg_layer", 0)
    return data, dict(
        x=[None if video is None else video[None].to(dtype), None if audio is None else audio.T[None].to(dtype)],
        timestep=(video_time, time),
        context=(audio_text if text is None else text)[None].to(dtype),
        audio_context=None if audio_text is None else audio_text[None].to(dtype),
        skip_blocks=(layer,) if layer > 0 else (),
    )


@pytest.mark.parametrize("case", CASES)
def test_forward(precision, case):
    """Every case; samples of different sizes (a7) run one by one, since latents of one batch are of one size."""
    model, dtype, tolerance, outputs = precision
    for i in range(2 if case in ("a4", "a7") else 1):
        data, arguments = inputs(case, i, dtype)
        video, audio = model(**arguments)
        for name, out in (("video", video), ("audio", None if audio is None else audio.transpose(1, 2))):
            expected = data.get(f"{outputs}.{name}.{i}", data.get(f"out.{name}.{i}"))
            assert (out is None) == (expected is None)
            if out is not None:
                # Where the reference's float64 run is not stored, float32's bound holds for a float64 run too.
                bound = tolerance if f"{outputs}.{name}.{i}" in data else 1e-5
                torch.testing.assert_close(out[0], expected.to(dtype), atol=bound, rtol=0.0)


def test_batch_equals_its_samples(precision):
    """Two samples with their own timesteps and text lengths in one batch (case a4)."""
    model, dtype, tolerance, _ = precision
    samples = [inputs("a4", i, dtype)[1] for i in range(2)]
    length = model.config.text_len
    video, audio = model(
        [torch.cat([s["x"][m] for s in samples]) for m in range(2)],
        tuple(torch.cat([s["timestep"][m] for s in samples]) for m in range(2)),
        torch.cat([golden_model.pad(s["context"][0], length) for s in samples]),
        torch.cat([golden_model.pad(s["audio_context"][0], length) for s in samples]),
    )
    for i, sample in enumerate(samples):
        alone = model(**sample)
        torch.testing.assert_close(video[i : i + 1], alone[0], atol=tolerance, rtol=0.0)
        torch.testing.assert_close(audio[i : i + 1], alone[1], atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("case", ["a1", "a2", "a6"])
def test_activations_of_block_0(precision, case):
    """Embeddings, queries, keys, attention outputs and residual streams, at every place the reference recorded."""
    model, dtype, *_ = precision
    data, arguments = inputs(case, 0, dtype)
    seen = record(model, arguments)
    expected = {k.removeprefix("dbg."): v for k, v in data.items() if k.startswith("dbg.")}
    assert expected, "the case has no recorded activations"
    for name, value in expected.items():
        # The activations are stored from the float32 run, so float32's bound holds for both.
        torch.testing.assert_close(
            seen[name].to(dtype), value.to(dtype), atol=1e-5, rtol=0.0, msg=lambda m, n=name: f"{n}: {m}"
        )


def record(model, arguments):
    """Run the model; return the activations under the reference's names."""
    seen = {}
    handles = []

    def keep(name, module, pick):
        handles.append(module.register_forward_hook(lambda _, args, out: seen.__setitem__(name, pick(args, out))))

    heads = model.config.num_heads
    calls = []

    def attention(q, k, v, heads, **kwargs):
        out = original(q, k, v, heads, **kwargs)
        calls.append((q, k, v, out))
        return out

    for name, tower in (("vid", model.video_model), ("audio", model.audio_model)):
        embed = tower.embed

        def embedded(*args, embed=embed, name=name):
            tokens, stream = embed(*args)
            ends = [0, -1]
            seen[f"{name}.patch_embed"] = tokens
            seen[f"{name}.e.first_last"] = stream.time[:, ends]
            seen[f"{name}.e0.first_last"] = stream.modulation[:, ends]
            seen[f"{name}.context"] = stream.text
            return tokens, stream

        tower.embed = embedded
        for i, block in enumerate(tower.blocks):
            after, out = f"{name}.block{i}.after_self_attn", f"{name}.block{i}.out"
            keep(after, block.norm3, lambda args, _: args[0])
            feed_forward = block.feed_forward

            def fed(*args, feed_forward=feed_forward, out=out):
                seen[out] = feed_forward(*args)
                return seen[out]

            block.feed_forward = fed
    original = model.video_model.blocks[0].self_attn.attention
    attentions = [
        m for b in (model.video_model.blocks[0], model.audio_model.blocks[0]) for m in (b.self_attn, b.cross_attn)
    ]
    for module in attentions:
        module.attention = attention
    try:
        model(**arguments)
    finally:
        for handle in handles:
            handle.remove()
        for module in attentions:
            module.attention = original
        for tower in (model.video_model, model.audio_model):
            del tower.embed
            for block in tower.blocks:
                del block.feed_forward
    order = [
        "vid.{}.self_attn",
        "audio.{}.self_attn",
        "audio.{}.fusion_attn",
        "audio.{}.text_attn",
        "vid.{}.fusion_attn",
        "vid.{}.text_attn",
    ]
    for name, call in zip(order, calls, strict=True):
        for part, value in zip("qkv", call, strict=False):
            seen[f"{name.format('block0')}.{part}"] = value.unflatten(-1, (heads, -1))
        seen[f"{name.format('block0')}.out"] = call[3].unflatten(-1, (heads, -1))
    return seen


def test_full_size_has_the_published_keys(golden):
    """Every key and shape of the 11.66 billion parameters, built on meta."""
    published = json.loads((golden / "full_model_keys.json").read_text())
    model = OviModel(OviConfig(), device="meta", dtype=torch.bfloat16)
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert shapes == published["keys"]
    assert sum(p.numel() for p in model.parameters()) == published["parameters"] == 11_660_753_108


def test_config_of_the_published_shapes(golden):
    shapes = json.loads((golden / "full_model_keys.json").read_text())["keys"]
    assert OviConfig.from_state_dict({k: torch.empty(s, device="meta") for k, s in shapes.items()}) == OviConfig()


def test_skip_rows_of_a_batch(precision):
    """A block skipped for one row of a batch equals skipping it in a run of that row alone."""
    model, dtype, tolerance, _ = precision
    _, arguments = inputs("a1", 0, dtype)
    arguments.pop("skip_blocks")
    skipped, kept = model(**arguments, skip_blocks=(1,)), model(**arguments)
    double = dict(arguments, x=[x.repeat(2, *[1] * (x.ndim - 1)) for x in arguments["x"]])
    double["timestep"] = tuple(t.repeat(2) for t in arguments["timestep"])
    double["context"], double["audio_context"] = (arguments[k].repeat(2, 1, 1) for k in ("context", "audio_context"))
    both = model(**double, skip_blocks=(1,), skip_rows=[True, False])
    for got, first, second in zip(both, skipped, kept, strict=True):
        torch.testing.assert_close(got, torch.cat([first, second]), atol=tolerance, rtol=0.0)
    assert not torch.allclose(skipped[0], kept[0], atol=1e-3)
    none = model(**double, skip_blocks=(1,), skip_rows=[False, False])
    torch.testing.assert_close(none[0][:1], kept[0], atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("skip_rows", [None, [False, True, False], [True, False, False]])
def test_cut_rows_of_a_batch(precision, skip_rows):
    """Cutting the fusion for one row of a batch equals switching it off in a run of that row alone."""
    model, dtype, tolerance, _ = precision
    _, arguments = inputs("a1", 0, dtype)
    arguments.pop("skip_blocks")
    skipped = skip_rows or [False] * 3
    apart = {"transformer_options": {"a2v_cross_attn": False, "v2a_cross_attn": False}}
    expected = [
        model(**arguments, **(apart if cut else {}), skip_blocks=(1,) if skip else ())
        for cut, skip in zip([False, True, False], skipped, strict=True)
    ]
    triple = dict(arguments, x=[x.repeat(3, *[1] * (x.ndim - 1)) for x in arguments["x"]])
    triple["timestep"] = tuple(t.repeat(3) for t in arguments["timestep"])
    triple["context"], triple["audio_context"] = (arguments[k].repeat(3, 1, 1) for k in ("context", "audio_context"))
    got = model(**triple, skip_blocks=(1,), skip_rows=skipped, cut_rows=[False, True, False])
    for part, rows in zip(got, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(part, torch.cat(rows), atol=tolerance, rtol=0.0)
    every = model(**triple, cut_rows=[True] * 3)
    torch.testing.assert_close(every[0][:1], model(**arguments, **apart)[0], atol=tolerance, rtol=0.0)


def test_self_attention_that_passes_values(precision):
    """In chosen blocks, as if their attention gave each token its own value."""
    model, dtype, tolerance, _ = precision
    _, arguments = inputs("a1", 0, dtype)
    got = model(**arguments, pass_blocks=(2,))
    towers = model.video_model, model.audio_model
    attention = towers[0].blocks[2].self_attn.attention
    for tower in towers:
        tower.blocks[2].self_attn.attention = lambda q, k, v, *_, **__: v
    try:
        expected = model(**arguments)
    finally:
        for tower in towers:
            tower.blocks[2].self_attn.attention = attention
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0.0)
    assert not torch.allclose(got[0], model(**arguments)[0], atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(7, 12), (8, 11), (5, 7)])
def test_odd_latents_are_padded_and_cut(precision, height, width):
    """Padded to the patch by wrapping around, as ComfyUI's Wan does, and cut again."""
    model, dtype, *_ = precision
    _, arguments = inputs("a1", 0, dtype)
    video = arguments["x"][0][..., :height, :width]
    out = model(**dict(arguments, x=[video, arguments["x"][1]]))
    padded = torch.nn.functional.pad(video, (0, width % 2, 0, height % 2, 0, 0), mode="circular")
    expected = model(**dict(arguments, x=[padded, arguments["x"][1]]))
    assert out[0].shape == video.shape
    torch.testing.assert_close(out[0], expected[0][..., :height, :width])
    torch.testing.assert_close(out[1], expected[1])


def test_a_direction_of_the_fusion_can_be_cut(precision):
    """Audio that the video may not hear changes nothing in the video, and the reverse."""
    model, dtype, *_ = precision
    _, arguments = inputs("a1", 0, dtype)
    video, audio = arguments["x"]
    for switch, changed, other in (("a2v_cross_attn", [video, -audio], 0), ("v2a_cross_attn", [-video, audio], 1)):
        options = {"transformer_options": {switch: False}}
        torch.testing.assert_close(
            model(**arguments, **options)[other], model(**dict(arguments, x=changed), **options)[other]
        )
        assert not torch.allclose(model(**arguments)[other], model(**dict(arguments, x=changed))[other], atol=1e-3)


def test_bfloat16_stays_near(precision):
    """The bound that the reference's own bfloat16 path keeps: relative RMS 3 %."""
    model = golden_model.load(torch.bfloat16)
    data, arguments = inputs("a1", 0, torch.bfloat16)
    video, audio = model(**arguments)
    for out, name in ((video, "video"), (audio.transpose(1, 2), "audio")):
        expected = data[f"out.{name}.0"]
        assert (out[0].float() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt() < 0.03


def test_inference_equals_training(precision):
    """Without gradients some steps run in place; the numbers are the same, and the gradients are the true ones."""
    model, dtype, *_ = precision
    _, arguments = inputs("a1", 0, dtype)
    with torch.inference_mode():
        inferred = model(**arguments)
    latents = [latent.clone().requires_grad_() for latent in arguments["x"]]
    trained = model(**dict(arguments, x=latents))
    for got, expected in zip(inferred, trained, strict=True):
        torch.testing.assert_close(got, expected, atol=0.0, rtol=0.0)
    if dtype == torch.float64:
        sum(out.sum() for out in trained).backward()
        step = [1e-4 * torch.randn_like(latent) for latent in latents]
        ahead, behind = (
            sum(
                out.sum()
                for out in model(**dict(arguments, x=[x + sign * d for x, d in zip(latents, step, strict=True)]))
            )
            for sign in (1, -1)
        )
        slope = sum((latent.grad * d).sum() for latent, d in zip(latents, step, strict=True))
        torch.testing.assert_close((ahead - behind) / 2, slope, atol=0.0, rtol=1e-5)


def test_too_many_text_tokens():
    model = golden_model.load()
    _, arguments = inputs("a1", 0, torch.float32)
    with pytest.raises(ValueError, match=r"33 tokens.*at most 32"):
        model(**dict(arguments, context=torch.zeros(1, 33, 64)))


def test_nothing_to_denoise():
    model = golden_model.load()
    with pytest.raises(ValueError, match="Neither"):
        model([None, None], torch.zeros(1), torch.zeros(1, 1, 64))


def test_config_errors():
    sd = load_file(golden_model.MODEL)
    with pytest.raises(ValueError, match=r"96 wide.*128 channels.*num_heads"):
        OviConfig.from_state_dict(sd)
    with pytest.raises(ValueError, match=r"ovi_config has \['heads'\]"):
        OviConfig.from_state_dict(sd, metadata={"ovi_config": '{"heads": 3}'})
    del sd["audio_model.blocks.0.ffn.0.bias"]
    with pytest.raises(ValueError, match=r"no tensor audio_model\.blocks\.0\.ffn\.0\.bias"):
        OviConfig.from_state_dict(sd, metadata=golden_model.metadata())
