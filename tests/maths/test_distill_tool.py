"""The command of distillation on the golden model: its files, resuming after a kill, refusals."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ovi import turbo
from ovi.distillation import schedule
from ovi.flow import Sample
from ovi.lora import Lora, Names, add_lora, lora_file
from ovi.tools import convert, distill, distributed, table
from ovi.tools.clips import Prompts
from ovi.tools.previews import in_few_steps
from support import golden_model
from support.distilling import RECIPE, SETTINGS, SIZE, command, distiller, prompts
from support.training import LAYERS, clips, tensors
from support.training import trainer as plain_trainer

SHORT = dataclasses.replace(RECIPE, substeps=1, critic_updates=1, cfg=1.0, audio_cfg=1.0)
GUIDANCE = dataclasses.replace(SHORT, guidance_only=True)
STAGES = {  # the steps of both stages, and the one after which it is killed
    "trajectory": (SHORT, 2, 0, 1),
    "border": (SHORT, 1, 1, 1),
    "DMD": (SHORT, 1, 2, 2),
    "guidance": (GUIDANCE, 2, 0, 1),
}
FIRST = dataclasses.replace(SETTINGS, first_frame=0.7)


def weights(run):
    return {"trained": run.trained, "averaged": run.averaged, "critic": run.critic}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed(tmp_path, stage):
    """The same losses, weights and first frames as without the kill."""
    recipe, first, second, killed_after = STAGES[stage]
    options = {"settings": FIRST, "recipe": recipe, "iterations": first, "dmd_iterations": second}
    whole = distiller(**options)
    for _ in whole.run(tmp_path / "whole", 100):
        pass
    killed = distiller(**options)
    for _ in range(killed_after):
        killed.step()
    killed.save(tmp_path / "state")
    killed.step()  # lost
    resumed = distiller(**options)
    assert resumed.resume(tmp_path / "state") == []
    assert list(resumed.run(tmp_path / "state", 100)) == [first + second]
    assert resumed.curves() == whole.curves()
    for kind, expected in weights(whole).items():
        found = weights(resumed)[kind]
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert len(resumed.frames) == len(whole.frames)
    assert all(torch.equal(one.latent, other.latent) for one, other in zip(resumed.frames, whole.frames, strict=True))


def test_first_frames_of_clips_that_were_generated():
    """In their share of the clips: the beginning of one of the last clips of the same prompt, as it was generated."""
    run = distiller(FIRST, dataclasses.replace(SHORT, student_steps=1), iterations=40, dmd_iterations=0)
    assert run._batch().conditions.generated.all()  # there are none at first
    run.step()
    assert len(run.frames) == 2
    latents = {frame.prompt: frame.latent for frame in run.frames}
    given = []
    for _ in range(40):
        batch = run._batch()
        for prompt, noise, generated in zip(batch.prompts, batch.noise[0], batch.conditions.generated, strict=True):
            given.append(not generated[0])
            assert generated[1:].all()
            if given[-1]:
                assert torch.equal(noise[:, :1], latents[prompt])
    assert 0.5 < sum(given) / len(given) < 0.9


def test_first_frames_of_clips_of_the_folder():
    """A prompt that has a clip begins as that does; the share of them is drawn by the settings."""
    samples = [*prompts(2, first=True), *prompts(1)]
    run = distiller(FIRST, samples=samples)
    for _ in range(10):
        batch = run._batch()
        for prompt, noise, generated in zip(batch.prompts, batch.noise[0], batch.conditions.generated, strict=True):
            if not generated[0]:
                assert prompt < 2
                assert torch.equal(noise[:, 0], samples[prompt].video[:, 0])
    run = distiller(SETTINGS, samples=samples)
    assert all(run._batch().conditions.generated.all() for _ in range(10))


def test_prompts_of_a_batch_have_the_same_persons():
    """Those that clips begin with are of the batch's, too."""
    samples = [*prompts(2), *prompts(2, persons=1)]
    buckets = [[0, 1], [2, 3]]
    run = distiller(FIRST, SHORT, samples=samples, buckets=buckets)
    for _ in range(2):
        run.step()
    for _ in range(20):
        batch = run._batch()
        assert len({prompt // 2 for prompt in batch.prompts}) == 1
        assert (batch.conditions.references is None) == (batch.prompts[0] < 2)


@pytest.fixture
def folder(tmp_path):
    """A folder of prompts, two of them clips, and beside it the model and negative prompts."""
    (tmp_path / "prompts").mkdir()
    for i, prompt in enumerate(prompts(2)):
        save_file({"context": prompt.context}, tmp_path / "prompts" / f"{i}.safetensors")
    save_file(tensors(clips(1)[0]), tmp_path / "prompts" / "clip.safetensors")
    save_file({"context": torch.ones(4, 64)}, tmp_path / "negative.safetensors")
    golden_model.write(tmp_path / "model.safetensors", LAYERS)
    return tmp_path


def arguments(folder, *options):
    return command(folder / "model.safetensors", folder / "prompts", folder / "turbo.safetensors", *options)


def refused(folder, capsys, *options):
    """Run the command line, which must refuse; return the line that says why."""
    capsys.readouterr()
    assert distill.main(arguments(folder, *options)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line and "step/s" not in line]
    return line


def test_the_command_writes_a_lora_that_says_how_to_sample(folder):
    """Of the same names as training's, of layers that Load Ovi LoRA finds; the losses of each stage are drawn."""
    out = folder / "turbo.safetensors"
    negative = str(folder / "negative.safetensors")
    more = ["--video-negative", negative, "--audio-negative", negative, "--keep", "1", "--save-every", "1"]
    assert distill.main(arguments(folder, *more)) == 0
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert turbo.read(metadata) == turbo.Sampling(2, 5.0, 1.0, 1.0, "euler")
    assert metadata.items() >= golden_model.metadata().items()
    found = load_file(out)
    model = golden_model.load(layers=LAYERS)
    places = Names(name for name, _ in model.named_parameters())
    add_lora(model, Lora(2))
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in lora_file(trained, 1.0).items()
    }
    assert {places.place(name).end for name in found} == {".lora_A.weight", ".lora_B.weight"}
    assert any(tensor.any() for name, tensor in found.items() if "lora_B" in name)
    assert load_file(folder / "turbo_0000003.safetensors").keys() == found.keys()
    for name in ("trajectory.svg", "dmd.svg", "critic.svg", "toml", "state"):
        assert (folder / f"turbo.safetensors.{name}").exists()


def test_the_command_goes_on_from_its_file_of_options(folder, capsys):
    """The file does the same again, and then goes on, with more steps of the second stage."""
    out = folder / "turbo.safetensors"
    assert distill.main(arguments(folder, "--iterations", "1")) == 0
    before = load_file(out)
    config = str(shutil.move(folder / "turbo.safetensors.toml", folder / "again.toml"))
    for left in folder.glob("turbo*"):
        left.unlink()
    assert distill.main(["--config", config]) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(out).items())
    assert distill.main(["--config", config, "--dmd-iterations", "2"]) == 0
    assert len(torch.load(f"{out}.state")["history"]) == 3
    capsys.readouterr()
    model = load_file(folder / "model.safetensors")
    save_file(
        {key: tensor + 0.01 for key, tensor in model.items()}, folder / "model.safetensors", golden_model.metadata()
    )
    negative = ["--audio-negative", str(folder / "negative.safetensors")]
    assert distill.main(["--config", config, "--dmd-iterations", "2", *negative]) == 0
    said = f"The prompts, negative prompts or model files are not those that {out}.state was trained on: 2 are new"
    assert said in capsys.readouterr().err
    assert "went on to the second stage after 1 steps" in refused(folder, capsys, "--iterations", "3")


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    run = distiller(recipe=SHORT)
    run.step()
    run.step()
    run.save(tmp_path / "state")
    for change, message in (
        ({"iterations": 1}, "has 2 steps of the first stage; give it that many or more"),
        ({"recipe": dataclasses.replace(SHORT, cfg=2.0)}, r"was trained with another cfg \(1.0\)"),
        ({"size": SIZE._replace(audio=(20, 8))}, "was trained with another size of the clips"),
        ({"settings": FIRST}, r"was trained with another first_frame \(0.0\)"),
        ({"lora": Lora(3, alpha=3.0)}, "is of a model of another size"),
    ):
        with pytest.raises(ValueError, match=message):
            distiller(**{"recipe": SHORT} | change).resume(tmp_path / "state")
    plain_trainer(rank=2).save(tmp_path / "state")
    with pytest.raises(ValueError, match=r"was trained with another .*student_steps"):
        distiller().resume(tmp_path / "state")


