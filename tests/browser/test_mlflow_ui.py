"""What ``mlflow ui`` in the repository shows: runs, curves, metrics, pictures, models, a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
RUNS = ("ixi-noreg (demo)", "ixi-eqsim_com_eqadv (demo)")


@pytest.fixture(scope="module")
def browser(filled_repository: Path) -> Iterator[tuple[Any, dict[str, tuple[str, list[str]]], list[str]]]:
    """A page, the addresses of all views, and the server's errors so far."""
    import screenshots

    errors: list[str] = []
    with (
        pytest.MonkeyPatch.context() as patch,
        screenshots.mlflow_ui(filled_repository) as address,
        screenshots.browser_page() as page,
    ):
        patch.chdir(filled_repository)
        page.on("response", lambda answer: errors.append(answer.url) if answer.status >= 500 else None)
        yield page, screenshots.views(address, "ixi"), errors


def see(browser: Any, view: str) -> str:
    """Opens a view; the text it shows."""
    import screenshots

    page, views, errors = browser
    url, selectors = views[view]
    screenshots.open_page(page, url, *selectors)
    assert not errors
    return str(page.inner_text("body"))


def test_the_table_shows_both_runs(browser: Any) -> None:
    text = see(browser, "1-runs")
    assert all(name in text for name in RUNS)


def test_a_run_shows_metrics_dataset_parameters_and_why_there_is_no_fid(browser: Any) -> None:
    text = see(browser, "2-run")
    for wanted in ("validate/mae", "test/ssim", "no weights", "0123456789abcdef", "loss.similarity", "T2 → PD"):
        assert wanted in text


def test_curves_are_drawn(browser: Any) -> None:
    see(browser, "3-curves")
    assert browser[0].locator(".js-plotly-plot path").count() > 0


@pytest.mark.parametrize("view", ["4-picture-1", "4-picture-2", "4-picture-3"])
def test_pictures_open(browser: Any, view: str) -> None:
    see(browser, view)
    width = "Math.max(...[...document.querySelectorAll('img')].map(image => image.naturalWidth))"
    browser[0].wait_for_function(f"{width} > 300")


def test_the_registry_shows_the_champion(browser: Any) -> None:
    assert "Version 2" in see(browser, "5-registry")


def test_runs_are_compared_side_by_side(browser: Any) -> None:
    text = see(browser, "6-comparison")
    assert all(name in text for name in RUNS)
    assert "validate/mae" in text
