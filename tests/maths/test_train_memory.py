"""Training in less memory: blocks and activations in RAM, for the same numbers."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi import flow
from ovi.lora import LORA_LAYERS, Lora, LoraLinear, add_lora
from ovi.tools import convert, offload
from ovi.tools import train as tool
from ovi.tools.frozen import FrozenLinear
from ovi.tools.trainer import Trainer
from support import golden_model
from support.training import EMPTY, LAYERS, SETTINGS, clips, tensors

BASES = ["fp32", "fp8", "nvfp4"]
SETTING = dataclasses.replace(SETTINGS, accumulate=2, batch=1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The first layers of the golden model in a file, as each base."""
    folder = tmp_path_factory.mktemp("bases")
    paths = {name: folder / f"{name}.safetensors" for name in BASES}
    golden_model.write(paths["fp32"], LAYERS)
    for name in BASES[1:]:
        assert convert.main(["quantize", str(paths["fp32"]), str(paths[name]), "--format", name]) == 0
    return paths


def trained(path, blocks=0, layers=LORA_LAYERS, samples=None, **options):
    """Return a trainer of LoRAs on a base, some blocks of which are in RAM."""
    model, _ = tool.load([path])
    model.requires_grad_(False)
    offload.place(model, "cpu", blocks)
    torch.manual_seed(0)
    lora = Lora(4, layers=layers)
    add_lora(model, lora, "cpu")
    options |= {"empty": EMPTY, "lora": lora, "recompute": True, "autocast": True}
    return Trainer(model, samples or clips(), SETTING, 4, **options)


def assert_same(one, other):
    """The same losses and weights, bit for bit."""
    assert one.history == other.history
    for kind in ("trained", "averaged"):
        weights = getattr(other, kind)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in getattr(one, kind).items())


def away(model):
    """By block, whether its frozen linear layers are all off the device, where any use of them would fail."""
    found = []
    for pair in zip(model.video_model.blocks, model.audio_model.blocks, strict=True):
        layers = [m for block in pair for m in block.modules() if isinstance(m, (torch.nn.Linear, FrozenLinear))]
        frozen = [m for m in layers if not any(p.requires_grad for p in m.parameters())]
        assert {p.device.type for m in layers if m not in frozen for p in m.parameters()} <= {"cpu"}
        places = {p.device.type for m in frozen for p in m.parameters()}
        assert len(places) == 1
        found.append(places == {"meta"})
    return found


@pytest.mark.parametrize(("base", "layers"), [("fp32", LORA_LAYERS), ("fp8", ("ffn",)), ("nvfp4", ("ffn",))])
def test_blocks_in_ram_change_nothing(bases, base, layers):
    """Each layer is on the device while it runs, and only then; those of the other blocks stay there."""
    pytest.importorskip("accelerate")
    expected = trained(bases[base], layers=layers)
    run = trained(bases[base], 1, layers=layers)
    seen = []
    for i, block in enumerate(run.model.video_model.blocks):
        block.norm1.register_forward_pre_hook(lambda *_, i=i: seen.append((i, away(run.model))))
    for one in (expected, run):
        for _ in range(2):
            one.step()
    assert_same(run, expected)
    parts = 2 * SETTING.accumulate
    # In the forward pass, and once more from the last block to the first.
    assert [i for i, _ in seen] == parts * [0, 1, 1, 0]
    assert all(places == [False, True] for _, places in seen)
    assert away(run.model) == [False, True]
    assert away(expected.model) == [False, False]
    adapted = [m for m in run.model.modules() if isinstance(m, LoraLinear)]
    assert len(adapted) == sum(1 for name in expected.trained if ".lora_A." in name)


