"""The notes of the templates, in Markdown, and the addresses of the model files that they link to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MODEL_LINKS, ABOUT = "Model links", "About"
VIDEO_NEGATIVE, AUDIO_NEGATIVE = "Video negative", "Audio negative"  # titles of nodes

_HUB = "https://huggingface.co"
FP8 = (
    f"{_HUB}/Kijai/WanVideo_comfy_fp8_scaled/resolve/main/TI2V/Ovi/"
    "Wan2_2-5B-Ovi_960x960_fp8_e4m3fn_scaled_KJ.safetensors"
)
BF16 = f"{_HUB}/chetwinlow1/Ovi/resolve/main/model_960x960.safetensors"
_WAN = f"{_HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
TEXT_ENCODER = f"{_WAN}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VIDEO_VAE = f"{_WAN}/vae/wan2.2_vae.safetensors"
_MMAUDIO = f"{_HUB}/hkchengrex/MMAudio/resolve/main/ext_weights"
AUDIO_VAE = f"{_MMAUDIO}/v1-16.pth"
VOCODER = f"{_MMAUDIO}/best_netG.pt"
UPSCALER = f"{_HUB}/ai-forever/Real-ESRGAN/resolve/main/RealESRGAN_x2.pth"
INTERPOLATOR = f"{_HUB}/Comfy-Org/frame_interpolation/resolve/main/frame_interpolation/film_net_fp16.safetensors"
FASTWAN = f"{_HUB}/Kijai/WanVideo_comfy/resolve/main/FastWan/Wan2_2_5B_FastWanFullAttn_lora_rank_128_bf16.safetensors"
LANGUAGE_MODEL = f"{_HUB}/Comfy-Org/Qwen3.5/resolve/main/text_encoders/qwen3.5_4b_bf16.safetensors"

_DREAMID = f"{_HUB}/benjiaiplayground/DreamID-Omni-bf16-FP8/resolve/main"
DREAMID_FP8 = f"{_DREAMID}/dreamid_omni.fp8_e4m3fn.safetensors"
DREAMID_BF16 = f"{_DREAMID}/dreamid_omni.bf16.safetensors"
DREAMID_FLOAT32 = f"{_HUB}/XuGuo699/DreamID-Omni/resolve/main/dreamid_omni.safetensors"

SIZES = {  # what a link says after the file's name
    FP8: "12.3 GB, for NVIDIA, AMD and Intel GPUs",
    BF16: "23.3 GB, for GPUs with 24 GB or more, and Apple's",
    DREAMID_FP8: "11.7 GB, for NVIDIA, AMD and Intel GPUs",
    DREAMID_BF16: "23.3 GB, for GPUs with 24 GB or more, and Apple's",
    DREAMID_FLOAT32: "46.6 GB, the release; becomes bf16 while it loads",
    TEXT_ENCODER: "6.7 GB",
    LANGUAGE_MODEL: "9.3 GB, writes the prompt",
    FASTWAN: "661 MB, for few steps",
    VIDEO_VAE: "1.4 GB",
    AUDIO_VAE: "655 MB",
    VOCODER: "429 MB",
}
OVI = {  # what Ovi needs, by folder of models/; the templates name the first of each
    "diffusion_models": [FP8, BF16],
    "text_encoders": [TEXT_ENCODER],
    "vae": [VIDEO_VAE, AUDIO_VAE, VOCODER],
}
DREAMID = OVI | {"diffusion_models": [DREAMID_FP8, DREAMID_BF16, DREAMID_FLOAT32]}
WRITTEN = OVI | {"text_encoders": [TEXT_ENCODER, LANGUAGE_MODEL]}
FAST = OVI | {"loras": [FASTWAN]}
LARGER = {"upscale_models": [UPSCALER], "frame_interpolation": [INTERPOLATOR]}


def file_name(url: str) -> str:
    """Return the name of the file at an address."""
    return url.rsplit("/", 1)[1]


def links(folders: Mapping[str, Sequence[str]]) -> str:
    """Return what to download into which folder of ComfyUI's models, with links and sizes."""
    text = ""
    for folder, urls in folders.items():
        one_of = " (one of them)" if folder == "diffusion_models" else ""
        text += f"**models/{folder}**{one_of}\n\n"
        for url in urls:
            text += f"- [{file_name(url)}]({url})" + (f": {SIZES[url]}" if url in SIZES else "") + "\n"
        text += "\n"
    return text


