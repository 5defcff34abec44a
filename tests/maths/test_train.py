"""Training on the golden model: objective, gradients, resuming after a kill, LoRAs, the command line."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections import Counter
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ovi import flow
from ovi.config import OviConfig
from ovi.flow import Sample
from ovi.given import prefix
from ovi.tools import train as tool
from ovi.tools.offload import recompute_blocks
from support import golden_model
from support.training import EMPTY, LAYERS, SETTINGS, clips, tensors, trainer

LONGER = 4, 17  # video and audio latents of 13 frames


def batch(settings=SETTINGS, *, split=False, seed=0, n=2):
    draw = torch.Generator().manual_seed(seed)
    return flow.noised(clips(n), EMPTY, settings, draw, split=split)


def test_objective():
    """x = x0 + sigma velocity for each part, sigma = timestep / 1000; a clean first frame is not counted."""
    every = dataclasses.replace(SETTINGS, first_frame=1.0, text_dropout=0.0)
    got = batch(every)
    x0 = [torch.stack([clip.video for clip in clips(2)]), torch.stack([clip.audio for clip in clips(2)])]
    sigmas = got.timestep[0][:, None, :, None, None] / 1000, got.timestep[1][:, None, None] / 1000
    for clean, x, velocity, sigma in zip(x0, got.x, got.velocity, sigmas, strict=True):
        torch.testing.assert_close(x, clean + sigma * velocity, atol=1e-5, rtol=0)
    assert torch.equal(got.x[0][:, :, 0], x0[0][:, :, 0])
    assert [counts.flatten().tolist() for counts in got.counts] == [[0, 1, 0, 1], [1, 1]]
    assert torch.equal(got.timestep[0][:, 1], got.timestep[1])
    assert torch.equal(got.context, torch.stack([clip.context for clip in clips(2)]))

    def perfect(x, timestep, context, references, cut_rows):
        assert references is None
        assert cut_rows is None
        return [got.velocity[0] + (1 - got.counts[0]), got.velocity[1] + 0.5]

    video, audio = flow.losses(perfect, got)
    assert video.item() == 0
    assert audio.item() == pytest.approx(0.25)


def test_sigmas_follow_the_shifted_schedule():
    """Uniform before the shift: the median is shift / (1 + shift)."""
    sigmas = torch.cat([batch(seed=seed, n=50).timestep[1] for seed in range(20)]) / 1000
    assert sigmas.median().item() == pytest.approx(5 / 6, abs=0.01)
    assert 0 < sigmas.min() < 0.1
    assert sigmas.max() <= 1


def test_split_sigmas():
    """One tower nearly clean, the other nearly noise, either way round."""
    plain = dataclasses.replace(SETTINGS, first_frame=0.0)
    video, audio = batch(plain, split=True, n=40).timestep
    low, high = torch.minimum(video[:, 0], audio), torch.maximum(video[:, 0], audio)
    assert (low <= 300).all()
    assert (high >= 600).all()
    assert 0 < (audio < video[:, 0]).sum() < 40


def test_all_text_can_be_dropped():
    """What comes in its place is padded beside the texts that stay."""
    empty = torch.ones(2, 64)
    for share, expected in ((1.0, [2, 2]), (0.5, [2, 5])):
        some = dataclasses.replace(SETTINGS, text_dropout=share)
        got = flow.noised(clips(2), empty, some, torch.Generator().manual_seed(1))
        assert sorted(row.any(-1).sum().item() for row in got.context) == expected


def test_a_single_frame_is_not_given_away():
    """The one frame of a clip stays to be learned."""
    still = Sample(torch.ones(48, 1, 4, 4), torch.ones(20, 1), torch.ones(5, 64))
    every = dataclasses.replace(SETTINGS, first_frame=1.0)
    assert flow.noised([still], EMPTY, every, torch.Generator()).counts[0].all()


def test_given_modalities():
    """In their shares of the samples the audio or the video is clean, at timestep 0, and without a loss."""
    some = dataclasses.replace(SETTINGS, given_audio=0.3, given_video=0.4, first_frame=0.0)
    got = batch(some, n=100)
    video, audio = ((timestep == 0).view(100, -1).all(1) for timestep in got.timestep)
    assert not (video & audio).any()
    assert 20 < audio.sum() < 40
    assert 30 < video.sum() < 50
    x0 = torch.stack([clip.video for clip in clips(100)]), torch.stack([clip.audio for clip in clips(100)])
    for clean, x, counts, given in zip(x0, got.x, got.counts, (video, audio), strict=True):
        assert torch.equal(x[given], clean[given])
        assert torch.equal(counts.flatten(1).any(1), ~given)


def test_a_batch_with_nothing_to_learn_in_a_modality_has_a_loss_of_0_for_it():
    every = dataclasses.replace(SETTINGS, given_video=1.0)
    video, audio = flow.losses(golden_model.load(), batch(every))
    assert video == 0
    assert audio > 0


@pytest.mark.parametrize("other", ["given_video", "given_prefix", "passage"])
def test_shares_of_more_than_all_samples_are_refused(other):
    message = f"given audio and {other.replace('_', ' ')} are 1.1 together, but must be at most 1"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **{"given_audio": 0.6, other: 0.5})
    dataclasses.replace(SETTINGS, given_audio=0.7, given_prefix=0.2, passage=0.1)  # 1 with the rounding of floats


def some_given(persons=0, n=60, **shares):
    plain = dataclasses.replace(SETTINGS, first_frame=0.0, reference_dropout=0.0)
    settings = dataclasses.replace(plain, **shares)
    return flow.noised(clips(n, persons, *LONGER), EMPTY, settings, torch.Generator().manual_seed(0))


def check_given(got, samples):
    """What is not counted is clean at timestep 0, and the rest has the noise and the timestep of its sample."""
    for name, x, timestep, velocity, counts, size in zip(
        ("video", "audio"), got.x, got.timestep, got.velocity, got.counts, LONGER, strict=True
    ):
        counted = counts.flatten(1).bool()
        assert torch.equal(timestep[:, :size] > 0, counted)
        rest = timestep[:, :size].amax(1, keepdim=True)
        assert torch.equal(timestep[:, :size], rest * counted)
        x0 = torch.stack([getattr(sample, name) for sample in samples])
        over = [slice(None), None, slice(None), *[None] * (x.ndim - 3)]
        torch.testing.assert_close(x, x0 + timestep[:, :size][over] / 1000 * velocity, atol=1e-5, rtol=0)
        assert torch.equal(x.movedim(2, 1)[~counted], x0.movedim(2, 1)[~counted])


def masks_of(got):
    """Which masks samples have, as text, with how many samples have each."""
    rows = zip(*(counts.flatten(1).int().tolist() for counts in got.counts), strict=True)
    return Counter(tuple("".join(map(str, mask)) for mask in row) for row in rows)


def test_given_prefix():
    """In its share of the samples the beginning is given: a latent or more, of audio one latent less than its time."""
    got = some_given(given_prefix=0.6, n=100)
    check_given(got, clips(100, 0, *LONGER))
    found = masks_of(got)
    taught = {tuple("".join(map(str, mask.int().tolist())) for mask in prefix(4, 17, p)) for p in (0, 0.4, 0.8)}
    assert found.keys() == {*taught, ("1111", "1" * 17)}
    assert 30 <= found["1111", "1" * 17] <= 50
    assert ("0011", "0" * 5 + "1" * 12) in taught


def test_given_passages():
    """In its share of the samples all but a passage is given, in both modalities or one of them, by thirds."""
    got = some_given(passage=1.0, n=120, first_frame=1.0)
    check_given(got, clips(120, 0, *LONGER))
    kinds = Counter(("1" in video, "1" in audio) for video, audio in masks_of(got).elements())
    assert kinds.keys() == {(True, True), (True, False), (False, True)}
    assert all(25 <= count <= 55 for count in kinds.values())
    for mask in (mask for masks in masks_of(got) for mask in masks):
        assert re.fullmatch("0*1*0*", mask)
    assert any(video[0] == "1" for video, _ in masks_of(got))  # a first frame in the passage is generated


@pytest.mark.parametrize("missing", ["video", "audio"])
@pytest.mark.parametrize("share", ["given_prefix", "passage"])
def test_conditions_of_one_tower_alone(missing, share):
    """Each sample has something to learn."""
    samples = [sample._replace(**{missing: None}) for sample in clips(20, 0, *LONGER)]
    every = dataclasses.replace(SETTINGS, first_frame=0.0, **{share: 1.0})
    got = flow.noised(samples, EMPTY, every, torch.Generator().manual_seed(0))
    counts = got.counts[missing == "video"].flatten(1)
    assert counts.any(1).all()
    assert not counts.all()


@pytest.mark.parametrize("share", ["given_audio", "given_video", "given_prefix", "passage"])
def test_references_have_the_timestep_of_what_is_generated(share):
    """As the nodes tell them: where a modality is given, its references are still told the timestep of the clip."""
    got = some_given(persons=2, n=6, **{share: 1.0})
    whole = got.timestep[0].amax(1)
    assert whole.all()  # one sigma for both modalities
    for timestep, size in zip(got.timestep, (4, 17), strict=True):
        of_references = timestep.view(6, -1)[:, size:] if timestep.ndim > 1 else timestep[:, None]
        assert torch.equal(of_references, whole[:, None].expand_as(of_references))
    assert all(map(torch.isfinite, flow.losses(golden_model.load(), got)))


def test_references_are_given_in_their_share_of_the_batches():
    some = dataclasses.replace(SETTINGS, given_references=0.4)
    drawn = [flow.noised(clips(1, 1), EMPTY, some, torch.Generator().manual_seed(i)) for i in range(30)]
    assert 6 <= sum(one.references is not None for one in drawn) <= 18


def test_a_condition_of_0_draws_no_number():
    """Trainings of earlier versions have the same noise: what was drawn stands here as numbers."""
    of_shares = {"given_audio": 0.5, "cut": 0.5}
    for settings, expected in (
        ({}, [-1.45, 1.12, 622.652, 936.914]),
        (of_shares, [1.55, -0.939, 0.0, 0.0]),
    ):
        got = batch(dataclasses.replace(SETTINGS, **settings))
        numbers = [got.x[0].flatten()[-1], got.x[1].flatten()[-1], *got.timestep[1]]
        assert [round(float(number), 3) for number in numbers] == expected


def test_batches_whose_towers_are_cut():
    """In their share they are predicted as by a model without fusion."""
    model = golden_model.load()
    got = batch(dataclasses.replace(SETTINGS, cut=1.0))
    apart = {"a2v_cross_attn": False, "v2a_cross_attn": False}
    expected = flow.losses(partial(model, transformer_options=apart), got._replace(cut_rows=None))
    torch.testing.assert_close(flow.losses(model, got), expected)
    some = dataclasses.replace(SETTINGS, cut=0.3)
    assert 2 <= sum(batch(some, seed=seed).cut_rows is not None for seed in range(20)) <= 12


@pytest.mark.parametrize("missing", ["video", "audio"])
def test_one_tower_alone(missing):
    """Samples without a modality have the losses of the other tower alone."""
    model = golden_model.load()
    samples = [clip._replace(**{missing: None}) for clip in clips(2)]
    got = flow.noised(samples, EMPTY, SETTINGS, torch.Generator().manual_seed(0))
    of_video, of_audio = flow.losses(model, got)
    found = model(got.x, got.timestep, got.context)
    for loss, velocity, expected, counts in zip((of_video, of_audio), found, got.velocity, got.counts, strict=True):
        if velocity is None:
            assert loss == 0
        else:
            errors = (velocity - expected).square() * counts
            torch.testing.assert_close(loss, errors.mean() / counts.mean())
    with pytest.raises(ValueError, match=f"The {missing} latents of a batch have shapes"):
        flow.noised([samples[0], clips(2)[1]], EMPTY, SETTINGS, torch.Generator())


def with_persons(n=2, dropout=0.0):
    """A batch of clips with two persons each, and the same batch of clips with none."""
    some = dataclasses.replace(SETTINGS, reference_dropout=dropout)
    return (flow.noised(clips(n, persons), EMPTY, some, torch.Generator().manual_seed(0)) for persons in (2, 0))


def test_references_reach_the_model_without_noise():
    """The losses are those of the model with them, and all else is as without."""
    got, without = with_persons()
    samples = clips(2, persons=2)
    for j in range(2):
        assert torch.equal(got.references.images[j], torch.stack([sample.images[j] for sample in samples]))
        assert torch.equal(got.references.voices[j], torch.stack([sample.voices[j] for sample in samples]))
    assert without.references is None
    assert torch.equal(got.x[0], without.x[0])
    assert torch.equal(got.counts[0], without.counts[0])
    model = golden_model.load()
    video, audio = model(got.x, got.timestep, got.context, references=got.references)
    of_video, of_audio = flow.losses(model, got)
    expected = ((video - got.velocity[0]).square() * got.counts[0]).sum() / got.counts[0].expand_as(video).sum()
    torch.testing.assert_close(of_video, expected)
    torch.testing.assert_close(of_audio, (audio - got.velocity[1]).square().mean())
    assert flow.losses(model, without)[0] != of_video


def test_a_trainer_trains_with_references():
    """From the same noise, other losses than without."""
    assert trainer(persons=1).step() != trainer().step()


def test_references_are_dropped_for_guidance():
    """Zeros in their place, of all images or all voices of a sample, each in its share of the samples."""
    got, _ = with_persons(n=100, dropout=0.3)
    zero = [torch.stack([~one.flatten(1).any(1) for one in kind]) for kind in got.references]
    for kind in zero:
        assert torch.equal(kind[0], kind[1])
        assert 15 < kind[0].sum() < 45
    assert not torch.equal(zero[0], zero[1])
    assert [one.shape for one in got.references.voices] == [(100, 20, 3), (100, 20, 4)]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"images": []}, r"The reference images of a batch have shapes .*; train with a batch of 1"),
        ({"voices": [torch.zeros(20, 3), torch.zeros(20, 9)]}, "The reference voices of a batch have shapes"),
    ],
)
def test_references_of_other_sizes_are_refused(other, message):
    first, second = clips(2, persons=2)
    with pytest.raises(ValueError, match=message):
        flow.noised([first, second._replace(**other)], EMPTY, SETTINGS, torch.Generator())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("persons", [0, 1])
def test_gradients(recompute, persons):
    """Against finite differences in float64, along a random direction in all weights: nothing in place spoils them."""
    model = golden_model.load(torch.float64).double().requires_grad_(True)
    draw = torch.Generator().manual_seed(0)
    got = _double(flow.noised(clips(2, persons), EMPTY, SETTINGS, draw, split=False))
    options = {"transformer_options": recompute_blocks(3)} if recompute else {}

    def total():
        video, audio = model(got.x, got.timestep, got.context, references=got.references, **options)
        return (video - got.velocity[0]).square().mean() + (audio - got.velocity[1]).square().mean()

    total().backward()
    draw = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in model.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(model.parameters(), direction, strict=True))
    around = []
    with torch.no_grad():
        for shift in (1e-6, -2e-6):
            for p, d in zip(model.parameters(), direction, strict=True):
                p += shift * d
            around.append(total())
    torch.testing.assert_close((around[0] - around[1]) / 2e-6, slope, rtol=1e-6, atol=0)


def _double(part):
    """What a batch is made of, in float64."""
    if isinstance(part, (list, tuple)):
        return type(part)(*map(_double, part)) if hasattr(part, "_fields") else type(part)(map(_double, part))
    return part if part is None else part.double()


def test_losses_fall():
    one = dataclasses.replace(SETTINGS, split=0.0, text_dropout=0.0)
    run = trainer(one, steps=40)
    run.samples = run.samples[:1]
    for _ in range(40):
        run.step()
    first, last = (torch.tensor(run.history[part]).mean() for part in (slice(5), slice(-5, None)))
    assert last < 0.7 * first


@pytest.mark.parametrize("options", [{}, {"rank": 4}, {"recompute": True}, {"rank": 4, "persons": 2}])
def test_killed_and_resumed(tmp_path, options):
    """The same losses and weights as without the kill."""
    whole, killed, resumed = (trainer(steps=4, **options) for _ in range(3))
    for _ in whole.run(tmp_path / "whole", 4):
        pass
    killed.step()
    killed.save(tmp_path / "state")
    killed.step()  # lost
    resumed.resume(tmp_path / "state")
    assert list(resumed.run(tmp_path / "state", 2)) == [2, 4]
    assert resumed.history == whole.history
    for kind in ("trained", "averaged"):
        weights = getattr(whole, kind)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in getattr(resumed, kind).items())


def test_state_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "state"
    trainer().save(path)
    with pytest.raises(
        ValueError, match=r"was trained with another lr \(0.001\); use the same, or delete it to start again"
    ):
        trainer(dataclasses.replace(SETTINGS, lr=1e-4)).resume(path)
    with pytest.raises(ValueError, match="is of a model of another size"):
        trainer(rank=4).resume(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="is not a complete training state"):
        trainer().resume(path)
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="is not a complete training state"):
        trainer().resume(path)


def test_learning_rate():
    """Up in the first steps, down to nothing in the last."""
    run = trainer(dataclasses.replace(SETTINGS, lr=1.0, warmup=4, cooldown=0.2), steps=20)
    assert [run.lr(step) for step in (0, 1, 3, 16, 18, 20)] == [0.25, 0.5, 1.0, 1.0, 0.5, 0.0]


def test_bfloat16():
    """Within the rounding of bfloat16, the same losses."""
    for exact, rounded in zip(trainer().step(), trainer(autocast=True).step(), strict=True):
        assert rounded == pytest.approx(exact, rel=0.03)
        assert rounded != exact


def test_clips_of_other_sizes_are_refused():
    odd = [*clips(1), Sample(torch.zeros(48, 2, 4, 2), torch.zeros(20, 9), torch.zeros(5, 64))]
    with pytest.raises(ValueError, match=r"The video latents of a batch have shapes .*; train with a batch of 1"):
        flow.noised(odd, EMPTY, SETTINGS, torch.Generator())


@pytest.fixture
def folder(tmp_path):
    """A folder of clips, and beside it the model."""
    (tmp_path / "clips").mkdir()
    for i, clip in enumerate(clips()):
        save_file(tensors(clip), tmp_path / "clips" / f"{i}.safetensors")
    golden_model.write(tmp_path / "model.safetensors", LAYERS)
    return tmp_path


def train(folder, *options):
    paths = [
        str(folder / "model.safetensors"),
        "--clips",
        str(folder / "clips"),
        "--out",
        str(folder / "out.safetensors"),
    ]
    return tool.main([*paths, "--device", "cpu", "--lr", "0.01", *options])


def store(folder, dtype):
    """Store the model in another dtype."""
    path = folder / "model.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in load_file(path).items()}, path, golden_model.metadata())


def test_whole_model(folder):
    """A checkpoint with the metadata of the one that it was trained from."""
    assert train(folder, "--steps", "2", "--rank", "0", "--float32") == 0
    with safe_open(folder / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    weights = load_file(folder / "out.safetensors")
    assert OviConfig.from_state_dict(weights, metadata=metadata) == golden_model.load(layers=LAYERS).config
    assert all(not torch.equal(weights[key].float(), tensor) for key, tensor in golden_model.state(LAYERS).items())


@pytest.mark.parametrize("options", [[], ["--float32"]])
def test_loras_on_16_bits(folder, options):
    """The release's files are bfloat16; what is not trained stays so, or is computed in float32."""
    store(folder, torch.bfloat16)
    assert train(folder, "--steps", "2", "--rank", "2", *options) == 0
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "out.safetensors").values())


