"""LoRAs of Ovi: which weights the tensors of a LoRA file are for, and LoRA layers for training.

A LoRA of Wan 2.2 5B names the layers of the video tower as Wan does (`blocks.0.self_attn.q`) or as Diffusers does
(`blocks.0.attn1.to_q`); a LoRA of Ovi puts the tower before that (`video_model.blocks.0.self_attn.q`). Training tools
put prefixes of their own before either, and some write underscores for dots.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import AUDIO, VIDEO
from .model import OviModel

LORA_LAYERS = ("self_attn", "cross_attn", "ffn")  # of each block, what training can add LoRAs to
LORA_TOWERS = {"both": (VIDEO, AUDIO), "video": (VIDEO,), "audio": (AUDIO,)}
NO_LAYER = "Ovi has no such layer"
_BLOCK = re.compile(r"blocks\.\d+\.")
_DIFFUSERS = (  # names in a block, then those beside the blocks; each also of a bias
    (re.compile(r"^self_attn\."), "attn1."),
    (re.compile(r"^cross_attn\."), "attn2."),
    (re.compile(r"(?<=^attn[12]\.)(?=[qkvo](\.bias)?$)"), "to_"),
    (re.compile(r"(?<=\.to_o)(?=(\.bias)?$)"), "ut.0"),
    (re.compile(r"^ffn\.0"), "ffn.net.0.proj"),
    (re.compile(r"^ffn\.2"), "ffn.net.2"),
    (re.compile(r"^norm3"), "norm2"),
    (re.compile(r"^modulation\.modulation$"), "scale_shift_table"),
    (re.compile(r"^(t..._embed)ding\.0"), r"condition_embedder.\1der.linear_1"),
    (re.compile(r"^(t..._embed)ding\.2"), r"condition_embedder.\1der.linear_2"),
    (re.compile(r"^time_projection\.1"), "condition_embedder.time_proj"),
    (re.compile(r"^head\.head"), "proj_out"),
)
_WRAPPERS = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module|processor)\.")
_TOWER = re.compile(r"(?:^|(?<=[._]))(?:video|audio)_model[._]")
_ADAPTER_NAME = re.compile(r"(?<=^\.lora_[AB]\.)(?!weight$|bias$)[^.]+\.(?=(?:weight|bias)$)")  # of PEFT: "default"
# Words in a prefix after which the same layer name means a layer of another network.
_OTHER = re.compile(
    r"(?:^|[._])(?:te\d*|text|clip|u?m?t5[^\W_]*|[^\W_]*(?:en|de)coder|vae|vace|control[^\W_]*|refiner|audio|blocks|layers)[._]"
)
# What may be joined to a layer by an underscore; `transformer_blocks` is another model's, `lora_transformer_` a prefix.
_JOINED = re.compile(
    r"_*(?:(?:lora|lycoris)_+(?:transformer_+)?)?(?:(?:prior|unet|dit|diffusion|base|model|video|wan|ovi|net|pipe)_+)*"
)


class Place(NamedTuple):
    """What a tensor of a LoRA file is for."""

    weight: str  # published key name
    end: str  # what follows the layer in the key, without the name of a PEFT adapter: ".lora_A.weight", ".alpha"


class Names:
    """The layers of a model, found in the keys of LoRA files wherever they begin."""

    def __init__(self, weights: Iterable[str]) -> None:
        """`weights` are the published key names of a whole model."""
        self._weights: dict[str, str] = {}  # by tower and name, with underscores for dots
        in_blocks, beside = set[str](), set[str]()
        for weight in weights:
            tower = AUDIO if weight.startswith(AUDIO) else VIDEO
            layer = weight.removeprefix(tower).removesuffix(".weight")
            block = _BLOCK.match(layer)
            start = block[0] if block else ""
            for name in _aliases(layer.removeprefix(start)):
                (in_blocks if block else beside).add(name)
                self._weights[tower + f"{start}{name}".replace(".", "_")] = weight
        self._layer = re.compile(
            rf"(?:^|[._])(blocks[._]\d+[._](?:{_any(in_blocks)})|{_any(beside)})(?=\.|_lora\.|$)", re.ASCII
        )

    def place(self, key: str) -> Place:
        """Return what a tensor is for. Raises ValueError where that is no layer of the model, or uncertain.

        A layer without a tower is the video tower's.
        """
        key = _WRAPPERS.sub("", key)
        match = self._layer.search(key)
        if match is None:
            raise ValueError(NO_LAYER)
        prefix = key[: match.start(1)]
        towers = {tower.replace("model_", "model.") for tower in _TOWER.findall(prefix)}
        rest = _TOWER.sub("", prefix)
        joined = rest.rpartition(".")[2]
        if len(towers) > 1 or _OTHER.search(rest) or not (towers or _JOINED.fullmatch(joined)):
            raise ValueError(f"unknown prefix {prefix}")
        weight = self._weights.get(next(iter(towers), VIDEO) + match[1].replace(".", "_"))
        if weight is None:
            raise ValueError(NO_LAYER)
        return Place(weight, _ADAPTER_NAME.sub("", key[match.end() :]))


def _aliases(name: str) -> Iterator[str]:
    """Iterate over the names of a layer, tower and block left out."""
    yield name
    yield name.replace("modulation.modulation", "modulation")  # Wan's own
    for pattern, other in _DIFFUSERS:
        name = pattern.sub(other, name)
    yield name
    yield name.replace("to_out.0", "to_out")


def _any(names: Iterable[str]) -> str:
    """Return a pattern of names, the longest first, with dots or underscores between their parts."""
    return "|".join(re.sub(r"[._]", "[._]", name) for name in sorted(names, key=len, reverse=True))


@dataclass(frozen=True)
class Lora:
    """What LoRAs are added to a model."""

    rank: int
    alpha: float | None = None  # their product counts alpha / rank (None: the rank, which counts it fully)
    dropout: float = 0.0  # share of the inputs that are zero in a step of the training
    layers: Sequence[str] = LORA_LAYERS
    tower: str = "both"  # one of LORA_TOWERS

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be trained."""
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"The LoRA's alpha is {self.alpha}, but must be a positive number.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"The LoRA's dropout is {self.dropout}, but must be from 0 to below 1.")
        if not self.layers or (unknown := [name for name in self.layers if name not in LORA_LAYERS]):
            raise ValueError(
                f"The LoRA's layers are {', '.join(unknown) if self.layers else 'none'}, but must be among "
                f"{', '.join(LORA_LAYERS)}."
            )
        if self.tower not in LORA_TOWERS:
            raise ValueError(f"The LoRA's tower is {self.tower!r}, but must be one of {', '.join(LORA_TOWERS)}.")

    @property
    def scale(self) -> float:
        """By how much the product of a LoRA's matrices counts."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def has(self, layer: str) -> bool:
        """Whether a LoRA is added to the layer of that name."""
        block = re.search(r"\.blocks\.\d+\.(\w+)\.", layer)
        return block is not None and block[1] in self.layers and layer.startswith(LORA_TOWERS[self.tower])


class LowRank(nn.Module):
    """A trained product of two low-rank matrices, zero at first."""

    def __init__(self, like: nn.Module, lora: Lora, device: torch.device | str | None = None) -> None:
        """`like` has `in_features` and `out_features`, as linear layers do, and the device where none is given."""
        super().__init__()
        self.scale = lora.scale
        self.dropout = lora.dropout
        # To the type checker, what a module holds is a tensor or a module.
        inputs, outputs = int(like.in_features), int(like.out_features)  # type: ignore[arg-type]
        device = next(like.parameters()).device if device is None else device
        self.lora_A = nn.Linear(inputs, lora.rank, bias=False, device=device)
        self.lora_B = nn.Linear(lora.rank, outputs, bias=False, device=device)
        nn.init.zeros_(self.lora_B.weight)

    def added(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs], in the dtype of x."""
        seen = F.dropout(x.to(self.lora_A.weight.dtype), self.dropout, self.training)
        added = self.lora_B(self.lora_A(seen))
        return (added if self.scale == 1 else self.scale * added).to(x.dtype)


