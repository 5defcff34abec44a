"""The nodes around the model: prompts, latents, schedule, decoding, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("inference")]


class ToneVAE:
    """Stands for the audio VAE: a clip decodes to a constant, its first latent number, as long as the real one."""

    latent_dim, latent_channels = 1, 20
    audio_sample_rate = 44100

    def decode(self, latent):
        samples = -(-latent.shape[-1] * 512 * 441 // 160)
        return latent[:, :1, :1].expand(-1, samples, 1)


class OtherVAE:
    """A VAE of another kind."""

    def __init__(self, latent_dim, latent_channels):
        self.latent_dim = latent_dim
        self.latent_channels = latent_channels


def empty(comfy, width=64, height=96, length=9, batch_size=1):
    (latent,) = comfy.run("EmptyOviLatent", width=width, height=height, length=length, batch_size=batch_size)
    return latent


def image_to_video(comfy, vae, image, width=64, height=96, length=9, fit="crop", batch_size=1):
    (latent,) = comfy.run(
        "OviImageToVideo",
        vae=vae,
        start_image=image,
        width=width,
        height=height,
        length=length,
        fit=fit,
        batch_size=batch_size,
    )
    return latent


@pytest.mark.parametrize(("length", "frames", "audio"), [(121, 31, 157), (241, 61, 314), (1, 1, 1)])
def test_empty_latent(comfy, length, frames, audio):
    """The published lengths give the published latents, at exactly the size asked for."""
    parts = empty(comfy, 960, 544, length, 2)["samples"].unbind()
    assert [tuple(part.shape) for part in parts] == [(2, 48, frames, 34, 60), (2, 20, audio)]
    assert not any(part.any() for part in parts)


def test_a_latent_says_which_checkpoints_it_suits(comfy, vae):
    size = {"width": 64, "height": 96, "length": 125, "batch_size": 1}
    image = {"vae": vae, "start_image": torch.rand(1, 96, 64, 3), "fit": "crop"}
    for node, given in (("EmptyOviLatent", {}), ("OviImageToVideo", image)):
        (text,) = comfy.node[node].execute(**size, **given).ui.as_dict()["text"]
        assert text == "64x96 fits no checkpoint: try 576x896"


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((70, 96, 9), "got 70x96.*64 or 96"),
        ((64, 100, 9), "got 64x100.*96 or 128"),
        ((64, 96, 10), "got 10.*9 or 13"),
    ],
)
def test_sizes_without_a_latent_are_refused(comfy, vae, size, message):
    with pytest.raises(ValueError, match=message):
        empty(comfy, *size)
    with pytest.raises(ValueError, match=message):
        image_to_video(comfy, vae, torch.rand(1, 50, 50, 3), *size)


def test_image_to_video(comfy, vae):
    """The first latent frame is the encoded image, which the mask keeps; the rest is zero once normalised."""
    from comfy.latent_formats import Wan22

    image = torch.rand(1, 96, 64, 3)
    latent = image_to_video(comfy, vae, image, batch_size=2)
    video, audio = latent["samples"].unbind()
    video_mask, audio_mask = latent["noise_mask"].unbind()
    assert (tuple(video.shape), tuple(audio.shape)) == ((2, 48, 3, 6, 4), (2, 20, 11))
    torch.testing.assert_close(video[1:, :, :1], vae.encode(image))
    assert Wan22().process_in(video[:, :, 1:]).abs().max() < 1e-6
    assert (tuple(video_mask.shape), tuple(audio_mask.shape)) == ((2, 1, 3, 6, 4), (2, 1, 11))
    assert video_mask[:, :, 0].max() == 0
    assert video_mask[:, :, 1:].min() == 1
    assert audio_mask.min() == 1


def test_core_takes_the_parts_apart(comfy, vae):
    """LTXV Separate / Concat AV Latent: picture and sound, with their masks, for other nodes."""
    latent = image_to_video(comfy, vae, torch.rand(1, 96, 64, 3))
    video, audio = comfy.run("LTXVSeparateAVLatent", av_latent=latent)
    assert video["samples"].ndim == 5
    assert audio["samples"].ndim == 3
    assert video["noise_mask"].ndim == 5
    (again,) = comfy.run("LTXVConcatAVLatent", video_latent=video, audio_latent=audio)
    for got, expected in zip(again["samples"].unbind(), latent["samples"].unbind(), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_batch_of_images_is_refused(comfy, vae):
    with pytest.raises(ValueError, match=r"batch of 2.*ImageFromBatch"):
        image_to_video(comfy, vae, torch.rand(2, 96, 64, 3))


@pytest.mark.parametrize(
    ("kind", "message"),
    [((3, 16), r"a video VAE of 16 channels \(such as Wan 2.1's\)"), ((1, 20), "an audio VAE of 20 channels")],
)
def test_a_wrong_video_vae_is_refused(comfy, kind, message):
    with pytest.raises(ValueError, match=f"{message}.*wan2.2_vae.safetensors"):
        image_to_video(comfy, OtherVAE(*kind), torch.rand(1, 96, 64, 3))
    with pytest.raises(ValueError, match=f"{message}.*wan2.2_vae.safetensors"):
        comfy.run("OviDecode", samples=empty(comfy), fps=24.0, tile_size=0, vae=OtherVAE(*kind))


def test_a_wrong_audio_vae_is_refused(comfy, vae):
    with pytest.raises(ValueError, match=r"a video VAE of 48 channels.*v1-16.pth and best_netG.pt"):
        comfy.run("OviDecode", samples=empty(comfy), fps=24.0, tile_size=0, audio_vae=vae)


def decode(comfy, samples, **inputs):
    return comfy.run("OviDecode", **{"samples": samples, "fps": 24.0, "tile_size": 0} | inputs)


@pytest.mark.parametrize("fps", [24.0, 12.0, 60.0])
def test_decoded_sound_is_as_long_as_the_picture(comfy, vae, fps):
    """Cut at 60 frames a second, filled up with silence at 12."""
    images, audio = decode(comfy, latent_of_ones(comfy, 9), vae=vae, audio_vae=ToneVAE(), fps=fps)
    assert tuple(images.shape) == (9, 96, 64, 3)
    wave = audio["waveform"][0, 0]
    assert len(wave) == round(9 / fps * 44100)
    made = round(11 * 512 * 441 / 160)
    assert wave[: min(made, len(wave))].min() == 1
    assert not wave[made + 1 :].any()


def latent_of_ones(comfy, length, batch_size=1):
    latent = empty(comfy, length=length, batch_size=batch_size)
    for i in range(batch_size):
        for part in latent["samples"].unbind():
            part[i] = i + 1.0
    return latent


def test_a_batch_decodes_clip_by_clip(comfy, vae):
    """Frames and sounds follow one another in the same order."""
    images, audio = decode(comfy, latent_of_ones(comfy, 5, 2), vae=vae, audio_vae=ToneVAE())
    single, _ = decode(comfy, latent_of_ones(comfy, 5), vae=vae, audio_vae=ToneVAE())
    assert len(images) == 10
    torch.testing.assert_close(images[:5], single)
    first, second = audio["waveform"][0, 0].chunk(2)
    assert (first[:8000].unique().item(), second[:8000].unique().item()) == (1.0, 2.0)
    assert len(first) == round(5 / 24 * 44100)


class TileSpy:
    """Stands for the Wan 2.2 VAE; records the arguments of each tiled decoding, with core's defaults."""

    latent_dim, latent_channels = 3, 48

    def __init__(self):
        self.calls = []

    def spacial_compression_decode(self):
        return 16

    def decode(self, latent):
        pytest.fail("the latent was decoded whole")

    def decode_tiled(self, latent, tile_x=32, tile_y=32, overlap=8, tile_t=999, overlap_t=None):
        self.calls.append({"tile_x": tile_x, "tile_y": tile_y, "overlap": overlap, "tile_t": tile_t or 999})
        return torch.zeros(1, 4 * latent.shape[2] - 3, 1, 1, 3)


