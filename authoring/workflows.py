"""Lay out the prompts of workflows/api/ (API form, written by hand) as graphs for people to open.

    python -m authoring.workflows COMFYUI

Each becomes a graph in workflows/, and those in BLUEPRINTS also a box in subgraphs/. ComfyUI's own frontend makes them;
this module holds only places, groups, notes, the inputs that a box shows, and the addresses of the model files.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from tests.support import ROOT, browser
from tests.support.comfy_server import Server

PROMPTS = ROOT / "workflows" / "api"

WAN = "https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
MMAUDIO = "https://huggingface.co/hkchengrex/MMAudio/resolve/main/ext_weights"
MODELS = {  # node type: the folder of models/ and the address of each file
    "OviModelLoader": [
        ("diffusion_models", "https://huggingface.co/chetwinlow1/Ovi/resolve/main/model_960x960.safetensors")
    ],
    "CLIPLoader": [("text_encoders", f"{WAN}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors")],
    "VAELoader": [("vae", f"{WAN}/vae/wan2.2_vae.safetensors")],
    "OviAudioVAELoader": [("vae", f"{MMAUDIO}/v1-16.pth"), ("vae", f"{MMAUDIO}/best_netG.pt")],
    "UpscaleModelLoader": [
        ("upscale_models", "https://huggingface.co/ai-forever/Real-ESRGAN/resolve/main/RealESRGAN_x2.pth")
    ],
    "FrameInterpolationModelLoader": [
        (
            "frame_interpolation",
            "https://huggingface.co/Comfy-Org/frame_interpolation/resolve/main/frame_interpolation/"
            "film_net_fp16.safetensors",
        )
    ],
}
HASHES = {  # of files whose hash is public; MD5 where it has 32 digits
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": "c3355d30191f1f066b26d93fba017ae9809dce6c627dda5f6a66eaa651204f68",
    "wan2.2_vae.safetensors": "e40321bd36b9709991dae2530eb4ac303dd168276980d3e9bc4b6e2b75fed156",
    "v1-16.pth": "69f56803f59a549a1a507c93859fd4d7",
    "best_netG.pt": "eeaf372a38a9c31c362120aba2dde292",
}

# Left, top, width and height by node type, or by id where a graph has several of a type. Wires reach a node in the
# order of its inputs, so that nothing crosses.
PLACES = {
    "OviModelLoader": (0, 0, 340, 106),
    "CLIPLoader": (0, 200, 340, 106),
    "MarkdownNote": (0, 400, 340, 260),
    "VAELoader": (0, 780, 340, 58),
    "OviAudioVAELoader": (0, 900, 340, 82),
    "OviGuidance": (400, 0, 400, 226),
    "OviTextEncode": (400, 290, 400, 460),
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
OTHER_PLACES: dict[str, dict[str, tuple[int, int, int, int]]] = {
    "ovi_image_to_video": {
        "VAELoader": (0, 810, 340, 58),
        "LoadImage": (490, 950, 280, 300),
        "OviImageToVideo": (860, 810, 270, 174),
        "OviAudioVAELoader": (0, 1320, 340, 82),
        "SamplerCustomAdvanced": (1290, 400, 250, 106),
        "OviDecode": (1600, 1260, 240, 122),
        "CreateVideo": (1890, 1260, 210, 102),
        "SaveVideo": (2150, 1260, 400, 400),
    },
    "ovi_minimal_ksampler": {"EmptyOviLatent": (860, 400, 270, 130), "KSampler": (1290, 200, 250, 262)},
    "ovi_video_to_audio": {
        "MarkdownNote": (0, 400, 340, 200),
        "VAELoader": (0, 690, 340, 58),
        "LoadVideo": (0, 890, 340, 340),
        "GetVideoComponents": (400, 890, 400, 106),
        "OviReference": (860, 590, 270, 420),
        "OviAudioVAELoader": (1190, 1320, 340, 82),
        "OviDecode": (1600, 1280, 240, 122),
        "CreateVideo": (1890, 1160, 210, 102),
        "SaveVideo": (2150, 1160, 400, 400),
    },
    "ovi_three_clips": {
        "VAELoader": (0, 1180, 340, 58),
        "OviAudioVAELoader": (0, 1300, 340, 82),
        "6": (400, 290, 400, 460),
        "EmptyOviLatent": (860, 490, 270, 130),
        "10": (1190, 290, 250, 262),
        "11": (1500, 290, 240, 122),
        "12": (1800, 290, 210, 102),
        "7": (400, 900, 400, 460),
        "13": (860, 1100, 270, 150),
        "14": (1190, 900, 250, 262),
        "15": (1500, 900, 240, 122),
        "16": (1800, 900, 210, 102),
        "8": (400, 1510, 400, 460),
        "17": (860, 1710, 270, 150),
        "18": (1190, 1510, 250, 262),
        "19": (1500, 1510, 240, 122),
        "20": (1800, 1510, 210, 102),
        "OviJoin": (2110, 900, 240, 120),
        "SaveVideo": (2410, 900, 400, 400),
    },
    "ovi_context_windows": {
        "ContextWindowsManual": (860, 0, 340, 350),
        **{node: (x + 400, y, width, height) for node, (x, y, width, height) in PLACES.items() if x >= 860},
    },
    "ovi_upscale_48fps": {
        "UpscaleModelLoader": (1600, 420, 270, 58),
        "ImageUpscaleWithModel": (1930, 540, 260, 46),
        "FrameInterpolationModelLoader": (1930, 420, 260, 58),
        "FrameInterpolate": (2250, 540, 260, 78),
        "CreateVideo": (2570, 760, 210, 102),
        "SaveVideo": (2840, 760, 400, 400),
    },
    "ovi_second_pass": {
        "7": (860, 0, 270, 82),
        "10": (860, 400, 270, 130),
        "12": (1290, 320, 250, 106),
        "LTXVSeparateAVLatent": (1600, 440, 230, 46),
        "LatentUpscaleBy": (1890, 400, 250, 82),
        "LTXVConcatAVLatent": (2200, 440, 230, 46),
        "OviRemake": (2490, 440, 270, 130),
        "20": (2490, 0, 270, 82),
        "21": (2490, 150, 270, 130),
        "22": (2820, 320, 250, 106),
        "OviDecode": (3130, 760, 240, 122),
        "CreateVideo": (3420, 760, 210, 102),
        "SaveVideo": (3680, 760, 400, 400),
    },
}
BENDS = {"ovi_image_to_video": {("VAELoader", "OviDecode"): (420, 1300)}}  # a point that the wire passes

GROUPS = {
    "Models": ["OviModelLoader", "CLIPLoader", "MarkdownNote", "VAELoader", "OviAudioVAELoader"],
    "Prompt and guidance": ["OviGuidance", "OviTextEncode"],
    "Start image": ["LoadImage"],
    "Sampling": [
        "RandomNoise", "CFGGuider", "OviUniPCSampler", "OviScheduler", "EmptyOviLatent", "OviImageToVideo",
        "SamplerCustomAdvanced", "KSampler",
    ],
    "Decode and save": ["OviDecode", "CreateVideo", "SaveVideo"],
}  # fmt: skip
OTHER_GROUPS = {
    "ovi_video_to_audio": {
        "Models": ["OviModelLoader", "CLIPLoader", "MarkdownNote", "VAELoader"],
        "Prompt and guidance": GROUPS["Prompt and guidance"],
        "Your video": ["LoadVideo", "GetVideoComponents"],
        "Sampling": [*GROUPS["Sampling"], "OviReference"],
        "Its frames, new audio": ["OviAudioVAELoader", *GROUPS["Decode and save"]],
    },
    "ovi_three_clips": {
        "Models": GROUPS["Models"],
        "First clip": ["OviGuidance", "6", "EmptyOviLatent", "10", "11", "12"],
        "Second clip": ["7", "13", "14", "15", "16"],
        "Third clip": ["8", "17", "18", "19", "20"],
        "Join and save": ["OviJoin", "SaveVideo"],
    },
    "ovi_context_windows": GROUPS | {"20 seconds, in windows of 5": ["ContextWindowsManual"]},
    "ovi_upscale_48fps": GROUPS
    | {
        "Larger and smoother": [
            "UpscaleModelLoader", "ImageUpscaleWithModel", "FrameInterpolationModelLoader", "FrameInterpolate",
        ],
    },
    "ovi_second_pass": GROUPS
    | {
        "Sampling": [*GROUPS["Sampling"], "7", "10", "12"],
        "Second pass: larger frames, the same audio": [
            "LTXVSeparateAVLatent", "LatentUpscaleBy", "LTXVConcatAVLatent", "OviRemake", "20", "21", "22",
        ],
    },
}  # fmt: skip
NOTE = """\
**Prompt**: what the video shows; spoken words between `<S>` and `<E>`; at the end, `Audio:` and a description of the \
audio.

