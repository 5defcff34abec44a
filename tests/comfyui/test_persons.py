"""Persons in a prompt, on real ComfyUI with the golden model: Ovi Person, and guidance by references in any sampler."""

from __future__ import annotations

import math

import pytest
import torch

from ovi.memory import activation_bytes
from ovi.model import References
from support import golden_loop
from support.media import BlockVAE, WindowVAE, random_frames, tone
from support.sampling import (
    SHAPES,
    TimestepSpy,
    assert_equal,
    counted_passes,
    empty,
    guide,
    joint,
    ksampler,
    predict_by,
    prompts,
    scaled,
    windowed,
    with_persons,
)

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]


def images(count):
    """Faces as latents, normalised."""
    draw = torch.Generator().manual_seed(count)
    return [torch.randn(1, 48, 1, *SHAPES[0][3:], generator=draw) for _ in range(count)]


def voices(count):
    """Voices as latents, each of another length."""
    draw = torch.Generator().manual_seed(100 + count)
    return [torch.randn(1, 20, 3 + 2 * j, generator=draw) for j in range(count)]


def referring(comfy, model, video_cfg=0.0, audio_cfg=0.0, **parts):
    """The MODEL after Ovi Guidance, without a skipped block, with guidance by references."""
    references = {"video_reference_cfg": video_cfg, "audio_reference_cfg": audio_cfg}
    return guide(comfy, model, audio_cfg=4.0, skip="", **references, **parts)


def formula(reference, loop, faces, sounds, video_cfg, audio_cfg):
    """The guided denoised latent of a packed one, by the formulas of DreamID-Omni: up to four passes."""
    positive = loop["cond.positive"][None]
    negative = loop["cond.video_negative"][None], loop["cond.audio_negative"][None]
    zeros = [[torch.zeros_like(each) for each in kind] for kind in (faces, sounds)]
    size = math.prod(SHAPES[0])

    def predict(x, sigma):
        parts = [x[..., :size].view(SHAPES[0]), x[..., size:].view(SHAPES[1])]

        def run(*texts, faces=faces, sounds=sounds):
            given = References(faces, sounds) if faces or sounds else None
            return reference(parts, 1000 * sigma, *texts, references=given)

        pos, neg = run(positive), run(*negative)
        no_image = run(positive, faces=zeros[0]) if video_cfg else pos
        no_voice = run(positive, sounds=zeros[1]) if audio_cfg else pos
        video = neg[0] + 3 * (pos[0] - neg[0]) + video_cfg * (pos[0] - no_image[0])
        audio = neg[1] + 4 * (pos[1] - neg[1]) + audio_cfg * (pos[1] - no_voice[1])
        return x - sigma.view(-1, 1, 1) * golden_loop.pack(video, audio)

    return predict


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "res_multistep"])
@pytest.mark.parametrize(("faces", "sounds"), [(0, 0), (1, 1), (2, 2), (2, 0), (0, 1)])
def test_ksampler_is_the_formula(comfy, model, reference, loop, monkeypatch, sampler, faces, sounds):
    """Of the guided prediction, put in its place in the same sampler."""
    given = images(faces), voices(sounds)
    scales = 1.5 if faces else 0.0, 2.0 if sounds else 0.0
    guided = referring(comfy, model, video_cfg=scales[0], audio_cfg=scales[1])
    conds = with_persons(prompts(loop), *given)
    got = ksampler(comfy, guided, conds, sampler=sampler, cfg=3.0)
    predict_by(monkeypatch, formula(reference, loop, *given, *scales))
    expected = ksampler(comfy, guided, conds, sampler=sampler, cfg=3.0)
    assert_equal([scaled(got[0]), got[1]], [scaled(expected[0]), expected[1]], 2e-5)


def counted(comfy, model, conds):
    """How often the model runs in six steps behind EasyCache at a high threshold."""
    (cached,) = comfy.run(
        "EasyCache", model=model, reuse_threshold=10.0, start_percent=0.0, end_percent=1.0, verbose=False
    )
    with counted_passes(model) as calls:
        ksampler(comfy, cached, conds, steps=6)
    return len(calls)


def test_easycache_saves_as_many_steps_as_without_references(comfy, model, loop):
    comfy.core("nodes_easycache")
    without = counted(comfy, referring(comfy, model), prompts(loop))
    conds = with_persons(prompts(loop), images(1), voices(1))
    with_references = counted(comfy, referring(comfy, model, video_cfg=1.5, audio_cfg=2.0), conds)
    passes = 2  # the batch of positive and negative, and that of both without references
    assert 0 < without < 6
    assert with_references <= passes * without