class LoraLinear(LowRank):
    """A frozen linear layer plus a trained product of two low-rank matrices."""

    def __init__(self, base: nn.Module, lora: Lora, device: torch.device | str | None = None) -> None:
        """`base` and `device` are as for `LowRank`."""
        super().__init__(base, lora, device)
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        added = self.added(x)
        return self.base(x) + added


def add_lora(model: OviModel, lora: Lora | int, device: torch.device | str | None = None) -> None:
    """Freeze a model and add LoRAs (an int: of that rank, to all that can have one), in place.

    They are on the device of their layer, or on another one, where the layer is there only while it runs.
    """
    lora = lora if isinstance(lora, Lora) else Lora(lora)
    for name, layer in adaptable(model, lora).items():
        model.set_submodule(name, LoraLinear(layer, lora, device))


def adaptable(model: OviModel, lora: Lora) -> dict[str, nn.Module]:
    """Freeze a model; return its layers that LoRAs are added to, by their names."""
    model.requires_grad_(False)
    layers = {name: layer for name, layer in model.named_modules() if lora.has(name)}
    return {name: layer for name, layer in layers.items() if hasattr(layer, "in_features")}  # linear, quantised or not


def lora_file(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return trained LoRAs with the names that Load Ovi LoRA and ComfyUI's loader read.

    A scale other than 1 is stored as `alpha`, which they divide by the rank.
    """
    file = {f"diffusion_model.{name}": tensor for name, tensor in weights.items()}
    if scale != 1:
        for name, tensor in weights.items():
            if name.endswith(".lora_A.weight"):
                layer = name.removesuffix(".lora_A.weight")
                file[f"diffusion_model.{layer}.alpha"] = torch.tensor(scale * len(tensor))
    return file
