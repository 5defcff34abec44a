"""Ovi Parallel on devices for which the CPU stands: core's own clones, threads and nodes."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
import torch

from ovi.tools.convert import main
from support import golden_model
from support.sampling import (
    SHAPES,
    assert_equal,
    empty,
    error,
    guide,
    joint,
    ksampler,
    prompts,
    unscaled,
    windowed,
    with_persons,
)

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]

RUN = 3e-5  # of a run; what core's samplers make of 5e-6 a pass


@pytest.fixture(scope="module")
def conds(loop):
    return prompts(loop)


def clones(model):
    """The clones of a MODEL for further devices."""
    return model.get_additional_models_with_key("multigpu")


@contextmanager
def passes(*models):
    """Yield a list of (rows, video tokens of a frame) of each pass of a device, in any order."""
    found = []
    blocks = [model.model.diffusion_model.video_model.blocks[0] for model in models]
    hooks = [
        block.norm1.register_forward_pre_hook(lambda _, args: found.append((len(args[0]), args[0].shape[1])))
        for block in blocks
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("gpus", "shares", "cfg", "rows"),
    [
        (2, "auto", 4.0, [(1, 48)] * 2),  # cfg alone
        (2, "auto", 1.0, [(1, 24)] * 2),  # tokens alone
        (3, "auto", 4.0, [(2, 16)] * 3),
        (4, "auto", 4.0, [(1, 24)] * 4),  # both
        (4, "auto", 1.0, [(1, 12)] * 4),
        (2, "3, 1", 4.0, [(2, 36), (2, 12)]),
    ],
)
def test_devices(comfy, shared_out, model, conds, gpus, shares, cfg, rows):
    """Each does its part of the rows and of the tokens (12 in each of 4 frames), and the clip is the same."""
    shared = shared_out(model, gpus, shares)
    with passes(shared, *clones(shared)) as found:
        got = ksampler(comfy, shared, conds, cfg=cfg, steps=2)
    assert sorted(found) == sorted(2 * rows)
    assert_equal(got, ksampler(comfy, model, conds, cfg=cfg, steps=2), RUN)


def lora(comfy, model):
    """A MODEL with a LoRA on both towers."""
    draw, sd = torch.Generator().manual_seed(3), {}
    for tower in ("video_model", "audio_model"):
        for layer in ("self_attn.q", "ffn.0", "cross_attn.v_fusion"):
            key = f"{tower}.blocks.1.{layer}"
            rows, columns = model.model.diffusion_model.get_submodule(key).weight.shape
            sd[f"diffusion_model.{key}.lora_B.weight"] = 0.1 * torch.randn(rows, 2, generator=draw)
            sd[f"diffusion_model.{key}.lora_A.weight"] = 0.1 * torch.randn(2, columns, generator=draw)
    return comfy.module("ovi.native.lora").apply(model, sd, 1.0, 1.0)[0]


def cached(name):
    """Core's EasyCache or LazyCache, with a threshold that skips steps."""

    def change(comfy, model):
        comfy.core("nodes_easycache")
        options = {"start_percent": 0.0, "end_percent": 1.0, "verbose": False, "reuse_threshold": 0.5}
        return comfy.run(name, model=guide(comfy, model), **options)[0]

    return change


def guided(**options):
    """Ovi Guidance."""
    return lambda comfy, model: guide(comfy, model, **options)


CHANGES = {
    "guidance": guided(),
    "guidance of the audio alone": guided(skip="", video=(0.4, 0.5)),
    "guidance in a part": guided(start=0.3, end=0.7, video=(0.3, 1.0), audio=(0.0, 0.6)),
    "synchrony": guided(sync_scale=2.0, sync_end_percent=0.6),
    "two shifts": guided(audio_shift=2.0),
    "a LoRA": lambda comfy, model: guide(comfy, lora(comfy, model)),
    "EasyCache": cached("EasyCache"),
    "LazyCache": cached("LazyCache"),
}


@pytest.mark.parametrize(
    ("name", "before"),
    [(name, True) for name in CHANGES] + [(name, False) for name in ("guidance", "a LoRA", "EasyCache")],
)
def test_what_else_changes_the_model(comfy, shared_out, model, conds, name, before):
    """Before or after Ovi Parallel, on four devices."""
    change, steps = CHANGES[name], 5 if "Cache" in name else 2
    shared = shared_out(change(comfy, model), 4) if before else change(comfy, shared_out(model, 4))
    expected = ksampler(comfy, change(comfy, model), conds, steps=steps)
    assert_equal(ksampler(comfy, shared, conds, steps=steps), expected, RUN)


def masked(shapes=SHAPES):
    """A clip whose first frame and first five audio latents are preserved."""
    draw = torch.Generator().manual_seed(2)
    masks = [torch.ones(1, 1, *shapes[0][2:]), torch.ones(1, 1, shapes[1][2])]
    masks[0][:, :, 0] = 0
    masks[1][..., :5] = 0
    parts = [torch.randn(shape, generator=draw) for shape in shapes]
    return {"samples": joint(unscaled(parts[0]), parts[1]), "noise_mask": joint(*masks)}


