"""Training of the miniature, with its text encoder and its clips: `python -m miniature.train --help`.

.cache/miniature holds what can be computed again: clips, training state, and a line of losses every few steps.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from miniature import WEIGHTS, figures, world
from miniature.codecs import AudioCodec, VideoCodec
from miniature.initial import CONFIG, new_model
from ovi.config import METADATA_KEY
from ovi.flow import Sample, Settings
from ovi.model import OviModel
from ovi.tools.train import Trainer

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "miniature"
CLIPS = 8192
MIDDLE = slice(world.LEFT // 16, world.RIGHT // 16)  # the latent columns of the ball
GROW = 1500  # first steps, which see only the middle of the stage: a third of the video's tokens
GAPS = (0.1, 0.8), (0.6, 0.6), (0.8, 0.8)  # sigmas of video and audio at which the gap is measured
EVERY = 125  # steps between two lines of the log, each with its saved state

SETTINGS = Settings(
    batch=8,
    lr=1e-3,
    warmup=100,
    cooldown=0.3,
    shift=3.0,
    first_frame=0.15,
    split=0.5,
    split_steps=1000,
)
CAPTIONS = [world.Scene(colour, size, 0, 1, 0).caption for size in world.RADII for colour in world.COLOURS]


def text_encoder_weights(seed: int = 0) -> dict[str, Tensor]:
    """Return a random UMT5 of one layer, with ComfyUI's names, and a tokenizer trained on the captions."""
    model = io.BytesIO()
    characters = {character for caption in CAPTIONS for character in caption if character != " "}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS + sorted(characters)), model_writer=model, vocab_size=128, model_type="bpe",
        hard_vocab_limit=False, character_coverage=1.0, normalization_rule_name="identity",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    width, hidden, heads = CONFIG.text_dim, 2 * CONFIG.text_dim, 4
    attention, gated = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    shapes = {f"{attention}.{name}.weight": (width, width) for name in "qkvo"}
    shapes |= {
        "shared.weight": (vocabulary, width),
        f"{attention}.relative_attention_bias.weight": (32, heads),
        f"{gated}.wi_0.weight": (hidden, width),
        f"{gated}.wi_1.weight": (hidden, width),
        f"{gated}.wo.weight": (width, hidden),
    }
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in shapes.items():
        scale = 1.0 if key == "shared.weight" else shape[1] ** -0.5
        weights[key] = (torch.randn(shape, generator=draw) * scale).half()
    norms = "encoder.block.0.layer.0.layer_norm", "encoder.block.0.layer.1.layer_norm", "encoder.final_layer_norm"
    weights |= {f"{norm}.weight": torch.ones(width).half() for norm in norms}
    weights["spiece_model"] = torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)
    return weights


def encoded(comfyui: Path, captions: Sequence[str]) -> Tensor:
    """Encode captions with real ComfyUI: [N, text_len, text_dim]."""
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = True
    from miniature.nodes import text_encoder

    with torch.inference_mode():
        clip = text_encoder(load_file(WEIGHTS / "umt5.safetensors"))
        texts = [clip.encode_from_tokens(clip.tokenize(caption, disable_weights=True)) for caption in captions]
    return torch.cat(texts).clone()