def test_guidance_by_references_in_a_part_of_the_schedule(comfy, model, loop):
    """Where a modality is not guided, it is not guided by references either; a step of nothing takes one pass."""
    conds = with_persons(prompts(loop), images(1), voices(1))
    never = {"video": (0.1, 0.2), "audio": (0.1, 0.2)}  # the steps are at 0, 0.25, 0.5 and 0.75
    off = referring(comfy, model, video_cfg=1.5, audio_cfg=2.0, **never)
    plain = referring(comfy, model, **never)
    assert_equal(ksampler(comfy, off, conds), ksampler(comfy, plain, conds), 0.0)
    on = referring(comfy, model, video_cfg=1.5, audio_cfg=2.0)
    assert not torch.equal(ksampler(comfy, on, conds)[0], ksampler(comfy, plain, conds)[0])


def test_a_batch_has_the_same_persons(comfy, model, loop):
    """Each clip is as it would be alone, from its own noise."""
    conds = with_persons(prompts(loop), images(1), voices(1))
    guided = referring(comfy, model, video_cfg=1.5, audio_cfg=2.0)
    both = ksampler(comfy, guided, conds, empty(batch=2), steps=2)
    first = ksampler(comfy, guided, conds, steps=2)
    assert both[0].shape[0] == 2
    torch.testing.assert_close(both[0][0], ksampler(comfy, guided, conds, empty(batch=2), steps=2)[0][0])
    assert first[0].shape[0] == 1


def test_references_have_the_timestep_of_the_noise_whatever_a_mask_preserves(comfy, model, loop, monkeypatch):
    conds = with_persons(prompts(loop), images(2), voices(1))
    masks = [torch.zeros(1, 1, 4, 1, 1), torch.zeros(1, 1, 21)]
    masks[0][:, :, 1:] = 1
    latent = empty() | {"noise_mask": joint(masks[0].expand(1, 1, 4, 6, 8).contiguous(), masks[1])}
    spy = TimestepSpy(monkeypatch, model)
    ksampler(comfy, model, conds, latent, steps=2, cfg=1.0)
    for of_video, of_audio in spy.seen:
        t = of_video.max()
        assert t > 0
        assert of_video[0].tolist() == pytest.approx([0, *[t.item()] * 5])  # four latent frames and two faces
        assert of_audio[0].tolist() == pytest.approx([0] * 21 + [t.item()] * 3)  # the audio is preserved


def test_every_context_window_has_the_persons(comfy, model, loop, monkeypatch):
    shapes = ((1, 48, 9, 6, 8), (1, 20, 43))
    seen = []
    inner = model.model.diffusion_model
    original = inner._forward

    def forward(x, *args, **options):
        seen.append((x[0].shape[2], [tuple(each.shape) for each in options["reference_images"]]))
        return original(x, *args, **options)

    monkeypatch.setattr(inner, "_forward", forward)
    conds = with_persons(prompts(loop), images(1), voices(1))
    ksampler(comfy, windowed(comfy, model), conds, empty(shapes=shapes), steps=1, cfg=1.0)
    assert len(seen) > 1
    assert {frames for frames, _ in seen} <= {5, 6}
    assert all(given == [(1, 48, 1, 6, 8)] for _, given in seen)


def test_memory_counts_references(comfy, model, loop):
    import comfy.conds

    faces, sounds = images(2), voices(2)
    model.model.latent_format.shapes = [torch.Size(shape) for shape in SHAPES]
    whole = sum(math.prod(shape[1:]) for shape in SHAPES)
    given = {
        "reference_images": [comfy.conds.CONDList(faces).size()],
        "reference_voices": [comfy.conds.CONDList(sounds).size()],
    }
    config = model.model.diffusion_model.config
    longer = (SHAPES[0][2] + 2, *SHAPES[0][3:])
    expected = activation_bytes(config, 1, longer, SHAPES[1][2] + 3 + 5, element_size=4)
    assert model.model.memory_required([1, 1, whole], cond_shapes=given) == pytest.approx(expected, rel=1e-6)
    said = model.model.extra_conds_shapes(reference_latents=faces, reference_voices=sounds)
    assert said == {"reference_images": given["reference_images"][0], "reference_voices": given["reference_voices"][0]}


# The node

PROMPT = [[torch.zeros(1, 8, 64), {"ovi_prompt_style": "dreamid-omni"}]]


