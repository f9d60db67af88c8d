"""Screenshots of a repository's bare ``mlflow ui``: runs, one run's overview, curves and pictures, the registry, a comparison.

    .venv/bin/python scripts/screenshots.py [--repository .] [--task ixi] [--out reports/screenshots]

Needs Debian's ``chromium`` (or the variable ``CHROMIUM``: its path) and the package ``playwright``.
"""

from __future__ import annotations

import argparse
import os
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


def chromium() -> str | None:
    """Path of the browser, if there is one."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def mlflow_ui(repository: Path) -> Iterator[str]:
    """Bare ``mlflow ui`` started in the repository (only its port and number of workers are chosen); its address, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "ui", "--port", str(port), "--workers", "1"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    server = subprocess.Popen(
        command, cwd=repository, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
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
def browser_page(width: int = 1500, height: int = 950) -> Iterator[Page]:
    """A page of a headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE * 1000)
        page.add_init_script("localStorage.setItem('mlflow.telemetry.disabled', 'true')")
        yield page
        browser.close()


def open_page(page: Page, url: str, *texts: str) -> None:
    """Opens a page of the single-page application and waits until it shows the texts."""
    page.goto("about:blank")  # else only the part behind # changes and the application keeps its state
    page.goto(url)
    for text in texts:
        page.get_by_text(text).first.wait_for()
    page.wait_for_timeout(1500)  # charts are drawn after their titles


def take_all(repository: Path, task: str, out: Path) -> list[Path]:
    """Takes every screenshot; returns their paths."""
    from mlflow import MlflowClient

    os.chdir(repository)
    client = MlflowClient()
    experiment = client.get_experiment_by_name(task)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    if not runs:
        sys.exit(f"{repository}: no runs of '{task}'; run dvc repro first")
    run = next((found for found in runs if client.list_artifacts(found.info.run_id, "pictures")), runs[0])
    out.mkdir(parents=True, exist_ok=True)
    taken = []
    with mlflow_ui(repository) as address, browser_page() as page:
        runs_url = f"{address}/#/experiments/{experiment.experiment_id}/runs"
        run_url = f"{runs_url}/{run.info.run_id}"
        name = run.info.run_name
        views = {
            "1-runs": (runs_url, [name]),
            "2-run": (run_url, [name, "validation/selection"]),
            "3-curves": (f"{run_url}/model-metrics", ["validation/selection"]),
        }
        for position, file in enumerate(client.list_artifacts(run.info.run_id, "pictures")[:3]):
            views[f"4-picture-{position + 1}"] = (f"{run_url}/artifacts/{file.path}", [Path(file.path).name])
        if task in [model.name for model in client.search_registered_models()]:
            views["5-registry"] = (f"{address}/#/models/{task}", ["champion"])
        if len(runs) > 1:
            ids = ",".join(f'"{found.info.run_id}"' for found in runs[:3])
            query = f"runs=[{ids}]&experiments=[\"{experiment.experiment_id}\"]"
            views["6-comparison"] = (f"{address}/#/compare-runs?{query}", [name])
        for view, (url, texts) in views.items():
            open_page(page, url, *texts)
            taken.append(out / f"{view}.png")
            page.screenshot(path=taken[-1])
    return taken


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
    arguments = parser.parse_args()
    if chromium() is None:
        sys.exit("chromium: not found; install it (apt-get install chromium) or set CHROMIUM to its path")
    for path in take_all(arguments.repository.resolve(), arguments.task, arguments.out.resolve()):
        print(path)


if __name__ == "__main__":
    main()
