"""The release's denoising loop (golden D) through the public functions: model, schedule, UniPC and guidance."""

from __future__ import annotations

import pytest
import torch

from support.golden_loop import pack, run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", ["t2v", "i2v"])
def test_release_loop(case, dtype):
    out, data = run(case, dtype)
    expected = pack(data["final.video"][None], data["final.audio"].T[None])
    torch.testing.assert_close(out, expected.to(dtype), atol=5e-5, rtol=0.0)