def person(comfy, positive=PROMPT, negative=PROMPT, **inputs):
    """Ovi Person with stand-in VAEs; the NodeOutput."""
    given = {"latent": empty(), "vae": BlockVAE(), "audio_vae": WindowVAE(), "voice_start": 0.0, "voice_seconds": 0.5}
    return comfy.node["OviPerson"].execute(positive=positive, negative=negative, **given | inputs)


def text(output):
    """The note on a node."""
    return output.ui["text"][0]


def test_two_persons_in_a_row(comfy):
    """Their order is who they are; both prompts have them."""
    first = person(comfy, face=random_frames(1), voice=tone(1.0))
    second = person(comfy, *first.args, face=random_frames(1), voice=tone(1.0, 8000))
    for conditioning in second.args:
        ((_, values),) = conditioning
        assert [tuple(latent.shape) for latent in values["reference_latents"]] == [(1, 48, 1, 6, 8)] * 2
        assert [tuple(latent.shape[:2]) for latent in values["reference_voices"]] == [(1, 20)] * 2
    assert "reference_latents" not in PROMPT[0][1]
    assert (text(first), text(second)) == ("<sub1>: a face and a voice", "<sub2>: a face and a voice")
    assert len(second.ui["images"]) == 1


def test_what_no_model_was_trained_for_is_said(comfy):
    assert text(person(comfy, face=random_frames(1))) == "<sub1>: a face alone, for which no model was trained"
    assert text(person(comfy, voice=tone(1.0))) == "<sub1>: a voice alone, for which no model was trained"
    other = [[torch.zeros(1, 8, 64), {"ovi_prompt_style": "960x960_5s"}]]
    said = text(person(comfy, other, other, face=random_frames(1), voice=tone(1.0)))
    assert said.startswith("Only DreamID-Omni knows persons: its prompt style is dreamid-omni\n")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "neither a face nor a voice"),
        ({"face": random_frames(1), "vae": None}, "a face but no VAE"),
        ({"voice": tone(1.0), "audio_vae": None}, "a voice but no VAE"),
        ({"face": random_frames(2)}, "one image"),
        ({"voice": tone(0.4)}, "The voice lasts 0.40 s, but 0 to 0.5 s of it are used"),
        ({"face": random_frames(1), "vae": WindowVAE()}, "The video VAE given is an audio VAE"),
        ({"voice": tone(1.0), "audio_vae": BlockVAE()}, "The audio VAE given is a video VAE"),
        ({"face": random_frames(1), "latent": {"samples": torch.zeros(1, 16, 8, 8)}}, "joint latent"),
    ],
)
def test_a_wrong_input_is_refused_in_a_sentence(comfy, inputs, message):
    with pytest.raises(ValueError, match=message):
        person(comfy, **inputs)


@pytest.mark.parametrize(("first", "second"), [("face", "voice"), ("voice", "face")])
def test_nobody_takes_the_place_of_another(comfy, first, second):
    media = {"face": random_frames(1), "voice": tone(1.0)}
    alone = person(comfy, **{first: media[first]})
    with pytest.raises(ValueError, match=f"Person 2 has a {second}, but person 1 has none"):
        person(comfy, *alone.args, **media)


def test_prompts_with_different_persons_are_refused(comfy):
    one = person(comfy, face=random_frames(1), voice=tone(1.0))
    with pytest.raises(ValueError, match="do not have the same persons"):
        person(comfy, one.args[0], PROMPT, face=random_frames(1), voice=tone(1.0))


@pytest.mark.parametrize(
    ("faces", "message"),
    [
        ([torch.zeros(1, 48, 1, 8, 8)], "prepared for 128x128, but the clip is 128x96"),
        ([torch.zeros(1, 48, 2, 6, 8)], "a person's face is one frame"),
        ([torch.zeros(1, 16, 6, 8)], "a person's face is one frame"),
    ],
)
def test_a_reference_latent_of_another_size_is_refused(comfy, model, loop, faces, message):
    """As from another latent at Ovi Person, or from core's ReferenceLatent."""
    conds = [[[text, {"reference_latents": faces}] for text, _ in prompt] for prompt in prompts(loop)]
    with pytest.raises(ValueError, match=message):
        ksampler(comfy, model, conds, steps=1)


@pytest.mark.parametrize(("scales", "what"), [({"video_cfg": 1.5}, "face"), ({"audio_cfg": 2.0}, "voice")])
def test_guidance_by_a_reference_that_is_not_there_is_refused(comfy, model, loop, scales, what):
    with pytest.raises(ValueError, match=f"_reference_cfg of .*, but the positive prompt has no {what}"):
        ksampler(comfy, referring(comfy, model, **scales), prompts(loop), steps=1)
