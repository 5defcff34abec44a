"""Training of the miniature's LoRA for references: `python -m miniature.train_references --help`.

It starts from the shipped miniature. .cache/miniature holds what can be computed again, as for `miniature.train`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from miniature import WEIGHTS, measure, references, train, world
from miniature.codecs import AudioCodec, VideoCodec
from miniature.train import CACHE
from ovi.flow import Sample, Settings
from ovi.model import OviModel
from ovi.references import References
from ovi.tools import train as tool

RANK = 16
CLIPS = 4096
GROW = 500  # first steps, which see only the middle of the stage
EVERY = 100  # steps between two lines of the log, each with its saved state
SHOWN, STEPS = 16, 8  # clips that are generated for such a line, and the steps of the sampler

SETTINGS = Settings(batch=8, lr=2e-3, warmup=50, cooldown=0.3, shift=3.0, reference_dropout=0.1, first_frame=0.0)
CAPTIONS = [references.Scene("", size, "", 0, 1, 0).caption for size in world.RADII]


class Samples(train.Samples):
    """The training samples of scenes with an image and a recording each."""

    def __getitem__(self, index: int, /) -> Sample:
        image, recording = self.latents["image"][index], self.latents["recording"][index]
        return super().__getitem__(index)._replace(images=[self.staged(image)], voices=[recording])


def latents(seed: int) -> dict[str, Tensor]:
    """Return the latents of a scene and of its references: the image's [48, 1, h, 2] and the recording's [20, L]."""
    scene = references.scene(seed)
    image, recording = references.image(scene, seed), references.recording(scene, seed)
    return train.latents(scene) | {"image": train.video_latent(image), "recording": train.audio_latent(recording)}


def latents_of(seeds: Sequence[int]) -> dict[str, Tensor]:
    """Return the latents of scenes and of their references, stacked."""
    return train.stacked(map(latents, seeds))


def samples(name: str, seeds: Sequence[int], texts: Mapping[str, Tensor]) -> Samples:
    """Return the samples of some seeds, whose latents are kept under a name."""
    path = CACHE / f"references_{name}.safetensors"
    return Samples(list(map(references.scene, seeds)), texts, train.stored(path, latents_of, seeds))


@torch.no_grad()
def followed(model: OviModel, samples: Samples) -> tuple[float, float]:
    """Generate the clips of samples; return the shares that have the colour of the image and the recording's pitch."""
    given = [samples[i] for i in range(len(samples))]
    text = torch.stack([one.context for one in given])
    persons = References(
        [torch.stack([one.images[0] for one in given]).float()], [torch.stack([one.voices[0] for one in given]).float()]
    )
    draw = torch.Generator().manual_seed(0)
    x = [torch.randn((len(given), *latent.shape), generator=draw) for latent in given[0][:2]]

    def predict(x: list[Tensor], sigma: float) -> list[Tensor]:
        return model(x, torch.full((len(given),), 1000 * sigma), text, references=persons)

    x = train.euler(predict, x, STEPS)
    frames, waveforms = VideoCodec().decode(x[0]).movedim(1, -1) / 2 + 0.5, AudioCodec().decode(x[1])
    colours = [measure.colour(clip) == scene.colour for clip, scene in zip(frames, samples.scenes, strict=True)]
    pitches = [measure.pitch(clip) == scene.pitch for clip, scene in zip(waveforms, samples.scenes, strict=True)]
    return sum(colours) / len(given), sum(pitches) / len(given)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or resume training."""
    args = train.parser(__doc__, 800).parse_args(argv)
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    texts = train.encoded(args.comfyui, ["", *CAPTIONS])
    trained_on = samples("train", range(CLIPS), texts)
    held_out = samples("held_out", range(world.HELD_OUT, world.HELD_OUT + SHOWN), texts)
    trainer = train.lora_trainer(trained_on, SETTINGS, args.steps, texts[""], RANK)

    def shares() -> dict[str, float]:
        return dict(zip(("colour", "pitch"), followed(trainer.model, held_out), strict=True))

    train.run(trainer, "references_", EVERY, shares, GROW, [trained_on])
    tool.write(trainer, WEIGHTS / "references_lora.safetensors", {})


if __name__ == "__main__":
    main()
