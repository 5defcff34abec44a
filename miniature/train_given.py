"""Training of a LoRA of the miniature for what is given: `python -m miniature.train_given --help`.

It starts from the shipped miniature, in which video and audio are generated together. In half of the samples it is
given the audio, as by Ovi Reference, or all but a passage, as by Ovi Remake. .cache/miniature holds what can be
computed again, as for `miniature.train`, and the LoRA.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from statistics import mean, median

import torch
from torch import Tensor

from miniature import measure, train, world
from miniature.codecs import AudioCodec, VideoCodec
from miniature.train import CACHE
from ovi import given
from ovi.flow import Settings
from ovi.model import OviModel
from ovi.tools import train as tool

RANK = 16
CLIPS = 2048
GROW = 150  # first steps, which see only the middle of the stage
EVERY = 50  # steps between two lines of the log, each with its saved state
SHOWN, STEPS = 32, 8  # clips that are generated for such a line, and the steps of the sampler
PASSAGE = 0.5, 1.25  # seconds: the passage that is regenerated for such a line

SETTINGS = Settings(batch=8, lr=2e-3, warmup=50, cooldown=0.3, shift=3.0, first_frame=0.1)
TAUGHT = {"audio": "given_audio", "passage": "passage"}  # the setting of each


@torch.no_grad()
def generated(model: OviModel, samples: train.Samples, masks: given.Masks) -> tuple[list[Tensor], list[Tensor]]:
    """Generate what masks leave of the clips of samples; return the clips' frames and waveforms."""
    shown = [samples[i] for i in range(len(samples))]
    text = torch.stack([one.context for one in shown])
    clean = [torch.stack(parts).float() for parts in zip(*((one.video, one.audio) for one in shown), strict=True)]
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randn(part.shape, generator=draw) for part in clean]
    free = masks[0][:, None, None], masks[1]

    def predict(x: list[Tensor], sigma: float) -> list[Tensor]:
        timestep = tuple((1000 * sigma * mask).expand(len(shown), -1) for mask in masks)
        return [velocity * mask for velocity, mask in zip(model(x, timestep, text), free, strict=True)]

    starts = [torch.where(mask == 0, *parts) for mask, *parts in zip(free, clean, noise, strict=True)]
    video, audio = train.euler(predict, starts, STEPS)
    return list(VideoCodec().decode(video).movedim(1, -1) / 2 + 0.5), list(AudioCodec().decode(audio))


def nearest(model: OviModel, samples: train.Samples, *, audio: bool = False) -> float:
    """Return the median distance in ms from a generated bounce to the nearest onset; `audio`: it is given."""
    sizes = samples[0].video.shape[1], samples[0].audio.shape[1]
    frames, waveforms = generated(model, samples, (torch.ones(sizes[0]), torch.full((sizes[1],), 0.0 if audio else 1)))
    return 1000 * measure.nearest_distance(list(map(measure.bounces, frames)), list(map(measure.onsets, waveforms)))


def passage_errors(model: OviModel, samples: train.Samples) -> dict[str, float]:
    """Regenerate a passage, in video and audio, and return how far it is from the true clips, whose rest is given.

    "pixels" is the mean error of the ball's height; "ms" the median distance from a true impact in the passage to the
    nearest onset.
    """
    sizes = samples[0].video.shape[1], samples[0].audio.shape[1]
    frames, waveforms = generated(model, samples, given.between(*sizes, *PASSAGE))
    inside = slice(*(round(second * world.FPS) for second in PASSAGE))
    pixels, seconds = [], []
    for scene, clip, waveform in zip(samples.scenes, frames, waveforms, strict=True):
        rows, true = (measure.ball_rows(each)[inside] for each in (clip, world.frames(scene)))
        pixels.append((rows - true).abs().mean().item())
        onsets = measure.onsets(waveform)
        seconds += [
            min((abs(time - onset) for onset in onsets), default=world.SECONDS)
            for time, _ in scene.impacts()
            if PASSAGE[0] <= time < PASSAGE[1]
        ]
    return {"pixels": mean(pixels), "ms": 1000 * median(seconds)}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or resume training."""
    parser = train.parser(__doc__, 200)
    parser.add_argument("--taught", choices=TAUGHT, default="audio", help="what it learns to work with")
    args = parser.parse_args(argv)
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    texts = train.encoded(args.comfyui, ["", *train.CAPTIONS])
    trained_on = train.samples("given_train", range(CLIPS), texts)
    held_out = train.samples("given_held_out_32", range(world.HELD_OUT, world.HELD_OUT + SHOWN), texts)
    settings = dataclasses.replace(SETTINGS, **{TAUGHT[args.taught]: 0.5})
    trainer = train.lora_trainer(trained_on, settings, args.steps, texts[""], RANK)

    def measured() -> Mapping[str, float]:
        if args.taught == "audio":
            found = {"given": nearest(trainer.model, held_out, audio=True)}
        else:
            found = passage_errors(trainer.model, held_out)
        return found | {"both": nearest(trainer.model, held_out)}

    sys.stdout.write(f"Before the training: {dict(measured())}\n")
    train.run(trainer, f"given_{args.taught}_", EVERY, measured, GROW, [trained_on])
    tool.write(trainer, CACHE / f"given_{args.taught}_lora.safetensors", {})


if __name__ == "__main__":
    main()
