"""Tables, workflows, clips and results of `python -m ovi.tools.batch`."""

from __future__ import annotations

import csv
import io
import json
from fractions import Fraction

import av
import numpy as np


def write(folder, *rows):
    """Write a CSV of rows, each a dict of cells by column; return its path."""
    path = folder / "prompts.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, {column: None for row in rows for column in row})
        table.writeheader()
        table.writerows(rows)
    return path


def still(folder):
    """Write a workflow of core's nodes that saves a silent frame of one colour in no time; return its path."""
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 0}},
        "2": {"class_type": "EmptyAudio", "inputs": {"duration": 0.1, "sample_rate": 44100, "channels": 1}},
        "3": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "audio": ["2", 0], "fps": 24.0}},
        "4": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["3", 0], "filename_prefix": "still", "format": "auto", "codec": "auto"},
        },
    }
    path = folder / "still.json"
    path.write_text(json.dumps(prompt))
    return path


def settings(out):
    """Return the settings of every row that is done, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}


def clip(frames=1, fps=24, audio=True, video=True):
    """Return a clip of noise, 32 x 32 pixels and mono, as ComfyUI saves one."""
    file, draw, size = io.BytesIO(), np.random.default_rng(0), 32
    with av.open(file, "w", format="mp4") as container:
        pictures = container.add_stream("h264", rate=fps) if video else None
        sound = container.add_stream("aac", rate=44100, layout="mono") if audio else None
        if pictures:
            pictures.width = pictures.height = size
            pictures.pix_fmt = "yuv420p"
            for _ in range(frames):
                noise = draw.integers(0, 255, (size, size, 3), dtype=np.uint8)
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(noise, "rgb24")))
            container.mux(pictures.encode(None))
        if sound:
            wave = draw.standard_normal((1, 44100 * frames // fps)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return file.getvalue()


def index_first(path):
    """Move the index of a clip to its beginning; return its content."""
    moved = path.with_suffix(".moved.mp4")
    with av.open(path) as source, av.open(moved, "w", format="mp4", options={"movflags": "faststart"}) as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    return moved.read_bytes()