def test_guidance_alone(folder):
    options = arguments(folder, "--guidance-only", "--dmd-iterations", "0")
    start = options.index("--student-steps")
    assert distill.main([*options[:start], *options[start + 2 :], "--iterations", "1"]) == 0
    with safe_open(folder / "turbo.safetensors", "pt") as file:
        assert turbo.read(file.metadata()).steps == 20


def test_a_quantised_teacher(folder):
    model = folder / "model.safetensors"
    assert convert.main(["quantize", str(model), str(folder / "small.safetensors"), "--format", "fp8"]) == 0
    (folder / "small.safetensors").replace(model)
    assert distill.main(arguments(folder, "--iterations", "1")) == 0
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "turbo.safetensors").values())


def test_blocks_and_activations_in_ram_change_nothing(folder):
    pytest.importorskip("accelerate")
    found = []
    for more in ((), ("--offload-blocks", "2", "--offload-activations")):
        options = [option for option in arguments(folder, *more) if option != "--keep-activations"]
        options += ["--iterations", "1"]
        assert distill.main(options) == 0
        found.append(load_file(folder / "turbo.safetensors"))
        for left in folder.glob("turbo*"):
            left.unlink()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_a_model_that_is_shared_out_is_refused(folder, capsys, monkeypatch):
    processes = distributed.Processes()
    processes.shard = True
    monkeypatch.setattr(distill, "started", lambda *_, **__: processes)
    assert "Distillation needs the whole model in each process" in refused(folder, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--student-steps 0", "The setting student steps is 0, but must be from 1 to 1000"),
        ("--iterations 0", "--iterations is 0, but must be at least 1"),
        ("--dmd-iterations -1", "--dmd-iterations is -1, but must be at least 0"),
        ("--guidance-only", "--guidance-only has no second stage; leave out --dmd-iterations"),
        ("--rank 0", "--rank is 0, but must be at least 1"),
        ("--rank 100000", "--rank is 100000, but the model's layers are 96 wide"),
        ("--skip-blocks 11", "'11' is not a block that can be skipped"),
        ("--width 65", "--width is 65, but must be a multiple of 32"),
        ("--frames 6", "--frames is 6, but must be 4n + 1"),
        ("--first-frame 2", "The setting first frame is 2.0, but must be from 0 to 1"),
        ("--cfg nan", "The setting cfg is nan, but must be a finite number"),
        ("--video-negative none", "none is not there; choose a file"),
        ("--width 96", "a prompt needs context [T, 64], and may have what clips of the generated size have: video [48"),
    ],
)
def test_options_that_cannot_be_used(folder, capsys, options, message):
    assert message in refused(folder, capsys, *options.split())
    assert not (folder / "turbo.safetensors").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"context": torch.zeros(5, 32)}, "'context': [5, 32]"),
        ({"context": torch.zeros(600, 64)}, "600 text tokens, but Ovi reads at most"),
        ({"video": torch.zeros(48, 2, 4, 4)}, "a prompt needs context"),
        ({"context": torch.full((5, 64), torch.nan)}, "has NaN or infinity in context"),
        ({"context": torch.zeros(5, 64, dtype=torch.int8)}, "has context as I8, but a prompt needs one of F16"),
        ({"context": torch.zeros(5, 64), "voice_2": torch.zeros(20, 3)}, "has the voices of the persons [2]"),
    ],
)
def test_wrong_prompts(folder, capsys, tensors, message):
    shutil.rmtree(folder / "prompts")
    (folder / "prompts").mkdir()
    save_file(tensors, folder / "prompts" / "wrong.safetensors")
    line = refused(folder, capsys)
    assert "wrong.safetensors" in line
    assert message in line


