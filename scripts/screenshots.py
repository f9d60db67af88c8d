"""Screenshots of a repository's page of all experiments, and of its ``mlflow ui``.

The page (reports/index.html) is taken at two widths, light and dark. Of MLflow: runs, one run's overview, curves,
pictures, registry, comparison.

    .venv/bin/python scripts/screenshots.py [--repository .] [--task ixi] [--out reports/screenshots] [--page-only]

Needs Debian's ``chromium`` (or the variable ``CHROMIUM``: its path) and the package ``playwright``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE = 180
"""Seconds for the server's first answer and for a page to show what is looked for."""
PAGE = Path("reports/index.html")
WIDTHS = (1280, 420)
SCHEMES = ("light", "dark")
NO_ASSISTANT = "try { localStorage['mlflow.assistant.fab.autoOpenedOnFirstLoad_v1'] = 'true' } catch {}"
"""Keeps a panel closed that opens by itself at a browser's first visit and covers a third of the page."""


def chromium() -> str | None:
    """Path of the browser, if there is one."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def mlflow_ui(repository: Path) -> Iterator[str]:
    """``mlflow ui`` in the repository, bare but for its port and number of workers; its address, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "ui", "--port", str(port), "--workers", "1"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # starts sooner
    server = subprocess.Popen(
        command,
        cwd=repository,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(server, f"{address}/health")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the server has workers
        try:
            server.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.communicate()


@contextmanager
def browser_page(width: int = 1500, height: int = 1000) -> Iterator[Page]:
    """A page of a headless browser that reaches nothing but this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE * 1000)
        page.add_init_script(NO_ASSISTANT)
        page.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
        yield page
        browser.close()


def open_page(page: Page, url: str, *selectors: str) -> None:
    """Opens a view of MLflow's single-page application and waits until it shows what is selected."""
    page.goto("about:blank")  # else only the part behind # changes and the application keeps its state
    page.goto(url)
    for selector in selectors:
        page.locator(selector).first.wait_for()
    page.wait_for_timeout(1500)  # charts are drawn after their titles


def views(address: str, task: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> address and what must be seen there, of everything worth a look in the working directory's store."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(task)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    if not runs:
        sys.exit(f"no runs of '{task}' in {Path.cwd()}; run dvc repro first")
    run = next((found for found in runs if client.list_artifacts(found.info.run_id, "pictures")), runs[0])
    name = f"text={run.info.run_name}"
    table = f"{address}/#/experiments/{experiment.experiment_id}/runs"
    page = f"{table}/{run.info.run_id}"
    found = {
        "1-runs": (table, [name]),
        "2-run": (page, [name, "text=validation/selection"]),
        "3-curves": (f"{page}/model-metrics", [".js-plotly-plot"]),
    }
    for position, file in enumerate(client.list_artifacts(run.info.run_id, "pictures")):
        found[f"4-picture-{position + 1}"] = (f"{page}/artifacts/{file.path}", [f"text={Path(file.path).name}", "img"])
    if task in [model.name for model in client.search_registered_models()]:
        found["5-registry"] = (f"{address}/#/models/{task}", ["text=champion"])
    if len(runs) > 1:
        ids = ",".join(f'"{other.info.run_id}"' for other in runs[:3])
        query = f'runs=[{ids}]&experiments=["{experiment.experiment_id}"]'
        found["6-comparison"] = (f"{address}/#/compare-runs?{query}", [name])
    return found


def take_all(repository: Path, task: str, out: Path) -> Iterator[Path]:
    """Takes every screenshot; yields their paths."""
    os.chdir(repository)
    out.mkdir(parents=True, exist_ok=True)
    with mlflow_ui(repository) as address, browser_page() as page:
        for view, (url, selectors) in views(address, task).items():
            open_page(page, url, *selectors)
            page.screenshot(path=out / f"{view}.png")
            yield out / f"{view}.png"


def take_page(page: Page, path: Path, out: Path) -> Iterator[Path]:
    """Takes the page of all experiments, whole, at each width and in both colour schemes; yields their paths."""
    out.mkdir(parents=True, exist_ok=True)
    page.goto(path.resolve().as_uri())
    for width in WIDTHS:
        for scheme in SCHEMES:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            taken = out / f"0-overview-{width}-{scheme}.png"
            page.screenshot(path=taken, full_page=True)
            yield taken


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"mlflow ui ended: {server.communicate()[1].decode()[-500:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"{url}: no answer in {PATIENCE} s")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repository", type=Path, default=Path())
    parser.add_argument("--task", default="ixi", help="MLflow experiment, named like its dataset")
    parser.add_argument("--out", type=Path, default=Path("reports/screenshots"))
    parser.add_argument("--page-only", action="store_true", help="leave out mlflow ui")
    arguments = parser.parse_args()
    if chromium() is None:
        sys.exit("chromium: not found; install it (apt-get install chromium) or set CHROMIUM to its path")
    repository, out = arguments.repository.resolve(), arguments.out.resolve()
    if (repository / PAGE).is_file():
        with browser_page() as page:
            for path in take_page(page, repository / PAGE, out):
                print(path, flush=True)
    else:
        print(f"{PAGE}: not found; run: equisynth overview", file=sys.stderr)
    if not arguments.page_only:
        for path in take_all(repository, arguments.task, out):
            print(path, flush=True)


if __name__ == "__main__":
    main()
