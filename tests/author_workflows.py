"""Lay out the prompts of tests/workflows/ (API form, written by hand) as the graphs of workflows/, for people to open.

    python tests/author_workflows.py COMFYUI

ComfyUI's own frontend makes each graph; here are only places, groups, a note, and where the model files come from.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import browser
from comfy_server import Server

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "tests" / "workflows"

WAN = "https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
MMAUDIO = "https://huggingface.co/hkchengrex/MMAudio/resolve/main/ext_weights"
MODELS = {  # node type: the folder of models/ and the address of each file
    "OviModelLoader": [
        ("diffusion_models", "https://huggingface.co/chetwinlow1/Ovi/resolve/main/model_960x960.safetensors")
    ],
    "CLIPLoader": [("text_encoders", f"{WAN}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors")],
    "VAELoader": [("vae", f"{WAN}/vae/wan2.2_vae.safetensors")],
    "OviAudioVAELoader": [("vae", f"{MMAUDIO}/v1-16.pth"), ("vae", f"{MMAUDIO}/best_netG.pt")],
}

# Left, top, width and height by node type. Nothing crosses: wires reach a node in the order of its inputs.
PLACES = {
    "OviModelLoader": (0, 0, 340, 106),
    "CLIPLoader": (0, 200, 340, 106),
    "MarkdownNote": (0, 400, 340, 260),
    "VAELoader": (0, 780, 340, 58),
    "OviAudioVAELoader": (0, 900, 340, 82),
    "OviGuidance": (400, 0, 400, 130),
    "OviTextEncode": (400, 200, 400, 460),
    "RandomNoise": (860, 0, 270, 82),
    "CFGGuider": (860, 150, 270, 98),
    "OviUniPCSampler": (860, 310, 270, 26),
    "OviScheduler": (860, 400, 270, 130),
    "EmptyOviLatent": (860, 590, 270, 130),
    "SamplerCustomAdvanced": (1290, 320, 250, 106),
    "OviDecode": (1600, 760, 240, 122),
    "CreateVideo": (1890, 760, 210, 102),
    "SaveVideo": (2150, 760, 400, 400),
}
OTHER_PLACES = {
    "ovi_image_to_video": {
        "VAELoader": (0, 740, 340, 58),
        "LoadImage": (490, 800, 280, 300),
        "OviImageToVideo": (860, 740, 270, 174),
        "OviAudioVAELoader": (0, 1220, 340, 82),
        "SamplerCustomAdvanced": (1290, 400, 250, 106),
        "OviDecode": (1600, 940, 240, 122),
        "CreateVideo": (1890, 940, 210, 102),
        "SaveVideo": (2150, 940, 400, 400),
    },
    "ovi_minimal_ksampler": {"EmptyOviLatent": (860, 400, 270, 130), "KSampler": (1290, 200, 250, 262)},
}
BENDS = {"ovi_image_to_video": {("VAELoader", "OviDecode"): (420, 1200)}}  # a point that the wire passes

GROUPS = {
    "Models": ["OviModelLoader", "CLIPLoader", "MarkdownNote", "VAELoader", "OviAudioVAELoader"],
    "Prompt and guidance": ["OviGuidance", "OviTextEncode"],
    "Start image": ["LoadImage"],
    "Sampling": [
        "RandomNoise", "CFGGuider", "OviUniPCSampler", "OviScheduler", "EmptyOviLatent", "OviImageToVideo",
        "SamplerCustomAdvanced", "KSampler",
    ],
    "Picture and sound": ["OviDecode", "CreateVideo", "SaveVideo"],
}  # fmt: skip
NOTE = """\
**Prompt**: what is seen; spoken words between `<S>` and `<E>`; at the end `Audio:` and how it all sounds.

**Size**: multiples of 32, about 960 by 960 pixels in all. 121 frames are 5 seconds.

**Short of memory**: weight dtype `fp8_e4m3fn`; tile size 512 in Ovi Decode.

**Picture and sound apart**: LTXV Separate AV Latent after the sampler; LTXV Concat AV Latent joins them again.
"""


def main() -> None:
    """Write every graph that has a prompt."""
    comfyui = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, Server(comfyui, Path(folder, "base"), "--cpu") as server:
        for path in sorted(PROMPTS.glob("*.api.json")):
            name = path.name.removesuffix(".api.json")
            with browser.frontend(server.url, Path(folder, name)) as page:
                graph = author(page, name, json.loads(path.read_text()))
            (ROOT / "workflows" / f"{name}.json").write_text(json.dumps(graph, indent=2) + "\n")


def author(page: browser.Page, name: str, prompt: dict[str, Any]) -> dict[str, Any]:
    """Return a prompt as a laid out graph in UI form."""
    browser.load_prompt(page, prompt)
    layout = {
        "places": PLACES | OTHER_PLACES.get(name, {}),
        "bends": [[*ends, point] for ends, point in BENDS.get(name, {}).items()],
        "groups": GROUPS,
        "note": NOTE,
        "models": {
            node: [{"name": url.rsplit("/", 1)[1], "url": url, "directory": folder} for folder, url in files]
            for node, files in MODELS.items()
        },
    }
    page.evaluate(
        """text => {
            const {places, bends, groups, note, models} = JSON.parse(text);
            const markdown = LiteGraph.createNode('MarkdownNote');
            app.graph.add(markdown);
            markdown.widgets[0].value = note;
            const nodes = Object.fromEntries(app.graph._nodes.map(node => [node.type, node]));
            for (const [type, node] of Object.entries(nodes)) {
                const [left, top, width, height] = places[type];
                node.pos = [left, top];
                node.setSize([width, height]);
                if (models[type]) node.properties.models = models[type];
                for (const widget of node.widgets ?? []) {
                    if (widget.name === 'control_after_generate') widget.value = 'fixed';
                }
            }
            for (const [from, to, point] of bends) {
                const link = [...app.graph.links.values()].find(
                    link => link.origin_id == nodes[from].id && link.target_id == nodes[to].id);
                app.graph.createReroute(point, link);
            }
            for (const [title, types] of Object.entries(groups)) {
                const members = types.filter(type => nodes[type]).map(type => places[type]);
                if (!members.length) continue;
                const left = Math.min(...members.map(place => place[0])) - 20;
                const top = Math.min(...members.map(place => place[1])) - 90;
                const right = Math.max(...members.map(place => place[0] + place[2])) + 20;
                const bottom = Math.max(...members.map(place => place[1] + place[3])) + 30;
                const group = new LiteGraph.LGraphGroup(title);
                group.pos = [left, top];
                group.size = [right - left, bottom - top];
                app.graph.add(group);
            }
            app.canvas.ds.scale = 0.6;  // the least at which the frontend draws text
            app.canvas.ds.offset = [130, 180];
        }""",
        json.dumps(layout),
    )
    return browser.converted(page)[0]


if __name__ == "__main__":
    main()
