"""The models that the bench compares are made and called as it does, and a device is measured as it does."""

from __future__ import annotations

import re

import pytest
import torch

from ovi.model import OviModel
from support import golden_model

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]


def test_ovi_as_the_bench_runs_it(comfy, x):
    """With one text for both towers, the video alone as well: the same as in plain PyTorch."""
    from bench import comfyui

    latents, *rest = x
    config = golden_model.load().config
    plain, native = OviModel(config), comfyui.ovi(config)
    native.load_state_dict(golden_model.load().state_dict())
    plain.load_state_dict(golden_model.load().state_dict())
    for given in (latents, [latents[0], None]):
        for got, expected in zip(native(given, *rest), plain(given, *rest), strict=True):
            assert (got is None) == (expected is None)
            assert got is None or torch.allclose(got, expected, atol=1e-5)


def test_the_bench_of_a_device(comfy, vae):
    """Each row of both tables, of a tiny model on the CPU, whose memory is not counted, and of a tiny VAE."""
    from bench import device

    rows = list(device.passes(golden_model.load().config, torch.device("cpu"), [(64, 64, 5)]))
    rows.append(device.decoding(vae, torch.randn(1, 48, 2, 4, 4), "video", turns=1))
    size = r"\d+\.\d\d GB"
    measured = rf"( float32 \|)? \d+\.\d\d s \| (not counted|{size}) (\| {size} ){{1,2}}\|"
    for row, name in zip(rows, ("64 x 64 x 5, batch 1", "64 x 64 x 5, batch 2", "video"), strict=True):
        assert re.fullmatch(rf"\| {name} \|{measured}", row)
