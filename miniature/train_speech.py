"""Training of the miniature that speaks: `python -m miniature.train_speech --help`.

The audio tower learns to speak alone, as in the paper; then both towers are trained together. .cache/miniature holds
what can be computed again, as for `miniature.train`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from miniature import WEIGHTS, figures, initial, judge, recogniser, speech, text, world
from miniature.codecs import SPEECH, AudioCodec
from miniature.train import CACHE, ROOT, euler, logged, run, stored, write
from ovi import geometry
from ovi.flow import Noised, Sample, Settings, noised
from ovi.model import OviModel
from ovi.tools.train import check_device
from ovi.tools.trainer import Trainer, moved

CONFIG = dataclasses.replace(initial.CONFIG, video_ffn_dim=80, audio_ffn_dim=80)  # small, for files of 32 MB in all
ROWS = speech.HEIGHT // geometry.SIZE_MULTIPLE
FIGURE = ROOT / "docs" / "miniature_talking_training.png"
CLIPS, HELD_OUT = 16_384, 128
WORDLESS = 8  # one of so many clips is trained without its syllables in the prompt
GAP_SIGMA = 0.8
SHOWN, SHOWN_STEPS, SHOWN_CFG = 32, 8, 2.0  # held-out clips that are generated for a line of the log, and how
EVERY = 500  # steps between two lines of the log, each with its saved state

ALONE = Settings(batch=64, lr=1e-3, warmup=100, cooldown=0.25, shift=3.0, first_frame=0.0)
JOINT = dataclasses.replace(
    ALONE, first_frame=0.1, given_audio=0.15, given_video=0.25, cut=0.07, split=0.3, split_steps=3000
)


class Samples:
    """The training samples of scenes, in memory: with `video` for both towers, else for the audio tower alone."""

    def __init__(self, seeds: Sequence[int], latents: Mapping[str, Tensor], *, video: bool) -> None:
        self.latents, self.video = latents, video
        scenes = [speech.scene(seed) for seed in seeds]
        captions = [each.wordless if i % WORDLESS == 0 else each.caption for i, each in enumerate(scenes)]
        self.texts = text.contexts(captions, load_file(text.TALKING)).half()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int, /) -> Sample:
        video = self.latents["video"][index] if self.video else None
        return Sample(video, self.latents["audio"][index], self.texts[index])


def latents(seeds: Sequence[int]) -> dict[str, Tensor]:
    """Return the latents of scenes."""
    video, audio = speech.latents([speech.scene(seed) for seed in seeds])
    return {"video": video.half(), "audio": audio.half()}


class Held:
    """Held-out scenes, on which what a model has learned is measured."""

    def __init__(self, latents: Mapping[str, Tensor], device: torch.device) -> None:
        weights = load_file(text.TALKING)
        self.scenes = [speech.scene(seed) for seed in range(world.HELD_OUT, world.HELD_OUT + HELD_OUT)]
        self.x0 = [latents[name].float().to(device) for name in ("video", "audio")]
        draw = torch.Generator().manual_seed(0)
        self.noise = [torch.randn(x.shape, generator=draw).to(device) for x in self.x0]
        rotated = [each.prompt((*each.syllables[1:], each.syllables[0])) for each in self.scenes]
        own = [each.caption for each in self.scenes]
        self.own, self.rotated = (text.contexts(captions, weights).to(device) for captions in (own, rotated))
        self.empty = text.contexts([""], weights).to(device)
        self.others = judge.others(self.scenes[:SHOWN])

    def shown(self, trainer: Trainer, *, video: bool) -> dict[str, float]:
        """Return what a line of the log says of a trainer's averaged weights."""
        model = averaged(trainer)
        some = self.scenes[:SHOWN]
        seen, heard = self.sampled(model, SHOWN, video=video)
        if seen is not None:
            report = judge.report(some, judge.observe(seen, heard), self.others)
            measured = {name: report[name] for name in ("syllables", "correlation", "to_vowel_ms", "to_opening_ms")}
        else:
            said = recogniser.hear(AudioCodec(SPEECH).to(heard.device).decode(heard))
            words = [judge.compare(one.syllables, scene.syllables) for one, scene in zip(said, some, strict=True)]
            measured = {"syllables": sum(one.errors for one in words) / sum(len(scene.syllables) for scene in some)}
        return self.gaps(model, video=video) | measured

    @torch.no_grad()
    def gaps(self, model: OviModel, *, video: bool) -> dict[str, float]:
        """Return how much larger the audio's loss is, as a share, with rotated syllables, and with another video."""
        x = [torch.lerp(x0, noise, GAP_SIGMA) for x0, noise in zip(self.x0, self.noise, strict=True)]
        timestep = torch.full((len(x[0]),), 1000 * GAP_SIGMA, device=x[0].device)

        def loss(shown: Tensor | None, context: Tensor) -> float:
            velocity = model([shown, x[1]], timestep, context)[1]
            return F.mse_loss(velocity, self.noise[1] - self.x0[1]).item()

        own = loss(x[0] if video else None, self.own)
        gaps = {"order gap": loss(x[0] if video else None, self.rotated) / own - 1}
        return gaps | {"video gap": loss(x[0].roll(1, 0), self.own) / own - 1} if video else gaps

    @torch.no_grad()
    def sampled(self, model: OviModel, count: int, *, video: bool) -> tuple[Tensor | None, Tensor]:
        """Generate the latents of the first `count` scenes by Euler's method; without `video` the audio's alone."""
        x = [self.noise[0][:count] if video else None, self.noise[1][:count]]
        texts = [model.embed_texts(x, context) for context in (self.own[:count], self.empty.expand(count, -1, -1))]

        def predict(x: list[Tensor | None], sigma: float) -> list[Tensor | None]:
            timestep = torch.full((count,), 1000 * sigma, device=self.own.device)
            pairs = zip(*(model.velocities(x, timestep, each) for each in texts), strict=True)
            return [
                None if with_text is None or without is None else without + SHOWN_CFG * (with_text - without)
                for with_text, without in pairs
            ]

        video_latents, audio_latents = euler(predict, x, SHOWN_STEPS)
        return video_latents, audio_latents


