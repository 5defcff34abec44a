"""Ovi itself, as typed PyTorch. `native` brings it to ComfyUI, `tools` to the command line; the rest knows neither."""
