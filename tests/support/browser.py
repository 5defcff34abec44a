"""ComfyUI's own frontend in a headless Chromium: open a workflow, turn it into its API form, run it, watch the result.

What crosses between page and test is JSON text: Playwright turns `undefined` into null, which the frontend refuses.
"""

from __future__ import annotations

import base64
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
SHAPE = Path(__file__).with_name("graph.js").read_text(encoding="utf-8")
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
            viewport={"width": 1440, "height": 900},
        )
        page = context.pages[0]
        page.goto(url)
        page.wait_for_function(READY, timeout=120_000)
        yield page
        context.close()


def load_workflow(page: Page, workflow: dict[str, Any]) -> None:
    """Open a workflow in UI form."""
    page.evaluate("async text => { await app.loadGraphData(JSON.parse(text)) }", json.dumps(workflow))


def shape(page: Page) -> dict[str, Any]:
    """What the open graph looks like: `zoom`, `unreadable`, `nodes`, `groups` and `wires`; see graph.js."""
    return dict(json.loads(page.evaluate(SHAPE)))


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


def open_template(page: Page, pack: str, name: str) -> None:
    """Open a pack's workflow as users do: Templates, the pack under Extensions, a click on the thumbnail."""
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_text(pack, exact=True).click()
    page.get_by_test_id(f"template-workflow-{name}").click()
    page.wait_for_function("name => document.title.includes(name)", arg=name)


def add_node(page: Page, title: str) -> None:
    """Put a node on the canvas as users do: the search for nodes, a click on what it found, a click on the canvas."""
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    search = page.get_by_role("dialog")
    search.get_by_role("combobox").fill(title)
    search.get_by_test_id("result-item").filter(has_text=title).click()
    search.wait_for(state="detached")
    page.mouse.down()
    page.mouse.up()


def missing_models(page: Page) -> list[tuple[str, str, str]]:
    """What the panel of missing models lists for the open graph: each file, its folder, and where its button leads."""
    if not page.get_by_test_id("missing-model-actions").is_visible():
        page.get_by_test_id("error-overlay-see-errors").click()
    rows = page.get_by_test_id("missing-model-importable-rows").locator("> div").all_inner_texts()
    folders = dict(row.splitlines()[:2] for row in rows)
    links = page.evaluate(
        """() => {
            const links = [];
            const click = HTMLAnchorElement.prototype.click;
            HTMLAnchorElement.prototype.click = function () { links.push([this.download, this.href]) };
            document.querySelector('[data-testid=missing-model-download-all]').click();
            HTMLAnchorElement.prototype.click = click;
            return links;
        }"""
    )
    return [(name, folders.pop(name), link) for name, link in links] + [(name, at, "") for name, at in folders.items()]


def complaints(page: Page) -> list[str]:
    """The messages that the page shows, such as those of the workflow's validation."""
    return page.locator(".p-toast-message").all_inner_texts()


def press_run(page: Page, times: int = 1) -> None:
    """Queue the open graph with the page's own button, a number of times at once."""
    page.locator("input[aria-label='Batch Count']").fill(str(times))
    page.get_by_test_id("queue-button").click()


def wait_for_queue(page: Page, jobs: int) -> None:
    """Wait until the page shows this number of jobs that run or wait."""
    page.get_by_test_id("queue-overlay-toggle").get_by_text(f"{jobs} active").wait_for(timeout=120_000)


def drop_file(page: Page, path: Path, media_type: str) -> None:
    """Drop a file on the canvas."""
    page.evaluate(
        """([content, name, type]) => {
            const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, {type}));
            const event = new DragEvent('drop', {dataTransfer, bubbles: true, cancelable: true});
            document.querySelector('#graph-canvas').dispatchEvent(event);
        }""",
        [base64.b64encode(path.read_bytes()).decode(), path.name, media_type],
    )


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
