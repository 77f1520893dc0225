"""The explorer in a real JupyterLab, in a headless Chromium: run all cells, move a slider, see another picture."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import jupytext
import pytest
from browser import browser_page, needs_browser

from otclib import demo

pytestmark = pytest.mark.slow
SHOTS = Path(os.environ.get("OTCLIB_SCREENSHOTS", "runs/screenshots"))

SETTINGS = {  # all cells are made, and not only those in sight; nobody is asked about news
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false"},
}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def served(tmp_path):
    """Starts ``python -m <module> ...`` on a free port and waits until it answers."""
    servers = []

    def serve(*command: str, port: int, path: str = "") -> str:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
        log = open(tmp_path / "server.log", "w")
        servers.append(subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=log, stderr=log))
        address, start = f"http://127.0.0.1:{port}/{path}", time.monotonic()
        while time.monotonic() - start < 120:
            try:
                urllib.request.urlopen(address, timeout=2)
                return address
            except urllib.error.HTTPError:  # it refuses, so it is there
                return address
            except OSError:
                if servers[-1].poll() is not None:
                    break
                time.sleep(0.5)
        raise AssertionError(f"{command[0]} did not start: {(tmp_path / 'server.log').read_text()[-2000:]}")

    yield serve
    for server in servers:
        server.terminate()
        server.wait(20)


def small_notebook(folder: Path) -> Path:
    """The explorer's notebook with the fast setting."""
    notebook = jupytext.read(demo.NOTEBOOKS / "explorer.py")
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += f"\nfast, out = True, {str(folder / 'runs')!r}"
    jupytext.write(notebook, folder / "explorer.ipynb")
    return folder / "explorer.ipynb"


def move_and_compare(page, name: str) -> None:
    """Move the reg slider by the keyboard, then click on the image; the picture must change each time."""
    page.wait_for_selector(".widget-image", timeout=600_000)
    page.locator(".widget-image").first.scroll_into_view_if_needed()
    picture = page.locator(".widget-image").first
    page.wait_for_function("document.querySelector('.widget-image').src.startsWith('blob:')", timeout=60_000)
    page.wait_for_timeout(500)
    before = picture.get_attribute("src")
    handle = page.locator(".widget-inline-hbox", has_text="reg").locator(".noUi-handle").first
    handle.focus()
    handle.press("ArrowLeft")
    page.wait_for_function("old => document.querySelector('.widget-image').src !== old", arg=before, timeout=30_000)
    page.wait_for_timeout(500)
    before, box = picture.get_attribute("src"), picture.bounding_box()
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.4 * box["height"])  # a place of the image
    page.wait_for_function("old => document.querySelector('.widget-image').src !== old", arg=before, timeout=30_000)
    page.wait_for_timeout(500)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SHOTS / f"{name}.png"))


@needs_browser
def test_the_explorer_in_jupyterlab(served, tmp_path):
    small_notebook(tmp_path)
    port = free_port()
    for name, value in SETTINGS.items():
        file = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(value))
    options = [f"--ServerApp.root_dir={tmp_path}", f"--port={port}", "--no-browser", "--allow-root"]
    served("jupyterlab", *options, "--IdentityProvider.token=", port=port, path="api")
    with browser_page(1500, 1400) as page:
        page.goto(f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        page.wait_for_selector("text=/ipykernel.*Idle/", timeout=120_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_selector(".jp-InputPrompt:text-matches('[1*]')", timeout=30_000)
        move_and_compare(page, "jupyterlab")
        assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert page.locator(".jp-OutputArea-output:has-text('Traceback')").count() == 0
    assert json.loads((tmp_path / "runs-fast" / "clip" / "metrics.json").read_text())


@needs_browser
def test_the_explorer_as_a_page_of_voila(served, tmp_path):
    notebook, port = small_notebook(tmp_path), free_port()
    served("voila", str(notebook), f"--port={port}", "--no-browser", port=port, path="static/")
    with browser_page(1500, 1400) as page:
        page.goto(f"http://127.0.0.1:{port}/", timeout=300_000)
        move_and_compare(page, "voila")
        assert "Traceback" not in page.content()