def latents(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the latents of scenes: the middle of the video [N, 48, F, H, 2] and the audio [N, 20, L]."""
    video_codec, audio_codec = VideoCodec(), AudioCodec()
    video, audio = [], []
    for seed in tqdm(seeds, desc="clips"):
        scene = world.scene(seed)
        frames = 2 * world.frames(scene).permute(3, 0, 1, 2)[None] - 1
        video.append(video_codec.encode(frames)[0, ..., MIDDLE].half())
        audio.append(audio_codec.encode(world.waveform(scene)[None])[0].half())
    return torch.stack(video), torch.stack(audio)


class Samples:
    """The training samples of some seeds, in memory: the middle of the stage, where the ball is, or the `whole` stage.

    `texts` are those of the empty prompt and of CAPTIONS, `video` and `audio` as `latents` returns them.
    """

    def __init__(self, seeds: Sequence[int], texts: Tensor, video: Tensor, audio: Tensor) -> None:
        self.scenes = [world.scene(seed) for seed in seeds]
        self.texts = dict(zip(["", *CAPTIONS], texts, strict=True))
        self.video, self.audio = video, audio
        empty = VideoCodec().encode(2 * world.background().movedim(-1, 0)[None, :, None] - 1)[0].half()
        sides = empty.expand(-1, self.video.shape[2], -1, -1)
        self.left, self.right = sides[..., : MIDDLE.start], sides[..., MIDDLE.stop :]
        self.whole = True

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int, /) -> Sample:
        video = self.video[index]
        if self.whole:
            video = torch.cat([self.left, video, self.right], dim=-1)
        return Sample(video, self.audio[index], self.texts[self.scenes[index].caption])


def gap(model: OviModel, samples: Samples, sigmas: tuple[float, float]) -> float:
    """Return how much larger the audio's loss is with another clip's video than with its own, as a share.

    `sigmas` are those of video and audio. The other clip has a ball of the same size, except for each size's first.
    """
    order = sorted(range(len(samples)), key=lambda i: samples.scenes[i].size)
    own = [samples[i] for i in order]
    draw = torch.Generator().manual_seed(0)
    x0 = [torch.stack([sample.video for sample in own]).float(), torch.stack([sample.audio for sample in own]).float()]
    noise = [torch.randn(x.shape, generator=draw) for x in x0]
    video, audio = (torch.lerp(*pair, sigma) for *pair, sigma in zip(x0, noise, sigmas, strict=True))
    timestep = tuple(torch.full((len(own),), 1000 * sigma) for sigma in sigmas)
    text = torch.stack([sample.context for sample in own])
    with torch.no_grad():
        velocities = [model([shown, audio], timestep, text)[1] for shown in (video, video.roll(1, 0))]
    with_own, with_other = (F.mse_loss(velocity, noise[1] - x0[1]).item() for velocity in velocities)
    return with_other / with_own - 1


def stored(seeds: Sequence[int], texts: Tensor, path: Path) -> Samples:
    """Load the samples of some seeds from a file, which is written first where it is missing."""
    if not path.exists():
        video, audio = latents(seeds)
        save_file({"video": video, "audio": audio}, path)
    return Samples(seeds, texts, **load_file(path))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or resume training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="the ComfyUI whose text encoder reads the captions")
    parser.add_argument("--steps", type=int, default=4750)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    CACHE.mkdir(parents=True, exist_ok=True)
    WEIGHTS.mkdir(exist_ok=True)
    if not (WEIGHTS / "umt5.safetensors").exists():
        save_file(text_encoder_weights(), WEIGHTS / "umt5.safetensors")
    texts = encoded(args.comfyui, ["", *CAPTIONS])
    train = stored(range(CLIPS), texts, CACHE / "train.safetensors")
    held_out = stored(range(world.HELD_OUT, world.HELD_OUT + 32), texts, CACHE / "held_out.safetensors")
    torch.set_num_threads(args.threads)
    trainer = Trainer(new_model(), train, SETTINGS, args.steps, empty=texts[0])
    state = CACHE / "state.pt"
    if state.exists():
        trainer.resume(state)
    began = time.monotonic()
    train.whole = held_out.whole = len(trainer.history) >= GROW
    with (CACHE / "log.jsonl").open("a") as log:
        for step in trainer.run(state, every=EVERY):
            video, audio = torch.tensor(trainer.history[-EVERY:]).mean(0).tolist()
            line = {"step": step, "seconds": time.monotonic() - began, "cpu": time.process_time()}
            line |= {"video": video, "audio": audio}
            line |= {f"gap {sigmas}": gap(trainer.model, held_out, sigmas) for sigmas in GAPS}
            log.write(json.dumps(line) + "\n")
            log.flush()
            train.whole = held_out.whole = step >= GROW
    write(trainer, WEIGHTS / "ovi_miniature.safetensors")
    lines = [json.loads(line) for line in (CACHE / "log.jsonl").read_text().splitlines()]
    figures.training(lines).save(ROOT / "docs" / "miniature_training.png", optimize=True)


def write(trainer: Trainer, path: Path) -> None:
    """Write the averaged weights to a file that Load Ovi Model opens."""
    sizes = {"num_heads": CONFIG.num_heads, "text_len": CONFIG.text_len}
    weights = {name: tensor.half() for name, tensor in trainer.averaged.items()}
    save_file(weights, path, metadata={METADATA_KEY: json.dumps(sizes)})


if __name__ == "__main__":
    main()