def test_command_line_goes_on(folder, capsys):
    assert train(folder, "--steps", "2", "--rank", "2") == 0
    assert train(folder, "--steps", "4", "--rank", "2") == 0
    assert len(torch.load(folder / "out.safetensors.state")["history"]) == 4
    (folder / "out.safetensors").unlink()
    assert train(folder, "--steps", "4", "--rank", "2") == 0
    assert (folder / "out.safetensors").exists()  # its state is enough to make it
    assert train(folder, "--steps", "4", "--rank", "3") == 2
    assert "is of a model of another size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("clips/0.safetensors", {"video": torch.zeros(3)}, r"has {'video': \[3\]}; a clip needs video"),
        ("clips/0.safetensors", None, "is a text file"),
        ("model.safetensors", None, "is a text file"),
        ("model.safetensors", {"shared.weight": torch.zeros(3)}, "This file is a UMT5 text encoder"),
    ],
)
def test_wrong_files(folder, capsys, name, tensors, message):
    """One line, and exit code 2."""
    for path in (folder / "clips").glob("[12].*"):
        path.unlink()
    if tensors:
        save_file(tensors, folder / name)
    else:
        (folder / name).write_bytes(b"something else")
    assert train(folder, "--steps", "1") == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_fp8_is_not_trained(folder, capsys):
    store(folder, torch.float8_e4m3fn)
    assert train(folder, "--steps", "1") == 2
    assert "is quantised without scales, which cannot be trained" in capsys.readouterr().err