def odd():
    """A clip with odd edges: 20 tokens in each of 3 frames."""
    return empty(shapes=((1, 48, 3, 7, 9), (1, 20, 13)))


@pytest.mark.parametrize("latent", [masked, odd, lambda: empty(2)], ids=["image to video", "odd edges", "batch"])
def test_latents(comfy, shared_out, model, conds, latent):
    alone, shared = guide(comfy, model), guide(comfy, shared_out(model, 4))
    assert_equal(*(ksampler(comfy, each, conds, latent(), steps=2) for each in (shared, alone)), RUN)


def test_context_windows(comfy, shared_out, model, conds):
    shapes = (1, 48, 13, 4, 6), (1, 20, 64)
    expected = ksampler(comfy, windowed(comfy, guide(comfy, model)), conds, masked(shapes), steps=2)
    shared = windowed(comfy, guide(comfy, shared_out(model, 3)))
    assert_equal(ksampler(comfy, shared, conds, masked(shapes), steps=2), expected, RUN)


def test_persons(comfy, shared_out, model, conds):
    """With passes without faces and voices."""
    draw = torch.Generator().manual_seed(1)
    face, voice = torch.randn(1, 48, 1, *SHAPES[0][3:], generator=draw), torch.randn(1, 20, 5, generator=draw)
    conds = with_persons(conds, [face, -face], [voice])
    scales = {"skip": "", "video_reference_cfg": 1.5, "audio_reference_cfg": 2.0}
    expected = ksampler(comfy, guide(comfy, model, **scales), conds, steps=2)
    assert_equal(ksampler(comfy, guide(comfy, shared_out(model, 4), **scales), conds, steps=2), expected, RUN)


@pytest.mark.parametrize("form", ["fp8", "nvfp4", "int8"])
def test_quantised_files(comfy, shared_out, model, conds, tmp_path, form):
    """Computed in float32, as a CPU does; int8 layers round their inputs, too, some of them the other way then."""
    out = tmp_path / "out.safetensors"
    assert main(["quantize", str(golden_model.MODEL), str(out), "--format", form]) == 0
    quantised = comfy.module("ovi.native").load([str(out)])
    expected, got, exact = (
        ksampler(comfy, guide(comfy, each), conds, steps=2) for each in (quantised, shared_out(quantised, 3), model)
    )
    if form == "int8":
        assert error(got, expected) < error(expected, exact)
    else:
        assert_equal(got, expected, RUN)


def test_previews(comfy, shared_out, model, conds, monkeypatch):
    import latent_preview
    from comfy import utils

    previews = []
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(utils, "PROGRESS_BAR_HOOK", lambda *args, **_: previews.append(args[2]))
    monkeypatch.setattr(utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)
    ksampler(comfy, shared_out(model, 3), conds, steps=2)
    assert len([preview for preview in previews if preview is not None]) == 2


def test_replaced_blocks_and_attention(comfy, shared_out, model, conds):
    """What other nodes put in their place runs on each device, with its prompts."""
    seen = set()

    def block(args, extra):
        seen.add((tuple(args["transformer_options"]["cond_or_uncond"]), len(args["img"][0])))
        return extra["original_block"](args)

    def attention(original, *args, **kwargs):
        return original(*args, **kwargs)

    shared = shared_out(model, 4)
    shared.set_model_patch_replace(block, "dit", "double_block", 1)
    shared.model_options["transformer_options"]["optimized_attention_override"] = attention
    expected = ksampler(comfy, model, conds, empty(2), steps=2)
    assert_equal(ksampler(comfy, shared, conds, empty(2), steps=2), expected, RUN)
    assert seen == {((0,), 1), ((1,), 1)}


def test_a_device_counts_its_share_of_the_memory(comfy, shared_out, model, conds):
    """While the run loads and samples, and not afterwards."""
    inner, found = model.model, []
    original = inner.memory_required

    def required(*args, **kwargs):
        found.append((inner.shared_by, original(*args, **kwargs)))
        return found[-1][1]

    inner.memory_required = required
    try:
        ksampler(comfy, shared_out(model, 3), conds, steps=1)
        shared, count = found[:], len(found)
        ksampler(comfy, model, conds, steps=1)
    finally:
        del inner.memory_required
    assert [(1, 3 * size) for _, size in shared] == found[count:]
    assert {devices for devices, _ in shared} == {3}


@contextmanager
def hooked(model, hook):
    """Call `hook` at the feed-forward of the second block of a MODEL."""
    handle = model.model.diffusion_model.video_model.blocks[1].ffn[0].register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# That of the MODEL, and the last one.
