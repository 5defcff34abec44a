"""The shipped workflows on a real ComfyUI server, posted as a client would, with tiny random weights."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import pytest

from support.workflows import fitted, graph

WORKFLOWS = {  # by prompt: a graph that is saved with the clip
    "ovi_text_to_video": "Ovi 1 Text to Video",
    "ovi_image_to_video": "Ovi 2 Image to Video",
    "ovi_minimal_ksampler": "Ovi 8 Text to Video with KSampler",
}
MARGIN = 80 << 20  # bytes; less than the smallest model of these graphs, the tiny Ovi, has in float32

pytestmark = pytest.mark.server


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_saves_a_clip_with_audio(server, name):
    workflow = graph(WORKFLOWS[name])
    prompt = fitted(name, noise_seed=6, seed=6)  # of its own: for an equal prompt, ComfyUI would return the cached clip
    (clip,) = server.run(prompt, workflow)
    with av.open(clip) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.average_rate == 24
        assert video.duration * video.time_base == Fraction(49, 24)
        assert abs(audio.duration * audio.time_base - Fraction(49, 24)) < Fraction(1, 24)
        assert json.loads(container.metadata["workflow"]) == workflow
        assert json.loads(container.metadata["prompt"]).keys() == prompt.keys()
        loudest = max(abs(block.to_ndarray()).max() for block in container.decode(audio))
        container.seek(0)
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video)]
    assert loudest > 0.01
    assert len(frames) == 49
    assert all(frame.std() > 5 for frame in frames), "a frame has a single colour"


def test_the_demo_s_loaders_are_there(server):
    """ComfyUI loads the miniature by its folder alone, with nothing of the project on the path."""
    nodes = server.get("/object_info")
    assert {f"OviMiniature{what}" for what in ("Text", "VideoVAE", "AudioVAE")} <= nodes.keys()
    for what in ("Text", "AudioVAE"):
        assert "world" in nodes[f"OviMiniature{what}"]["input"]["optional"]


def test_memory_returns(server):
    server.run(fitted("ovi_text_to_video", noise_seed=1))
    warm = server.memory_when_free()
    server.run(fitted("ovi_text_to_video", noise_seed=2))
    server.run(fitted("ovi_text_to_video", noise_seed=3))
    assert server.memory_when_free() < warm + MARGIN


def test_a_cancel_ends_the_prompt_and_the_next_one_runs(server):
    prompt_id = server.queue(fitted("ovi_text_to_video", noise_seed=4, steps=100))
    server.wait_for_log("| 1/100 ")
    server.post("/interrupt", {})
    status = server.wait(prompt_id)["status"]
    assert status["status_str"] == "error"
    assert status["messages"][-1][0] == "execution_interrupted"
    assert server.run(fitted("ovi_text_to_video", noise_seed=5))