def test_no_clips(folder, capsys):
    shutil.rmtree(folder / "clips")
    assert train(folder) == 2
    assert "There are no .safetensors files in" in capsys.readouterr().err


def output(folder):
    """The command line's files: the weights' bytes and the state's, None for one that is not there."""
    paths = folder / "out.safetensors", folder / "out.safetensors.state"
    return [path.read_bytes() if path.exists() else None for path in paths]


def change_clip(folder, name="0", **changed):
    """Write a clip with some tensors changed, or left out (None)."""
    path = folder / "clips" / f"{name}.safetensors"
    whole = tensors(clips(1)[0]) | changed
    save_file({key: tensor for key, tensor in whole.items() if tensor is not None}, path)


def refused(folder, capsys, *options):
    """Run the command line, which must refuse in one line; return that line."""
    assert train(folder, *options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("\r") and line]
    return line


def test_the_model_is_not_overwritten(folder, capsys):
    """Nor is any other file without the state of a training: an `--out` that names it is refused at once."""
    before = (folder / "model.safetensors").read_bytes()
    model = str(folder / "model.safetensors")
    assert tool.main([model, "--clips", str(folder / "clips"), "--out", model, "--device", "cpu"]) == 2
    assert "is given twice" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before
    (folder / "out.safetensors").write_bytes(b"another LoRA")
    assert "out.safetensors.state, the state of its training, does not" in refused(folder, capsys)
    assert output(folder) == [b"another LoRA", None]


