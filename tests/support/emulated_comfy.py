"""ComfyUI on the emulated device: its `comfy.model_management`, which knows real devices alone, told of this one.

It is like a card of 16 GiB that computes in float32: ComfyUI loads a model to it, keeps what it returns on the CPU, and
brings weights back there.
"""

from __future__ import annotations

from typing import Any

import torch

from . import emulated

GIB = 2**30
TOTAL, FREE = 16 * GIB, 8 * GIB


def adapt() -> None:
    """Make the emulated device the one that ComfyUI computes on; ComfyUI was started on the CPU."""
    import comfy.model_management as management

    cpu = torch.device("cpu")
    management.cpu_state = management.CPUState.GPU
    management.vram_state = management.set_vram_to = management.VRAMState.NORMAL_VRAM
    answers: dict[str, Any] = {
        "get_torch_device": emulated.DEVICE,
        "text_encoder_device": emulated.DEVICE,
        "vae_device": emulated.DEVICE,
        "unet_offload_device": cpu,
        "text_encoder_offload_device": cpu,
        "vae_offload_device": cpu,
        "intermediate_device": cpu,
        "get_all_torch_devices": [emulated.DEVICE],
        "get_supported_float8_types": [],
        "supports_cast": True,
        "soft_empty_cache": None,
        "get_offload_stream": None,
        "current_stream": None,
    }
    answers |= {name: False for name in dir(management) if name.startswith("supports_") and name not in answers}
    for name in ("should_use_fp16", "should_use_bf16", "device_supports_non_blocking", "is_nvidia", "pin_memory"):
        answers[name] = False
    for name, answer in answers.items():
        setattr(management, name, lambda *_, answer=answer, **__: answer)
    management.get_free_memory = lambda dev=None, torch_free_too=False: (FREE, FREE) if torch_free_too else FREE
    management.get_total_memory = lambda dev=None, torch_total_too=False: (TOTAL, TOTAL) if torch_total_too else TOTAL
