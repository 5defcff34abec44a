"""What a training may be besides plain: accumulated, in buckets, with other optimisers, on some layers."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from ovi import flow
from ovi.flow import Settings
from ovi.lora import Lora, add_lora, lora_file
from ovi.tools.optimizers import learning_rate
from support import golden_model
from support.training import LAYERS, SETTINGS, clips, gap, trainer

GIVEN = {"given_audio": 0.2, "given_prefix": 0.3, "passage": 0.3, "cut": 0.3, "given_references": 0.6}


@pytest.mark.parametrize("settings", [{}, GIVEN])
def test_accumulated_batches_are_one_batch(settings):
    """The same losses and weights from 4 samples in one, two or four parts, whatever is given in them."""
    whole, *parts = (
        trainer(dataclasses.replace(SETTINGS, batch=batch, accumulate=4 // batch, **settings), rank=4, samples=SAMPLES)
        for batch in (4, 2, 1)
    )
    expected = [whole.step() for _ in range(2)]
    for one in parts:
        torch.testing.assert_close([one.step() for _ in range(2)], expected, rtol=1e-5, atol=0)
        assert gap(one.trained, whole.trained) < 1e-5


SAMPLES = clips(6, persons=1, frames=4, latents=17)


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        ({"optimizer": "prodigy", "lr": 1.0}, {"layers": ("self_attn",)}),
        ({"optimizer": "adamw8bit"}, {"layers": ("ffn",), "tower": "audio"}),
        ({"schedule": "cosine", "ema": 0.0}, {"alpha": 8.0}),
        ({"accumulate": 2}, {"dropout": 0.3, "layers": ("ffn",)}),
        (GIVEN, {"tower": "audio"}),
    ],
)
def test_killed_and_resumed(tmp_path, settings, added):
    """The same losses and weights as without the kill, in every mode."""
    if settings.get("optimizer") in LIBRARIES:
        pytest.importorskip(LIBRARIES[settings["optimizer"]])
    odd = clips(3, persons=1)
    options = {
        "settings": dataclasses.replace(SETTINGS, **{"batch": 1} | settings),
        "steps": 4,
        "rank": 64,  # of matrices that are large enough for 8 bits
        "added": added,
        "samples": [*SAMPLES, *odd],
        "buckets": [range(6), range(6, 9)],
    }
    whole, killed, resumed = (trainer(**options) for _ in range(3))
    for _ in whole.run(tmp_path / "whole", 4):
        pass
    for _ in range(2):
        killed.step()
    killed.save(tmp_path / "state")
    torch.randn(3)  # what others draw changes nothing
    resumed.resume(tmp_path / "state")
    for _ in resumed.run(tmp_path / "state", 4):
        pass
    assert resumed.history == whole.history
    for kind in ("trained", "averaged"):
        weights = getattr(whole, kind)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in getattr(resumed, kind).items())


LIBRARIES = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}


@pytest.mark.parametrize(("name", "package"), LIBRARIES.items())
def test_a_missing_library_is_named(monkeypatch, name, package):
    for module in (package, f"{package}.optim"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"The optimiser {name} needs the Python package {package}: run pip install"):
        trainer(dataclasses.replace(SETTINGS, optimizer=name))


def test_batches_come_from_one_bucket(monkeypatch):
    """Clips of two sizes are trained in batches, each of one size, and all of them are used."""
    samples = [*clips(3), *clips(2, frames=3, latents=13)]
    run = trainer(samples=samples, buckets=[range(3), range(3, 5)])
    seen = [run._chosen(run.settings.batch) for _ in range(40)]
    assert {i for chosen in seen for i in chosen} == set(range(5))
    assert all(len({i < 3 for i in chosen}) == 1 for chosen in seen)
    run.step()


def test_one_bucket_draws_as_none():
    assert trainer(buckets=[range(3)]).step() == trainer().step()


def test_learning_rates():
    """The cosine begins where the warmup ends, and both schedules end at 0."""
    cosine = Settings(lr=1.0, warmup=2, schedule="cosine")
    rates = [learning_rate(cosine, step, 20) for step in (0, 1, 10, 20)]
    assert rates == pytest.approx([0.5, 0.99384417, 0.5, 0.0])
    assert learning_rate(Settings(lr=1.0, warmup=2), 10, 20) == 1.0


@pytest.mark.parametrize(
    ("added", "count"),
    [
        ({}, 2 * LAYERS * 12),
        ({"tower": "audio"}, LAYERS * 12),
        ({"layers": ("self_attn",)}, 2 * LAYERS * 4),
        ({"layers": ("ffn", "cross_attn"), "tower": "video"}, LAYERS * 8),
    ],
)
def test_layers_that_have_loras(added, count):
    """Others stay as they are and are not trained."""
    run = trainer(rank=2, added=added)
    assert len(run.trained) == 2 * count
    assert {name.split("_model")[0] for name in run.trained} == (
        {added["tower"]} if "tower" in added else {"video", "audio"}
    )
    layers = added.get("layers", ("self_attn", "cross_attn", "ffn"))
    assert all(any(f".{layer}." in name for layer in layers) for name in run.trained)


def test_alpha():
    """The product counts alpha / rank, in training and in the file."""
    model = golden_model.load()
    layer = model.video_model.blocks[0].ffn[0]
    add_lora(model, Lora(4, alpha=6.0))
    added = model.video_model.blocks[0].ffn[0]
    torch.nn.init.normal_(added.lora_B.weight)
    x = torch.randn(3, layer.in_features)
    change = added.lora_B.weight @ added.lora_A.weight
    torch.testing.assert_close(added(x) - layer(x), 1.5 * x @ change.T, rtol=1e-4, atol=1e-4)
    weights = {"a.lora_A.weight": torch.ones(4, 9), "a.lora_B.weight": torch.ones(9, 4)}
    assert lora_file(weights, 1.5).keys() - lora_file(weights, 1.0).keys() == {"diffusion_model.a.alpha"}
    assert lora_file(weights, 1.5)["diffusion_model.a.alpha"] == 6


def test_dropout():
    """A share of the inputs is zero in training, and none in use."""
    model = golden_model.load()
    add_lora(model, Lora(4, dropout=0.5))
    layer = model.audio_model.blocks[0].self_attn.q
    torch.nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(3, layer.base.in_features)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_an_average_that_forgets_at_once_is_the_last_weights():
    run = trainer(dataclasses.replace(SETTINGS, ema=0.0), rank=2)
    for _ in range(3):
        run.step()
    assert all(torch.equal(run.averaged[name], weights) for name, weights in run.trained.items())


def test_other_loras_are_not_resumed(tmp_path):
    trainer(rank=2).save(tmp_path / "state")
    with pytest.raises(ValueError, match=r"was trained with another LoRA alpha \(None\)"):
        trainer(rank=2, added={"alpha": 1.0}).resume(tmp_path / "state")
    with pytest.raises(ValueError, match=r"was trained with another LoRA tower \(both\)"):
        trainer(rank=2, added={"tower": "audio"}).resume(tmp_path / "state")


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"alpha": 0.0}, "The LoRA's alpha is 0.0, but must be a positive number"),
        ({"dropout": 1.0}, "The LoRA's dropout is 1.0, but must be from 0 to below 1"),
        ({"layers": ()}, "The LoRA's layers are none, but must be among self_attn, cross_attn, ffn"),
        ({"layers": ("norm",)}, "The LoRA's layers are norm"),
        ({"tower": "text"}, "The LoRA's tower is 'text', but must be one of both, video, audio"),
    ],
)
def test_loras_that_cannot_be_trained(added, message):
    with pytest.raises(ValueError, match=message):
        Lora(4, **added)


@pytest.mark.parametrize("name", ["optimizer", "schedule"])
def test_unknown_choices_are_refused(name):
    with pytest.raises(ValueError, match=f"The {name} is 'other', but must be one of"):
        Settings(**{name: "other"})


def test_parts_of_a_batch():
    """Each has its samples, and what counts in them adds up to 1."""
    settings = dataclasses.replace(SETTINGS, **GIVEN | {"cut": 1.0, "given_references": 1.0})
    whole = flow.noised(SAMPLES, torch.zeros(0, 64), settings, torch.Generator().manual_seed(0))
    parts = flow.divided(whole, 3)
    assert torch.equal(torch.cat([part.x[0] for part in parts]), whole.x[0])
    assert torch.equal(torch.cat([part.references.voices[0] for part in parts]), whole.references.voices[0])
    assert [part.cut_rows for part in parts] == [[True] * 2] * 3
    assert [sum(share) for share in zip(*flow.shares(whole, parts), strict=True)] == pytest.approx([1, 1])
