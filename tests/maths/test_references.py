"""Person references against DreamID-Omni's numbers (golden data in `dreamid/`), and what does not fit."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from ovi import rope
from ovi.config import AUDIO_ROPE_SCALE, REFERENCE_ROPE_SCALE, OviConfig
from ovi.guidance import guide_parts, guide_references
from ovi.model import OviModel, References
from ovi.sampling import flow_sigmas, flow_timesteps, sample_unipc
from support import GOLDEN, golden_model
from support.golden_loop import pack

DREAMID = GOLDEN / "dreamid"
MANIFEST = json.loads((DREAMID / "manifest.json").read_text(encoding="utf-8"))
CASES = MANIFEST["cases"]
PRECISION = [(torch.float32, 1e-5, "out"), (torch.float64, 1e-6, "out_f64run")]
SCALES = 3.0, 1.5, 4.0, 2.0  # of the published loop: video, its references, audio, its references


@pytest.fixture(scope="module", params=PRECISION, ids=["float32", "float64"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def load():
    """Return the golden model in a dtype, with a scale of positions from the file's metadata."""
    loaded, sd = {}, load_file(golden_model.MODEL)

    def model(dtype=torch.float32, scale=REFERENCE_ROPE_SCALE):
        if (dtype, scale) not in loaded:
            said = json.loads(golden_model.metadata()["ovi_config"]) | {"reference_rope_scale": scale}
            config = OviConfig.from_state_dict(sd, metadata={"ovi_config": json.dumps(said)})
            loaded[dtype, scale] = OviModel(config, dtype=dtype).eval().requires_grad_(False)
            loaded[dtype, scale].load_state_dict(sd)
        return loaded[dtype, scale]

    return model


def given(data, dtype, prefix="in"):
    """Return the references of a case."""
    images, voices = (
        [data[key].to(dtype)[None] for key in sorted(data) if key.startswith(f"{prefix}.{kind}.")]
        for kind in ("image", "voice")
    )
    return References(images, [voice.transpose(1, 2) for voice in voices])


def inputs(case, dtype):
    """Return the data of a case, and the arguments of forward."""
    data = load_file(DREAMID / CASES[case]["file"])
    return data, dict(
        x=[data["in.video"].to(dtype)[None], data["in.audio"].to(dtype).T[None]],
        timestep=data["in.t"],
        context=data["in.vid_context"].to(dtype)[None],
        audio_context=data["in.audio_context"].to(dtype)[None],
        references=given(data, dtype),
    )


@pytest.mark.parametrize("case", CASES)
def test_forward(load, precision, case):
    """None, images alone, voices alone, unequal numbers, other scales and fractional timesteps."""
    dtype, tolerance, outputs = precision
    data, arguments = inputs(case, dtype)
    video, audio = load(dtype, CASES[case]["audio_rope_scale"])(**arguments)
    for name, out in (("video", video[0]), ("audio", audio[0].T)):
        expected = data[f"{outputs}.{name}"].to(dtype)
        torch.testing.assert_close(out, expected, atol=tolerance, rtol=0.0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("size", "head_dim", "frames", "length", "voices"), [("real", 128, 31, 157, [31, 31]), ("tiny", 32, 4, 23, [5, 8])]
)
def test_positions(size, head_dim, frames, length, voices):
    """The published tables, which are in float32 with errors of 1e-5, computed again in float64."""
    data, like = load_file(DREAMID / "A_rope.safetensors"), torch.empty(0, dtype=torch.float64)
    assert data[f"{size}.video.positions"].tolist() == [*range(frames), 150, 300]
    video = rope.video_table(frames, 1, 1, head_dim, like, images=2)
    audio = rope.audio_table(length, head_dim, REFERENCE_ROPE_SCALE, like, voices=voices)
    for name, table in (("video_time", video), ("audio", audio)):
        cos = data[f"{size}.{name}.cos_f64"]
        turning = table[0, :, 0, : cos.shape[1]]
        torch.testing.assert_close(turning[..., 0, 0], cos, atol=1e-14, rtol=0.0)
        torch.testing.assert_close(turning[..., 1, 0], data[f"{size}.{name}.sin_f64"], atol=1e-14, rtol=0.0)
    rest = audio[0, :, 0, cos.shape[1] :]
    assert torch.equal(rest, torch.eye(2, dtype=torch.float64).expand_as(rest))


