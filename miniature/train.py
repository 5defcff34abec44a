"""Training of the miniature, with its text encoder and its clips: `python -m miniature.train --help`.

.cache/miniature holds what can be computed again: clips, training state, and a line of losses every few steps.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from miniature import WEIGHTS, figures, world
from miniature.codecs import AudioCodec, VideoCodec
from miniature.initial import CONFIG, new_model
from ovi.config import METADATA_KEY
from ovi.flow import Sample, Settings
from ovi.model import OviModel
from ovi.tools.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "miniature"
CLIPS = 8192
MIDDLE = slice(world.LEFT // 16, world.RIGHT // 16)  # the latent columns of the ball
GROW = 1500  # first steps, which see only the middle of the stage: a third of the video's tokens
GAPS = (0.1, 0.8), (0.6, 0.6), (0.8, 0.8)  # sigmas of video and audio at which the gap is measured
EVERY = 125  # steps between two lines of the log, each with its saved state

SETTINGS = Settings(
    batch=8,
    lr=1e-3,
    warmup=100,
    cooldown=0.3,
    shift=3.0,
    first_frame=0.15,
    split=0.5,
    split_steps=1000,
)
CAPTIONS = [
    world.Scene(colour, size, world.BELLS[size], 0, 1, 0).caption for size in world.RADII for colour in world.COLOURS
]


def text_encoder_weights(seed: int = 0) -> dict[str, Tensor]:
    """Return a random UMT5 of one layer, with ComfyUI's names, and a tokenizer trained on the captions."""
    model = io.BytesIO()
    characters = {character for caption in CAPTIONS for character in caption if character != " "}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS + sorted(characters)), model_writer=model, vocab_size=128, model_type="bpe",
        hard_vocab_limit=False, character_coverage=1.0, normalization_rule_name="identity",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    width, hidden, heads = CONFIG.text_dim, 2 * CONFIG.text_dim, 4
    attention, gated = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    shapes = {f"{attention}.{name}.weight": (width, width) for name in "qkvo"}
    shapes |= {
        "shared.weight": (vocabulary, width),
        f"{attention}.relative_attention_bias.weight": (32, heads),
        f"{gated}.wi_0.weight": (hidden, width),
        f"{gated}.wi_1.weight": (hidden, width),
        f"{gated}.wo.weight": (width, hidden),
    }
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in shapes.items():
        scale = 1.0 if key == "shared.weight" else shape[1] ** -0.5
        weights[key] = (torch.randn(shape, generator=draw) * scale).half()
    norms = "encoder.block.0.layer.0.layer_norm", "encoder.block.0.layer.1.layer_norm", "encoder.final_layer_norm"
    weights |= {f"{norm}.weight": torch.ones(width).half() for norm in norms}
    weights["spiece_model"] = torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)
    return weights


def encoded(comfyui: Path, captions: Sequence[str]) -> dict[str, Tensor]:
    """Encode captions with real ComfyUI: [text_len, text_dim] each."""
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = True
    from miniature.nodes import text_encoder

    with torch.inference_mode():
        clip = text_encoder(load_file(WEIGHTS / "umt5.safetensors"))
        texts = [clip.encode_from_tokens(clip.tokenize(caption, disable_weights=True)) for caption in captions]
    return {caption: text[0].clone() for caption, text in zip(captions, texts, strict=True)}


def latents(scene: world.Scene) -> dict[str, Tensor]:
    """Return the latents of a scene: the middle of the video [48, F, h, 2] and the audio [20, L]."""
    return {"video": video_latent(world.frames(scene)), "audio": audio_latent(world.waveform(scene))}


def video_latent(frames: Tensor) -> Tensor:
    """Encode frames [T, H, W, 3]: the latents [48, F, h, 2] of their middle, where the ball is."""
    return VideoCodec().encode(2 * frames.movedim(-1, 0)[None] - 1)[0, ..., MIDDLE].half()


def audio_latent(waveform: Tensor) -> Tensor:
    """Encode a waveform [samples]: latents [20, L]."""
    return AudioCodec().encode(waveform[None])[0].half()


class Samples:
    """The training samples of scenes, in memory: the middle of the stage, where the ball is, or the `whole` stage.

    `texts` are those of the captions, `latents` the scenes' of each name, stacked.
    """

    def __init__(
        self, scenes: Sequence[world.Scene], texts: Mapping[str, Tensor], latents: Mapping[str, Tensor]
    ) -> None:
        self.scenes, self.texts, self.latents = scenes, texts, latents
        empty = VideoCodec().encode(2 * world.background().movedim(-1, 0)[None, :, None] - 1)[0].half()
        self.left, self.right = empty[..., : MIDDLE.start], empty[..., MIDDLE.stop :]
        self.whole = True

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int, /) -> Sample:
        text = self.texts[self.scenes[index].caption]
        return Sample(self.staged(self.latents["video"][index]), self.latents["audio"][index], text)

    def staged(self, latent: Tensor) -> Tensor:
        """Return a latent of the middle [48, F, h, 2] as it is trained on: with the sides, if the stage is whole."""
        if not self.whole:
            return latent
        left, right = (side.expand(-1, latent.shape[1], -1, -1) for side in (self.left, self.right))
        return torch.cat([left, latent, right], dim=-1)


