"""The trace of the memory of a step of distillation, beside what PyTorch allocates in a real one."""

from __future__ import annotations

import pytest
import torch

from bench import distillation_memory
from ovi.config import OviConfig
from ovi.model import sdpa
from ovi.tools.distiller import Distiller
from support.allocated import allocated

SMALL = OviConfig(
    dim=256, num_heads=2, num_layers=1, video_ffn_dim=1024, audio_ffn_dim=1024, audio_patch_dim=256, text_dim=128
)
CLIP = 192, 128, 21
RANK = 16


@pytest.mark.parametrize("stage", distillation_memory.STAGES)
def test_the_trace_is_what_a_step_allocates(stage):
    """Within 10 %; the passes without a gradient are in it, and the critic's numbers."""
    torch.manual_seed(0)
    size = "bf16", CLIP, SMALL, sdpa, RANK
    run = distillation_memory.made(stage, *size, kind=Distiller, recompute=True)
    there = {tensor.data_ptr(): tensor.nbytes for tensor in distillation_memory.on_card(run)}
    traced = distillation_memory.step_bytes(
        stage, "bf16", CLIP, rank=RANK, config=SMALL, attention=sdpa, recompute=True
    )
    assert traced == pytest.approx(sum(there.values()) + allocated(run.step), rel=0.1)
    assert traced > 1.3 * sum(there.values())
    assert (len(run.history), len(run.critic_history)) == (1, int(stage == "dmd"))