def test_an_image_has_rows_and_columns_of_its_own():
    like = torch.empty(0, dtype=torch.float64)
    table = rope.video_table(2, 3, 5, 128, like, images=1).view(3, 3, 5, 64, 2, 2)
    assert torch.equal(table[2, ..., 22:, :, :], table[0, ..., 22:, :, :])
    assert not torch.allclose(table[2, ..., :22, :, :], table[0, ..., :22, :, :])


@pytest.mark.parametrize("case", MANIFEST["loops"])
def test_loop(load, precision, case):
    """The published loop with this project's sampler: four passes in each step, guided by prompts and by references."""
    dtype, *_ = precision
    loop, data = MANIFEST["loops"][case], load_file(DREAMID / MANIFEST["loops"][case]["file"])
    assert tuple(loop["call"][f"{name}_scale"] for name in (
        "video_cfg", "video_ref_cfg", "audio_cfg", "audio_ref_cfg"
    )) == SCALES  # fmt: skip
    video_cfg, video_reference_cfg, audio_cfg, audio_reference_cfg = SCALES
    model = load(dtype, loop["audio_rope_scale"])
    noise = data["init.video_noise"].to(dtype)[None], data["init.audio_noise"].to(dtype).T[None]
    size = noise[0].numel()
    positive, *negative = (
        data[f"cond.{name}"].to(dtype)[None] for name in ("positive", "video_negative", "audio_negative")
    )
    whole = given(data, dtype, "ref")
    without_images, without_voices = (
        whole._replace(**{k: list(map(torch.zeros_like, getattr(whole, k)))}) for k in whole._fields
    )
    steps, shift = loop["call"]["sample_steps"], loop["call"]["shift"]
    sigmas, timesteps = flow_sigmas(steps, shift), iter(flow_timesteps(steps, shift))
    assert torch.equal(sigmas, data["sched.sigmas"])

    def denoise(x, sigma):
        t = next(timesteps)[None]
        latents = [x[..., :size].view(noise[0].shape), x[..., size:].view(noise[1].shape)]
        passes = (
            ([positive], whole),
            (negative, whole),
            ([positive], without_images),
            ([positive], without_voices),
        )
        pos, neg, *without = (
            x - sigma.to(dtype) * pack(*model(latents, t, *texts, references=people)) for texts, people in passes
        )
        guided = guide_parts(neg + video_cfg * (pos - neg), pos, neg, size, audio_cfg)
        return guide_references(guided, pos, *without, size, video_reference_cfg, audio_reference_cfg)

    out = sample_unipc(denoise, pack(*noise), sigmas, disable=True)
    kind = "final" if dtype == torch.float32 else "final_f64run"
    expected = pack(data[f"{kind}.video"][None], data[f"{kind}.audio"].T[None]).to(dtype)
    torch.testing.assert_close(out, expected, atol=5e-5, rtol=0.0)


def test_guidance_leaves_a_modality_without_a_pass_as_it_is():
    guided, positive, images, voices = torch.randn(4, 2, 1, 10).double()
    whole = guide_references(guided, positive, images, voices, 6, 1.5, 2.0)
    torch.testing.assert_close(whole[..., :6], (guided + 1.5 * (positive - images))[..., :6])
    torch.testing.assert_close(whole[..., 6:], (guided + 2.0 * (positive - voices))[..., 6:])
    video = guide_references(guided, positive, images, None, 6, 1.5, 0.0)
    assert torch.equal(video, torch.cat([whole[..., :6], guided[..., 6:]], dim=-1))
    audio = guide_references(guided, positive, None, voices, 6, 0.0, 2.0)
    assert torch.equal(audio, torch.cat([guided[..., :6], whole[..., 6:]], dim=-1))
    assert guide_references(guided, positive, None, None, 6, 0.0, 0.0) is guided


def equal(got, expected, tolerance):
    """Compare the velocities of both towers."""
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0.0)