def test_no_prompts(folder, capsys):
    shutil.rmtree(folder / "prompts")
    assert "There are no .safetensors files in" in refused(folder, capsys)


def test_fp8_without_scales_is_refused(folder, capsys):
    path = folder / "model.safetensors"
    small = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in load_file(path).items()}
    save_file(small, path, golden_model.metadata())
    assert "is quantised without scales, which cannot be trained" in refused(folder, capsys)


def test_prompts_of_a_folder(folder):
    """Prompts, clips and persons, of several folders; those of other persons are of another batch."""
    image, voice, text = torch.randn(48, 1, 4, 4), torch.randn(20, 7), torch.randn(3, 64)
    (folder / "persons").mkdir()
    save_file({"context": text, "image_1": image, "voice_1": voice}, folder / "persons" / "0.safetensors")
    found = Prompts([folder / "prompts", folder / "persons"], golden_model.load().config, (4, 4))
    assert found.buckets() == [[0, 1, 2], [3]]
    assert found[0].video is None
    assert found[0].audio is None
    assert found[2].video.shape == (48, 2, 4, 4)
    assert torch.equal(found[3].images[0], image)
    assert torch.equal(found[3].voices[0], voice)


def test_a_loss_that_is_not_finite_stops_before_anything_is_lost(tmp_path):
    """The state that was saved last goes on."""
    run = distiller(recipe=SHORT)
    run.step()
    run.save(tmp_path / "state")
    before = {name: weight.clone() for name, weight in run.trained.items()}
    run.samples = [Sample(None, None, sample.context * torch.inf) for sample in run.samples]
    with pytest.raises(ValueError, match=r"Step 2 has losses of .*the training stopped, and the last saved state"):
        run.step()
    assert all(torch.equal(weight, before[name]) for name, weight in run.trained.items())
    again = distiller(recipe=SHORT)
    again.resume(tmp_path / "state")
    again.step()
    assert len(again.history) == 2


def test_steps_are_the_shifted_schedule_s():
    assert schedule(4, 5.0) == pytest.approx([1, 0.9375, 5 / 6, 0.625, 0])
    assert schedule(1, 5.0) == [1, 0]


def test_the_previews_are_sampled_as_the_lora_says():
    workflow = in_few_steps(table.load(table.TEXT_TO_VIDEO), turbo.Sampling(4, 5.0, 1.0, 1.0, "euler"))
    inputs = {content["class_type"]: content["inputs"] for content in workflow.values()}
    assert inputs["OviScheduler"] | {"steps": 4, "shift": 5.0, "solver": "dpm++"} == inputs["OviScheduler"]
    assert inputs["KSamplerSelect"] == {"sampler_name": "euler"}
    assert (inputs["CFGGuider"]["cfg"], inputs["OviGuidance"]["audio_cfg"]) == (1.0, 1.0)
    assert "OviUniPCSampler" not in inputs
