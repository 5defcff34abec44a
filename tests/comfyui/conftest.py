"""Fixtures of the tests on real ComfyUI in this process."""

from __future__ import annotations

import gc
import shutil

import pytest
import torch
from safetensors.torch import load_file

from support import GOLDEN, golden_model, tiny


@pytest.fixture
def inference():
    """Run a test in inference mode, as ComfyUI runs nodes."""
    with torch.inference_mode():
        yield


def give_devices(monkeypatch, count):
    """Give ComfyUI so many devices: the CPU stands for all of them, or there have to be so many."""
    pytest.importorskip("comfy.multigpu", reason="this ComfyUI has no engine for several devices")
    from comfy import model_management

    kind = model_management.get_torch_device().type
    if kind != "cpu" and getattr(torch, kind).device_count() < count:
        pytest.skip(f"there are fewer than {count} {kind} devices")
    first = torch.device("cpu") if kind == "cpu" else torch.device(kind, 0)
    devices = [first, *(torch.device(kind, i) for i in range(1, count))]
    monkeypatch.setattr(model_management, "get_all_torch_devices", lambda *_, **__: devices)


@pytest.fixture
def over_two_devices(comfy, monkeypatch):
    """Core's MultiGPU CFG Split of a MODEL over two devices: each prediction on one."""
    give_devices(monkeypatch, 2)
    comfy.core("nodes_multigpu")
    return lambda model: comfy.run("MultiGPU_WorkUnits", model=model, max_gpus=2)[0]


@pytest.fixture
def shared_out(comfy, monkeypatch):
    """Ovi Parallel on a MODEL, where there are four devices.

    Core's MODEL of several devices is a cycle of references. One that is collected while core counts what is loaded
    makes it fail, so each is collected here.
    """
    give_devices(monkeypatch, 4)
    yield lambda model, gpus=2, shares="auto": comfy.run("OviParallel", model=model, gpus=gpus, shares=shares)[0]
    gc.collect()


@pytest.fixture(scope="module")
def load(comfy):
    """Load a file of the given name as a MODEL."""

    def load(name, weight_dtype="default", second="none"):
        (model,) = comfy.run("OviModelLoader", model_name=name, second_model_name=second, weight_dtype=weight_dtype)
        return model

    return load


@pytest.fixture(scope="module")
def golden_file(comfy):
    """The name of the golden model's file in ComfyUI's models/diffusion_models."""
    return shutil.copy(golden_model.MODEL, comfy.models / "diffusion_models" / "golden.safetensors").name


@pytest.fixture(scope="module")
def model(load, golden_file):
    """The golden model as a MODEL."""
    with torch.inference_mode():
        return load(golden_file)


@pytest.fixture(scope="module")
def reference():
    """The golden model in plain PyTorch."""
    return golden_model.load()


@pytest.fixture(scope="module")
def loop():
    """The golden denoising loop of text to video."""
    return load_file(GOLDEN / "D_t2v.safetensors")


@pytest.fixture(scope="module")
def x():
    """Latents, timestep and text for one forward pass of the golden model."""
    draw = torch.Generator().manual_seed(0)
    latents = [torch.randn(1, 48, 2, 4, 6, generator=draw), torch.randn(1, 20, 9, generator=draw)]
    return latents, torch.tensor([640.0]), torch.randn(1, 30, 64, generator=draw)


@pytest.fixture(scope="module")
def clip(comfy):
    """A random tiny UMT5 of ComfyUI's own class."""
    from support.stand_ins import tiny_clip

    with torch.inference_mode():
        return tiny_clip()


@pytest.fixture(scope="module")
def vae(comfy):
    """A random video VAE of the taew2_2 kind, which has Wan 2.2's latent grid."""
    tiny.video_vae(comfy.models / "vae" / "tiny_video.safetensors")
    with torch.inference_mode():
        return comfy.run("VAELoader", vae_name="tiny_video.safetensors")[0]