@pytest.mark.parametrize("device", [0, 3])
def test_a_device_that_fails(comfy, shared_out, model, conds, device):
    """Its own error is raised; a run after it, and one without the node, are as ever."""
    shared = shared_out(model, 4)
    expected = ksampler(comfy, model, conds, steps=1)
    failing = [shared, *clones(shared)][device]

    def fail(*_):
        raise ArithmeticError("out of numbers")

    with hooked(failing, fail), pytest.raises(ArithmeticError, match="out of numbers"):
        ksampler(comfy, shared, conds, steps=1)
    assert_equal(ksampler(comfy, shared, conds, steps=1), expected, RUN)
    assert_equal(ksampler(comfy, model, conds, steps=1), expected, 0.0)


def test_cancelling(comfy, shared_out, model, conds):
    """It stops the run within a pass, and another one runs."""
    from comfy import model_management as management

    shared = shared_out(model, 4)
    with hooked(clones(shared)[0], lambda *_: management.interrupt_current_processing(True)):
        try:
            with pytest.raises(management.InterruptProcessingException):
                ksampler(comfy, shared, conds, steps=2)
        finally:
            management.interrupt_current_processing(False)
    assert_equal(*(ksampler(comfy, each, conds, steps=1) for each in (shared, model)), RUN)


def test_clones_that_were_unloaded(comfy, shared_out, model, conds):
    from comfy import model_management as management

    shared = shared_out(model, 3)
    expected = ksampler(comfy, shared, conds, steps=1)
    management.unload_all_models()
    assert_equal(ksampler(comfy, shared, conds, steps=1), expected, 0.0)


def test_one_gpu_changes_nothing(model, shared_out):
    assert shared_out(model, 1, "3, 2") is model


@pytest.fixture
def tidy(monkeypatch):
    """Make ComfyUI forget what it has loaded: a MODEL that is gone may be among it, over which its own node fails."""
    from comfy import model_management as management

    monkeypatch.setattr(management, "current_loaded_models", [])


@pytest.mark.usefixtures("tidy")
def test_loaded_clones_are_used_again(comfy, shared_out, model, conds):
    shared = shared_out(model, 3)
    ksampler(comfy, shared, conds, steps=1)
    again = shared_out(guide(comfy, model), 3)
    assert all(a.model is b.model for a, b in zip(clones(again), clones(shared), strict=True))


def test_a_loaded_model_that_is_gone(shared_out, model, monkeypatch):
    """It does not keep the node from making clones."""
    from comfy import model_management as management

    monkeypatch.setattr(management, "loaded_models", lambda: [None])
    assert len(clones(shared_out(model, 3))) == 2


def compiled(comfy, model):
    comfy.core("nodes_torch_compile")
    return comfy.run("TorchCompileModel", model=model, backend="eager")[0]


def split_again(comfy, model):
    comfy.core("nodes_multigpu")
    return comfy.run("MultiGPU_WorkUnits", model=model, max_gpus=3)[0]


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    ("after", "message"),
    [
        (compiled, "cannot share out a compiled MODEL.*leave out.*'TorchCompileModel'"),
        (split_again, "ready for 2 GPUs, but after it another node set it to 3: leave out 'MultiGPU CFG Split'"),
    ],
)
def test_what_cannot_be_shared_out(comfy, shared_out, load, golden_file, conds, after, message):
    with pytest.raises(ValueError, match=message):
        ksampler(comfy, after(comfy, shared_out(load(golden_file))), conds, steps=1)


def test_hooks_are_refused(comfy, shared_out, load, golden_file, conds):
    from comfy import hooks

    group = hooks.create_hook_lora({}, 1.0, 1.0)
    hooked_conds = [[[text, values | {"hooks": group}] for text, values in prompt] for prompt in conds]
    with pytest.raises(ValueError, match="cannot follow hooks"):
        ksampler(comfy, shared_out(load(golden_file)), hooked_conds, steps=1)


@pytest.mark.parametrize(
    ("gpus", "shares", "message"),
    [
        (5, "auto", "set to 5 GPUs, but ComfyUI has 4: set 'gpus' to 4 or less"),
        (2, "1", 'shares "1" are not 2 numbers above 0'),
    ],
)
def test_refusals(shared_out, model, gpus, shares, message):
    with pytest.raises(ValueError, match=message):
        shared_out(model, gpus, shares)


def test_only_once(shared_out, model):
    with pytest.raises(ValueError, match="been through an Ovi Parallel already"):
        shared_out(shared_out(model))


def test_a_comfyui_without_the_engine(comfy, shared_out, model, monkeypatch):
    """It loads the pack, and the node says what it needs."""
    monkeypatch.setattr(comfy.module("ovi.native.parallel"), "multigpu", None)
    with pytest.raises(ValueError, match=r"Several GPUs need ComfyUI 0\.24 or later; update ComfyUI"):
        shared_out(model)
    assert shared_out(model, 1) is model


def test_a_gpu_that_does_not_answer(comfy):
    parallel = comfy.module("ovi.native.parallel")
    with pytest.raises(RuntimeError, match=r"did not answer within 600 seconds.*leave this GPU out"):
        parallel._raise_first([threading.BrokenBarrierError()])