def gap(model: OviModel, samples: Samples, sigmas: tuple[float, float]) -> float:
    """Return how much larger the audio's loss is with another clip's video than with its own, as a share.

    `sigmas` are those of video and audio. The other clip has a ball of the same size, except for each size's first.
    """
    order = sorted(range(len(samples)), key=lambda i: samples.scenes[i].size)
    own = [samples[i] for i in order]
    draw = torch.Generator().manual_seed(0)
    x0 = [torch.stack([sample.video for sample in own]).float(), torch.stack([sample.audio for sample in own]).float()]
    noise = [torch.randn(x.shape, generator=draw) for x in x0]
    video, audio = (torch.lerp(*pair, sigma) for *pair, sigma in zip(x0, noise, sigmas, strict=True))
    timestep = tuple(torch.full((len(own),), 1000 * sigma) for sigma in sigmas)
    text = torch.stack([sample.context for sample in own])
    with torch.no_grad():
        velocities = [model([shown, audio], timestep, text)[1] for shown in (video, video.roll(1, 0))]
    with_own, with_other = (F.mse_loss(velocity, noise[1] - x0[1]).item() for velocity in velocities)
    return with_other / with_own - 1


def stored(path: Path, latents: Callable[[int], dict[str, Tensor]], seeds: Sequence[int]) -> dict[str, Tensor]:
    """Load the latents of seeds, stacked, from a file, which is written first where it is missing."""
    if not path.exists():
        each = [latents(seed) for seed in tqdm(seeds, desc="clips")]
        save_file({name: torch.stack([one[name] for one in each]) for name in each[0]}, path)
    return load_file(path)


def samples(name: str, seeds: Sequence[int], texts: Mapping[str, Tensor]) -> Samples:
    """Return the samples of some seeds, whose latents are kept under a name."""
    path = CACHE / f"{name}.safetensors"
    return Samples(list(map(world.scene, seeds)), texts, stored(path, lambda seed: latents(world.scene(seed)), seeds))


def arguments(about: str | None, steps: int, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line of a training, whose `steps` are the default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="the ComfyUI whose text encoder reads the captions")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(argv)


def run(
    trainer: Trainer,
    name: str,
    every: int,
    measured: Callable[[], dict[str, float]],
    grow: int = 0,
    samples: Sequence[Samples] = (),
) -> None:
    """Train, or resume training, with a saved state and a line of losses and of what is `measured` `every` few steps.

    `samples` show the middle of the stage in the first `grow` steps. `name` begins the names of the state and the log.
    """
    state = CACHE / f"{name}state.pt"
    if state.exists():
        trainer.resume(state)
    began = time.monotonic()
    with (CACHE / f"{name}log.jsonl").open("a") as log:
        _show(samples, whole=len(trainer.history) >= grow)
        for step in trainer.run(state, every=every):
            video, audio = torch.tensor(trainer.history[-every:]).mean(0).tolist()
            line = {"step": step, "seconds": time.monotonic() - began, "cpu": time.process_time()}
            log.write(json.dumps(line | {"video": video, "audio": audio} | measured()) + "\n")
            log.flush()
            _show(samples, whole=step >= grow)


def _show(samples: Sequence[Samples], *, whole: bool) -> None:
    for each in samples:
        each.whole = whole


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or resume training."""
    args = arguments(__doc__, 4750, argv)
    CACHE.mkdir(parents=True, exist_ok=True)
    WEIGHTS.mkdir(exist_ok=True)
    if not (WEIGHTS / "umt5.safetensors").exists():
        save_file(text_encoder_weights(), WEIGHTS / "umt5.safetensors")
    texts = encoded(args.comfyui, ["", *CAPTIONS])
    train = samples("train", range(CLIPS), texts)
    held_out = samples("held_out", range(world.HELD_OUT, world.HELD_OUT + 32), texts)
    torch.set_num_threads(args.threads)
    trainer = Trainer(new_model(), train, SETTINGS, args.steps, empty=texts[""])

    def gaps() -> dict[str, float]:
        return {f"gap {sigmas}": gap(trainer.model, held_out, sigmas) for sigmas in GAPS}

    run(trainer, "", EVERY, gaps, GROW, [train, held_out])
    write(trainer, WEIGHTS / "ovi_miniature.safetensors")
    figures.training(logged("")).save(ROOT / "docs" / "miniature_training.png", optimize=True)


def logged(name: str) -> list[dict[str, float]]:
    """Return the lines of a training's log."""
    return [json.loads(line) for line in (CACHE / f"{name}log.jsonl").read_text().splitlines()]


def write(trainer: Trainer, path: Path) -> None:
    """Write the averaged weights to a file that Load Ovi Model opens."""
    sizes = {"num_heads": CONFIG.num_heads, "text_len": CONFIG.text_len}
    weights = {name: tensor.half() for name, tensor in trainer.averaged.items()}
    save_file(weights, path, metadata={METADATA_KEY: json.dumps(sizes)})


if __name__ == "__main__":
    main()
