"""The pages fit the checkout: commands, links, images, addresses."""

from __future__ import annotations

import re
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from support import ROOT
from support.checkout import SHIPPED, relative

PAGES = [path for path in SHIPPED if path.suffix == ".md"]
HELP = ROOT / "web" / "docs"  # read in a panel of ComfyUI's frontend, 250 pixels wide at first
HELP_PAGES = [path for path in PAGES if path.parent == HELP]
HELP_IMAGES = [path for path in SHIPPED if path.parent == HELP and path.suffix != ".md"]
LONGEST_WORD = 24  # characters in a monospaced font that fit a line of a list in that panel

PUBLIC_HOSTS = {
    "127.0.0.1", "arxiv.org", "github.com", "huggingface.co", "keepachangelog.com", "semver.org",
    "www.apache.org", "www.w3.org",
}  # fmt: skip


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_readme_s_commands_come_first_and_alone(name):
    """Each stands alone in a code block, ends in `nox -s NAME`, and names a session that noxfile.py defines."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    (command,) = [block for block in blocks if block.endswith(f"nox -s {name}\n") and block.count("\n") == 1]
    assert text.index(f"nox -s {name}") == text.index(command) + command.index(f"nox -s {name}")
    sessions = re.findall(r"^@nox\.session\b.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.M)
    assert name in sessions


def test_ci_runs_the_readme_s_test_command():
    (command,) = re.findall(r"^.*nox -s tests$", (ROOT / "README.md").read_text(), re.M)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def headings(page):
    """The anchors that GitHub gives to a page's headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", page, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_and_images_are_there(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        assert target in SHIPPED, link
        assert not anchor or anchor in headings(target.read_text()), link


def test_images_are_small():
    images = [path for path in SHIPPED if path.suffix in {".png", ".jpg"}]
    assert images
    assert not [relative(path) for path in images if path.stat().st_size >= 300_000]


@pytest.mark.parametrize("page", HELP_PAGES, ids=relative)
def test_help_fits_a_narrow_panel(page):
    """No tables, no word that the panel would cut, no code wider than 44 characters."""
    fenced = r"^```\w*\n(.*?)^```$"
    code = re.findall(fenced, page.read_text(), re.M | re.S)
    text = re.sub(fenced, "", page.read_text(), flags=re.M | re.S)
    assert not re.search(r"^\s*\||-\|-|<table", text, re.M)
    shown = re.sub(r"!?\[[^]]*\]\(.*?\)", lambda found: "" if found[0][0] == "!" else found[0].partition("](")[0], text)
    words = re.split(r"<wbr>|&nbsp;|[\s-]", re.sub(r"</?code>|[*`\[\]]", "", shown))
    assert not [word for word in words if len(word.strip("(),.:;")) > LONGEST_WORD]
    assert not [line for block in code for line in block.splitlines() if len(line) > 44]


def test_help_uses_its_images():
    """Each is in the folder, and the frontend finds it there; each page says in words what it shows."""
    used = [found for page in HELP_PAGES for found in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", page.read_text())]
    assert {name for _, name in used} == {path.name for path in HELP_IMAGES}
    assert not [name for alt, name in used if len(alt) < 40]


@pytest.mark.parametrize("image", HELP_IMAGES, ids=relative)
def test_help_images_are_legible(image):
    """SVG with a title, a background for either theme, and text of 12 pixels or more where it is 250 wide."""
    svg, names = ElementTree.parse(image).getroot(), {"": "http://www.w3.org/2000/svg"}
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert svg.findtext("title", namespaces=names)
    _, _, width, height = svg.attrib["viewBox"].split()
    background = svg.find("rect", names)
    assert (background.attrib["width"], background.attrib["height"]) == (width, height)
    sizes = [float(size) for size in re.findall(r"\b([\d.]+)px", image.read_text())]
    assert sizes
    assert min(sizes) * 250 / float(width) >= 12
    assert image.stat().st_size < 5000


def test_nothing_points_to_this_machine():
    """No path of a machine, no address but public ones, nothing beside the checkout."""
    private = re.compile(r"\.\./shared|/(?:home|root|work|Users)/|index[-_]url")
    for path in SHIPPED:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        assert not private.findall(text), relative(path)
        assert set(re.findall(r"https?://([\w.-]+)", text)) <= PUBLIC_HOSTS, relative(path)


ALLOWED = {  # by file: the phrases that mean a still picture or a sound as such; Ovi Prompt has an input `sound`
    "locales/en/nodeDefs.json": ["scene, speech and sound", '"sound"'],
    "nodes/prompt.py": [
        "The sea sounds",
        "scene, speech and sound",
        "scene, speech, sound",
        '"sound"',
        "SOUND",
        "sound: str",
    ],
    "nodes/idea.py": ["The sea sounds"],
    "nodes/text.py": ["The sea sounds"],
    "web/docs/OviPrompt.md": ["scene, speech and sound", "`sound`", "**sound**", "The sound holds"],
    "web/docs/OviTextEncode.md": ["The sea sounds"],
    "ovi/answer.py": ["|sound|sound effects|sounds|"],
    "ovi/prompt.py": ["sound: str", "speech, sound, style"],
    "ovi/parts.py": [
        "(scene, speech, sound)",
        "speech, sound, persons",
        "speech, sound)",
        "sound.strip()",
        "`sound`",
        "sound: str",
        "_read_sound(sound)",
        "find(sound)",
        "sound[",
        "The sound holds",
        "in the sound",
    ],
}


def test_words_are_the_host_s():
    """Video, image, frames, audio and clip; each phrase that is allowed occurs."""
    words = re.compile(r"\b(films?|pictures?|sounds?)\b", re.IGNORECASE)
    scanned = re.compile(r"README\.md|(nodes|ovi|web|locales/en)/.+|docs/[^/]+\.md")
    found, unused = [], {(name, phrase) for name, phrases in ALLOWED.items() for phrase in phrases}
    for path in SHIPPED:
        if not scanned.fullmatch(relative(path)):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            rest = line
            for phrase in ALLOWED.get(relative(path), ()):
                if phrase in line:
                    unused.discard((relative(path), phrase))
                rest = rest.replace(phrase, "")
            if words.search(rest):
                found.append(f"{relative(path)}:{number}: {line.strip()}")
    assert found == []
    assert unused == set()
