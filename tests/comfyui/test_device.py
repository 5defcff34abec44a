"""What a device beside the CPU can show: tensors left behind, copies between both, and what stays in its memory.

The emulated device (`nox -s device`) counts copies, and so do these tests; a card counts its live bytes alone.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, reduce
from typing import Any, NamedTuple

import pytest
import torch

from ovi.flow import Settings
from ovi.lora import LoraLinear, add_lora
from ovi.tools.train import Trainer
from support import golden_model
from support.sampling import (
    SHAPES,
    assert_equal,
    empty,
    guide,
    joint,
    ksampler,
    prompts,
    with_persons,
)
from support.training import clips

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("needs_a_device")]


@pytest.fixture
def needs_a_device(request):
    """Skip where ComfyUI computes on the CPU."""
    if request.config.getoption("--device") == "cpu":
        pytest.skip("ComfyUI computes on the CPU; 'nox -s device' has another device")


@pytest.fixture
def emulated(request, needs_a_device):
    """The emulated device, which counts copies."""
    if request.config.getoption("--device") != "emulated":
        pytest.skip("only the emulated device counts copies")
    from support import emulated

    return emulated


@pytest.fixture
def live(request, needs_a_device):
    """Return the bytes that live on the device."""
    if request.config.getoption("--device") == "cuda":
        return torch.cuda.memory_allocated
    from support import emulated

    return emulated.LIVE.bytes


def on_the_cpu(function, position):
    """Return a function that gets one of its arguments, alone or in a list, from the CPU."""

    def faulty(*args, **kwargs):
        args = list(args)
        given = args[position]
        args[position] = [each.cpu() for each in given] if isinstance(given, list) else given.cpu()
        return function(*args, **kwargs)

    return faulty


def result_on_the_cpu(function):
    """Return a function that leaves its result on the CPU."""
    return lambda *args, **kwargs: function(*args, **kwargs).cpu()


class Fault(NamedTuple):
    """A function of the pack that is changed, how, and the test, in which file, that fails by it."""

    module: str
    function: str
    spoil: Callable[[Any], Any]
    file: str
    test: str


FORMULA = "test_ksampler_with_guidance_is_the_guidance_formula"
LEFT = partial(on_the_cpu, position=1)
PLANTED = {
    "rope table": Fault("ovi.rope", "video_table", result_on_the_cpu, "test_native", FORMULA),
    "mask": Fault("ovi.native.model", "_masked", LEFT, "test_native", "test_two_stages_preserve_what_the_mask_does"),
    "text": Fault(
        "ovi.model", "VideoTower.embed_text", LEFT, "test_native", "test_positive_and_negative_share_a_batch"
    ),
    "reference latent": Fault(
        "ovi.references", "append", LEFT, "test_persons", "test_easycache_saves_as_many_steps_as_without_references"
    ),
}


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("planted", PLANTED)
def test_a_tensor_left_on_the_cpu_fails_a_test(comfy, model, loop, monkeypatch, planted):
    """One that passes without the fault, as this suite shows."""
    fault = PLANTED[planted]
    *owner, name = fault.function.split(".")
    holder = reduce(getattr, owner, comfy.module(fault.module))
    monkeypatch.setattr(holder, name, fault.spoil(getattr(holder, name)))
    with pytest.raises(RuntimeError, match="same device"):
        getattr(importlib.import_module(fault.file), fault.test)(comfy, model, loop)


def trained(device, steps=4, **options):
    """Train LoRAs on the golden model; return the Trainer."""
    torch.manual_seed(0)
    model = golden_model.load()
    add_lora(model, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.05)  # or the first step would change one of the two matrices alone
    trainer = Trainer(model.to(device), clips(), Settings(batch=2, lr=1e-3, warmup=2), steps, **options)
    for _ in range(steps):
        trainer.step()
    return trainer


@pytest.fixture
def device(request, needs_a_device, comfy):
    """The device of the tests, on which autograd runs."""
    from comfy import model_management

    device = model_management.get_torch_device()
    with request.getfixturevalue("emulated").autograd() if device.type == "opencl" else nullcontext():
        yield device


@pytest.mark.parametrize("recompute", [False, True])
def test_training_is_that_of_the_cpu(device, tmp_path, recompute):
    """Losses and weights, in float32; and the state goes on from a file."""
    expected, got = trained("cpu"), trained(device, recompute=recompute)
    assert got.history == [pytest.approx(losses, rel=1e-4) for losses in expected.history]
    for name, weight in expected.averaged.items():
        torch.testing.assert_close(got.averaged[name].cpu(), weight, atol=1e-4, rtol=0)
    got.save(tmp_path / "state")
    again = trained(device, steps=0)
    again.resume(tmp_path / "state")
    again.steps = 5
    assert all(map(torch.isfinite, map(torch.tensor, again.step())))


def test_a_lora_s_matrix_left_on_the_cpu_fails_a_test(device, tmp_path, monkeypatch):
    """The fifth fault: `test_training_is_that_of_the_cpu` fails by it."""

    def forward(self, x):
        return self.base(x) + self.lora_B(torch.nn.functional.linear(x, self.lora_A.weight.cpu()))

    monkeypatch.setattr(LoraLinear, "forward", forward)
    with pytest.raises(RuntimeError, match="same device"):
        test_training_is_that_of_the_cpu(device, tmp_path, False)


def copies(emulated, run):
    """Count the copies between the devices in a run: (from, to, shape, bytes)."""
    with emulated.traffic() as traffic:
        run()
    return Counter(traffic.copies)


def masked():
    """A masked clip."""
    masks = [torch.ones(1, 1, *SHAPES[0][2:]), torch.ones(1, 1, SHAPES[1][2])]
    masks[0][:, :, 0] = 0
    return empty() | {"noise_mask": joint(*masks)}


@pytest.mark.usefixtures("inference")
def test_copies_of_a_loaded_model(comfy, emulated, load, golden_file, loop):
    """A step copies scalars and the small tables of the axes; noise, texts, masks and references travel once a run."""
    model = guide(comfy, load(golden_file))
    draw = torch.Generator().manual_seed(0)
    face, voice = torch.randn(1, 48, 1, *SHAPES[0][3:], generator=draw), torch.randn(1, 20, 5, generator=draw)
    conds = with_persons(prompts(loop), [face], [voice])
    run = partial(ksampler, comfy, model, conds, masked())
    run(steps=1)  # which loads it
    few, many = (copies(emulated, partial(run, steps=steps)) for steps in (2, 5))
    # The schedule has a number for each step; what else differs belongs to the three steps more.
    schedules = {shape for _, _, shape, _ in few - many}
    assert schedules <= {(2,), (3,), (2, 3)}
    more = {copy: count for copy, count in (many - few).items() if copy[2] not in ((5,), (6,))}
    tables = {copy: count for copy, count in more.items() if torch.Size(copy[2]).numel() > 1}
    assert list(tables.values()) == [3] * 4, tables  # of frames, rows, columns and audio, once a pass
    assert all(target != "cpu" and shape[2:] == (2, 2) for _, target, shape, _ in tables)


@pytest.fixture
def half_fits(monkeypatch):
    """Let ComfyUI find room for about half of a MODEL on the device."""
    from comfy import model_management

    def limit(model):
        model_management.unload_all_models()
        room = model_management.minimum_inference_memory() + model.model_size() // 2

        def free_memory(dev=None, torch_free_too=False):
            free = room - model.loaded_size()
            return (free, free) if torch_free_too else free

        monkeypatch.setattr(model_management, "get_free_memory", free_memory)

    return limit


def offloaded(model):
    """How often a pass reads each weight that stayed on the CPU, by shape and bytes: once, a block's modulation twice.

    The texts' embedding is left out: a pass does not read it.
    """
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    for name, weight in model.model.diffusion_model.state_dict().items():
        if weight.device.type == "cpu" and "text_embedding" not in name:
            found[tuple(weight.shape), weight.nbytes] += 1 + name.endswith(".modulation.modulation")
    return found


@pytest.mark.usefixtures("inference")
def test_copies_of_a_partly_loaded_model(comfy, emulated, load, golden_file, loop, half_fits):
    """Besides those of a loaded one: exactly the weights that stay on the CPU, in each pass. The clip is the same."""
    model = load(golden_file)
    run = partial(ksampler, comfy, guide(comfy, model, skip=""), prompts(loop))
    whole = run(steps=3)
    loaded = copies(emulated, partial(run, steps=3)) - copies(emulated, partial(run, steps=2))
    half_fits(model)
    assert_equal(run(steps=3), whole, 1e-5)
    stayed = offloaded(model)
    assert 0.2 * model.model_size() < sum(size * n for (_, size), n in stayed.items()) < 0.8 * model.model_size()
    partly = copies(emulated, partial(run, steps=3)) - copies(emulated, partial(run, steps=2))
    more = partly - loaded
    assert Counter({(shape, size): n for (_, to, shape, size), n in more.items() if to != "cpu"}) == stayed
    assert not [copy for copy in more if copy[1] == "cpu"]


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("partly", [False, True])
def test_nothing_stays_behind(comfy, live, load, golden_file, loop, half_fits, partly):
    """After two runs and after twenty as many bytes live, with a LoRA and without, loaded and unloaded in between."""
    from comfy import model_management, sd

    model = load(golden_file)
    weight = model.model.diffusion_model.video_model.blocks[1].ffn[0].weight
    lora = {"diffusion_model.video_model.blocks.1.ffn.0.diff": 0.1 * torch.ones(weight.shape)}
    patched, _ = sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    if partly:
        half_fits(model)
    sizes, clips = [], []
    for turn in range(20):
        for each in (patched, model):
            clips.append(ksampler(comfy, guide(comfy, each), prompts(loop), steps=1))
            if turn % 2:
                model_management.unload_all_models()
        sizes.append(live())
    assert sizes[19] == sizes[1]
    assert sizes[18] == sizes[2]
    for each in (0, 1):
        assert_equal(clips[-2 + each], clips[each], 1e-6)
    assert not torch.allclose(clips[0][0], clips[1][0], atol=1e-3)
