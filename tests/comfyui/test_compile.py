"""torch.compile: one graph without breaks, and no compiling again for another step, prompt or half of the guidance."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from ovi.model import fuse
from support import golden_model
from support.sampling import assert_equal, guide, ksampler, prompts


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    with torch.inference_mode():
        yield
    torch.compiler.reset()


def test_blocks_share_one_graph():
    """A fusion block has no graph break, and all blocks run what was compiled for the first."""
    model, counter = golden_model.load(), CompileCounter()
    compiled = torch.compile(fuse, backend=counter, fullgraph=True)
    towers = (model.video_model, model.audio_model)
    for time in (999.0, 500.0):
        latents = torch.randn(1, 48, 4, 6, 8), torch.randn(1, 20, 21)
        text = torch.randn(1, 20, 64)
        (video, video_stream), (audio, audio_stream) = (
            tower.embed(latent, torch.tensor([time]), tower.embed_text(text, text.dtype))
            for tower, latent in zip(towers, latents, strict=True)
        )
        for pair in zip(*(tower.blocks for tower in towers), strict=True):
            expected = fuse(pair, video, audio, (video_stream, audio_stream), {})
            video, audio = compiled(pair, video, audio, (video_stream, audio_stream), {})
            assert_equal((video, audio), expected, 0.0)
    assert counter.frame_count == 1


@pytest.mark.comfyui
def test_core_node(comfy, load, golden_file, loop):
    """TorchCompileModel: one graph for all steps and prompts; changed guidance has its effect."""
    from comfy.ldm.modules.attention import attention_pytorch

    comfy.core("nodes_torch_compile")
    model = load(golden_file)
    for module in model.model.diffusion_model.modules():
        if hasattr(module, "attention"):
            module.attention = attention_pytorch  # a GPU's; the CPU's own asks for free memory, which breaks the graph
    counter = CompileCounter()
    (compiled,) = comfy.run("TorchCompileModel", model=model, backend=counter)
    positive, negative = prompts(loop)
    shorter = [[positive[0][0][:, :7], {}]]

    def check(conds, **guidance):
        expected = ksampler(comfy, guide(comfy, model, **guidance), conds, steps=3)
        assert_equal(ksampler(comfy, guide(comfy, compiled, **guidance), conds, steps=3), expected, 1e-5)

    check((positive, negative))
    check((shorter, negative))
    assert counter.frame_count == 1
    check((positive, negative), skip="")
    assert counter.frame_count == 2
    check((positive, negative), start=0.3, end=0.7)  # a step with the block and steps without: both are compiled
    assert counter.frame_count == 2