def test_no_references_are_not_the_same_as_none(load):
    """An empty References is given: with Ovi's scale of positions it changes nothing, with its own it does."""
    _, arguments = inputs("r00", torch.float32)
    assert arguments.pop("references") == References([], [])
    none = load()(**arguments)
    equal(load()(**arguments, references=None), none, 0.0)
    equal(load(scale=AUDIO_ROPE_SCALE)(**arguments, references=References([], [])), none, 0.0)
    assert not torch.allclose(load()(**arguments, references=References([], []))[1], none[1], atol=1e-3)


def test_the_default_scale_is_the_published_one():
    assert OviConfig().reference_rope_scale == CASES["r22"]["audio_rope_scale"]
    assert OviConfig().reference_rope_scale == torch.tensor(31 / 157).bfloat16().item()


def test_a_timestep_for_each_latent(load, precision):
    """References have the clip's own timestep, which is the largest one where a mask lowers some, or that given."""
    dtype, tolerance, _ = precision
    model, (_, arguments) = load(dtype), inputs("r22", dtype)
    t, whole = arguments.pop("timestep").double(), model(**inputs("r22", dtype)[1])
    images, voices = arguments["references"]
    sizes = arguments["x"][0].shape[2], arguments["x"][1].shape[2]
    added = len(images), sum(voice.shape[2] for voice in voices)
    for counts in (sizes, [clip + more for clip, more in zip(sizes, added, strict=True)], (1, 1)):
        times = tuple(t[:, None].repeat(1, count) for count in counts)
        equal(model(**arguments, timestep=times), whole, tolerance)
    masked = [t[:, None].repeat(1, clip) for clip in sizes]
    for each in masked:
        each[:, 0] = 0
    shorter = model(**arguments, timestep=tuple(masked))
    own = tuple(torch.cat([each, t[:, None].repeat(1, n)], 1) for each, n in zip(masked, added, strict=True))
    equal(model(**arguments, timestep=own), shorter, 0.0)
    at_zero = tuple(torch.nn.functional.pad(each, (0, n)) for each, n in zip(masked, added, strict=True))
    assert not torch.allclose(model(**arguments, timestep=at_zero)[0], shorter[0], atol=1e-2)
    with pytest.raises(ValueError, match=r"^There are 5 timesteps for 4 latent frames of a clip and 2 of references; "):
        model(**arguments, timestep=(t[:, None].repeat(1, 5), t))


def test_odd_latents_are_padded_with_their_images(load, precision):
    dtype, tolerance, _ = precision
    model, (_, arguments) = load(dtype), inputs("r22", dtype)
    video, audio = arguments["x"]
    images, voices = arguments["references"]

    def run(change):
        return model(
            **arguments | {"x": [change(video), audio], "references": References(list(map(change, images)), voices)}
        )

    odd = run(lambda latent: latent[..., :5, :9])
    wrapped = run(lambda latent: torch.nn.functional.pad(latent[..., :5, :9], (0, 1, 0, 1, 0, 0), mode="circular"))
    assert odd[0].shape == video[..., :5, :9].shape
    equal(odd, [wrapped[0][..., :5, :9], wrapped[1]], tolerance)


@pytest.mark.parametrize("tower", [0, 1])
def test_one_tower_alone(load, precision, tower):
    """It gives what both give where neither attends to the other; references of the other one are refused."""
    dtype, tolerance, _ = precision
    model, (_, arguments) = load(dtype), inputs("r22", dtype)
    arguments["context"] = arguments["audio_context"] = arguments["context" if tower == 0 else "audio_context"]
    apart = {"transformer_options": {"a2v_cross_attn": False, "v2a_cross_attn": False}}
    expected = model(**arguments, **apart)[tower]
    x = [latent if i == tower else None for i, latent in enumerate(arguments["x"])]
    whole = arguments["references"]
    own = References(*(latents if i == tower else () for i, latents in enumerate(whole)))
    out = model(**arguments | {"x": x, "references": own})
    assert out[1 - tower] is None
    torch.testing.assert_close(out[tower], expected, atol=tolerance, rtol=0.0)
    kind, missing = (("voice", "audio"), ("image", "video"))[tower]
    with pytest.raises(ValueError, match=rf"^There are reference {kind}s \(2\), but no {missing} latent; "):
        model(**arguments | {"x": x})