def test_outputs_that_cannot_be_written_are_refused_at_once(folder, capsys):
    model, clip_folder = str(folder / "model.safetensors"), str(folder / "clips")
    for out, message in (("missing/out", "There is no folder"), ("clips", "is a folder")):
        assert tool.main([model, "--clips", clip_folder, "--out", str(folder / out), "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err


def test_a_full_disk_leaves_the_last_state(folder, capsys, monkeypatch):
    """Both files stay as they were saved last, and the temporary one is gone."""
    assert train(folder, "--steps", "2", "--rank", "2") == 0
    saved = output(folder)
    capsys.readouterr()

    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3")

    monkeypatch.setattr(torch, "save", full)
    assert train(folder, "--steps", "3", "--rank", "2") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("is the disk full?")
    assert output(folder) == saved
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_clip_is_named(folder, capsys, value):
    damaged = torch.randn(48, 2, 4, 4)
    damaged[3, 1, 2, 2] = value
    for path in (folder / "clips").glob("[12].*"):
        path.unlink()
    change_clip(folder, video=damaged)
    assert train(folder, "--steps", "2") == 2
    assert "0.safetensors has NaN or infinity in video" in capsys.readouterr().err.splitlines()[-1]
    assert output(folder) == [None, None]


def test_a_loss_that_is_not_finite_stops_before_anything_is_lost(folder, capsys):
    """A model that a far too high rate has ruined is not saved over the one that was saved before."""
    run = trainer()
    run.step()
    before = {name: tensor.clone() for name, tensor in run.trained.items()}
    run.samples = [clip._replace(audio=clip.audio * 1e30) for clip in run.samples]
    with pytest.raises(ValueError, match=r"Step 2 has losses of .* \(audio\), and its gradient"):
        run.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.trained.items())
    assert len(run.history) == 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"video": torch.zeros(47, 2, 4, 4)}, "'video': [47, 2, 4, 4]"),
        ({"audio": torch.zeros(21, 9)}, "'audio': [21, 9]"),
        ({"video": torch.zeros(48, 0, 4, 4)}, "none of them empty"),
        ({"audio": torch.zeros(20, 0)}, "none of them empty"),
        ({"context": torch.zeros(5, 32)}, "'context': [5, 32]"),
        ({"context": torch.zeros(600, 64)}, "600 text tokens, but Ovi reads at most"),
        ({"context": None}, "a clip needs video"),
        ({"extra": torch.zeros(1)}, "a clip needs video"),
        ({"video": torch.zeros(48, 2, 4, 4, dtype=torch.int8)}, "has video as I8"),
        ({"audio": torch.zeros(20, 9, dtype=torch.uint8)}, "has audio as U8"),
    ],
)
def test_a_wrong_clip_is_refused_before_training(folder, capsys, tensors, message):
    """Whichever of the clips it is: here the last."""
    change_clip(folder, name="2", **tensors)
    line = refused(folder, capsys, "--steps", "1")
    assert "2.safetensors" in line
    assert message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--save-every 0", "--save-every is 0, but must be at least 1"),
        ("--batch 0", "The setting batch is 0, but must be from 1 to 4096"),
        ("--batch 1000000000", "The setting batch is 1000000000"),
        ("--rank 1000000000", "--rank is 1000000000, but the model's layers are 96 wide"),
        ("--rank -1", "--rank is -1, but must be at least 0"),
        ("--steps -3", "--steps is -3, but must be at least 1"),
        ("--lr nan", "The setting lr is nan, but must be a positive number"),
        ("--lr 0", "The setting lr is 0.0"),
        ("--shift 0", "The setting shift is 0.0"),
        ("--audio-weight inf", "The setting audio weight is inf"),
        ("--first-frame 1.5", "The setting first frame is 1.5, but must be from 0 to 1"),
        ("--seed -1", "The setting seed is -1"),
        ("--device foo", "There is no device 'foo'"),
        ("--device meta", "There is no device 'meta'"),
    ],
)
def test_options_out_of_range_are_refused(folder, capsys, options, message):
    assert message in refused(folder, capsys, *options.split())
    assert output(folder) == [None, None]


def test_other_clips_are_noticed(folder, capsys):
    """Resuming goes on all the same."""
    assert train(folder, "--steps", "1", "--rank", "2") == 0
    assert train(folder, "--steps", "2", "--rank", "2") == 0
    assert "The clips are not those" not in capsys.readouterr().err
    change_clip(folder, name="new")
    (folder / "clips" / "1.safetensors").unlink()
    assert train(folder, "--steps", "3", "--rank", "2") == 0
    assert "1 are new or changed, 1 are missing" in capsys.readouterr().err


def test_float16_weights_are_trained_in_bfloat16(folder):
    """As the miniature's file has them; PyTorch mixes no float16 with bfloat16 on a CPU, and Ovi overflows float16."""
    store(folder, torch.float16)
    assert train(folder, "--steps", "2", "--rank", "2") == 0
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "out.safetensors").values())
