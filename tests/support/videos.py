"""Video files whose brightness and loudness tell the time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SCALE = 20.0  # seconds at which brightness and loudness would be full


def write_video(
    path: Path,
    seconds: float,
    fps: float = 24.0,
    size: tuple[int, int] = (96, 64),
    rate: int | None = 48_000,
    channels: int = 1,
    loudness: float = 1.0,
    cuts: tuple[float, ...] = (),
) -> Path:
    """Write a video whose grey is its time / 20 s, with a tone that grows alike; `rate` None is without audio.

    After each cut the images are inverted.
    """
    width, height = size

    def images() -> Iterator[np.ndarray]:
        for index in range(round(seconds * fps)):
            grey = index / fps / SCALE
            if sum(cut <= index / fps for cut in cuts) % 2:
                grey = 1 - grey
            yield np.full((height, width, 3), round(255 * grey), np.uint8)

    samples = None
    if rate:
        times = np.arange(round(seconds * rate)) / rate
        wave = loudness * times / SCALE * np.sin(2 * np.pi * 1000 * times)
        samples = np.tile(wave.astype(np.float32), (channels, 1))
    return encode(path, images(), fps, size, samples, rate)


def encode(
    path: Path,
    images: Iterable[np.ndarray],
    fps: float,
    size: tuple[int, int],
    samples: np.ndarray | None = None,
    rate: int | None = None,
) -> Path:
    """Write images [H, W, 3] of 8 bits, and samples [channels, samples] at a rate, to a video file."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": "8", "preset": "ultrafast"}
        sound, layout = None, "stereo" if samples is not None and len(samples) == 2 else "mono"
        if rate:
            sound = container.add_stream("aac", rate, layout=layout)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
        if sound and rate:
            block = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            block.sample_rate = rate
            container.mux(sound.encode(block))
            container.mux(sound.encode())
    return path