def tree() -> str:
    """Return where the files lie in ComfyUI's folder."""
    lines = ["ComfyUI/", "└── models/"]
    for folder, urls in OVI.items():
        last = folder == list(OVI)[-1]
        names = [file_name(url) for url in urls if url != BF16]
        lines.append(f"    {'└' if last else '├'}── {folder}/")
        lines += [f"    {' ' if last else '│'}   {'└' if name == names[-1] else '├'}── {name}" for name in names]
    return "```\n" + "\n".join(lines) + "\n```\n"


LINKS = links(OVI)
LINKS_FOR_TRAINING = links({folder: urls for folder, urls in OVI.items() if folder != "diffusion_models"})
LINKS_AND_TREE = LINKS + "**Where they go**\n\n" + tree()
LINKS_FOR_FAST = links(FAST)
LINKS_FOR_LARGER = links(OVI | LARGER)
LINKS_FOR_PERSONS = links(DREAMID)
LINKS_FOR_IDEA = links(WRITTEN)

_PROMPT = (
    "**Prompt**: what the video shows; spoken words between `<S>` and `<E>`; at the end, `Audio:` and a description "
    "of the audio.\n\n"
)
_SIZE = "**Width and height**: 1280 × 704, 960 × 960 or 704 × 1280.\n\n"
_LENGTH = "**Length**: 121 frames are 5 seconds. In general, 24 per second, plus 1.\n\n"
_SEED = "**Seed**: new after each run. Without any change, Run does nothing, since the clip is there already.\n\n"
_CHECKPOINT = (
    "**Another checkpoint**: change model, prompt style, size and length together; the help of *Load Ovi Model* lists "
    "them.\n\n"
)
_INSIDE = (
    "**Everything else**: the button at the top right of the blue-marked node opens the graph inside: guidance, "
    "sampler, decoding.\n\n"
)
_MEMORY = "**Out of memory** while decoding: set `tile_size` of *Ovi Decode* to 512.\n\n"
_TROUBLE = (
    "**Trouble**: the README of this pack has a list (*When something goes wrong*). To report a problem, give the "
    "versions of ComfyUI and of this pack, and the text of the console.\n"
)
_TRAINED = "**Experimental**: Ovi was trained with a first frame as its only reference.\n"

