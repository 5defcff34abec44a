"""The release's audio files through the loader node: ComfyUI's own VAE gives the reference's numbers (golden E)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from ovi import media
from support.golden_audio import published_vae, published_vocoder
from support.sampling import on_cpu

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def expected(golden):
    """The golden tensors of case E."""
    return load_file(golden / "E_mmaudio.safetensors")


@pytest.fixture(scope="module")
def folder(comfy):
    """ComfyUI's models/vae with the golden weights as v1-16.pth and best_netG.pt."""
    from comfy.ldm.mmaudio.vae.vae import DATA_MEAN_80D, DATA_STD_80D

    folder = comfy.models / "vae"
    statistics = {"data_mean": DATA_MEAN_80D, "data_std": DATA_STD_80D}
    with ThreadPoolExecutor() as pool:
        vae, vocoder = pool.submit(published_vae), pool.submit(published_vocoder)
    statistics = {key: torch.tensor(values).view(1, 80, 1) for key, values in statistics.items()}
    torch.save(vae.result() | statistics, folder / "v1-16.pth")
    torch.save({"generator": vocoder.result()}, folder / "best_netG.pt")
    yield folder
    for name in ("v1-16.pth", "best_netG.pt", "merged.safetensors"):  # 2.2 GB, which pytest would keep
        (folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def vae(comfy, folder):
    """The VAE that the node makes of the two files."""
    return comfy.run("OviAudioVAELoader", vae_name="v1-16.pth", vocoder_name="best_netG.pt")[0]


def close(actual, expected):
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-5)


def loaded_model(vae):
    """The model of a VAE, on the device that ComfyUI runs it on."""
    from comfy import model_management

    model_management.load_models_gpu([vae.patcher])
    return vae.first_stage_model


def test_every_tensor_comes_from_the_files(vae, expected):
    loaded = on_cpu(vae.get_sd())
    assert len(loaded) == 727
    for check in (key for key in expected if key.startswith("weightcheck.")):
        key = check.removeprefix("weightcheck.").removesuffix(".first16")
        torch.testing.assert_close(loaded[key].flatten()[:16], expected[check], rtol=0, atol=1e-7)
    torch.testing.assert_close(loaded["mel_converter.mel_basis"], expected["mel_basis"], rtol=0, atol=1e-8)


def test_decode_gives_the_reference_s_wave(vae, expected):
    latent = expected["in.latent"]
    close(vae.decode(latent).movedim(-1, 1), expected["out.wave_44k1_torchaudio_resample"])
    model = loaded_model(vae)
    with torch.inference_mode():
        mel = model.vae.decode(latent.to(vae.device))
        close(mel, expected["out.mel_decoded"])
        close(model.vocoder(mel), expected["out.wave_16k"])


def test_encode_gives_the_reference_s_latent(vae, expected):
    model, wave = loaded_model(vae), expected["in.wave_16k"].to(vae.device)
    with torch.inference_mode():
        close(model.mel_converter(wave), expected["out.mel_of_wave"])
        latent = model.encode_audio(wave)
    close(latent.mean, expected["out.enc_mean"])
    close(latent.logvar, expected["out.enc_logvar"])


@pytest.mark.parametrize(
    ("name", "rate", "seconds", "same_resampler"),
    [("mono_16k", 16000, 1.0, True), ("stereo_44k", 44100, 1.0, False), ("short_24k", 24000, 0.6, False)],
)
def test_a_voice_as_ovi_person_encodes_it(comfy, vae, golden, name, rate, seconds, same_resampler):
    """The numbers of DreamID-Omni's code: to the mel's rounding, or as near as another resampler comes."""
    given = load_file(golden / "dreamid" / "A_preprocess.safetensors")
    pcm, wave, mel, latent = (given[f"voice.{name}.{part}"] for part in ("pcm", "wave16k", "mel", "latent"))
    audio = {"waveform": pcm[None] / 2**15, "sample_rate": rate}
    cut_out = media.cut(audio, 1.0, seconds, 16000, "voice")
    assert cut_out.shape == wave.shape
    with torch.inference_mode():
        model, on_device = loaded_model(vae), cut_out[None].to(vae.device)
        heard = model.mel_converter(on_device)[0].cpu()
        encoded = comfy.module("ovi.native.vae").encode_voice(vae, audio, 1.0, seconds)[0].mT
        assert torch.equal(encoded, model.encode_audio(on_device).mean[0].mT.cpu())
    assert encoded.shape == latent.shape
    if same_resampler:
        close(cut_out, wave)
        close(heard, mel)
        torch.testing.assert_close(encoded, latent, rtol=1e-5, atol=1e-5)
    else:
        assert (heard - mel).square().mean().sqrt() < 0.05


