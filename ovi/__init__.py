"""Ovi itself: typed PyTorch. Only `native` knows ComfyUI."""
