"""The fused twin towers of Ovi, as one PyTorch module with the published key names.

Inputs are latents in ComfyUI's layout, video [B, 48, F, H, W] and audio [B, 20, L]; the timestep is 1000 * sigma;
outputs are velocities, noise - x0. Inside, a tower's tokens are [B, L, D]: video in the order f, h, w (w fastest),
audio one token for each latent frame. Person references (see `references`) are further latent frames at the end, whose
velocities are cut off. Modulation is kept for each distinct timestep, [B, T, ...] with T = 1, F (video) or L (audio),
and broadcast over views of the tokens.

Operations run in place on nothing that a gradient may need. Source of the formulas: "Ovi: Twin Backbone Cross-Modal
Fusion for Audio-Video Generation" and the published weights' code, whose numbers `tests/golden` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from . import references as persons
from . import rope
from .config import OviConfig
from .parallel import UNSHARED, Team, Unshared
from .references import References as References

EPS = 1e-6  # of every layer norm and RMS norm
AUDIO_KERNEL = 7  # latent frames that a convolution of the audio patch embedding sees
NO_FLOAT64 = ("mps", "xpu", "privateuseone")  # device types that (may) lack float64; DirectML is "privateuseone"

Attention = Callable[..., Tensor]
Rotate = Callable[[Tensor, Tensor], Tensor]
Timestep = Tensor | tuple[Tensor, Tensor]
Texts = tuple[Tensor | None, Tensor | None]  # embedded, of the video and the audio tower, [B, text_len, D] each


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: Any) -> Tensor:
    """Attend on [B, L, heads * head_dim] by PyTorch alone, in the signature of ComfyUI's `optimized_attention`."""
    q, k, v = (rearrange(t, "b l (h d) -> b h l d", h=heads) for t in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)")


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Return time features [N, dim] of timesteps [N], in float64: cosines first, frequencies 10000^(-i / (dim / 2))."""
    device = "cpu" if timestep.device.type in NO_FLOAT64 else timestep.device
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    angles = torch.outer(timestep.to(device=device, dtype=torch.float64), frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Layers(NamedTuple):
    """How layers are made: the `operations` namespace of ComfyUI's conventions, and where and in which dtype.

    What is small or sensitive (norms, modulation, embeddings, heads) is never made in an 8-bit dtype.
    """

    operations: Any
    attention: Attention
    rotate: Rotate
    device: torch.device | str | None
    dtype: torch.dtype | None

    @property
    def safe_dtype(self) -> torch.dtype | None:
        """`dtype`, or bfloat16 where that is an 8-bit dtype."""
        return torch.bfloat16 if self.dtype is not None and self.dtype.itemsize == 1 else self.dtype

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """Make a matrix of a block."""
        return self.operations.Linear(inputs, outputs, device=self.device, dtype=self.dtype)

    def safe_linear(self, inputs: int, outputs: int) -> nn.Module:
        """Make a matrix of an embedding or a head."""
        return self.operations.Linear(inputs, outputs, device=self.device, dtype=self.safe_dtype)

    def conv1d(self, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
        """Make a convolution of the audio patch embedding, length-preserving, zeros beyond both ends."""
        return self.operations.Conv1d(
            inputs,
            outputs,
            AUDIO_KERNEL,
            padding=AUDIO_KERNEL // 2,
            bias=bias,
            device=self.device,
            dtype=self.safe_dtype,
        )

    def conv3d(self, inputs: int, outputs: int, kernel: tuple[int, int, int]) -> nn.Module:
        """Make the video patch embedding."""
        return self.operations.Conv3d(
            inputs, outputs, kernel_size=kernel, stride=kernel, device=self.device, dtype=self.safe_dtype
        )

    def layer_norm(self, dim: int, *, affine: bool) -> nn.Module:
        """Make a layer norm over the whole width."""
        return self.operations.LayerNorm(
            dim, eps=EPS, elementwise_affine=affine, device=self.device, dtype=self.safe_dtype
        )

    def rms_norm(self, dim: int) -> nn.Module:
        """Make an RMS norm over the whole width (all heads together)."""
        return self.operations.RMSNorm(dim, eps=EPS, device=self.device, dtype=self.safe_dtype)

    def parameter(self, *shape: int) -> nn.Parameter:
        """Make a bare parameter, to be loaded."""
        return nn.Parameter(torch.empty(shape, device=self.device, dtype=self.safe_dtype))


class Stream(NamedTuple):
    """What every block of one tower reads besides its tokens, the same in all blocks of a step."""

    time: Tensor  # [B, T, D], for the head
    modulation: Tensor  # [B, T, 6, D], for the blocks
    text: Tensor  # [B, text_len, D]
    rope: Tensor  # [1, L, 1, head_dim / 2, 2, 2]
    fused: tuple[int, ...] | None = None  # the rows of the batch that attend to the other tower (None: all)
    share: Unshared = UNSHARED  # the tokens that are on this device

    def rows(self, rows: list[int]) -> Stream:
        """Return the stream of some rows of the batch."""
        fused = None if self.fused is None else tuple(i for i, row in enumerate(rows) if row in self.fused)
        time, modulation, text = self.time[rows], self.modulation[rows], self.text[rows]
        return self._replace(time=time, modulation=modulation, text=text, fused=fused)


class FusionSource(NamedTuple):
    """The tower that a tower attends to: its tokens [B, L', D] after self-attention, and its rotations."""

    tokens: Tensor
    rope: Tensor
    rows: Tensor | None = None  # the tokens are those of these rows of the batch alone (None: all)
    share: Unshared = UNSHARED


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x * (1 + scale) + shift, with x [B, L, D] and shift, scale [B, T, D]; T divides L."""
    frames = x.unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift[:, :, None], frames, 1 + scale[:, :, None]).flatten(1, 2)


def add_gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Return x + y * gate, with x and y [B, L, D] and gate [B, T, D]; T divides L."""
    per_frame = (gate.shape[1], -1)
    return torch.addcmul(x.unflatten(1, per_frame), y.unflatten(1, per_frame), gate[:, :, None]).flatten(1, 2)


class Modulation(nn.Module):
    """Learned offsets to the time modulation.

    (A separate module because the published keys are `modulation.modulation`.)
    """

    def __init__(self, layers: Layers, dim: int) -> None:
        super().__init__()
        self.modulation = layers.parameter(1, 6, dim)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        """[B, T, 6, D] → shift, scale, gate of the self-attention, then of the feed-forward, each [B, T, D]."""
        return (time + self.modulation.to(device=time.device, dtype=time.dtype)).unbind(2)


class SelfAttention(nn.Module):
    """Attention of a tower to itself, rotated by its own positions."""

    def __init__(self, layers: Layers, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = layers.attention
        self.rotate = layers.rotate
        self.q = layers.linear(dim, dim)
        self.k = layers.linear(dim, dim)
        self.v = layers.linear(dim, dim)
        self.o = layers.linear(dim, dim)
        self.norm_q = layers.rms_norm(dim)
        self.norm_k = layers.rms_norm(dim)

    def rotate_heads(self, x: Tensor, table: Tensor) -> Tensor:
        """Rotate x [B, L, D] head by head."""
        return self.rotate(x.unflatten(2, (self.heads, -1)), table).flatten(2)

    def forward(self, x: Tensor, stream: Stream, options: Mapping[str, Any]) -> Tensor:
        """x [B, L, D], with its tower's stream → [B, L, D].

        With "stg_skip_self_attn" in the options (ComfyUI's name) each token gets its own value instead.
        """
        if options.get("stg_skip_self_attn"):
            return self.o(self.v(x))
        share = stream.share
        q = share.to_heads(self.rotate_heads(self.norm_q(self.q(x)), stream.rope))
        k = share.to_heads(self.rotate_heads(self.norm_k(self.k(x)), stream.rope))
        v = share.to_heads(self.v(x))
        return self.o(share.attend_self(self.attention, q, k, v, self.heads, transformer_options=options))


class CrossAttention(SelfAttention):
    """Attention of a tower to its text and to the other tower: two softmaxes, one query, one output projection."""

    def __init__(self, layers: Layers, dim: int, heads: int) -> None:
        super().__init__(layers, dim, heads)
        self.k_fusion = layers.linear(dim, dim)
        self.v_fusion = layers.linear(dim, dim)
        self.pre_attn_norm_fusion = layers.layer_norm(dim, affine=True)
        self.norm_k_fusion = layers.rms_norm(dim)

    def forward(
        self, x: Tensor, stream: Stream, options: Mapping[str, Any], source: FusionSource | None = None
    ) -> Tensor:
        """x [B, L, D], with its tower's stream → [B, L, D].

        Without a `source` the tower attends to its text alone, and so do the rows of the batch that the source leaves
        out. Padded text rows are attended to as well, as in training: there is no text mask.
        """
        text = stream.text
        q = self.norm_q(self.q(x))
        from_other = None if source is None else self.attend_other(q, stream.rope, source, options)
        out = self.attention(q, self.norm_k(self.k(text)), self.v(text), self.heads, transformer_options=options)
        if source is not None and from_other is not None:
            out = out + from_other if source.rows is None else out.index_add(0, source.rows, from_other)
        return self.o(out)

    def attend_other(self, q: Tensor, table: Tensor, source: FusionSource, options: Mapping[str, Any]) -> Tensor:
        """Attend with q [B, L, D], rotated here by `table`, to the other tower's tokens; return [B, L, D].

        Where the source has some rows of the batch alone, the result has these.
        """
        other = self.pre_attn_norm_fusion(source.tokens)
        q = self.rotate_heads(q if source.rows is None else q[source.rows], table)
        k = self.rotate_heads(self.norm_k_fusion(self.k_fusion(other)), source.rope)
        v = self.v_fusion(other)
        attend = source.share.attend_from_all
        return attend(self.attention, q, k, v, self.heads, transformer_options=options)


class Gelu(nn.GELU):
    """GELU, in place where no gradient can be asked for: its input is the largest tensor of a forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, ffn_dim] → [B, L, ffn_dim]."""
        return super().forward(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x, approximate=self.approximate)


class Block(nn.Module):
    """One tower's half of a fusion block."""

    def __init__(self, layers: Layers, dim: int, ffn_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = layers.layer_norm(dim, affine=False)
        self.self_attn = SelfAttention(layers, dim, heads)
        self.norm3 = layers.layer_norm(dim, affine=True)
        self.cross_attn = CrossAttention(layers, dim, heads)
        self.norm2 = layers.layer_norm(dim, affine=False)
        self.ffn = nn.Sequential(layers.linear(dim, ffn_dim), Gelu(approximate="tanh"), layers.linear(ffn_dim, dim))
        self.modulation = Modulation(layers, dim)

    def attend_self(self, x: Tensor, stream: Stream, options: Mapping[str, Any]) -> Tensor:
        """Add the gated self-attention to x [B, L, D]."""
        shift, scale, gate, *_ = self.modulation(stream.modulation)
        return add_gated(x, self.self_attn(modulate(self.norm1(x), shift, scale), stream, options), gate)

    def attend_cross(
        self, x: Tensor, stream: Stream, options: Mapping[str, Any], source: FusionSource | None
    ) -> Tensor:
        """Add the attention to the text and, with a `source`, to the other tower; neither modulated nor gated."""
        return x + self.cross_attn(self.norm3(x), stream, options, source)

    def feed_forward(self, x: Tensor, stream: Stream) -> Tensor:
        """Add the gated feed-forward to x [B, L, D]."""
        *_, shift, scale, gate = self.modulation(stream.modulation)
        widen, gelu, narrow = self.ffn  # not called as one, which would keep its input while the hidden layer is there
        return add_gated(x, narrow(gelu(widen(modulate(self.norm2(x), shift, scale)))), gate)

    def forward(self, x: Tensor, stream: Stream, options: Mapping[str, Any]) -> Tensor:
        """Run the block of a tower without the other tower."""
        x = self.attend_self(x, stream, options)
        x = self.attend_cross(x, stream, options, None)
        return self.feed_forward(x, stream)


class Head(nn.Module):
    """Tokens [B, L, D] → patches [B, L, out]."""

    def __init__(self, layers: Layers, dim: int, out: int) -> None:
        super().__init__()
        self.norm = layers.layer_norm(dim, affine=False)
        self.head = layers.safe_linear(dim, out)
        self.modulation = layers.parameter(1, 2, dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Project x, modulated by the time embedding [B, T, D] itself, not by its projection."""
        shift, scale = (time[:, :, None] + self.modulation.to(device=x.device, dtype=x.dtype)).unbind(2)
        return self.head(modulate(self.norm(x), shift, scale))


class GatedConvolutions(nn.Module):
    """w2(silu(w1 y) * w3 y), each a convolution over time: the MLP of the audio patch embedding."""

    def __init__(self, layers: Layers, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = layers.conv1d(dim, hidden, bias=False)
        self.w2 = layers.conv1d(hidden, dim, bias=False)
        self.w3 = layers.conv1d(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, L] → [B, D, L]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Tower(nn.Module):
    """What both towers have: text and time embedding, blocks and head.

    Text is embedded once per prompt (`embed_text`); `positions` depends on the latent's shape alone; `embed` is what
    every step needs.
    """

    patch_embedding: nn.Module

    def __init__(self, layers: Layers, config: OviConfig, ffn_dim: int, out: int) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.text_embedding = nn.Sequential(
            layers.safe_linear(config.text_dim, dim), nn.GELU(approximate="tanh"), layers.safe_linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            layers.safe_linear(config.freq_dim, dim), nn.SiLU(), layers.safe_linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), layers.safe_linear(dim, 6 * dim))
        self.blocks = nn.ModuleList([Block(layers, dim, ffn_dim, config.num_heads) for _ in range(config.num_layers)])
        self.head = Head(layers, dim, out)

    def embed_text(self, context: Tensor, dtype: torch.dtype) -> Tensor:
        """Embed a text [B, T <= text_len, text_dim], padded with zeros: [B, text_len, D]. It depends on no step.

        Raises ValueError for more than text_len tokens.
        """
        missing = self.config.text_len - context.shape[1]
        if missing < 0:
            raise ValueError(
                f"The prompt has {context.shape[1]} tokens, but Ovi reads at most {self.config.text_len}: shorten it, "
                "or use 'Ovi Text Encode', which truncates it as the Ovi release does and says so."
            )
        return self.text_embedding(F.pad(context.to(dtype), (0, 0, 0, missing)))

    def stream(self, tokens: Tensor, table: Tensor, timestep: Tensor, text: Tensor) -> Stream:
        """Embed the timestep ([B] or [B, T]) of `tokens`, beside the embedded text [B, text_len, D]."""
        steps = timestep.view(timestep.shape[0], -1)
        features = sinusoid(steps.flatten(), self.config.freq_dim).to(device=tokens.device, dtype=tokens.dtype)
        time = self.time_embedding(features).unflatten(0, steps.shape)
        return Stream(time, self.time_projection(time).unflatten(2, (6, -1)), text, table)


class VideoTower(Tower):
    """The Wan 2.2 5B tower: latents [B, C, F, H, W] in patches of (1, 2, 2)."""

    def __init__(self, layers: Layers, config: OviConfig) -> None:
        patch = config.patch_size
        super().__init__(layers, config, config.video_ffn_dim, config.video_channels * patch[0] * patch[1] * patch[2])
        self.patch_embedding = layers.conv3d(config.video_channels, config.dim, patch)

    def embed(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        references: References | None = None,
        team: Team | None = None,
    ) -> tuple[Tensor, Stream]:
        """Return the tokens [B, (F + images) * H/2 * W/2, D] of a latent and the images after it, and their stream.

        Odd edges wrap around, as in ComfyUI's Wan. With a `team` these are this device's share of the tokens.
        """
        frames, images = latent.shape[2], 0
        if references is not None:
            images = len(references.images)
            latent, timestep = persons.append(latent, references.images, timestep)
        _, rows, columns = self.config.patch_size
        padding = (0, -latent.shape[4] % columns, 0, -latent.shape[3] % rows, 0, 0)
        if any(padding):
            latent = F.pad(latent, padding, mode="circular")
        patches = self.patch_embedding(latent)  # [B, D, F, H/2, W/2]
        *_, whole, height, width = patches.shape
        table = self.positions((frames, height, width), patches, images)
        share = UNSHARED
        if team is not None:
            share = team.share(whole, height * width, self.config.num_heads, self.config.head_dim)
        tokens = share.cut(patches.flatten(2).transpose(1, 2)).contiguous()  # [B, L, D]
        return tokens, self.stream(tokens, share.cut(table), timestep, text)._replace(share=share)

    def positions(self, grid: tuple[int, int, int], like: Tensor, images: int = 0) -> Tensor:
        """Return the rotations of a grid of tokens (latent frames, rows, columns), and of reference images after it."""
        return rope.video_table(*grid, self.config.head_dim, like=like, images=images)

    def velocity(self, tokens: Tensor, stream: Stream, latent: Tensor) -> Tensor:
        """Assemble the head's patches (p, q, C; channel fastest) in the latent's shape, which cuts references off."""
        _, p, q = self.config.patch_size
        _, _, frames, height, width = latent.shape
        patches = stream.share.join(self.head(tokens, stream.time))
        rows, columns = -(-height // p), -(-width // q)
        out = rearrange(patches, "b (f h w) (p q c) -> b c f (h p) (w q)", h=rows, w=columns, p=p, q=q)
        return out[:, :, :frames, :height, :width]


class AudioTower(Tower):
    """The audio tower: latents [B, C, L], one token for each latent frame."""

    def __init__(self, layers: Layers, config: OviConfig) -> None:
        super().__init__(layers, config, config.audio_ffn_dim, config.audio_channels)
        self.patch_embedding = nn.Sequential(
            layers.conv1d(config.audio_channels, config.dim, bias=True),
            nn.SiLU(),
            GatedConvolutions(layers, config.dim, config.audio_patch_dim),
        )

    def embed(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        start: float = 0.0,
        references: References | None = None,
    ) -> tuple[Tensor, Stream]:
        """Return the tokens [B, L + those of voices, D] of a latent and the voices after it, and their stream.

        `start` is the position of the first token. The convolutions run across the seams, as in training: the last
        tokens of the clip see the first voice.
        """
        length = latent.shape[2]
        if references is not None:
            latent, timestep = persons.append(latent, references.voices, timestep)
        tokens = self.patch_embedding(latent).transpose(1, 2).contiguous()
        return tokens, self.stream(tokens, self.positions(length, tokens, start, references), timestep, text)

    def positions(self, length: int, like: Tensor, start: float = 0.0, references: References | None = None) -> Tensor:
        """Return the rotations of `length` tokens, the first at position `start`, and of the voices after them."""
        config = self.config
        if references is None:
            return rope.audio_table(length, config.head_dim, config.audio_rope_scale, like=like, start=start)
        voices = [voice.shape[2] for voice in references.voices]
        return rope.audio_table(length, config.head_dim, config.reference_rope_scale, like, start, voices)

    def velocity(self, tokens: Tensor, stream: Stream, latent: Tensor) -> Tensor:
        """Bring the head's output to the latent's layout and length, which cuts references off."""
        return self.head(tokens, stream.time).transpose(1, 2)[..., : latent.shape[2]]


class OviModel(nn.Module):
    """Both towers, fused in every block.

    `operations` makes the layers (torch.nn, or one of ComfyUI's), `attention(q, k, v, heads, transformer_options=...)`
    works on [B, L, D] and `rotate(x, table)` on [B, L, heads, head_dim]; see `rope`.
    """

    def __init__(
        self,
        config: OviConfig,
        *,
        operations: Any = nn,
        attention: Attention = sdpa,
        rotate: Rotate = rope.rotate,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        layers = Layers(operations, attention, rotate, device, dtype)
        self.config = config
        self.dtype = dtype
        self.video_model = VideoTower(layers, config)
        self.audio_model = AudioTower(layers, config)

    def forward(
        self,
        x: Sequence[Tensor | None],
        timestep: Timestep,
        context: Tensor,
        audio_context: Tensor | None = None,
        *,
        skip_blocks: Collection[int] = (),
        skip_rows: Sequence[bool] | None = None,
        audio_start: float = 0.0,
        transformer_options: Mapping[str, Any] | None = None,
        references: References | None = None,
        cut_rows: Sequence[bool] | None = None,
        pass_blocks: Collection[int] = (),
        team: Team | None = None,
    ) -> list[Tensor | None]:
        """Predict the velocities of both modalities.

        x: [video [B, 48, F, H, W], audio [B, 20, L]]; either may be None, then the other tower runs alone and reads
        only its text.
        timestep: [B], or a pair (video [B] or [B, F], audio [B] or [B, L]), 0 to 1000.
        context: [B, T, text_dim] with T <= text_len, padded with zeros inside and never masked; with `audio_context`
        the audio tower reads that instead.
        skip_blocks: blocks to skip, in both towers, for the rows of the batch where `skip_rows` is true (None: all
        rows).
        audio_start: the position of the first audio latent, where x is a part of a longer clip.
        references: the persons of the clip, for a model trained with them; an empty References is given, too, and
        changes the audio's scale of positions. Their tokens are attended to everywhere, and their timestep is the
        tower's; where that is one for each latent frame, [B, F] or [B, L], it is the largest of the row, since masks
        only lower it, and [B, F + images] or [B, L + latents of all voices] give it themselves.
        cut_rows: the rows of the batch in which neither tower attends to the other (None: no row).
        pass_blocks: blocks in which self-attention lets each token's own value pass, in both towers.
        team: devices that share out the pass, each of which calls its own model with the same arguments but for the
        team, and gets the same result; see `parallel`.
        Returns a list of velocities shaped as x, None where x has None. Raises ValueError for more than text_len
        text tokens, and for references that do not fit x.
        """
        return self.velocities(
            x,
            timestep,
            self.embed_texts(x, context, audio_context),
            skip_blocks=skip_blocks,
            skip_rows=skip_rows,
            audio_start=audio_start,
            transformer_options=transformer_options,
            references=references,
            cut_rows=cut_rows,
            pass_blocks=pass_blocks,
            team=team,
        )

    def embed_texts(self, x: Sequence[Tensor | None], context: Tensor, audio_context: Tensor | None = None) -> Texts:
        """Embed the texts [B, T, text_dim] of the towers that have a latent in x: once per prompt, not per step."""
        video, audio = x
        audio_context = context if audio_context is None else audio_context
        return (
            None if video is None else self.video_model.embed_text(context, video.dtype),
            None if audio is None else self.audio_model.embed_text(audio_context, audio.dtype),
        )

    def velocities(
        self,
        x: Sequence[Tensor | None],
        timestep: Timestep,
        texts: Texts,
        *,
        skip_blocks: Collection[int] = (),
        skip_rows: Sequence[bool] | None = None,
        audio_start: float = 0.0,
        transformer_options: Mapping[str, Any] | None = None,
        references: References | None = None,
        cut_rows: Sequence[bool] | None = None,
        pass_blocks: Collection[int] = (),
        team: Team | None = None,
    ) -> list[Tensor | None]:
        """Do what every step needs: `forward` with texts that `embed_texts` has embedded."""
        options = dict(transformer_options or {})
        video_time, audio_time = timestep if isinstance(timestep, tuple) else (timestep, timestep)
        video_latent, audio_latent = x
        video_text, audio_text = texts
        if references is not None:
            persons.check(references, video_latent, audio_latent)
        if video_latent is None or video_text is None:
            if audio_latent is None or audio_text is None:
                raise ValueError("Neither a video nor an audio latent was given; Ovi needs at least one.")
            embed_audio = partial(self.audio_model.embed, references=references)
            return [None, alone(self.audio_model, embed_audio, audio_latent, audio_time, audio_text, options)]
        if audio_latent is None or audio_text is None:
            embed_video = partial(self.video_model.embed, references=references, team=team)
            return [alone(self.video_model, embed_video, video_latent, video_time, video_text, options), None]

        video, video_stream = self.video_model.embed(video_latent, video_time, video_text, references, team)
        audio, audio_stream = self.audio_model.embed(audio_latent, audio_time, audio_text, audio_start, references)
        fused = None if cut_rows is None else tuple(i for i, cut in enumerate(cut_rows) if not cut)
        streams = (video_stream._replace(fused=fused), audio_stream._replace(fused=fused))
        unskipped = [] if skip_rows is None else [i for i, skipped in enumerate(skip_rows) if not skipped]
        options["total_blocks"] = self.config.num_layers
        for i, pair in enumerate(self.block_pairs(video.device, options)):
            options["block_index"] = i
            options["stg_skip_self_attn"] = i in pass_blocks
            replace = _replacement(options, i)
            run = fuse if replace is None else partial(_replaced, replace)
            if i not in skip_blocks or len(unskipped) == len(video):
                video, audio = run(pair, video, audio, streams, options)
            elif unskipped:
                video, audio = _on_rows(run, unskipped, pair, video, audio, streams, options)
        return [
            self.video_model.velocity(video, video_stream, video_latent),
            self.audio_model.velocity(audio, audio_stream, audio_latent),
        ]

    def block_pairs(self, device: torch.device, options: Mapping[str, Any]) -> Iterator[tuple[Block, Block]]:
        """Iterate over the pairs of blocks in order. A host that prefetches weights overrides this."""
        return zip(self.video_model.blocks, self.audio_model.blocks, strict=True)  # type: ignore[arg-type]


def alone(
    tower: VideoTower | AudioTower,
    embed: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Stream]],
    latent: Tensor,
    timestep: Tensor,
    text: Tensor,
    options: Mapping[str, Any],
) -> Tensor:
    """Predict the velocity with one tower, without the other. As in the Ovi release, `skip_blocks` skips none."""
    tokens, stream = embed(latent, timestep, text)
    for i, block in enumerate(tower.blocks):
        replace = _replacement(options, i)
        run = block if replace is None else partial(_replaced_alone, replace, block)
        tokens = run(tokens, stream, options)
    return tower.velocity(tokens, stream, latent)


def fuse(
    pair: tuple[Block, Block], video: Tensor, audio: Tensor, streams: tuple[Stream, Stream], options: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Run one fusion block: video [B, L, D], audio [B, L', D] → the same.

    `options` may switch off a direction of the fusion for the whole batch: "a2v_cross_attn" (video attends to audio)
    and "v2a_cross_attn". The streams may leave out both directions for some rows.
    """
    (video_block, audio_block), (video_stream, audio_stream) = pair, streams
    video = video_block.attend_self(video, video_stream, options)
    audio = audio_block.attend_self(audio, audio_stream, options)
    # Each tower attends to the other as it stands after self-attention. The audio goes first: were it last, the video's
    # tokens of before and after their cross-attention would be needed at the same time.
    video_source = _source(video, video_stream) if options.get("v2a_cross_attn", True) else None
    audio_source = _source(audio, audio_stream) if options.get("a2v_cross_attn", True) else None
    audio = audio_block.attend_cross(audio, audio_stream, options, video_source)
    del video_source
    video = video_block.attend_cross(video, video_stream, options, audio_source)
    return video_block.feed_forward(video, video_stream), audio_block.feed_forward(audio, audio_stream)


def _source(tokens: Tensor, stream: Stream) -> FusionSource | None:
    """Return what the other tower attends to, or None where it does so in no row of the batch."""
    if stream.fused is None:
        return FusionSource(tokens, stream.rope, share=stream.share)
    if not stream.fused:
        return None
    rows = torch.tensor(stream.fused, device=tokens.device)
    return FusionSource(tokens[rows], stream.rope, rows, stream.share)


def _on_rows(
    run: Callable[..., tuple[Tensor, Tensor]],
    rows: list[int],
    pair: tuple[Block, Block],
    video: Tensor,
    audio: Tensor,
    streams: tuple[Stream, Stream],
    options: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Run a block on some rows of the batch; the others pass unchanged."""
    index = torch.tensor(rows, device=video.device)
    of_rows = tuple(stream.rows(rows) for stream in streams)
    changed = run(pair, video[rows], audio[rows], of_rows, options)
    return video.index_copy(0, index, changed[0]), audio.index_copy(0, index, changed[1])


def _replacement(options: Mapping[str, Any], i: int) -> Callable[..., Any] | None:
    """Return ComfyUI's patch of a block, if there is one."""
    found: Callable[..., Any] | None = options.get("patches_replace", {}).get("dit", {}).get(("double_block", i))
    return found


def _replaced(
    replace: Callable[..., Any],
    pair: tuple[Block, Block],
    video: Tensor,
    audio: Tensor,
    streams: tuple[Stream, Stream],
    options: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Let a ComfyUI block patch run, change or skip the block."""

    def original(args: Mapping[str, Any]) -> dict[str, Any]:
        video, audio = args["img"]
        return {"img": fuse(pair, video, audio, streams, args["transformer_options"])}

    args = {"img": (video, audio), "streams": streams, "transformer_options": options}
    video, audio = replace(args, {"original_block": original})["img"]
    return video, audio


def _replaced_alone(
    replace: Callable[..., Any], block: nn.Module, tokens: Tensor, stream: Stream, options: Mapping[str, Any]
) -> Tensor:
    """Let a ComfyUI block patch run, change or skip the block of a tower alone, whose tokens are all of "img"."""

    def original(args: Mapping[str, Any]) -> dict[str, Any]:
        (tokens,) = args["img"]
        return {"img": (block(tokens, stream, args["transformer_options"]),)}

    args = {"img": (tokens,), "streams": (stream,), "transformer_options": options}
    (tokens,) = replace(args, {"original_block": original})["img"]
    return tokens
