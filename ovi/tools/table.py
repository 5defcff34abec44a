"""A table of prompts: a CSV whose cells are set into a workflow. Nothing in it is skipped, and nothing is guessed.

A column sets an input of a workflow in API form; an empty cell leaves what the workflow has. What cannot be used is a
ValueError that names the file, the row, its line and the column.
"""

from __future__ import annotations

import codecs
import copy
import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .. import geometry
from .server import Prompt, RowError, Upload

PROMPTS = Path(__file__).resolve().parents[2] / "workflows" / "api"
TEXT_TO_VIDEO = PROMPTS / "ovi_text_to_video.json"
IMAGE_TO_VIDEO = PROMPTS / "ovi_image_to_video.json"

LARGEST = 2**26  # bytes of a table, of a workflow and of an image
LONGEST = 131_072  # characters of a cell; a quote that is never closed makes one of the rest of the file
NAME = "name"  # the column that names the files of a row
COLUMNS = (
    *("prompt", "video_negative", "audio_negative", "image", "noise_seed", "width", "height", "length", "steps"),
    *("cfg", "audio_cfg"),
)
ALIASES = {"text": ("prompt",), "seed": ("noise_seed", "seed"), "frames": ("length",)}
WHOLE = {"noise_seed", "seed", "width", "height", "length", "steps", "batch_size"}
RANGES = {  # of the nodes' inputs, ComfyUI's and ours
    "noise_seed": (0, 2**64 - 1),
    "seed": (0, 2**64 - 1),
    "steps": (1, 10_000),
    "width": (1, 16_384),
    "height": (1, 16_384),
    "length": (1, 16_384),
    "cfg": (0, 100),
    "audio_cfg": (0, 100),
}
CORE = {"RandomNoise", "KSampler", "KSamplerAdvanced", "CFGGuider"}  # of ComfyUI's nodes, those with these ranges
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # on Windows
LOADERS = ("LoadImage", "LoadImageMask")
TEXTS = ("PrimitiveString", "PrimitiveStringMultiline")  # ComfyUI's nodes that hold a text
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # others, such as EPS, may start a program


class Row(NamedTuple):
    """A row: the name of its files, its cells by column, the prompt (API form), and its images by the node's id."""

    name: str
    cells: Mapping[str, str]
    prompt: Prompt
    images: Mapping[str, Path]

    def uploads(self) -> list[Upload]:
        """Read the images. Raises RowError where one of them has changed to something else since."""
        try:
            return [Upload(node, path.name, _image(path)) for node, path in self.images.items()]
        except (ValueError, OSError) as error:
            raise RowError(str(error)) from error


def load(path: Path) -> Prompt:
    """Return a workflow in API form, from its JSON file or from an mp4 that ComfyUI saved; ValueError for others."""
    try:
        text = _metadata(path) if path.suffix.lower() == ".mp4" else _read(path).decode("utf-8-sig")
        prompt = copy.deepcopy(json.loads(text, parse_constant=_refuse, parse_float=_finite))  # each row needs a copy
        kinds = [(type(node["class_type"]), type(node["inputs"])) for node in prompt.values()]
        if kinds and set(kinds) == {(str, dict)}:
            return dict(prompt)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # JSON of another kind, or no JSON
        pass
    raise ValueError(f"{path} has no workflow in API form: use a file from 'Export (API)', or an mp4 from ComfyUI.")


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    return float(number) if math.isfinite(float(number)) else _refuse(number)


def _metadata(clip: Path) -> str:
    """Return the prompt that ComfyUI wrote into an mp4; ValueError for other files."""
    import av

    try:
        with av.open(io.BytesIO(clip.read_bytes()), format="mp4", metadata_errors="replace") as container:
            return str(container.metadata.get("prompt", ""))
    except av.FFmpegError as error:
        raise ValueError(f"{clip} is no mp4") from error


