"""Reading a file of tensors through ComfyUI's own loader, once it is checked."""

from __future__ import annotations

from pathlib import Path

import comfy.utils
from torch import Tensor

from .. import files

SAFETENSORS_ENDINGS = (".safetensors", ".sft")  # of files that ComfyUI reads as such


def read(path: str | Path, source: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors or a PyTorch file; `source` says where to get such a file.

    Raises ValueError for what is no such file, and for one whose name ends like the other kind, by which ComfyUI reads.
    """
    kind = files.check(Path(path), source)
    ending = Path(path).suffix.lower()
    if (kind == files.SAFETENSORS) != (ending in SAFETENSORS_ENDINGS):
        needed = ".safetensors" if kind == files.SAFETENSORS else ".pt"
        raise ValueError(f"{files.shown(path)} is a {kind} file; rename it so that it ends in {needed}.")
    try:
        sd, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception as error:  # as ComfyUI's mapping of safetensors does for types that it does not know
        raise ValueError(f"ComfyUI cannot read {files.shown(path)} ({files.shown(repr(error))}).") from error
    return files.state_dict(sd), metadata or {}
