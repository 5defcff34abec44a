"""Draw the thumbnails that ComfyUI's Templates dialog shows: workflows/NAME.jpg beside each workflow.

    python -m authoring.thumbnails

Each shows the inputs above the outputs: video in blue, audio in orange.
"""

from __future__ import annotations

import math

from playwright.sync_api import sync_playwright

from tests.support import ROOT, browser

WORKFLOWS = ROOT / "workflows"
SIZE = 400  # pixels; the dialog shows a square
BACKGROUND, PAPER, LINE, SEEN, SKY, HEARD = "#17181c", "#e8e6e1", "#9a9aa5", "#3f6fb5", "#a9c8ee", "#f08a4b"


def main() -> None:
    """Write a thumbnail for every workflow."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser.CHROMIUM, args=browser.OPTIONS)
        page = chromium.new_page(viewport={"width": SIZE, "height": SIZE})
        for name, drawing in DRAWINGS.items():
            page.set_content(
                f'<body style="margin:0"><svg width="{SIZE}" height="{SIZE}">{box(0, 0, SIZE, SIZE, BACKGROUND)}'
                f"{''.join(drawing)}</svg>"
            )
            page.screenshot(path=WORKFLOWS / f"{name}.jpg", type="jpeg", quality=85)
        chromium.close()


def box(x: float, y: float, width: float, height: float, fill: str, **more: object) -> str:
    """A rectangle; `more` are attributes of SVG."""
    attributes = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"{attributes}/>'


def image(x: float, y: float, width: float, height: float, time: float = 0.3) -> str:
    """A hill under a sun, which crosses the sky as `time` goes from 0 to 1."""
    ridge = [(0, 1), (0, 0.75), (0.4, 0.45), (0.65, 0.7), (0.8, 0.58), (1, 0.8), (1, 1)]
    hill = " ".join(f"{x + across * width},{y + down * height}" for across, down in ridge)
    across, down, radius = x + (0.15 + 0.7 * time) * width, y + 0.32 * height, 0.13 * min(width, height)
    sun = f'<circle cx="{across}" cy="{down}" r="{radius}" fill="{PAPER}"/>'
    return box(x, y, width, height, SKY) + sun + f'<polygon points="{hill}" fill="{SEEN}"/>'


def strip(x: float, y: float, width: float, height: float, frames: int) -> str:
    """A strip of frames with holes along its edges."""
    edge, gap = 0.16 * height, 4.0
    drawn = box(x, y, width, height, "#000", rx=4)
    holes = round(width / 16)
    for index in range(holes):
        for top in (y + edge / 4, y + height - 0.75 * edge):
            drawn += box(x + (index + 0.25) * width / holes, top, width / holes / 2, edge / 2, LINE)
    step = (width - gap) / frames
    for index in range(frames):
        time = index / max(frames - 1, 1)
        drawn += image(x + gap + index * step, y + edge, step - gap, height - 2 * edge, time)
    return drawn


def wave(x: float, y: float, width: float, height: float) -> str:
    """Loudness over time, as bars around a middle line."""
    count = round(width / 8)
    loudness = [abs(math.sin(0.55 * i) * math.sin(0.13 * i + 0.4)) ** 0.7 * 0.9 + 0.08 for i in range(count)]
    return "".join(
        box(x + i * width / count, y + (1 - level) / 2 * height, 5, level * height, HEARD, rx=2)
        for i, level in enumerate(loudness)
    )


def prompt(x: float, y: float, width: float, height: float) -> str:
    """A sheet of writing whose last lines describe the audio."""
    lines = [(0.8, LINE), (0.65, LINE), (0.75, LINE), (0.7, HEARD)]
    return box(x, y, width, height, PAPER, rx=6) + "".join(
        box(x + 0.1 * width, y + (0.16 + 0.2 * i) * height, part * width, 0.08 * height, colour, rx=2)
        for i, (part, colour) in enumerate(lines)
    )


def arrow(x: float, y: float) -> str:
    """An arrow that points down; `x` and `y` are its top."""
    return f'<path d="M{x} {y} v24 m-12 -10 l12 12 l12 -12" stroke="{LINE}" stroke-width="5" fill="none"/>'


def words(x: float, y: float, text: str, size: int) -> str:
    """Words around a point."""
    return (
        f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="{size}" fill="{PAPER}" text-anchor="middle" '
        f'dominant-baseline="central">{text}</text>'
    )


def outline(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A frame around something."""
    return box(x, y, width, height, "none", stroke=colour, stroke_width=4, rx=6)


CLIP = [arrow(200, 158), strip(30, 200, 340, 92, 4), wave(30, 312, 340, 62)]
DRAWINGS = {
    "ovi_text_to_video": [prompt(120, 36, 160, 104), *CLIP],
    "ovi_image_to_video": [
        image(120, 36, 160, 104, 0), outline(120, 36, 160, 104, HEARD), *CLIP, outline(32, 212, 86, 68, HEARD),
    ],
    "ovi_minimal_ksampler": [
        prompt(40, 36, 140, 104), words(200, 88, "+", 26), box(222, 52, 140, 72, "#33343c", rx=8),
        words(292, 88, "KSampler", 24), *CLIP,
    ],
    "ovi_video_to_audio": [strip(30, 70, 340, 92, 4), arrow(200, 184), wave(30, 230, 340, 110)],
    "ovi_three_clips": [
        strip(24, 40, 160, 62, 3), strip(120, 122, 160, 62, 3), strip(216, 204, 160, 62, 3), wave(24, 300, 352, 62),
    ],
    "ovi_second_pass": [
        strip(110, 36, 180, 50, 4), arrow(200, 104), strip(30, 146, 340, 130, 4), wave(30, 306, 340, 62),
    ],
    "ovi_upscale_48fps": [
        strip(110, 36, 180, 50, 4), arrow(200, 104), strip(20, 146, 360, 130, 8), wave(30, 306, 340, 62),
    ],
    "ovi_context_windows": [
        words(200, 50, "20 s", 40), strip(16, 120, 368, 60, 10), wave(16, 260, 368, 70),
        *(outline(10 + 68.5 * i, 104 + 10 * (i % 2), 106, 242 - 20 * (i % 2), PAPER) for i in range(5)),
    ],
}  # fmt: skip


if __name__ == "__main__":
    main()
