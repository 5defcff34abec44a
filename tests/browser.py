"""ComfyUI's own frontend in a headless Chromium: open a workflow, turn it into its API form, run it, watch the result.

What crosses between page and test is JSON text: Playwright turns `undefined` into null, which the frontend refuses.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY = """() => window.app?.extensionManager && app.isGraphReady && app.vueAppReady && !app.extensionManager.spinner"""


@contextmanager
def frontend(url: str, profile: Path) -> Iterator[Page]:
    """Open the frontend of the server at `url` and wait until it can take a workflow."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            headless=True,
            chromium_sandbox=False,
            args=OPTIONS,
            viewport={"width": 1600, "height": 1000},
        )
        page = context.pages[0]
        page.goto(url)
        page.wait_for_function(READY, timeout=120_000)
        yield page
        context.close()


def load_workflow(page: Page, workflow: dict[str, Any]) -> None:
    """Open a workflow in UI form."""
    page.evaluate("async text => { await app.loadGraphData(JSON.parse(text)) }", json.dumps(workflow))


def set_widgets(page: Page, values: dict[str, dict[str, Any]]) -> None:
    """Set widgets of the open graph, by node type and name."""
    page.evaluate(
        """text => {
            const values = JSON.parse(text);
            for (const node of app.graph._nodes) {
                for (const [name, value] of Object.entries(values[node.type] ?? {})) {
                    node.widgets.find(widget => widget.name === name).value = value;
                }
            }
        }""",
        json.dumps(values),
    )


def load_prompt(page: Page, prompt: dict[str, Any]) -> None:
    """Open a prompt in API form."""
    page.evaluate("text => { app.loadApiJson(JSON.parse(text), 'prompt.json') }", json.dumps(prompt))


def converted(page: Page) -> tuple[dict[str, Any], dict[str, Any]]:
    """The open graph in UI form and in API form."""
    both = json.loads(page.evaluate("async () => JSON.stringify(await app.graphToPrompt())"))
    return both["workflow"], both["output"]


def missing_types(page: Page) -> list[str]:
    """Node types of the open graph that ComfyUI does not have."""
    return page.evaluate("app.graph._nodes.map(n => n.type).filter(t => !(t in LiteGraph.registered_node_types))")


def missing_models(page: Page) -> list[dict[str, str]]:
    """What the page offers to download for the open graph: the name, folder and address of each model file."""
    offers = page.evaluate(
        """() => {
            const stores = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s;
            return JSON.stringify(stores.get('missingModel').missingModelCandidates);
        }"""
    )
    return [{key: offer[key] for key in ("name", "directory", "url")} for offer in json.loads(offers)]


def complaints(page: Page) -> list[str]:
    """The messages that the page shows, such as those of the workflow's validation."""
    return page.locator(".p-toast-message").all_inner_texts()


def run(page: Page, seconds: float = 300) -> None:
    """Queue the open graph and wait until it is done; a refusal or failure raises with ComfyUI's message."""
    outcome = page.evaluate(
        """async milliseconds => {
            const done = new Promise(resolve => {
                app.api.addEventListener('execution_success', () => resolve(''));
                app.api.addEventListener('execution_error', event => resolve(event.detail.exception_message));
                app.api.addEventListener('execution_interrupted', () => resolve('interrupted'));
                setTimeout(() => resolve('not done in time'), milliseconds);
            });
            return await app.queuePrompt(0, 1) ? await done : JSON.stringify(app.lastNodeErrors);
        }""",
        seconds * 1000,
    )
    if outcome:
        raise AssertionError(f"the graph did not run: {outcome}")


def play_video(page: Page) -> dict[str, Any]:
    """Play the preview of the saved video for a moment; return its size, seconds, error, and what was decoded of it."""
    page.wait_for_function("document.querySelector('video')?.readyState === 4", timeout=30_000)
    page.evaluate("document.querySelector('video').play()")
    page.wait_for_function("document.querySelector('video').currentTime > 0.2", timeout=30_000)
    shown = page.evaluate(
        """() => {
            const video = document.querySelector('video');
            return JSON.stringify({
                size: [video.videoWidth, video.videoHeight],
                seconds: video.duration,
                error: video.error?.message ?? null,
                frames: video.webkitDecodedFrameCount,
                audio_bytes: video.webkitAudioDecodedByteCount,
            });
        }"""
    )
    return dict(json.loads(shown))
