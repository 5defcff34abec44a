"""The stages of distillation on the golden model: losses and gradients, against the recipe in plain PyTorch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ovi import distillation
from ovi.distillation import Recipe
from ovi.lora import Lora
from ovi.tools import distiller as tool
from support.distilling import RECIPE, SETTINGS, Plain, distiller, prompts


def compared(monkeypatch, run):
    """Compare each update of a run with the plain recipe, which has the same weights and draws the same numbers.

    Returns a list of what was updated, which grows.
    """
    plain, seen, update = Plain(run), [], tool.update

    def compare(trained, optimizer, lr, max_norm, losses, step, processes):
        kind = "trajectory" if step < run.iterations else "critic" if trained is run.critic else "dmd"
        if "critic" not in seen and kind == "critic":
            torch.randint(2**62, (1,), generator=plain.draw)  # for the critic's first weights
            assert all(torch.equal(weight, run.averaged[name]) for name, weight in run.trained.items())
        plain.adopt(run)
        expected = getattr(plain, kind)()
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
        weights = plain.critic_weights if kind == "critic" else plain.student
        wanted = torch.autograd.grad(expected[0] + run.settings.audio_weight * expected[1], list(weights.values()))
        largest = max(float(gradient.abs().max()) for gradient in wanted)
        for weight, gradient in zip(trained.values(), wanted, strict=True):
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-5, atol=1e-5 * largest)
        seen.append(kind)
        return update(trained, optimizer, lr, max_norm, losses, step, processes)

    monkeypatch.setattr(tool, "update", compare)
    return seen


def begin(run):
    """Give the student weights as after some steps, which change the velocities."""
    for name, weight in run.trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
            run.averaged[name].copy_(weight.detach())


@pytest.mark.parametrize(
    ("settings", "recipe", "samples", "options"),
    [
        ({}, {}, {}, {"recompute": True}),
        ({"first_frame": 0.6, "audio_weight": 0.5}, {"sync_scale": 0.7}, {"first": True}, {}),
        ({}, {"student_steps": 1}, {"persons": 2}, {}),
    ],
    ids=["plain", "first frames and synchrony", "persons"],
)
def test_both_stages(monkeypatch, settings, recipe, samples, options):
    settings, recipe = dataclasses.replace(SETTINGS, **settings), dataclasses.replace(RECIPE, **recipe)
    run = distiller(settings, recipe, iterations=1, dmd_iterations=1, samples=prompts(**samples), **options)
    begin(run)
    seen = compared(monkeypatch, run)
    for _ in range(2):
        run.step()
    assert seen == ["trajectory", "critic", "critic", "dmd"]
    assert len(run.history) == 2
    assert len(run.critic_history) == 2


def test_guidance_alone(monkeypatch):
    """At points of the student's own way, in about as many steps."""
    run = distiller(recipe=dataclasses.replace(RECIPE, guidance_only=True, student_steps=4), iterations=3)
    begin(run)
    seen = compared(monkeypatch, run)
    for _ in range(3):
        run.step()
    assert seen == ["trajectory"] * 3


def test_learning_rates():
    """Each stage rises and falls by itself."""
    run = distiller(iterations=10, dmd_iterations=5)
    assert [run.lr(step) for step in (0, 1, 9, 10, 11, 14)] == [0.005, 0.01, 0.005, 0.0025, 0.005, 0.005]


def test_accumulated_batches(monkeypatch):
    """The means of the losses and gradients of as many batches, one after the other."""
    found = []

    def update(trained, optimizer, lr, max_norm, losses, step, processes):
        found.append([*map(float, losses), *(weight.grad.clone() for weight in trained.values())])
        optimizer.zero_grad()
        return found[-1][:2]

    monkeypatch.setattr(tool, "update", update)
    for settings, steps in ((SETTINGS, 2), (dataclasses.replace(SETTINGS, accumulate=2), 1)):
        run = distiller(settings, dataclasses.replace(RECIPE, substeps=1))
        for _ in range(steps):
            run.step()
    for first, second, both in zip(*found, strict=True):
        torch.testing.assert_close((first + second) / 2, both)


def test_bfloat16(monkeypatch):
    """Within the rounding of bfloat16, the same gradients: passes without a gradient leave no weights behind."""
    gradients = []

    def update(trained, optimizer, lr, max_norm, losses, step, processes):
        gradients.append(torch.cat([weight.grad.flatten() for weight in trained.values()]))
        return plain(trained, optimizer, lr, max_norm, losses, step, processes)

    plain = tool.update
    monkeypatch.setattr(tool, "update", update)
    for autocast in (False, True):
        recipe = dataclasses.replace(RECIPE, student_steps=8, substeps=1)
        run = distiller(recipe=recipe, autocast=autocast, iterations=1, dmd_iterations=0)
        begin(run)
        run.step()
    exact, rounded = gradients
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.99
    assert not torch.equal(exact, rounded)


def test_the_recipe_has_ranges():
    for change, message in (
        ({"student_steps": 0}, "The setting student steps is 0, but must be from 1 to 1000"),
        ({"critic_updates": 0}, "The setting critic updates is 0"),
        ({"cfg": float("nan")}, "The setting cfg is nan, but must be a finite number"),
        ({"dmd_lr": 0.0}, "The setting dmd lr is 0.0, but must be a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(**change)


def test_the_gradient_of_dmd_is_the_difference_of_what_both_expect():
    """In float64, on velocities that are known: clips move from the critic's to the teacher's."""
    draw = torch.Generator().manual_seed(0)
    shapes = (2, 48, 2, 2, 2), (2, 20, 5)
    x0, noise, fake, real = (
        [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes] for _ in range(4)
    )
    x0 = [clip.requires_grad_() for clip in x0]
    sigma = torch.tensor([0.3, 0.9], dtype=torch.float64)
    losses = distillation.dmd_losses(lambda *_: fake, lambda *_: real, x0, noise, sigma, torch.ones(2, 2).double())
    for clip, eps, of_critic, of_teacher, loss in zip(x0, noise, fake, real, losses, strict=True):
        over = sigma.view(-1, *[1] * (clip.ndim - 1))
        z = (1 - over) * clip.detach() + over * eps
        expected = [z - over * velocity for velocity in (of_critic, of_teacher)]
        distance = (clip.detach() - expected[1]).abs().flatten(1).mean(1).view_as(over)
        (gradient,) = torch.autograd.grad(loss, clip)
        torch.testing.assert_close(gradient * clip.numel(), (expected[0] - expected[1]) / distance)


def test_one_lora_counts_at_a_time():
    """The student's and the critic's are the ordinary LoRAs of their weights, and neither is the model itself."""
    run = distiller(lora=Lora(2))
    batch = run._batch()
    x, sigma = batch.noise, torch.full((2,), 0.7)
    before = run._of(tool.STUDENT, batch)(x, sigma)
    run._begin_dmd()
    for name, weight in [*run.trained.items(), *run.critic.items()]:
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    plain = Plain(run)
    plain.adopt(run)
    for name, weights in (("student", plain.student), ("critic", plain.critic_weights), (None, {})):
        with torch.no_grad():
            found = run._of(name, batch)(x, sigma)
        given, context = torch.zeros(2, dtype=torch.bool), tool.padded([run.samples[i].context for i in batch.prompts])
        expected = plain.call(weights, x, sigma, (x, context, given, None))
        torch.testing.assert_close(found, [each.detach() for each in expected], rtol=1e-5, atol=1e-5)
        if name is None:  # at first a LoRA changed nothing
            torch.testing.assert_close(found, [each.detach() for each in before])
