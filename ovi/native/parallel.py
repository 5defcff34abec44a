"""Ovi Parallel: each pass of the model shared out among the GPUs of this machine, by ComfyUI's own multi-GPU engine.

ComfyUI makes a copy of the MODEL for each further device, patches and loads it, and keeps a thread for each device
while it samples. Instead of its own split, which gives each device the passes of some prompts, one pass of all prompts
runs as on one device, through samplers, caches and previews, until the model's `_forward`: that one runs on all devices
at once, with a `Team` of `ovi.parallel`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, copy_nested_dicts, get_wrappers_with_key
from torch import Tensor

from ..parallel import LIMIT, Team, Threads, parse_shares, teams
from .model import Ovi, require_ovi

try:
    from comfy import multigpu
except ImportError:  # ComfyUI before 0.24 has no copies of a MODEL for other devices
    multigpu = None

KEY = "ovi_parallel"  # of its wrappers
COMPILE_KEY = "torch.compile"  # of the wrapper with which core and other packs compile a MODEL
FLAGS = ("skip_rows", "cut_rows")  # arguments of the model that have an entry for each row, but are no tensors
CHUNKS = ("cond_or_uncond", "uuids")  # transformer_options that have an entry for each prompt of a batch


def share_out(model: ModelPatcher, gpus: int, shares: str) -> ModelPatcher:
    """Return a clone of an Ovi MODEL whose passes run on so many GPUs, of which the MODEL's own is the first.

    `shares` are those of the GPUs, "auto" or such as "3, 2". One GPU gives the MODEL itself. Raises ValueError for a
    model that is not Ovi or has been through it, GPUs that are not there, shares that do not fit, and where ComfyUI
    has no engine for several GPUs.
    """
    require_ovi(model, "Ovi Parallel")
    if gpus == 1:
        return model
    weights = parse_shares(shares, gpus)
    if multigpu is None:
        raise ValueError("Several GPUs need ComfyUI 0.24 or later; update ComfyUI, or set 'gpus' to 1.")
    if KEY in model.wrappers.get(WrappersMP.OUTER_SAMPLE, {}):
        raise ValueError("This MODEL has been through an Ovi Parallel already; connect the MODEL from before that one.")
    there = len(comfy.model_management.get_all_torch_devices())
    if gpus > there:
        raise ValueError(
            f"Ovi Parallel is set to {gpus} GPUs, but ComfyUI has {there}: set 'gpus' to {there} or less, or start "
            "ComfyUI without an option that hides the others, such as --cuda-device."
        )
    # ComfyUI 0.30 looks for copies that are loaded, but fails where one of a MODEL that is gone is among them.
    reuse = None not in comfy.model_management.loaded_models()
    model = multigpu.create_multigpu_deepclones(model, gpus, reuse_loaded=reuse)
    parallel = Parallel(weights)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, parallel.around_sampling)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, parallel.around_batch)
    return model


@dataclass(frozen=True)
class Parallel:
    """The shares of all devices, and two methods that are wrappers in ComfyUI's sampling."""

    weights: tuple[float, ...]

    def around_sampling(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Wrap a sampling run: check that it can be shared out, and count a device's share of its memory."""
        guider = executor.class_obj
        model: Ovi = guider.model_patcher.model
        devices = 1 + len(guider.model_patcher.get_additional_models_with_key("multigpu"))
        if devices != len(self.weights):
            raise ValueError(
                f"Ovi Parallel has made the MODEL ready for {len(self.weights)} GPUs, but after it another node set it "
                f"to {devices}: leave out 'MultiGPU CFG Split', and connect 'Select Model Device' before Ovi Parallel."
            )
        if get_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY, guider.model_options, is_model_options=True):
            raise ValueError(
                "Ovi Parallel cannot share out a compiled MODEL, whose graph every exchange between GPUs would break: "
                "leave out the node that compiles it, such as 'TorchCompileModel', or Ovi Parallel."
            )
        if getattr(comfy.model_management, "in_training", False):
            raise ValueError("Ovi Parallel is for sampling: to train, connect the MODEL from before it.")
        model.shared_by = devices
        try:
            samples: Tensor = executor(*args, **kwargs)
            return samples
        finally:
            model.shared_by = 1

    def around_batch(
        self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> list[Tensor]:
        """Wrap the prediction of a step: instead of ComfyUI's own split, share out each pass of the model."""
        options = dict(options)
        run = Run(options.pop("multigpu_clones"), options["multigpu_thread_pool"], self.weights)
        inner = copy_nested_dicts(options["transformer_options"])
        # The last one is the innermost: EasyCache decides once, before the pass is shared out.
        inner.setdefault("wrappers", {}).setdefault(WrappersMP.DIFFUSION_MODEL, {})[KEY] = [run.forward]
        options["transformer_options"] = inner
        predicted: list[Tensor] = executor(model, conds, x, timestep, options)
        return predicted


@dataclass(frozen=True)
class Job:
    """What one device does of a pass: some rows of the batch, and of these its share of the tokens."""

    patcher: ModelPatcher
    device: torch.device
    rows: slice
    exchange: Threads
    weights: tuple[float, ...]  # of its team

    def run(self, arguments: Mapping[str, Any], options: Mapping[str, Any], inference: bool) -> list[Tensor]:
        """Run the pass in this device's thread, in the mode of the one that asks for it."""
        own = {key: self._own(value) for key, value in arguments.items()}
        own |= {key: arguments[key][self.rows] for key in FLAGS if arguments.get(key)}
        own["transformer_options"] = self._options(options, len(arguments["context"]))
        try:
            with torch.inference_mode(inference), torch.no_grad():
                forward = self.patcher.model.diffusion_model._forward
                velocities: list[Tensor] = forward(**own, team=Team(self.exchange, self.weights))
                return velocities
        except BaseException:
            self.exchange.abort()
            raise

    def _own(self, value: Any) -> Any:
        """Return the rows of a tensor, or of each in a list or a tuple, on this device; anything else as it is."""
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._own, value))
        return value[self.rows].to(self.device) if torch.is_tensor(value) else value

    def _options(self, options: Mapping[str, Any], rows: int) -> dict[str, Any]:
        """Return the transformer_options of this device and its rows, of all `rows` of the batch."""
        own = copy_nested_dicts(options)
        own |= {key: value.to(self.device) for key, value in options.items() if torch.is_tensor(value)}
        comfy.samplers.cast_transformer_options(own, device=self.device)
        chunk = rows // len(options["cond_or_uncond"])
        prompts = slice(self.rows.start // chunk, -(-self.rows.stop // chunk))
        return own | {key: options[key][prompts] for key in CHUNKS if key in options}


@dataclass(frozen=True)
class Run:
    """What a sampling run has of each device: the MODEL and, in ComfyUI's pool, a thread; and the devices' shares."""

    patchers: Mapping[torch.device, ModelPatcher]
    pool: multigpu.MultiGPUThreadPool
    weights: tuple[float, ...]

    def forward(
        self,
        executor: Any,
        x: Sequence[Tensor],
        timestep: Tensor | tuple[Tensor, Tensor],
        context: Tensor,
        control: Any,
        options: Mapping[str, Any],
        **kwargs: Any,
    ) -> list[Tensor]:
        """Wrap a pass of the model: run it on all devices, and return what they predict on the first one."""
        jobs = self._jobs(len(context), len(options["cond_or_uncond"]))
        if jobs[0].patcher.current_hooks is not None:
            raise ValueError(
                "Ovi Parallel cannot follow hooks, such as a LoRA for a part of the steps or for one prompt: leave "
                "them out, or Ovi Parallel."
            )
        arguments = {"x": x, "timestep": timestep, "context": context, "control": control, **kwargs}
        for job in jobs:
            self.pool.submit(job.device, job.run, arguments, options, torch.is_inference_mode_enabled())
        results = [self.pool.get_result(job.device) for job in jobs]
        _raise_first([error for _, error in results if error is not None])
        first = [job.exchange.rank == 0 for job in jobs]  # of its team, all of which have the same
        of_teams = [velocities for (velocities, _), hands_on in zip(results, first, strict=True) if hands_on]
        return [torch.cat([part.to(context.device) for part in parts]) for parts in zip(*of_teams, strict=True)]

    def _jobs(self, rows: int, chunks: int) -> list[Job]:
        """Deal out the rows of a batch of so many prompts: a job for each device, in the devices' order."""
        count = teams(rows, chunks, self.weights)
        size, each = len(self.weights) // count, rows // count
        devices, jobs = list(self.patchers), []
        for team in range(count):
            members = slice(team * size, (team + 1) * size)
            mine = slice(team * each, (team + 1) * each)
            for device, exchange in zip(devices[members], Threads.team(devices[members]), strict=True):
                jobs.append(Job(self.patchers[device], device, mine, exchange, self.weights[members]))
        return jobs


def _raise_first(errors: Sequence[BaseException]) -> None:
    """Raise the error of the device that failed first, if any did; the others of its team were told to stop."""
    own = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if own:
        raise own[0]
    if errors:
        raise RuntimeError(
            f"A GPU did not answer within {LIMIT:g} seconds, so Ovi Parallel stopped: look for another program that "
            "uses it, or leave this GPU out."
        ) from errors[0]
