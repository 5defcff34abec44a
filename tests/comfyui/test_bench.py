"""The models that the bench compares are made and called as it does."""

from __future__ import annotations

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