class Pass(nn.Module):
    """A forward pass on tensors alone, whose positions are computed once: what a CUDA graph can hold."""

    def __init__(self, model: OviModel, x: Sequence[Tensor | None], *, cut: bool) -> None:
        super().__init__()
        self.model, self.cut = model, cut
        video, audio = x
        if video is not None:
            *_, frames, rows, columns = video.shape
            _fix(model.video_model, model.video_model.positions((frames, rows // 2, columns // 2), video))
        if audio is not None:
            _fix(model.audio_model, model.audio_model.positions(audio.shape[2], audio))

    def forward(self, frames: Tensor, audio_time: Tensor, context: Tensor, *latents: Tensor) -> tuple[Tensor, ...]:
        """Predict the velocities of the video and the audio, or of the audio alone."""
        x = [None, *latents] if len(latents) == 1 else list(latents)
        cut_rows = [True] * len(context) if self.cut else None
        return tuple(v for v in self.model(x, (frames, audio_time), context, cut_rows=cut_rows) if v is not None)


def _fix(tower: Any, table: Tensor) -> None:
    tower.positions = lambda *_: table


def replayed(model: OviModel, batch: Noised) -> Callable[..., list[Tensor | None]]:
    """Return the model with its passes, forward and backward, as CUDA graphs, for batches of one size.

    On a fast GPU, starting the operations of such a small model one by one takes far longer than computing them.
    """
    latents = [latent for latent in batch.x if latent is not None]
    inputs = (*batch.timestep, batch.context, *latents)
    passes = {
        cut: torch.cuda.make_graphed_callables(Pass(model, batch.x, cut=cut), inputs, allow_unused_input=True)
        for cut in (False, True)[: len(latents)]
    }

    def call(
        x: Sequence[Tensor | None], timestep: Sequence[Tensor], context: Tensor, **options: Any
    ) -> list[Tensor | None]:
        present = [latent for latent in x if latent is not None]
        velocities = passes[options["cut_rows"] is not None](*timestep, context, *present)
        return [None] * (2 - len(present)) + list(velocities)

    return call


def trained(name: str, model: OviModel, samples: Samples, held: Held, settings: Settings, steps: int) -> Trainer:
    """Train a model, or resume that, with CUDA graphs where there is CUDA."""
    trainer = Trainer(model, samples, settings, steps, empty=held.empty[0].cpu())
    if trainer.device.type == "cuda":
        some = [samples[i] for i in range(settings.batch)]
        batch = noised(some, trainer.empty, settings, torch.Generator().manual_seed(0))
        trainer.call = replayed(model, moved(batch, trainer.device))
    run(trainer, name, EVERY, lambda: held.shown(trainer, video=samples.video))
    return trainer


def averaged(trainer: Trainer) -> OviModel:
    """Return a model with a trainer's averaged weights."""
    model = OviModel(CONFIG, device="meta")
    model.load_state_dict(trainer.averaged, assign=True)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or resume training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", type=int, default=3000, metavar="STEPS", help="of the audio tower alone")
    parser.add_argument("--steps", type=int, default=2800, help="of both towers")
    parser.add_argument("--batch", type=int, default=ALONE.batch)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    check_device(args.device)
    CACHE.mkdir(parents=True, exist_ok=True)
    held_out = range(world.HELD_OUT, world.HELD_OUT + HELD_OUT)
    train = stored(CACHE / "speech_train.safetensors", latents, range(CLIPS), args.threads)
    kept = stored(CACHE / "speech_held_out.safetensors", latents, held_out, args.threads)
    held = Held(kept, torch.device(args.device))
    torch.set_num_threads(args.threads)
    model = initial.new_model(CONFIG, ROWS).to(args.device)
    alone, joint = (dataclasses.replace(settings, batch=args.batch) for settings in (ALONE, JOINT))
    of_audio = Samples(range(CLIPS), train, video=False)
    model.load_state_dict(trained("speech_alone_", model, of_audio, held, alone, args.alone).averaged)
    of_both = Samples(range(CLIPS), train, video=True)
    write(trained("speech_", model, of_both, held, joint, args.steps), WEIGHTS / "ovi_talking.safetensors")
    figures.speaking(logged("speech_alone_"), logged("speech_")).save(FIGURE, optimize=True)


if __name__ == "__main__":
    main()