**Size**: multiples of 32, about 960x960 pixels in total. 121 frames are 5 seconds.

**Another checkpoint**: change model name, prompt style, size and length together. The help of Load Ovi Model \
lists them.

**Out of memory**: load an fp8 file, or set weight dtype to `fp8_e4m3fn`; set tile size to 512 in Ovi Decode.

**Video and audio apart**: Separate AV Latent after the sampler splits them; Concat AV Latent joins them again.
"""
OTHER_NOTES = {
    "ovi_video_to_audio": """\
**Choose your video** in Load Video. Its frames and frame rate are preserved; only audio is generated. Set the length \
in Ovi Reference to the video's duration: 4n + 1 frames at 24 per second, whatever the video's own rate.

**Prompt**: what the video shows, and at the end `Audio:` and a description of the audio.

**Experimental**: Ovi was trained with a first frame as its only reference.
""",
    "ovi_three_clips": """\
**Each clip** has its own prompt and begins with the last second of the previous clip, video and audio. With an \
overlap of 25 frames, every further clip of 121 frames adds 4 seconds.

**More clips**: copy a group. Connect the last Create Video to the new Ovi Continue, and the new Create Video to Ovi \
Join.

**From a saved video**: use Load Video instead of the first Create Video.

**Experimental**: Ovi was trained with a first frame as its only reference.
""",
    "ovi_context_windows": """\