@pytest.mark.parametrize("missing", [None, "video", "audio"])
def test_activations_in_ram_change_nothing(bases, monkeypatch, missing):
    """What the blocks get is stored by way of RAM: video and audio of each block, and nothing else."""
    samples = [clip._replace(**{missing: None}) if missing else clip for clip in clips()]
    expected = trained(bases["fp32"], samples=samples)
    packed = []

    class Noted(torch.autograd.graph.save_on_cpu):
        def __init__(self, **options):
            super().__init__(**options)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: packed.append(tensor.shape) or pack(tensor)

    monkeypatch.setattr(offload, "save_on_cpu", Noted)
    run = trained(bases["fp32"], samples=samples, offload_activations=True)
    for one in (expected, run):
        one.step()
    assert_same(run, expected)
    dim = run.model.config.dim
    each = {"video": (1, 8, dim), "audio": (1, 9, dim)}
    assert packed == SETTING.accumulate * LAYERS * [shape for name, shape in each.items() if name != missing]


@pytest.mark.parametrize("missing", ["video", "audio"])
def test_blocks_of_one_tower_are_recomputed(bases, missing):
    """Of each block its input alone is stored, for the same gradients."""
    samples = [clip._replace(**{missing: None}) for clip in clips(1)]
    batch = flow.noised(samples, EMPTY, SETTINGS, torch.Generator().manual_seed(0))
    sizes, gradients, saved = [], [], []
    for options in ({}, {"transformer_options": offload.recompute_blocks(LAYERS)}):
        model, _ = tool.load([bases["fp32"]])
        model.requires_grad_(True)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda own: own):
            found = flow.losses(partial(model, **options), batch)
        sum(found).backward()
        sizes.append(len(saved))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert sizes[1] < sizes[0] / 4
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_killed_and_resumed(bases, tmp_path):
    pytest.importorskip("accelerate")
    whole, killed, resumed = (trained(bases["nvfp4"], LAYERS, offload_activations=True) for _ in range(3))
    for _ in range(2):
        whole.step()
    killed.step()
    killed.save(tmp_path / "state")
    resumed.resume(tmp_path / "state")
    resumed.step()
    assert_same(resumed, whole)


def command(folder, bases, *options):
    """Run the command line on the golden model."""
    (folder / "clips").mkdir(exist_ok=True)
    save_file(tensors(clips(1)[0]), folder / "clips" / "0.safetensors")
    paths = [str(bases["fp32"]), "--clips", str(folder / "clips"), "--out", str(folder / "out.safetensors")]
    return tool.main([*paths, "--device", "cpu", "--steps", "1", *options])


def test_the_command_line_saves_memory(bases, tmp_path):
    """The same file as without."""
    pytest.importorskip("accelerate")
    assert command(tmp_path, bases, "--rank", "2") == 0
    expected = load_file(tmp_path / "out.safetensors")
    for left in tmp_path.glob("out*"):
        left.unlink()
    assert command(tmp_path, bases, "--rank", "2", "--offload-blocks", "2", "--offload-activations") == 0
    found = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--offload-blocks 3", "--offload-blocks is 3, but must be from 0 to 2, the model's number of blocks"),
        ("--offload-blocks -1", "--offload-blocks is -1, but must be from 0"),
        ("--offload-blocks 1 --rank 0", "--offload-blocks is for weights that are not trained; set --rank above 0"),
        ("--offload-blocks 1 --keep-activations", "--offload-blocks needs activations that are recomputed; leave out"),
        ("--offload-activations --keep-activations", "--offload-activations needs activations that are recomputed"),
        ("--shard", "--shard needs several processes: start the training by torchrun or accelerate launch"),
    ],
)
def test_what_does_not_go_together(bases, tmp_path, capsys, options, message):
    assert command(tmp_path, bases, *options.split()) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_library_is_named(bases, tmp_path, capsys, monkeypatch):
    for module in ("accelerate", "accelerate.hooks"):
        monkeypatch.setitem(sys.modules, module, None)
    assert command(tmp_path, bases, "--offload-blocks", "1") == 2
    assert "--offload-blocks needs the Python package accelerate: run pip install accelerate" in capsys.readouterr().err
