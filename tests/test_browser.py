"""The committed notebooks in a real JupyterLab and in voila, in a headless Chromium: run all, move a slider, look."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from browser import browser_page, needs_browser

from otclib.experiments import demo

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
    """Starts a command that serves on a port, and waits until it answers."""
    servers = []

    def serve(command: list[str], port: int, path: str = "", **environment: str) -> str:
        settings = {"HF_HUB_OFFLINE": "1", "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
        log, own = open(tmp_path / "server.log", "w"), os.environ | settings | environment
        servers.append(subprocess.Popen(command, env=own, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True))
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
        raise AssertionError(f"{' '.join(command)} did not start: {(tmp_path / 'server.log').read_text()[-2000:]}")

    yield serve
    for server in servers:
        server.terminate()
        try:
            server.wait(20)
        finally:
            try:
                os.killpg(server.pid, signal.SIGKILL)  # what it left behind
            except ProcessLookupError:
                pass


def committed(name: str, folder: Path) -> None:
    """A committed notebook as it lies there, outputs included, but for one word: ``fast = True``."""
    text, setting = (demo.NOTEBOOKS / f"{name}.ipynb").read_text(), '\n    "fast = False '
    assert text.count(setting) == 1
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / f"{name}.ipynb").write_text(text.replace(setting, setting.replace("False", "True")))


def move_and_compare(page, name: str) -> None:
    """Move the reg slider by the keyboard, then click on the image; the picture must change each time."""
    try:
        page.wait_for_selector(".widget-image", timeout=1_200_000)
    except Exception as error:
        shoot(page, f"{name}-without-widgets")
        raise AssertionError(f"no widget appeared; see {SHOTS / name}-without-widgets.png") from error
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
    shoot(page, name)


def shoot(page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SHOTS / f"{name}.png"))


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("name, runs", [("explorer", "demo-fast"), ("00_start", "start-fast")])
def test_a_committed_notebook_in_jupyterlab(name, runs, served, tmp_path):
    committed(name, tmp_path)
    port = free_port()
    for setting, value in SETTINGS.items():
        file = tmp_path / "settings" / "@jupyterlab" / f"{setting}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(value))
    options = [f"--ServerApp.root_dir={tmp_path}", f"--port={port}", "--no-browser", "--allow-root"]
    served([sys.executable, "-m", "jupyterlab", *options, "--IdentityProvider.token="], port, "api")
    with browser_page(1500, 1400) as page:
        page.goto(f"http://127.0.0.1:{port}/lab/tree/notebooks/{name}.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        page.wait_for_selector("text=/ipykernel.*Idle/", timeout=120_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_selector(".jp-InputPrompt:text-matches('[1*]')", timeout=30_000)
        move_and_compare(page, f"jupyterlab-{name}")
        assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert page.locator(".jp-OutputArea-output:has-text('Traceback')").count() == 0
    assert json.loads((tmp_path / "runs" / runs / "clip" / "metrics.json").read_text())


@pytest.mark.slow
@needs_browser
def test_make_explorer(served, tmp_path):
    """The command of the Makefile, word for word; a settings file chooses the port and opens no window."""
    committed("explorer", tmp_path)
    port, makefile = free_port(), (demo.NOTEBOOKS.parent / "Makefile").read_text()
    command = re.search(r"^explorer:.*\n\t(.*)", makefile, re.M)[1].replace(
        "../$(BIN)", str(Path(sys.executable).parent)
    )
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "voila.json").write_text(json.dumps({"Voila": {"port": port, "open_browser": False}}))
    served(["sh", "-c", command], port, "static/", JUPYTER_CONFIG_DIR=str(tmp_path / "config"))
    with browser_page(1500, 1400) as page:
        page.goto(f"http://127.0.0.1:{port}/", timeout=1_200_000, wait_until="commit")
        move_and_compare(page, "voila")
        assert "Traceback" not in page.content()
    assert json.loads((tmp_path / "runs" / "demo-fast" / "otcclip" / "metrics.json").read_text())
