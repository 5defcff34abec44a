"""Tables, workflows and results of `python -m ovi.tools.batch`."""

from __future__ import annotations

import csv
import json


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