def test_core_s_nodes_decode_a_batch_and_encode_it_again(comfy, vae, expected):
    latent = torch.cat([expected["in.latent"], 2 * expected["in.latent"]])
    (audio,) = comfy.run("VAEDecodeAudio", vae=vae, samples={"samples": latent})
    assert audio["sample_rate"] == 44100
    assert audio["waveform"].shape == (2, 1, 12701)  # ceil(512 * 9 * 441 / 160)
    close(audio["waveform"][:1], expected["out.wave_44k1_torchaudio_resample"])
    (encoded,) = comfy.run("VAEEncodeAudio", vae=vae, audio=audio)
    assert encoded["samples"].shape == latent.shape
    assert encoded["samples"].isfinite().all()


@pytest.mark.parametrize("flag", ["bf16_vae", "fp16_vae"])
def test_it_computes_in_float32(comfy, folder, expected, monkeypatch, flag):
    """Whatever dtype ComfyUI is started with: in 16 bits the wave differs, and encoding fails."""
    from comfy.cli_args import args

    monkeypatch.setattr(args, flag, True)
    (vae,) = comfy.run("OviAudioVAELoader", vae_name="v1-16.pth", vocoder_name="best_netG.pt")
    (audio,) = comfy.run("VAEDecodeAudio", vae=vae, samples={"samples": expected["in.latent"]})
    close(audio["waveform"], expected["out.wave_44k1_torchaudio_resample"])


def test_comfyui_can_load_it_afresh(vae):
    reload, paths = vae.patcher.cached_patcher_init
    fresh = on_cpu(reload(*paths, disable_dynamic=True).model.state_dict())
    loaded = on_cpu(vae.get_sd())
    assert all(torch.equal(fresh[key], loaded[key]) for key in loaded)


@pytest.mark.parametrize("loader", ["OviAudioVAELoader", "VAELoader"])
def test_merged_file_needs_no_vocoder(comfy, folder, vae, expected, loader):
    from safetensors.torch import save_file

    if not (folder / "merged.safetensors").exists():
        save_file(vae.get_sd(), folder / "merged.safetensors")
    vocoder = {"vocoder_name": "in the VAE file"} if loader == "OviAudioVAELoader" else {}
    (merged,) = comfy.run(loader, vae_name="merged.safetensors", **vocoder)
    close(merged.decode(expected["in.latent"]), vae.decode(expected["in.latent"]))


def test_node_refuses_swapped_files(comfy, folder):
    with pytest.raises(ValueError, match="The two files are swapped"):
        comfy.run("OviAudioVAELoader", vae_name="best_netG.pt", vocoder_name="v1-16.pth")


def test_node_offers_the_files_of_models_vae(comfy, folder):
    vae, vocoder = comfy.node["OviAudioVAELoader"].define_schema().inputs
    assert {"v1-16.pth", "best_netG.pt"} <= set(vae.options)
    assert vocoder.options == ["in the VAE file", *vae.options]


@pytest.mark.parametrize(
    ("seconds", "rate", "latents"),
    [(60, 48000, 157), (5.024, 16000, 157), (5, 44100, 156), (0.2, 8000, 6), (0.04, 96000, 1)],
)
def test_ovi_reference_encodes_whole_latents_of_audio(comfy, vae, seconds, rate, latents):
    """Of a clip of 121 frames: the latents that the audio fills, and no more."""
    wave = 0.1 * torch.randn(1, 2, round(seconds * rate), generator=torch.Generator().manual_seed(0))
    inputs = dict(width=32, height=32, length=121, fit="crop", fps=24.0, keep_frames=0, keep_seconds=0.0, batch_size=1)
    remake = dict(remake="nothing", remake_start=0.0, remake_end=0.0)
    audio = {"waveform": wave, "sample_rate": rate}
    latent, _ = comfy.run("OviReference", **inputs, **remake, audio_vae=vae, audio=audio)
    _, encoded = latent["samples"].unbind()
    _, mask = latent["noise_mask"].unbind()
    assert mask[0, 0].tolist() == [0.0] * latents + [1.0] * (157 - latents)
    assert encoded[..., :latents].isfinite().all()
    assert encoded[0, :, :latents].any(0).all()
    assert not encoded[..., latents:].any()
