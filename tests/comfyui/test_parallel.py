"""Ovi Parallel on devices for which the CPU stands: core's own clones, threads and nodes."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
import torch

from support.sampling import (
    SHAPES,
    assert_equal,
    empty,
    guide,
    ksampler,
    prompts,
    split,
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
