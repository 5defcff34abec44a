"""Training of the miniature, with its text encoder and its clips: `python -m miniature.train --help`.

.cache/miniature holds what can be computed again: clips, training state, and a line of losses every few steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from miniature import WEIGHTS, figures, text, world
from miniature.codecs import AudioCodec, VideoCodec
from miniature.initial import CONFIG, new_model
from ovi import sampling
from ovi.config import METADATA_KEY
from ovi.flow import Sample, Settings
from ovi.lora import Lora, add_lora
from ovi.model import OviModel
from ovi.tools import train as tool
from ovi.tools.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "miniature"
CLIPS = 8192
MIDDLE = slice(world.LEFT // 16, world.RIGHT // 16)  # the latent columns of the ball
GROW = 1500  # first steps, which see only the middle of the stage: a third of the video's tokens
GAPS = (0.1, 0.8), (0.6, 0.6), (0.8, 0.8)  # sigmas of video and audio at which the gap is measured
EVERY = 125  # steps between two lines of the log, each with its saved state
PART = 64  # clips that a process makes at once

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
    characters = {character for caption in CAPTIONS for character in caption if character != " "}
    spiece = text.tokenizer([*CAPTIONS, *sorted(characters)], "bpe", 128)
    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=spiece.numpy().tobytes()).vocab_size()
    return text.layer(vocabulary, heads=4, seed=seed) | {"spiece_model": spiece}


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


def stored(
    path: Path, latents: Callable[[Sequence[int]], dict[str, Tensor]], seeds: Sequence[int], processes: int = 1
) -> dict[str, Tensor]:
    """Load the latents of seeds, stacked, from a file, which is written first where it is missing."""
    if not path.exists():
        parts = [seeds[i : i + PART] for i in range(0, len(seeds), PART)]
        with ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            each = list(tqdm(pool.map(latents, parts), total=len(parts), desc="clips"))
        save_file({name: torch.cat([one[name] for one in each]) for name in each[0]}, path)
    return load_file(path)


def stacked(each: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the latents of clips."""
    clips = list(each)
    return {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}


def latents_of(seeds: Sequence[int]) -> dict[str, Tensor]:
    """Return the latents of the scenes of seeds, stacked."""
    return stacked(latents(world.scene(seed)) for seed in seeds)


def samples(name: str, seeds: Sequence[int], texts: Mapping[str, Tensor]) -> Samples:
    """Return the samples of some seeds, whose latents are kept under a name."""
    path = CACHE / f"{name}.safetensors"
    return Samples(list(map(world.scene, seeds)), texts, stored(path, latents_of, seeds))


def euler(
    predict: Callable[[list[Any], float], Sequence[Tensor | None]], x: Sequence[Tensor | None], steps: int
) -> list[Any]:
    """Generate from noise by Euler's method; `predict` returns the velocities of latents at a sigma, None as there."""
    latents = list(x)
    for sigma, after in pairwise(sampling.flow_sigmas(steps, solver="euler").tolist()):
        pairs = zip(latents, predict(latents, sigma), strict=True)
        latents = [None if velocity is None else latent + (after - sigma) * velocity for latent, velocity in pairs]
    return latents


def lora_trainer(samples: Samples, settings: Settings, steps: int, empty: Tensor, rank: int) -> Trainer:
    """Return a trainer of LoRAs of a rank on the shipped miniature."""
    torch.manual_seed(settings.seed)  # the LoRAs' first weights
    model, _ = tool.load([WEIGHTS / "ovi_miniature.safetensors"])
    model.float()
    lora = Lora(rank)
    add_lora(model, lora)
    return Trainer(model, samples, settings, steps, empty=empty, lora=lora)


def parser(about: str | None, steps: int) -> argparse.ArgumentParser:
    """Return what parses the command line of a training, whose `steps` are the default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="the ComfyUI whose text encoder reads the captions")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def run(
    trainer: Trainer,
    name: str,
    every: int,
    measured: Callable[[], Mapping[str, float]],
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
    args = parser(__doc__, 4750).parse_args(argv)
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
