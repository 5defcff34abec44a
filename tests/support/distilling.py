"""Distillers of the golden model, and the recipe of distillation in plain PyTorch, to compare them with."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.func import functional_call

from ovi.distillation import Recipe
from ovi.flow import Sample, Settings
from ovi.lora import Lora
from ovi.references import References
from ovi.tools.distiller import Distiller, Size

from . import golden_model
from .training import LAYERS

SIZE = Size((48, 2, 4, 4), (20, 9))
SETTINGS = Settings(batch=2, lr=1e-2, warmup=2, ema=0.5, first_frame=0.0)
RECIPE = Recipe(
    student_steps=2, substeps=3, cfg=2.5, audio_cfg=1.5, skip_blocks=(1,), dmd_lr=5e-3, critic_lr=2e-2, critic_updates=2
)
NEGATIVES = torch.full((3, 64), 0.3), torch.full((2, 64), -0.2)


def prompts(n=3, persons=0, first=False):
    """Return random prompts, with some persons, and with clips that show how they begin."""
    draw = torch.Generator().manual_seed(5)

    def drawn(*shape):
        return torch.randn(shape, generator=draw)

    found = []
    for i in range(n):
        images, voices = [drawn(48, 1, 4, 4) for _ in range(persons)], [drawn(20, 3 + j) for j in range(persons)]
        found.append(Sample(drawn(48, 3, 4, 4) if first else None, None, drawn(3 + i, 64), images, voices))
    return found


def distiller(settings=SETTINGS, recipe=RECIPE, iterations=2, dmd_iterations=2, samples=None, **options):
    """Return a distiller of LoRAs of rank 2 on the first layers of the golden model."""
    torch.manual_seed(0)
    model = options.pop("model", None) or golden_model.load(layers=LAYERS)
    samples = prompts() if samples is None else samples
    options = {"lora": Lora(2, alpha=3.0), "negatives": NEGATIVES} | options
    size = options.pop("size", SIZE)
    return Distiller(model, samples, settings, recipe, size, iterations, dmd_iterations, **options)


def command(model, prompts, out, *options):
    """Return a command line that distils a model in a few steps of both stages."""
    size = "--width 64 --height 64 --frames 5 --skip-blocks 1 --device cpu --rank 2 --student-steps 2 --substeps 1"
    steps = "--iterations 2 --dmd-iterations 1 --critic-updates 1 --keep-activations --float32"
    return [str(model), "--prompts", str(prompts), "--out", str(out), *size.split(), *steps.split(), *options]


class Plain:
    """The recipe as it is written down, on whole weights: those of the model plus products of LoRAs.

    It draws the numbers that a distiller is about to draw.
    """

    def __init__(self, like):
        self.model = golden_model.load(layers=LAYERS)
        self.draw = torch.Generator()
        self.draw.set_state(like.draw.get_state())
        self.settings, self.recipe, self.samples = like.settings, like.recipe, like.samples
        self.scale = like.lora.scale
        self.student, self.critic_weights = {}, {}

    def adopt(self, like):
        """Take the weights that the distiller has by now."""
        self.student, self.critic_weights = (
            {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
            for weights in (like.trained, like.critic)
        )

    def call(self, lora, x, sigma, batch, contexts=None, **options):
        """The velocities of the model with a LoRA."""
        weights = dict(self.model.named_parameters())
        for name, a in lora.items():
            if name.endswith(".lora_A.weight"):
                layer, b = name.removesuffix(".lora_A.weight"), lora[name.replace("lora_A", "lora_B")]
                weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + self.scale * b @ a
        _, context, given, references = batch
        timestep = torch.stack([1000 * sigma * ~given, 1000 * sigma], dim=1), 1000 * sigma
        options.setdefault("references", references)
        return functional_call(self.model, weights, (x, timestep, *(contexts or (context,))), options)

    def teacher(self, x, sigma, batch):
        """The guided velocities."""
        recipe, n = self.recipe, len(sigma)
        with torch.no_grad():
            positive = self.call({}, x, sigma, batch)
            contexts = [text[None].expand(n, -1, -1) for text in NEGATIVES]
            negative = self.call({}, x, sigma, batch, contexts, skip_blocks=recipe.skip_blocks)
            scales = recipe.cfg, recipe.audio_cfg
            found = [b + scale * (a - b) for a, b, scale in zip(positive, negative, scales, strict=True)]
            if recipe.sync_scale:
                cut = self.call({}, x, sigma, batch, cut_rows=[True] * n)
                found = [v + recipe.sync_scale * (a - b) for v, a, b in zip(found, positive, cut, strict=True)]
            if (persons := batch[3]) is not None:
                faceless = persons._replace(images=[0 * image for image in persons.images])
                voiceless = persons._replace(voices=[0 * voice for voice in persons.voices])
                without = [self.call({}, x, sigma, batch, references=each) for each in (faceless, voiceless)]
                found[0] = found[0] + recipe.image_cfg * (positive[0] - without[0][0])
                found[1] = found[1] + recipe.voice_cfg * (positive[1] - without[1][1])
        return found

    def noise(self):
        return [torch.randn((self.settings.batch, *shape), generator=self.draw) for shape in SIZE]

    def batch(self):
        """Noise, texts, which first frames are given, references."""
        n = self.settings.batch
        chosen = torch.randint(len(self.samples), (n,), generator=self.draw).tolist()
        given = torch.zeros(n, dtype=torch.bool)
        if self.settings.first_frame:
            given = torch.rand(n, generator=self.draw) < self.settings.first_frame
        samples = [self.samples[i] for i in chosen]
        noise = self.noise()
        for row in given.nonzero().flatten():
            noise[0][row, :, 0] = samples[row].video[:, 0]
        context = torch.zeros(n, 8, 64)
        for row, sample in enumerate(samples):
            context[row, : len(sample.context)] = sample.context
        references = None
        if samples[0].images:
            kinds = ([getattr(sample, kind) for sample in samples] for kind in ("images", "voices"))
            references = References(*([torch.stack(each) for each in zip(*kind, strict=True)] for kind in kinds))
        return noise, context, given, references

    def moved(self, x, velocity, change, given):
        """One of Euler's steps, in which a given frame stays."""
        video, audio = (clip + change * along for clip, along in zip(x, velocity, strict=True))
        return [torch.cat([torch.where(self.beside(given), x[0], video)[:, :, :1], video[:, :, 1:]], dim=2), audio]

    @staticmethod
    def beside(given):
        return given[:, None, None, None, None]

    def way(self, lora, batch, sigmas):
        """The student's own way along some sigmas."""
        x = batch[0]
        with torch.no_grad():
            for sigma, after in pairwise(sigmas):
                velocity = self.call(lora, x, torch.full((len(x[0]),), sigma), batch)
                x = self.moved(x, velocity, after - sigma, batch[2])
        return x

    def mean_squares(self, found, expected, given):
        """The losses of video and audio, without the given frames."""
        errors = [(one - other).square() for one, other in zip(found, expected, strict=True)]
        video = [frames[:, 1:] if is_given else frames for frames, is_given in zip(errors[0], given, strict=True)]
        return torch.cat([frames.flatten() for frames in video]).mean(), errors[1].mean()

    def trajectory(self):
        """The losses of a step of the first stage."""
        batch, k, m = self.batch(), self.recipe.student_steps, self.recipe.substeps
        if self.recipe.guidance_only:
            k, m = int(torch.randint(round(0.75 * k), round(1.25 * k) + 1, (1,), generator=self.draw)), 1
        i = int(torch.randint(k, (1,), generator=self.draw))
        x = self.way(self.student, batch, [shifted(1 - j / k) for j in range(i + 1)])
        y = x
        for sigma, after in pairwise(shifted(1 - (i * m + j) / (k * m)) for j in range(m + 1)):
            y = self.moved(y, self.teacher(y, torch.full((len(x[0]),), sigma), batch), after - sigma, batch[2])
        start, end = shifted(1 - i / k), shifted(1 - (i + 1) / k)
        expected = [(b - a) / (end - start) for a, b in zip(x, y, strict=True)]
        return self.mean_squares(self.call(self.student, x, torch.full((len(x[0]),), start), batch), expected, batch[2])

    def generated(self):
        """A batch, and the student's clips x0 of it."""
        batch, k = self.batch(), self.recipe.student_steps
        i = int(torch.randint(k, (1,), generator=self.draw))
        x = self.way(self.student, batch, [shifted(1 - j / k) for j in range(i + 1)])
        sigma = shifted(1 - i / k)
        velocity = self.call(self.student, x, torch.full((len(x[0]),), sigma), batch)
        return batch, self.moved(x, velocity, -sigma, batch[2])

    def noised(self, x0, given):
        n = len(given)
        noise = self.noise()
        u = (torch.arange(n) + torch.rand(1, generator=self.draw)) / n
        sigma = shifted(0.02 + 0.96 * u)
        over = sigma[:, None, None, None, None], sigma[:, None, None]
        z = [(1 - s) * clip + s * eps for s, clip, eps in zip(over, x0, noise, strict=True)]
        z[0] = torch.cat([torch.where(self.beside(given), x0[0], z[0])[:, :, :1], z[0][:, :, 1:]], dim=2)
        return z, noise, sigma, over

    def critic(self):
        """The losses of an update of the critic."""
        batch, x0 = self.generated()
        x0 = [clip.detach() for clip in x0]
        z, noise, sigma, _ = self.noised(x0, batch[2])
        expected = [eps - clip for eps, clip in zip(noise, x0, strict=True)]
        return self.mean_squares(self.call(self.critic_weights, z, sigma, batch), expected, batch[2])

    def dmd(self):
        """The losses of a step of the second stage."""
        batch, x0 = self.generated()
        clips = [clip.detach() for clip in x0]
        z, _, sigma, over = self.noised(clips, batch[2])
        with torch.no_grad():
            fake, real = self.call(self.critic_weights, z, sigma, batch), self.teacher(z, sigma, batch)
        wanted = []
        for modality, (clip, at, s) in enumerate(zip(clips, z, over, strict=True)):
            away = (clip - (at - s * real[modality])).abs()
            means = [
                (one[:, 1:] if is_given and not modality else one).mean()
                for one, is_given in zip(away, batch[2], strict=True)
            ]
            mean = torch.stack(means).view_as(s)
            wanted.append(clip - s * (real[modality] - fake[modality]) / mean)
        video, audio = self.mean_squares(x0, wanted, batch[2])
        return video / 2, audio / 2


def shifted(u):
    return 5 * u / (1 + 4 * u)