ABOUT_TEXT = _PROMPT + _SIZE + _LENGTH + _SEED + _CHECKPOINT + _INSIDE + _TROUBLE
ABOUT_IMAGE = (
    "**Start image**: choose it in *Load Image*. It is cropped from the centre to width × height, and the clip begins "
    "with it.\n\n" + ABOUT_TEXT
)
ABOUT_NODES = _PROMPT + _SIZE + _LENGTH + _SEED + _CHECKPOINT + _MEMORY + _TROUBLE
ABOUT_CLIPS = (
    "**Each clip** has a prompt of its own and begins with the last second of the one before, video and audio. With "
    "an overlap of 1 second, every further clip of 121 frames adds 4 seconds.\n\n"
    "**More clips**: copy *Next Clip*, and connect all its inputs to the outputs of the one before. *Save Video* may "
    "follow any of them.\n\n"
    "**From a saved video**: connect *Load Video* to `video` of a *Next Clip*, and the loaders to its other inputs.\n\n"
    + _SEED
    + _TRAINED
)
ABOUT_VIDEO = (
    "**Your video**: choose it in *Load Video*. Its frames and frame rate are preserved; only audio is generated. Set "
    "the length to its duration at 24 frames per second, plus 1, whatever its own rate.\n\n"
    "**Prompt**: what the video shows, and at the end `Audio:` and a description of the audio.\n\n" + _SEED + _TRAINED
)
ABOUT_WINDOWS = (
    "**20 seconds**: 481 frames with their audio, in windows of 121 frames that share at least 32. `context_length` "
    "and `context_overlap` count latents of 4 frames: 31 and 8.\n\n"
    "**Prompts**: a line `--- from 6s` begins one at that time. Each window reads the prompt of its middle, at about "
    "2.5, 6.3, 10.1, 14.0 and 17.5 s here, and one prompt blends into the next where windows overlap. The text below "
    "`--- all` is put in front of each. One prompt without such lines is for the whole clip.\n\n"
    "**Speech**: each window may speak the words between `<S>` and `<E>` of its prompt. These prompts have none.\n\n"
    "**Memory**: sampling needs no more than one window does; 481 frames of 1280 × 704 take 5 GB of RAM.\n\n"
    + _SEED
    + "**Experimental**: Ovi was trained on clips of 5 and 10 seconds. Context windows with Ovi need ComfyUI 0.27 or "
    "later.\n"
)
ABOUT_IDEA = (
    "**Idea**: a few words or a paragraph, in any language. Words in quotation marks are to be spoken as they are. "
    "*Generate Text* writes the prompt with a language model on your machine, and *Preview as Text* shows it, once "
    "*Ovi Answer* has repaired its form.\n\n"
    "**Another prompt** for the same idea: change the seed of *Generate Text*. As long as idea and seed are the same, "
    "ComfyUI keeps the prompt, and each run makes another clip of it.\n\n"
    "**Your own words**: disconnect `prompt` of the blue-marked node and write there.\n\n"
    "**Length and prompt style**: the same in *Ovi Idea*, *Ovi Answer* and the blue-marked node.\n\n"
    "**Language model**: any that ComfyUI's *Load CLIP* loads and that writes. How well this one follows the "
    "instruction has not been tried; an answer that cannot be used stops the run, and says why.\n\n" + _TROUBLE
)
ABOUT_SECOND_PASS = (
    "**Second pass**: the video is upscaled to one and a half times its width and height, and refined over the last "
    "two fifths of the schedule. The audio is masked, so it is unchanged.\n\n"
    "**Size**: 832 × 448 becomes 1248 × 672. Choose multiples of 64, so that the larger size is in multiples of 32."
    "\n\n" + _SEED + "**Experimental**: Ovi was not trained for a second pass.\n"
)
ABOUT_UPSCALE = (
    "**Larger and smoother**: twice the width and height, and an interpolated frame between every two. *Ovi Decode* "
    "stays at 24 frames per second; *Create Video* is set to 48. The audio is unchanged.\n\n"
    "**Only larger**: open *Upscale and Interpolate* and bypass *Run Frame Interpolation Model* (Ctrl+B); set *Create "
    "Video* to 24.\n\n"
    "**Memory**: 121 frames of 2560 × 1408 take 5 GB of RAM; interpolating to 48 per second takes 10 GB more.\n\n"
    + _SEED
)
ABOUT_FAST = (
    "**6 steps instead of 50**, each one pass of the model instead of two: the settings are those that Wan2GP, another "
    "program, ships for Ovi with this LoRA (shift 6, UniPC, cfg 1, audio cfg 1; 10 steps for clips of 10 seconds). "
    "**They have not been tried with this pack**, and nobody has measured what they do to speech.\n\n"
    "**Speech**: the LoRA was trained on video alone and leaves the audio tower as it is. If words are unclear, set "
    "`audio_cfg` to 3, as the Ovi release has it: each step is then two passes. Users report gibberish without cfg and "
    "a skipped block. Nobody has published results for `audio_cfg` 3 with cfg 1.\n\n"
    "**A LoRA of your own**: choose it in `lora`. If its file says how it is to be sampled, *Load Ovi LoRA*, "
    "inside the blue-marked node, shows it after a run: set steps, shift, cfg and audio_cfg here to that, and the "
    "sampler inside.\n\n" + _PROMPT + _SEED
)
_PERSONS = (
    "**Prompt**: one line for each person, `<img1>: … is identified as <sub1>.`, then scene, appearance and actions; "
    "spoken words between `<S>` and `<E>`. *Ovi Prompt* writes this form for you from names.\n\n"
    "**Face**: choose an image in *Load Image* and mark the face in *Crop Image*. **Voice**: a recording of at least 2 "
    "seconds in which only this person speaks.\n\n"
)
_DREAMID_OMNI = (
    "**Size and length**: 1280 × 704 or 992 × 512, 121 frames: DreamID-Omni was trained on nothing else. Each step is "
    "4 passes of the model.\n\n"
)
_CONSENT = (
    "**Consent**: use another person's face or voice only with that person's consent, and label what you generate.\n\n"
    "**Licence**: code under Apache-2.0; we found none for the weights, which their authors call 'intended for "
    "academic research and technical demonstration purposes only'. They have not been run with this pack.\n"
)
ABOUT_PERSON = _PERSONS + _DREAMID_OMNI + _SEED + _CONSENT
ABOUT_DIALOGUE = (
    "**Who is who**: face and voice 1 are `<sub1>` of the prompt, face and voice 2 are `<sub2>`.\n\n" + ABOUT_PERSON
)
_SHOTS = (
    "**Shots**: a line `--- cut 5s` or `--- continue 5s` opens each; it may add `seed=7` or `image=1`. Text below "
    "`--- all` is put in front of every shot's prompt. A shot that continues begins with the last second of the one "
    "before.\n\n"
    "**Change a shot** and press Run: it is generated again, with those that continue it. ComfyUI keeps the others, as "
    "long as the seed is the same.\n\n"
)
ABOUT_STORYBOARD = (
    _SHOTS
    + "**Start images**: connect *Load Image* to `image1`, and write `image=1` into the line of a shot.\n\n"
    + "**Experimental** where shots continue: Ovi was trained with a first frame as its only reference.\n"
)
ABOUT_STORY = (
    _SHOTS
    + "**Persons**: face1 and voice1 are `<sub1>` of every prompt, face2 and voice2 are `<sub2>`. Crop the faces; each "
    "recording lasts at least 2 seconds and has one voice.\n\n"
    "**Experimental** where shots continue: DreamID-Omni was not trained for it.\n\n" + _CONSENT
)
_OWN_AUDIO = (
    "**Your recording** is preserved in the latent for the video to follow, and the saved video has it as it was: its "
    "own rate, all channels. How well lips follow is not promised; a face seen from the front, a prompt that says that "
    "the mouth moves, and a little noise on clean speech help.\n\n"
    "**Sync scale** pushes the video towards the audio, for one more pass of the model in every step; 0 saves it.\n\n"
)
ABOUT_OWN_AUDIO = (
    _OWN_AUDIO
    + "**Length**: that of the recording at 24 frames per second, plus 1. For a longer one, take *Ovi Storyboard 2 Own "
    "Audio*.\n\n" + _SEED + _TRAINED
)
ABOUT_STORYBOARD_AUDIO = (
    "**Shots** without a length end in the pauses of the recording. `--- cut` and `--- continue` open them; text below "
    "`--- all` is put in front of every shot's prompt.\n\n" + _OWN_AUDIO + _TRAINED
)
ABOUT_GUIDES = (
    "**Guides**: the clip passes through your images: the first at frame 0, the last at its end, and one in between at "
    "`middle_frame`. Each is cropped from the centre to width × height. It fills the latent that holds its frame, so "
    "one in between stands for four frames.\n\n"
    "**More, or fewer**: open the blue-marked node; each *Ovi Guide* takes the latent of the one before. It takes a "
    "stretch of frames or of audio, too.\n\n" + _PROMPT + _SEED + _TRAINED
)
ABOUT_SEVERAL_GPUS = (
    "**Ovi Parallel** shares out every pass of the model: on two GPUs the positive pass on one and the negative pass "
    "on the other; on more of them, a part of each frame too. Every GPU holds the whole model. `gpus` is their number; "
    "1 changes nothing.\n\n"
    "**Select VAE Device**: set `device` to `gpu:1`, the second GPU, to decode the video there, so that the model need "
    "not make room on the first. `default` leaves it where ComfyUI puts it.\n\n"
    "**Not yet run** on several GPUs: that the clip stays the same was tested on devices that a CPU stood for.\n\n"
    "**Many clips** are faster with one ComfyUI for each GPU: see `docs/parallel.md` of this pack.\n\n" + _SEED
)
ABOUT_TRAINING_CLIPS = (
    "**Your videos**: make the folder `my_videos` in ComfyUI's `input` folder. Put the videos into it, and beside each "
    "a text file of the same name with its caption, as you would write a prompt. Press R, and choose the folder.\n\n"
    "**Preview**: switch `preview_only` on to see which clips there would be. *Preview Image* shows their first "
    "frames, and the node says what is left out and what is odd.\n\n"
    "**Size**: 960 for the 960x960 checkpoints, 720 for 720x720_5s. Smaller clips take less memory in training.\n\n"
    "**Scenes**: install PySceneDetect (`pip install scenedetect`) into ComfyUI's Python to cut videos at scene "
    "changes.\n\n"
    "**Run again** at any time: what is written in `output/clips/my_clips` is not encoded again.\n\n"
    "**Then**: `docs/training.md` of this pack has the command that trains a LoRA on these clips.\n"
)
