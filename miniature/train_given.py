"""Training of a LoRA of the miniature for given audio: `python -m miniature.train_given --help`.

It starts from the shipped miniature, in which the audio is generated with the video, and in half of the samples gives
it the audio. .cache/miniature holds what can be computed again, as for `miniature.train`, and the LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from miniature import measure, train, world
from miniature.codecs import AudioCodec, VideoCodec
from miniature.train import CACHE
from ovi.flow import Settings
from ovi.model import OviModel
from ovi.tools import train as tool

RANK = 16
CLIPS = 2048
GROW = 150  # first steps, which see only the middle of the stage
EVERY = 50  # steps between two lines of the log, each with its saved state
SHOWN, STEPS = 16, 8  # clips that are generated for such a line, and the steps of the sampler

SETTINGS = Settings(batch=8, lr=2e-3, warmup=50, cooldown=0.3, shift=3.0, first_frame=0.1, given_audio=0.5)


@torch.no_grad()
def nearest(model: OviModel, samples: train.Samples, *, given: bool) -> float:
    """Generate the clips of samples, their audio `given` or not.

    Return the median distance in milliseconds from a bounce to the nearest onset.
    """
    shown = [samples[i] for i in range(len(samples))]
    text = torch.stack([one.context for one in shown])
    audio = torch.stack([one.audio for one in shown]).float()
    draw = torch.Generator().manual_seed(0)
    video, noise = (torch.randn((len(shown), *latent.shape), generator=draw) for latent in shown[0][:2])

    def predict(x: list[Tensor], sigma: float) -> list[Tensor]:
        timestep = torch.full((len(shown),), 1000 * sigma)
        velocities = model(x, (timestep, torch.zeros_like(timestep) if given else timestep), text)
        return [velocities[0], torch.zeros_like(audio)] if given else velocities

    x = train.euler(predict, [video, audio if given else noise], STEPS)
    frames, waveforms = VideoCodec().decode(x[0]).movedim(1, -1) / 2 + 0.5, AudioCodec().decode(x[1])
    bounces, onsets = map(measure.bounces, frames), map(measure.onsets, waveforms)
    return 1000 * measure.nearest_distance(list(bounces), list(onsets))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or resume training."""
    args = train.arguments(__doc__, 200, argv)
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    texts = train.encoded(args.comfyui, ["", *train.CAPTIONS])
    trained_on = train.samples("given_train", range(CLIPS), texts)
    held_out = train.samples("given_held_out", range(world.HELD_OUT, world.HELD_OUT + SHOWN), texts)
    trainer = train.lora_trainer(trained_on, SETTINGS, args.steps, texts[""], RANK)

    def distances() -> dict[str, float]:
        return {
            name: nearest(trainer.model, held_out, given=given) for name, given in (("given", True), ("both", False))
        }

    train.run(trainer, "given_", EVERY, distances, GROW, [trained_on])
    tool.write(trainer, CACHE / "given_audio_lora.safetensors", {})


if __name__ == "__main__":
    main()