**20 seconds**: 481 frames with their audio, generated in windows of 121 frames that share at least 32. *Context \
Windows* counts latents of 4 frames: 31 and 8.

**Prompt**: every window reads the whole prompt, so each may speak the words between `<S>` and `<E>`. This prompt has \
no speech.

**Memory**: sampling needs no more than one window does; 481 frames of 1280x704 take 5 GB of RAM.

**Experimental**: Ovi was trained on clips of 5 and 10 seconds. Context windows with Ovi need ComfyUI 0.27 or later.
""",
    "ovi_upscale_48fps": """\
**Larger and smoother**: twice the width and height, and an interpolated frame between every two. Ovi Decode stays at \
24 frames per second; Create Video is set to 48. The audio is unchanged.

**Memory**: 121 frames of 2560x1408 take 5 GB of RAM; interpolating to 48 frames per second takes 10 GB more.

**Only larger**: remove Run Frame Interpolation Model, and set Create Video to 24.
""",
    "ovi_second_pass": """\
**Second pass**: the video is upscaled to one and a half times its width and height and refined over the last two \
fifths of the schedule. The audio is masked, so it is unchanged.

**Size**: 832x448 becomes 1248x672. Choose multiples of 64, so that the larger size is in multiples of 32.

**Experimental**: Ovi was not trained for a second pass.
""",
}


# By title of a box: the workflow inside, what of it stays outside, ComfyUI's category, and what it does.
BLUEPRINTS: dict[str, dict[str, Any]] = {
    "Text to Video (Ovi)": {
        "workflow": "ovi_text_to_video",
        "outside": ["SaveVideo"],
        "category": "Video generation and editing/Text to video",
        "description": "Generates video and audio together, including speech, from a prompt with Ovi.",
    },
    "Image to Video (Ovi)": {
        "workflow": "ovi_image_to_video",
        "outside": ["LoadImage", "SaveVideo"],
        "category": "Video generation and editing/Image to video",
        "description": "Generates video and audio together from a start image and a prompt with Ovi.",
    },
}
SHOWN = [  # of a box: node type, its input, and the name that the box gives it
    ("OviImageToVideo", "start_image", "start_image"),
    ("OviTextEncode", "prompt", "prompt"),
    *((node, name, name) for node in ("EmptyOviLatent", "OviImageToVideo") for name in ("width", "height", "length")),
    ("RandomNoise", "noise_seed", "seed"),
]


def main() -> None:
    """Write every graph and every box."""
    comfyui = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, Server(comfyui, Path(folder, "base"), "--cpu") as server:
        for path in sorted(PROMPTS.glob("*.json")):
            name = path.stem
            with browser.frontend(server.url, Path(folder, name)) as page:
                lay_out(page, name, json.loads(path.read_text()))
                write(ROOT / "workflows" / f"{name}.json", browser.converted(page)[0])
        for title, box in BLUEPRINTS.items():
            prompt = json.loads((PROMPTS / f"{box['workflow']}.json").read_text())
            inside = {key: node for key, node in prompt.items() if node["class_type"] not in box["outside"]}
            with browser.frontend(server.url, Path(folder, title)) as page:
                lay_out(page, box["workflow"], inside)
                graph = put_in_box(page, title)
                graph["definitions"]["subgraphs"][0] |= {key: box[key] for key in ("category", "description")}
                write(ROOT / "subgraphs" / f"{title}.json", graph)


def write(path: Path, graph: dict[str, Any]) -> None:
    """Write a graph in UI form, with ids that are the same each time: those of subgraphs and of their inputs."""
    text = json.dumps(graph, indent=2, ensure_ascii=False) + "\n"
    for index, found in enumerate(dict.fromkeys(re.findall(r"[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}", text))):
        text = text.replace(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"{path.name}#{index}")))
    path.write_text(text, encoding="utf-8")


def lay_out(page: browser.Page, name: str, prompt: dict[str, Any]) -> None:
    """Open a prompt as a graph with places, groups, a note and addresses of models; wires to absent nodes go."""
    browser.load_prompt(page, prompt)
    layout = {
        "places": PLACES | OTHER_PLACES.get(name, {}),
        "bends": [[*ends, point] for ends, point in BENDS.get(name, {}).items()],
        "groups": OTHER_GROUPS.get(name, GROUPS),
        "note": OTHER_NOTES.get(name, NOTE),
        "models": {node: [model_file(folder, url) for folder, url in files] for node, files in MODELS.items()},
    }
    page.evaluate(
        """text => {
            const {places, bends, groups, note, models} = JSON.parse(text);
            const markdown = LiteGraph.createNode('MarkdownNote');
            app.graph.add(markdown);
            markdown.widgets[0].value = note;
            const nodes = Object.fromEntries(
                app.graph._nodes.map(node => [node.id in places ? node.id : node.type, node]));
            for (const [key, node] of Object.entries(nodes)) {
                const [left, top, width, height] = places[key];
                node.pos = [left, top];
                node.setSize([width, height]);
                if (models[node.type]) node.properties.models = models[node.type];
                for (const widget of node.widgets ?? []) {
                    if (widget.name === 'control_after_generate') widget.value = 'fixed';
                }
            }
            for (const [from, to, point] of bends) {
                const link = [...app.graph.links.values()].find(
                    link => link.origin_id == nodes[from].id && link.target_id == nodes[to].id);
                app.graph.createReroute(point, link);
            }
            for (const [title, keys] of Object.entries(groups)) {
                const members = keys.filter(key => nodes[key]).map(key => places[key]);
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


def model_file(folder: str, url: str) -> dict[str, str]:
    """Return what ComfyUI shows of a missing file."""
    name = url.rsplit("/", 1)[1]
    file = {"name": name, "url": url, "directory": folder}
    if digits := HASHES.get(name):
        file |= {"hash": digits, "hash_type": "MD5" if len(digits) == 32 else "SHA256"}
    return file


def put_in_box(page: browser.Page, title: str) -> dict[str, Any]:
    """Return the open graph as one subgraph node that shows a few inputs and gives the video."""
    graph = page.evaluate(
        """text => {
            const {title, shown} = JSON.parse(text);
            const {subgraph, node} = app.graph.convertToSubgraph(new Set([
                ...app.graph._nodes, ...app.graph._groups, ...app.graph.reroutes.values(),
            ]));
            const inside = type => subgraph.nodes.find(node => node.type === type);
            for (const [type, name, label] of shown) {
                const slot = inside(type)?.inputs.find(input => input.name === name);
                if (slot) subgraph.addInput(label, slot.type).connect(slot, inside(type));
            }
            const video = inside('CreateVideo');
            subgraph.addOutput('video', 'VIDEO').connect(video.outputs[0], video);
            subgraph.inputNode.arrange();
            subgraph.outputNode.arrange();
            subgraph.name = node.title = title;
            node.pos = [0, 0];
            node.setSize([400, 400]);
            return JSON.stringify(app.graph.serialize());
        }""",
        json.dumps({"title": title, "shown": SHOWN}),
    )
    return dict(json.loads(graph))


if __name__ == "__main__":
    main()