def _read(path: Path) -> bytes:
    """Return the content of a file. Raises ValueError where it is larger than anything that this module reads."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST // 2**20} MB.")
    return data


def read(table: Path, workflow: Prompt | None = None) -> list[Row]:
    """Return the rows of a CSV file, set into a workflow; by default image to video for rows that have an image.

    Raises ValueError for anything that cannot be used.
    """
    text = _text(table)
    header = next((line for line in re.split(r"\r\n|\r|\n", text) if line.strip()), "")
    lines = _lines(table, text, _separator(table, header))
    _, names = next(lines, (0, []))
    columns = [name.strip() for name in names]
    workflows = [workflow] if workflow else [load(TEXT_TO_VIDEO), load(IMAGE_TO_VIDEO)]
    _check_columns(table, columns, workflows)
    rows: list[Row] = []
    images: set[Path] = set()  # that have been opened
    files: dict[str, str] = {}  # from the name of each row's files, as a file system may compare it, to where it stands
    for number, (line, cells) in enumerate(lines, 1):
        place = f"{table}, row {number} (line {line})"
        given = _given(place, columns, cells)
        prompt = workflow or workflows["image" in given]
        with _at(f"{place}, "):
            row = _row(f"{number:04}", given, table.parent, prompt, images)
        key = unicodedata.normalize("NFC", row.name).casefold()
        if key in files:
            raise ValueError(f"{place}, column '{NAME}': the files of {files[key]} are called {row.name} already.")
        files[key] = f"row {number} (line {line})"
        rows.append(row)
    if not rows:
        raise ValueError(f"{table} has no rows; it needs a line with the names of columns, and a line for each clip.")
    return rows


def _text(table: Path) -> str:
    """Return the text of a table, in UTF-8 or with the mark of UTF-16."""
    data = _read(table)
    advice = "save it as 'CSV UTF-8' in Excel, or as UTF-8 in a text editor"
    if data.startswith(b"PK\x03\x04"):
        raise ValueError(f"{table} is a workbook or another zip file, not a CSV: {advice}.")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        problem = "broken UTF-16" if wide else f"not UTF-8 (byte 0x{data[error.start]:02x})"
        raise ValueError(f"{table}, line {line}: the text is {problem}: {advice}.") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{table}, line {line}: there is a zero byte, as in UTF-16 without its mark: {advice}.")
    return text


def _separator(table: Path, header: str) -> str:
    """Return what stands between the names of columns, in which it cannot occur."""
    if re.fullmatch(r"sep=.", header.strip()):
        raise ValueError(f"{table} begins with '{header.strip()}', which only Excel reads: delete that line.")
    if "|" in header:
        raise ValueError(f"{table} has '|' in its first line: separate the columns by commas, semicolons or tabs.")
    found = [separator for separator in (",", ";", "\t") if separator in header]
    if len(found) > 1:
        raise ValueError(
            f"{table} separates its columns by {' and '.join(map(repr, found))} in its first line: use one of them."
        )
    return found[0] if found else ","


def _lines(table: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each line that is not empty, and the number of the line in which they begin."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    limit = csv.field_size_limit(LARGEST)  # so that a cell can be named which is over ours
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        problem = "a quote is opened and not closed" if "unexpected end" in str(error) else str(error)
        raise ValueError(f"{table}, line {line}: {problem}.") from None
    finally:
        csv.field_size_limit(limit)


def _check_columns(table: Path, columns: Sequence[str], workflows: Sequence[Prompt]) -> None:
    """Raise ValueError for a column without a name, one that is there twice, and one that no workflow has."""
    seen: dict[str, str] = {}
    for number, column in enumerate(columns, 1):
        if not column:
            raise ValueError(f"{table}: column {number} has no name in the first line: delete it, or name it.")
        if column != NAME and not any(_targets(prompt, column) for prompt in workflows):
            raise ValueError(
                f"{table} has a column {_quoted(column)}, and there is no input for it: columns are {NAME}, "
                f"{', '.join(COLUMNS)}, or NODE.INPUT of the workflow, such as 1.model_name."
            )
        meaning = ALIASES.get(column, (column,))[0]
        if meaning in seen:
            both = f"'{column}'" if seen[meaning] == column else f"'{seen[meaning]}' as '{column}'"
            raise ValueError(f"{table} has a column {both} twice: delete one of them.")
        seen[meaning] = column


def _given(place: str, columns: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """Return the cells of a row that are not empty, by column."""
    if len(cells) > len(columns):
        raise ValueError(f"{place} has more cells than there are columns: put quotes around a text with commas.")
    if len(cells) < len(columns):
        raise ValueError(
            f"{place} has {len(cells)} cells, but there are {len(columns)} columns: put quotes around a text of "
            "several lines, and write the separators of empty cells as well."
        )
    given = {column: cell for column, cell in zip(columns, cells, strict=True) if cell.strip()}
    if not given:
        raise ValueError(f"{place} has no cells, only what stands between them: delete the line.")
    for column, cell in given.items():
        if len(cell) > LONGEST:
            raise ValueError(
                f"{place}, column '{column}': the cell has {len(cell):,} characters, more than {LONGEST:,}; is a quote "
                "opened and not closed?"
            )
        if cell[0].isspace() and cell.lstrip().startswith('"'):
            raise ValueError(f"{place}, column '{column}': there is a space before the quote: delete it.")
    return given


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Put the place of a problem before its message."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{place}{error}") from None


def _row(name: str, given: Mapping[str, str], folder: Path, workflow: Prompt, opened: set[Path]) -> Row:
    """Set the cells of a row into a copy of the workflow; images that are not among the `opened` ones are."""
    prompt = copy.deepcopy(workflow)
    images: dict[str, Path] = {}
    setters: dict[tuple[str, str], str] = {}  # columns by the input that they set
    for column, cell in given.items():
        if column == NAME:
            name = _file_name(cell.strip())
            continue
        node, key = target = _target(prompt, column)
        if target in setters:
            raise ValueError(f"columns '{setters[target]}' and '{column}': both set {node}.{key} of the workflow.")
        setters[target] = column
        with _at(f"column '{column}': "):
            prompt[node]["inputs"][key] = _value(cell, key, prompt[node]["inputs"][key])
            if key == "image" and prompt[node]["class_type"] in LOADERS:
                images[node] = folder / cell
                if images[node] not in opened:
                    _image(images[node])
                    opened.add(images[node])
    for (node, key), column in setters.items():
        with _at(f"column '{column}': "):
            _check_range(prompt[node], key, by_name=column in COLUMNS or column in ALIASES)
    return Row(name, given, prompt, images)


def _file_name(cell: str) -> str:
    """Return the name of a row's files. Raises ValueError for one that some file system or this program cannot use."""
    name = cell[:-4] if cell.lower().endswith(".mp4") else cell
    if (
        re.search(r'[<>:"/\\|?*]', name)
        or not name.isprintable()
        or name != name.strip(" .")
        or not 0 < len(name.encode()) <= 200
        or name.split(".")[0].strip().casefold() in DEVICES
        or name.casefold().endswith(".queued")
    ):
        raise ValueError(
            f"column '{NAME}': {_quoted(cell)} cannot be the name of a file: use up to 200 letters, digits, '-' or "
            "'_', and no folder."
        )
    return name


