"""The noise schedules and the UniPC sampler of the Ovi release.

Conventions: sigma runs from 1 (noise) to 0 (clean), x_sigma = (1 - sigma) x0 + sigma noise, timestep = 1000 sigma.
A schedule of n steps has n + 1 sigmas, the last one 0, and n timesteps. UniPC counts in lambda, half the log-SNR:
lambda(sigma) = ln((1 - sigma) / sigma), -inf at sigma 1 and inf at sigma 0, both of which have a finite limit in every
formula below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import trange

SOLVERS = ("unipc", "dpm++", "euler")
SHIFT = 5.0  # the Ovi release's
TRAIN_TIMESTEPS = 1000

NO_PRESET = "none"
# The sigmas of models of Wan 2.2 TI2V-5B for few steps, by the steps of their training. Both were distilled (DMD) to
# denoise to sigma 0 from each of them, and their authors' code adds fresh noise to that before the next: ComfyUI's lcm.
PRESETS = {
    # FastWan (hao-ai-lab/FastVideo, dmd_denoising_steps 1000, 757, 522): its DMD stage looks each of them up among
    # timesteps that are shifted already (1000 sigma), so nothing is shifted here.
    "FastWan, 3 steps": (1.0, 0.757, 0.522, 0.0),
    # Turbo (quanhaol/Wan2.2-TI2V-5B-Turbo, configs/self_forcing_wan22_dmd.yaml): 1000, 750, 500, 250, of which
    # warp_denoising_step and timestep_shift 5 make 5 s / (1 + 4 s). Its inference script leaves the shift out (sigmas
    # 1, 0.75, 0.5, 0.25), which 4 steps of "dpm++" with shift 1 give.
    "Turbo, 4 steps": (1.0, 15 / 16, 5 / 6, 5 / 8, 0.0),
}

# Float32 schedules that should start at 1 can start a few units in the last place above it (ComfyUI's with shift 4.03).
SIGMA_MAX = 1 + 1e-5


def flow_sigmas(steps: int, shift: float = SHIFT, solver: str = "unipc") -> Tensor:
    """Return the Ovi release's sigmas of a solver, float32 [steps + 1], from (nearly) 1 down to 0.

    Raises ValueError for an unknown solver or fewer than one step.
    """
    grid = _shifted_grid(steps, shift, solver)
    return torch.cat([grid, grid.new_zeros(1)]).float()


def preset_sigmas(preset: str, denoise: float = 1.0) -> Tensor:
    """Return the sigmas of one of PRESETS, float32, from 1 down to 0.

    Raises ValueError for an unknown one, and for a denoise below 1: the models know the sigmas of the preset alone.
    """
    if preset not in PRESETS:
        raise ValueError(f"Unknown preset {preset!r}; choose one of {'; '.join(PRESETS)}.")
    if denoise != 1:
        raise ValueError(f"A preset has fixed sigmas, but denoise is {denoise:g}: set denoise to 1, or preset to none.")
    return torch.tensor(PRESETS[preset])


def flow_timesteps(steps: int, shift: float = SHIFT, solver: str = "unipc") -> Tensor:
    """Return the Ovi release's timesteps of the same schedule, [steps]: float32 for "euler", else int64.

    The integers are 1000 sigma truncated before sigma is rounded to float32, so 0.4 may give 399. ComfyUI itself feeds
    1000 sigma. Raises ValueError like `flow_sigmas`.
    """
    grid = _shifted_grid(steps, shift, solver)
    return TRAIN_TIMESTEPS * grid.float() if solver == "euler" else (TRAIN_TIMESTEPS * grid).long()


def _shifted_grid(steps: int, shift: float, solver: str) -> Tensor:
    """Return the sigmas above 0, float64 [steps]. NumPy's linspace, as in the release: torch's differs in last bits."""
    if solver not in SOLVERS:
        raise ValueError(f"Unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}.")
    if steps < 1:
        raise ValueError(f"A schedule needs at least 1 step, got {steps}.")
    if solver == "euler":
        # A quirk of the release: the lowest sigma is shifted twice, the first time in float32.
        grid = np.linspace(1, shifted(torch.tensor(1 / TRAIN_TIMESTEPS), shift).item(), steps)
    else:
        # UniPC starts at its largest training sigma, which is stored in float32.
        first = torch.tensor(1 - 1 / TRAIN_TIMESTEPS).item() if solver == "unipc" else 1
        grid = np.linspace(first, 0, steps + 1)[:-1]
    return shifted(torch.from_numpy(grid), shift)


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Return the sigmas of a shifted schedule where those of an unshifted one are `sigma`."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def audio_sigma(sigma: Tensor, ratio: float) -> Tensor:
    """Return the audio's sigma where the video's is `sigma`, with the video's shift `ratio` times the audio's.

    A shift makes 1 / sigma - 1 of an unshifted schedule that many times smaller, so 1 / audio - 1 = ratio *
    (1 / sigma - 1).
    """
    return sigma / carried(sigma, ratio)


def carried(sigma: Tensor, ratio: float) -> Tensor:
    """Return sigma / audio_sigma(sigma, ratio), which has no pole at 0.

    This times the audio, (1 - audio sigma) x0 + audio sigma * noise, is (1 - sigma) ratio x0 + sigma noise: on the
    video's schedule, a latent like any other, whose clean value is ratio x0.
    """
    return sigma + ratio * (1 - sigma)


@torch.no_grad()
def sample_unipc(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Denoise `x` [B, ...] along strictly falling `sigmas` with the release's UniPC (order 2, bh2, data prediction).

    `model(x, sigma [B], **extra_args)` returns the denoised x0. `callback` and `disable` (the progress bar) are those
    of k-diffusion. Each step calls the model once: its x0 first corrects the x that it was computed at, then predicts
    the next one. The first and the last step are of order 1. Coefficients are float64 numbers on the CPU, so the
    device is waited for once, when `sigmas` is read.

    Formulas: UniPC (arXiv:2302.04867), in the flow form with alpha = 1 - sigma. Raises ValueError where `sigmas` do
    not fall strictly within 1..0.
    """
    grid = sigmas.cpu().double()
    if not all(SIGMA_MAX >= high > low >= 0 for high, low in pairwise(grid.tolist())):
        raise ValueError(f"UniPC needs sigmas that fall strictly from at most 1 to at least 0, got {grid.tolist()}.")
    grid = grid.clamp(max=1)
    levels: list[float] = grid.tolist()
    lambdas: list[float] = (-torch.logit(grid)).tolist()

    def advance(x: Tensor, x0: Tensor, i: int) -> Tensor:
        """Go from sigma i to sigma i + 1: exact where the denoised is `x0` all the way."""
        return levels[i + 1] / levels[i] * x - (1 - levels[i + 1]) * math.expm1(lambdas[i] - lambdas[i + 1]) * x0

    extra_args = extra_args or {}
    ones = x.new_ones(x.shape[0])
    steps = len(levels) - 1
    start = x  # the corrected x of the step before
    x0s: list[Tensor] = []  # of the last three steps
    for i in trange(steps, disable=disable):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x0s = [*x0s[-2:], denoised]
        if i == 1:
            x = advance(start, torch.lerp(x0s[0], denoised, 0.5), 0)
        elif i > 1:
            old, new = _corrector_weights(*lambdas[i - 2 : i + 1])
            x = advance(start, x0s[1] + old * (x0s[0] - x0s[1]) + new * (denoised - x0s[1]), i - 1)
        start = x
        if 0 < i < steps - 1:
            slope = 0.5 * (lambdas[i + 1] - lambdas[i]) / (lambdas[i] - lambdas[i - 1])
            denoised = denoised + slope * (denoised - x0s[-2])
        x = advance(x, denoised, i)
    return x


def _corrector_weights(before: float, last: float, now: float) -> tuple[float, float]:
    """Return the weights of x0(before) - x0(last) and x0(now) - x0(last) in the corrector of order 2, from lambdas."""
    h = now - last
    ratio = (before - last) / h
    b_h = math.expm1(-h)
    phi_2 = -b_h / h - 1
    phi_3 = -phi_2 / h - 0.5
    b_1, b_2 = phi_2 / b_h, 2 * phi_3 / b_h
    rho_1 = (b_2 - b_1) / (ratio - 1)  # [[1, 1], [ratio, 1]] rho = b
    return rho_1 / ratio, b_1 - rho_1
