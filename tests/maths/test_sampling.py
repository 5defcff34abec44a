"""Schedules and UniPC against the release's numbers (golden C), and on ComfyUI's grids."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ovi.sampling import (
    PRESETS,
    SOLVERS,
    audio_sigma,
    carried,
    flow_sigmas,
    flow_timesteps,
    preset_sigmas,
    sample_unipc,
)

SHIFTS = (1, 3, 5)


@pytest.fixture(scope="module")
def reference(golden):
    return load_file(golden / "C_sampler.safetensors")


def toy_velocity(reference, x, tau):
    """The field of the manifest: v(x, tau) = A x + p + q sin(3 tau) + r tau^2, x [1, d, 3]."""
    a, p, q, r = (reference[f"toy.{name}"].to(x) for name in "Apqr")
    tau = torch.as_tensor(tau, dtype=x.dtype)
    return a @ x + (p + q * torch.sin(3 * tau) + r * tau**2)[:, None]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", [4, 5, 10, 20, 30, 50])
@pytest.mark.parametrize("solver", SOLVERS)
def test_schedule_is_the_published_one_bit_for_bit(reference, solver, steps, shift):
    key = f"{solver.replace('++', 'pp')}.n{steps}.shift{shift}"
    torch.testing.assert_close(flow_sigmas(steps, shift, solver), reference[f"{key}.sigmas"], rtol=0, atol=0)
    torch.testing.assert_close(flow_timesteps(steps, shift, solver), reference[f"{key}.timesteps"], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", [5, 20])
def test_unipc_follows_the_published_trajectory(reference, steps, shift, dtype):
    sigmas = flow_sigmas(steps, shift)
    tau = dict(zip(sigmas.tolist(), (flow_timesteps(steps, shift).double() / 1000).tolist(), strict=False))
    seen = []

    def model(x, sigma):
        return x - sigma[:, None, None] * toy_velocity(reference, x, tau[sigma.item()])

    x = sample_unipc(model, reference["toy.x0"].to(dtype), sigmas, callback=lambda step: seen.append(step["x"]))
    expected = reference[f"unipc.n{steps}.shift{shift}.traj_x"]
    assert x.dtype == dtype
    torch.testing.assert_close(torch.stack([*seen, x]), expected.to(dtype), rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sigmas",
    [
        [1.0, 0.9, 0.6, 0.3, 0.0],
        [1.0000001, 0.9, 0.6, 0.3, 0.0],
        [0.7, 0.5, 0.4, 0.2],
        [0.4, 0.1, 0.0],
        [1.0, 0.0],
        [1.0],
        [],
    ],
)
def test_unipc_is_exact_where_the_denoised_is_constant(sigmas, dtype):
    """Any falling grid will do: from 1 exactly, partial at either end, a single step, none."""
    noise, clean = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    first, last = (min(sigmas[0], 1), sigmas[-1]) if sigmas else (1, 1)
    x = sample_unipc(lambda x, sigma: clean, (1 - first) * clean + first * noise, torch.tensor(sigmas))
    torch.testing.assert_close(x, (1 - last) * clean + last * noise, rtol=0, atol=1e-6)


def test_unipc_is_of_second_order_from_sigma_one(reference):
    start = reference["toy.x0"].double()

    def sample(steps):
        def model(x, sigma):
            return x - sigma[:, None, None] * toy_velocity(reference, x, sigma.item())

        return sample_unipc(model, start, torch.linspace(1, 0, steps + 1, dtype=torch.float64), disable=True)

    exact = sample(2560)
    coarse, fine = ((sample(steps) - exact).abs().max() for steps in (160, 320))
    assert coarse / fine > 3.5


def test_unipc_keeps_the_conventions_of_k_diffusion(capsys):
    sigmas, calls, steps = flow_sigmas(3), [], []

    def model(x, sigma, **extra):
        calls.append((sigma, extra))
        return x / 2

    x = torch.ones(2, 1, 4)
    sample_unipc(model, x, sigmas, {"seed": 7}, steps.append, disable=False)
    assert "3/3" in capsys.readouterr().err
    sample_unipc(model, x, sigmas, disable=True)
    assert capsys.readouterr().err == ""
    assert [extra for _, extra in calls] == 3 * [{"seed": 7}] + 3 * [{}]
    for i, (step, (sigma, _)) in enumerate(zip(steps, calls, strict=False)):
        assert torch.equal(sigma, sigmas[i].expand(2))
        assert step["i"] == i
        assert step["sigma"] == step["sigma_hat"] == sigmas[i]
        assert torch.equal(step["denoised"], step["x"] / 2)


def test_unipc_never_reads_x_back():
    """A tensor without data fails on any read, as a device would have to be waited for."""
    x = torch.empty(1, 1, 8, device="meta")
    assert sample_unipc(lambda x, sigma: x * sigma[:, None, None], x, flow_sigmas(5)).shape == x.shape


@pytest.mark.parametrize(
    "sigmas", [[14.6, 3.2, 0.0], [1.2, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.5], [0.5, -0.1], [float("nan"), 0.0]]
)
def test_unipc_refuses_sigmas_of_another_kind(sigmas):
    with pytest.raises(ValueError, match="UniPC needs sigmas that fall strictly from at most 1 to at least 0, got"):
        sample_unipc(lambda x, sigma: x, torch.ones(1, 1), torch.tensor(sigmas))


@pytest.mark.parametrize("schedule", [flow_sigmas, flow_timesteps])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "A schedule needs at least 1 step, got 0."),
        ({"steps": 4, "solver": "heun"}, "Unknown solver 'heun'; choose one of unipc, dpm++, euler."),
    ],
)
def test_schedule_refuses_bad_arguments(schedule, arguments, message):
    with pytest.raises(ValueError, match=f"^{message.replace('+', '[+]')}$"):
        schedule(**arguments)


@pytest.mark.parametrize("audio_shift", [1.0, 3.0, 5.0, 12.0])
def test_the_audio_s_sigma_is_that_of_its_own_shift(audio_shift):
    """At every place of an unshifted schedule, its ends included."""
    grid = torch.linspace(0, 1, 11, dtype=torch.float64)
    video, audio = (shift * grid / (1 + (shift - 1) * grid) for shift in (5.0, audio_shift))
    torch.testing.assert_close(audio_sigma(video, 5.0 / audio_shift), audio, atol=1e-12, rtol=0.0)
    torch.testing.assert_close(carried(video, 5.0 / audio_shift) * audio, video, atol=1e-12, rtol=0.0)


def test_presets_are_the_published_timesteps():
    """FastWan's are sigmas as they are; Turbo's are the quarters, shifted by 5."""
    fastwan, turbo = (preset_sigmas(preset) for preset in PRESETS)
    assert [name.split(",")[0] for name in PRESETS] == ["FastWan", "Turbo"]
    torch.testing.assert_close(1000 * fastwan, torch.tensor([1000.0, 757.0, 522.0, 0.0]))
    torch.testing.assert_close(turbo, flow_sigmas(4, 5.0, "dpm++"), rtol=0, atol=1e-7)
    assert turbo.dtype == fastwan.dtype == torch.float32
    for preset in PRESETS:  # "FastWan, 3 steps"
        assert f", {len(preset_sigmas(preset)) - 1} steps" in preset


@pytest.mark.parametrize("preset", PRESETS)
def test_unipc_takes_a_preset(preset):
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    x = sample_unipc(lambda x, sigma: torch.full_like(x, 0.25), noise, preset_sigmas(preset))
    torch.testing.assert_close(x, torch.full_like(x, 0.25))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none",), "Unknown preset 'none'; choose one of FastWan, 3 steps; Turbo, 4 steps."),
        (
            ("Turbo, 4 steps", 0.5),
            "A preset has fixed sigmas, but denoise is 0.5: set denoise to 1, or preset to none.",
        ),
    ],
)
def test_presets_refuse_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        preset_sigmas(*arguments)