def test_batch_equals_its_samples(load, precision):
    """Two clips with their own references, timesteps and, in one row, a skipped block."""
    dtype, tolerance, _ = precision
    model, (_, first) = load(dtype), inputs("r22", dtype)
    flipped = first | {
        "x": [-latent for latent in first["x"]],
        "timestep": first["timestep"] / 2,
        "references": References(*([latent.flip(2) for latent in latents] for latents in first["references"])),
    }
    both = first | {
        "x": [torch.cat(pair) for pair in zip(first["x"], flipped["x"], strict=True)],
        "timestep": torch.cat([first["timestep"], flipped["timestep"]]),
        "context": first["context"].repeat(2, 1, 1),
        "audio_context": first["audio_context"].repeat(2, 1, 1),
        "references": References(
            *(
                [torch.cat(pair) for pair in zip(*pairs, strict=True)]
                for pairs in zip(first["references"], flipped["references"], strict=True)
            )
        ),
    }
    out = model(**both, skip_blocks=(1,), skip_rows=[False, True])
    equal([latent[:1] for latent in out], model(**first), tolerance)
    equal([latent[1:] for latent in out], model(**flipped, skip_blocks=(1,)), tolerance)


def test_gradients_reach_the_references(load):
    """The slope along a random direction is the one that differences give, and inference gives the same numbers."""
    model, (_, arguments) = load(torch.float64), inputs("r22", torch.float64)
    images, voices = arguments["references"]
    latents = [latent.clone().requires_grad_() for latent in (*images, *voices)]
    torch.manual_seed(0)
    directions = [torch.randn_like(latent) for latent in latents]

    def total(latents):
        return sum(out.sum() for out in model(**arguments | {"references": References(latents[:2], latents[2:])}))

    trained = total(latents)
    trained.backward()
    slope = sum((latent.grad * by).sum() for latent, by in zip(latents, directions, strict=True))
    assert all(latent.grad.abs().max() > 0.01 for latent in latents)
    with torch.inference_mode():
        assert total(latents) == trained
        ahead, behind = (
            total([latent + sign * 1e-4 * by for latent, by in zip(latents, directions, strict=True)])
            for sign in (1, -1)
        )
    torch.testing.assert_close((ahead - behind) / 2e-4, slope.detach(), atol=0.0, rtol=1e-5)


def test_references_take_the_dtype_of_the_clip(load):
    _, arguments = inputs("r11", torch.bfloat16)
    whole = inputs("r11", torch.float32)[1]["references"]
    video, audio = load(torch.bfloat16)(**arguments | {"references": whole})
    assert video.dtype == audio.dtype == torch.bfloat16
    equal([video, audio], load(torch.bfloat16)(**arguments), 0.0)


@pytest.mark.parametrize(
    ("kind", "shape", "sentence"),
    [
        ("images", (1, 48, 1, 6, 8), "needs [1, 48, 1, 6, 10]"),
        ("images", (1, 48, 1, 10, 6), "needs [1, 48, 1, 6, 10]"),
        ("images", (2, 48, 1, 6, 10), "needs [1, 48, 1, 6, 10]"),
        ("images", (1, 48, 2, 6, 10), "needs [1, 48, 1, 6, 10]"),
        ("images", (1, 16, 1, 6, 10), "needs [1, 48, 1, 6, 10]"),
        ("images", (48, 1, 6, 10), "needs [1, 48, 1, 6, 10]"),
        ("voices", (1, 64, 5), "needs [1, 20, any length]"),
        ("voices", (2, 20, 5), "needs [1, 20, any length]"),
        ("voices", (1, 20, 0), "needs [1, 20, any length]"),
        ("voices", (1, 5), "needs [1, 20, any length]"),
    ],
)
def test_references_of_another_shape_are_refused(load, kind, shape, sentence):
    _, arguments = inputs("r22", torch.float32)
    good = arguments["references"]
    wrong = good._replace(**{kind: [getattr(good, kind)[0], torch.zeros(shape)]})
    tower, clip = ("video", [1, 48, 4, 6, 10]) if kind == "images" else ("audio", [1, 20, 23])
    expected = (
        f"Reference {kind[:-1]} 2 is a latent of {list(shape)}, but the clip's {tower} latent of {clip} {sentence}; "
        "encode it for this clip."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        load()(**arguments | {"references": wrong})
