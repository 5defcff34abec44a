"""The trace of a training step's memory, beside what PyTorch allocates in a real one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench import training_memory
from ovi.config import OviConfig
from ovi.model import sdpa
from ovi.tools.convert import FORMATS
from support.allocated import allocated

SMALL = OviConfig(dim=256, num_heads=2, video_ffn_dim=1024, audio_ffn_dim=1024, audio_patch_dim=256, text_dim=128)
CLIP = 192, 128, 21
RANK = 16


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("base", FORMATS)
def test_the_trace_is_what_a_step_allocates(base, recompute):
    """Within 10 %."""
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, num_layers=1)
    trainer = training_memory.made(base, CLIP, config, sdpa, RANK, recompute=recompute)
    before = sum({tensor.data_ptr(): tensor.nbytes for tensor in training_memory.held(trainer)}.values())
    traced = training_memory.step_bytes(base, CLIP, rank=RANK, config=config, attention=sdpa, recompute=recompute)
    assert traced == pytest.approx(before + allocated(trainer.step), rel=0.1)
    assert traced > 1.3 * before