@pytest.mark.parametrize("length", [9, 5001])
def test_tiles_cut_frames_and_never_the_time(comfy, length):
    """Tiles of 128 pixels are 8 latents with a quarter of overlap; core cuts the time after 999 latents by default."""
    spy = TileSpy()
    images, _ = decode(comfy, empty(comfy, 256, 256, length), vae=spy, tile_size=128)
    assert len(images) == length
    (call,) = spy.calls
    assert call["tile_t"] >= (length - 1) // 4 + 1
    assert (call["tile_x"], call["tile_y"], call["overlap"]) == (8, 8, 2)


def test_tiles_decode_to_the_whole_frames(comfy, monkeypatch):
    """With the miniature's VAE, which sees as far as one latent around: only seams differ, by what their blend leaves.

    Without an overlap they would differ by 0.5, cut in time by 0.3.
    """
    from comfy.nested_tensor import NestedTensor

    from miniature.nodes import OviMiniatureVideoVAE

    (vae,) = OviMiniatureVideoVAE.execute().args
    blocks = torch.rand(17, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    video = vae.encode(torch.nn.functional.interpolate(blocks, scale_factor=8).movedim(1, -1))
    latent = {"samples": NestedTensor([video, torch.zeros(1, 20, 22)])}
    whole, _ = decode(comfy, latent, vae=vae)
    model, sizes = vae.first_stage_model, []
    once = model.decode
    monkeypatch.setattr(model, "decode", lambda tile: sizes.append(tuple(tile.shape[2:])) or once(tile))
    tiled, _ = decode(comfy, latent, vae=vae, tile_size=64)
    assert len(sizes) > 12
    assert {frames for frames, *_ in sizes} == {5}
    assert max(max(size) for _, *size in sizes) == 4
    assert whole.std() > 0.1
    torch.testing.assert_close(tiled, whole, atol=0.1, rtol=0)
    assert (tiled - whole).abs().mean() < 0.002


def test_one_vae_decodes_one_modality(comfy, vae):
    """The other output is as if it were not connected."""
    images, audio = decode(comfy, empty(comfy), vae=vae)
    assert images.shape[0] == 9
    assert audio is None
    images, audio = decode(comfy, empty(comfy), audio_vae=ToneVAE())
    assert images is None
    assert audio["sample_rate"] == 44100
    with pytest.raises(ValueError, match="no VAE connected"):
        decode(comfy, empty(comfy))


def test_a_wrong_vae_is_refused_before_anything_is_decoded(comfy, vae):
    """Either of the two: decoding may take minutes."""

    class Untouched(ToneVAE):
        def decode(self, latent):
            raise AssertionError("decoded")

    with pytest.raises(ValueError, match="The video VAE given is a video VAE of 16 channels"):
        decode(comfy, empty(comfy), vae=OtherVAE(3, 16), audio_vae=Untouched())
    with pytest.raises(ValueError, match="The audio VAE given is"):
        decode(comfy, empty(comfy), vae=TileSpy(), audio_vae=OtherVAE(1, 64))


def test_decode_refuses_a_plain_latent(comfy, vae):
    with pytest.raises(ValueError, match="joint latent"):
        decode(comfy, {"samples": torch.zeros(1, 48, 3, 6, 4)}, vae=vae)


class NaNVAE(ToneVAE):
    """Stands for either VAE, with a damaged file."""

    def __init__(self, value, latent_dim, latent_channels):
        self.value, self.latent_dim, self.latent_channels = value, latent_dim, latent_channels

    def decode(self, latent):
        if self.latent_dim == 3:
            return torch.full((1, 9, 96, 64, 3), self.value)
        return super().decode(latent) * self.value

    def decode_tiled(self, latent, **tiling):
        return self.decode(latent)

    def spacial_compression_decode(self):
        return 16


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_stops_at_the_decoder(comfy, value):
    """Whichever VAE it comes from; what comes in with the latent is not the VAE's fault."""
    latent = latent_of_ones(comfy, 9)
    for vaes in ({"audio_vae": NaNVAE(value, 1, 20)}, {"vae": NaNVAE(value, 3, 48)}):
        half = "audio" if "audio_vae" in vaes else "video"
        for tile_size in (0, 64):
            message = f"^The VAE turned the {half} half of the latent into NaN or infinity; look for a damaged VAE file"
            with pytest.raises(ValueError, match=message):
                decode(comfy, latent, **vaes, tile_size=tile_size)
    latent["samples"].unbind()[0][0, 0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"^The video half of the latent contains NaN or infinity"):
        decode(comfy, latent, audio_vae=ToneVAE())


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_decode_refuses_an_impossible_frame_rate(comfy, fps):
    with pytest.raises(ValueError, match=r"frames per second, but needs 0\.1 to 1000"):
        decode(comfy, empty(comfy), audio_vae=ToneVAE(), fps=fps)


@pytest.mark.parametrize(
    ("audio_latents", "said"),
    [
        (48, []),
        (2, ["The audio lasts 0.06 s, the video 1.54 s: 1.48 s of silence follow"]),
        (157, ["The audio lasts 5.02 s, the video 1.54 s: its last 3.48 s are cut"]),
    ],
)
def test_decode_says_where_the_halves_differ_in_length(comfy, audio_latents, said):
    """Joined by hand; both are decoded."""
    from comfy.nested_tensor import NestedTensor

    latent = {"samples": NestedTensor((torch.zeros(1, 48, 10, 6, 4), torch.zeros(1, 20, audio_latents)))}
    output = comfy.node["OviDecode"].execute(samples=latent, fps=24.0, tile_size=0, audio_vae=ToneVAE())
    assert output.args[1]["waveform"].shape[-1] == round(37 / 24 * 44100)
    (text,) = output.ui["text"]
    assert text.splitlines() == [*said, "37 frames, 1.54 s, no video VAE"]
    assert len(output.ui["images"]) == 1


def test_halves_of_two_batches_are_refused(comfy):
    """Joined by hand. In a sampler, core fails before Ovi sees them."""
    from comfy.nested_tensor import NestedTensor

    latent = {"samples": NestedTensor((torch.zeros(1, 48, 3, 6, 4), torch.zeros(2, 20, 11)))}
    with pytest.raises(ValueError, match=r"video \[1, 48, 3, 6, 4\] and audio \[2, 20, 11\]; Ovi needs the same batch"):
        decode(comfy, latent, audio_vae=ToneVAE())


def test_scheduler(comfy):
    """The published schedule, and its last part for a partial denoise."""
    from ovi.sampling import flow_sigmas

    (whole,) = comfy.run("OviScheduler", steps=50, shift=5.0, solver="unipc", denoise=1.0)
    torch.testing.assert_close(whole, flow_sigmas(50), atol=0.0, rtol=0.0)
    (part,) = comfy.run("OviScheduler", steps=10, shift=3.0, solver="dpm++", denoise=0.5)
    torch.testing.assert_close(part, flow_sigmas(20, 3.0, "dpm++")[10:], atol=0.0, rtol=0.0)


def test_scheduler_of_a_preset(comfy):
    """Steps, shift and solver do not matter, and no part of it can be had."""
    from ovi.sampling import flow_sigmas, preset_sigmas

    preset = "FastWan, 3 steps"
    (sigmas,) = comfy.run("OviScheduler", steps=50, shift=9.0, solver="euler", denoise=1.0, preset=preset)
    torch.testing.assert_close(sigmas, preset_sigmas(preset), atol=0.0, rtol=0.0)
    with pytest.raises(ValueError, match=r"A preset has fixed sigmas, but denoise is 0\.99"):
        comfy.run("OviScheduler", steps=50, shift=9.0, solver="euler", denoise=0.99, preset=preset)
    (sigmas,) = comfy.run("OviScheduler", steps=5, shift=5.0, solver="euler", denoise=1.0, preset="none")
    torch.testing.assert_close(sigmas, flow_sigmas(5, 5.0, "euler"), atol=0.0, rtol=0.0)


def encode(comfy, clip, prompt, video_negative="blur", audio_negative="a bell", prompt_style="as written"):
    from comfy_api.latest import io

    output: io.NodeOutput = comfy.node["OviTextEncode"].execute(
        clip=clip,
        prompt=prompt,
        video_negative=video_negative,
        audio_negative=audio_negative,
        prompt_style=prompt_style,
    )
    (text,) = output.ui.as_dict()["text"]
    return *output.args, text


def core_encode(comfy, clip, text):
    return comfy.run("CLIPTextEncode", clip=clip, text=text)[0][0][0]


def test_text_of_both_towers(comfy, clip):
    """The positive is what core's node makes of it; the negative holds the video's text, then the audio's."""
    positive, negative, _ = encode(comfy, clip, "the red ball falls")
    torch.testing.assert_close(positive[0][0], core_encode(comfy, clip, "the red ball falls"))
    video, audio = negative[0][0].chunk(2, dim=-1)
    torch.testing.assert_close(video, core_encode(comfy, clip, "blur"))
    torch.testing.assert_close(audio, core_encode(comfy, clip, "a bell"))


def test_weights_have_no_effect_and_text_is_cleaned(comfy, clip):
    positive, *_ = encode(comfy, clip, "a  (ball:1.5) &amp;amp; \n bell ")
    tokens = clip.tokenize("a (ball:1.5) & bell", disable_weights=True)
    torch.testing.assert_close(positive[0][0], clip.encode_from_tokens_scheduled(tokens)[0][0])
    plain, *_ = encode(comfy, clip, "a ball & bell")
    assert not torch.equal(positive[0][0], plain[0][0])


def test_the_sound_is_written_for_the_checkpoint(comfy, clip):
    """Converted as published, and shown on the node."""
    positive, _, text = encode(comfy, clip, "rain. Audio: rain", prompt_style="720x720_5s")
    expected, *_ = encode(comfy, clip, "rain. <AUDCAP>rain<ENDAUDCAP>")
    torch.testing.assert_close(positive[0][0], expected[0][0])
    assert "rewritten" in text
    assert "rewritten" not in encode(comfy, clip, "rain. Audio: rain", prompt_style="960x960_5s")[2]


def test_a_long_prompt_is_cut_as_published(comfy, clip):
    """512 tokens are left, the end-of-text token the last; the node says how many were truncated."""
    positive, negative, text = encode(comfy, clip, "x " * 600, audio_negative="y " * 700)
    assert positive[0][0].shape == (1, 512, 64)
    assert negative[0][0].shape == (1, 512, 128)
    written = sum(token != 0 for token, _ in clip.tokenize(" ".join(["x"] * 600))["umt5xxl"][0])
    assert f"{written} tokens, but Ovi reads 512: the last {written - 512} were truncated" in text
    assert "Audio negative" in text
    assert "Video negative" not in text


def test_an_embedding_counts_as_its_vectors(comfy, clip, tmp_path, monkeypatch):
    """`embedding:NAME` puts vectors among the tokens, which are never padding, not even where they are zero."""
    save_file({"umt5xxl": torch.zeros(3, 64)}, tmp_path / "style.safetensors")
    tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip)
    monkeypatch.setattr(tokenizer, "embedding_directory", [str(tmp_path)])
    monkeypatch.setattr(tokenizer, "embedding_size", 64)
    plain = encode(comfy, clip, "a ball")[2]
    positive, _, text = encode(comfy, clip, "a ball embedding:style")
    count = int(plain.removeprefix("Prompt: ").split()[0])
    assert text.startswith(f"Prompt: {count + 3} of 512 tokens")
    torch.testing.assert_close(positive[0][0], core_encode(comfy, clip, "a ball embedding:style"))


def test_unclosed_speech_is_refused(comfy, clip):
    with pytest.raises(ValueError, match="not closed"):
        encode(comfy, clip, "she says <S>hello")


def test_another_text_encoder_is_refused(comfy, clip):
    class OtherClip:
        def tokenize(self, text, **kwargs):
            return {"l": [[]], "g": [[]]}

    with pytest.raises(ValueError, match=r"reads l and g.*'Load CLIP', type wan"):
        encode(comfy, OtherClip(), "hello")


def test_guidance_of_another_model_is_refused(comfy):
    class OtherModel:
        model = object()

    with pytest.raises(ValueError, match=r"got object.*Load Ovi Model"):
        comfy.run(
            "OviGuidance",
            model=OtherModel(),
            audio_cfg=3.0,
            skip_blocks="11",
            skip_start_percent=0.0,
            skip_end_percent=1.0,
            video_start_percent=0.0,
            video_end_percent=1.0,
            audio_start_percent=0.0,
            audio_end_percent=1.0,
        )