def _targets(prompt: Prompt, column: str) -> list[tuple[str, str]]:
    """Return the inputs that a column may set, as (node, input): those with a value of their own, not a wire.

    A text may come from a node of its own, whose value is set then.
    """
    if "." in column:
        node, _, key = column.partition(".")
        candidates = [(node, key)] if node in prompt else []
    else:
        candidates = [(node, key) for node in prompt for key in ALIASES.get(column, (column,))]
    places = dict.fromkeys(_source(prompt, node, key) for node, key in candidates)
    return [(node, key) for node, key in places if isinstance(prompt[node]["inputs"].get(key), (str, int, float))]


def _source(prompt: Prompt, node: str, key: str) -> tuple[str, str]:
    """Return where the value of an input stands: in the input, or in the node for texts that is connected to it."""
    match prompt[node]["inputs"].get(key):
        case [str(source), 0] if source in prompt and prompt[source]["class_type"] in TEXTS:
            return source, "value"
    return node, key


def _target(prompt: Prompt, column: str) -> tuple[str, str]:
    """Return the one input that a column sets. Raises ValueError where there is none, or several."""
    found = _targets(prompt, column)
    if not found:
        raise ValueError(f"column '{column}': the workflow of this row has no input for it.")
    if len(found) > 1:
        nodes = ", ".join(node for node, _ in found)
        raise ValueError(
            f"column '{column}': it matches several nodes of the workflow ({nodes}): choose one, such as "
            f"{'.'.join(found[0])}."
        )
    return found[0]


def _value(cell: str, key: str, present: str | float) -> str | float:
    """Return what a cell means for an input of that name, which has a value at present; ValueError for others."""
    if isinstance(present, str):
        return cell
    word = cell.strip()
    if isinstance(present, bool):
        if word.lower() not in ("true", "false"):
            raise ValueError(f"{key} is {_quoted(cell)}, but true or false is needed.")
        return word.lower() == "true"
    if re.fullmatch(r"[+-]?[0-9]{1,30}", word):
        return int(word)
    if key in WHOLE:
        raise ValueError(f"{key} is {_quoted(cell)}, but a whole number is needed.")
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", word, re.I) or math.isinf(float(word)):
        raise ValueError(f"{key} is {_quoted(cell)}, but a number such as 4.5 is needed.")
    return float(word)


def _check_range(node: Mapping[str, Any], key: str, *, by_name: bool) -> None:
    """Raise ValueError for a number that a node of Ovi or of ComfyUI's sampling does not take, or none of its kind."""
    value, ours = node["inputs"][key], "Ovi" in node["class_type"]
    if isinstance(value, str) or not (by_name or ours or node["class_type"] in CORE):
        return
    least, most = RANGES.get(key, (-math.inf, math.inf))
    if not least <= value <= most:
        raise ValueError(f"{key} is {value}, but a number from {least} to {most} is needed.")
    size = [node["inputs"].get(side) for side in ("width", "height")]
    if ours and key in ("width", "height") and all(isinstance(side, int) for side in size):
        geometry.check_size(*size)
    if ours and key == "length":
        geometry.check_length(value)


def _image(path: Path) -> bytes:
    """Return the content of an image. Raises ValueError for any other file: it must not get to a server."""
    from PIL import Image

    if not path.is_file():
        raise ValueError(f"there is no image {path}.")
    data = _read(path)
    Image.init()
    try:
        with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            image.load()
    except Exception as error:  # Pillow's decoders let all sorts of errors out
        raise ValueError(f"{path} is no image that can be opened: use a PNG or JPEG file.") from error
    return data


def _quoted(cell: str) -> str:
    """Return a cell for a message: in quotes, on one line, and not too much of it."""
    return repr(cell if len(cell) <= 60 else f"{cell[:57]}...")
