"""The pack as ComfyUI finds it."""


def test_pack_loads_in_comfyui(comfy):
    assert comfy.module("ovi") is not None
