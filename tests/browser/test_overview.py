"""The page of all experiments in a browser, from a file: no errors, sorting, baselines, hover values, image viewer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import overview_example

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
IXI = "section[data-dataset=ixi]"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of its own, made without MLflow."""
    from equisynth.overview.collect import collect
    from equisynth.overview.page import to_html
    from equisynth.params import read

    folder = tmp_path_factory.mktemp("repository")
    overview_example.make_reports(folder)
    path = folder / "reports/index.html"
    path.write_text(to_html(collect(read(folder / "params.yaml"), folder / "reports")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    import screenshots

    with screenshots.browser_page(1280, 900) as page:
        page.set_default_timeout(20_000)
        yield page


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """The page freshly opened; whatever the browser complains of, or fetches elsewhere, fails the test."""
    complaints: list[str] = []

    def complain(message: Any) -> None:
        complaints.append(str(getattr(message, "text", message)))

    def fetched(request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            complaints.append(request.url)

    listeners = {"console": complain, "pageerror": complain, "request": fetched}
    for event, listener in listeners.items():
        browser.on(event, listener)
    browser.set_viewport_size({"width": 1280, "height": 900})
    browser.goto(report.as_uri())
    yield browser
    for event, listener in listeners.items():
        browser.remove_listener(event, listener)
    assert complaints == []


def rows(page: Any) -> list[str]:
    return list(page.locator(f"{IXI} table[data-table=test] tbody tr[data-experiment] .name").all_inner_texts())


@pytest.mark.parametrize("width", [1280, 420, 320])
def test_it_is_never_wider_than_the_window(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 900})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.title() == "Image synthesis experiments"  # a name with markup did nothing


def test_every_image_is_there(opened: Any) -> None:
    opened.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    assert opened.evaluate("document.images.length") > 40
    assert opened.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0


def test_a_click_on_a_header_sorts(opened: Any) -> None:
    assert rows(opened)[:3] == ["ixi-eqsim_com_eqadv", "ixi-pix2pix", "ixi-noreg"]
    header = opened.locator(f"{IXI} table[data-table=test] th[data-measure=mae]")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert rows(opened)[-3:] == ["ixi-noreg", "ixi-pix2pix", "ixi-eqsim_com_eqadv"]
    ssim = opened.locator(f"{IXI} table[data-table=test] th[data-measure=ssim]")
    ssim.locator("button").focus()
    opened.keyboard.press("Enter")
    assert ssim.get_attribute("aria-sort") == "descending"  # the best first
    assert header.get_attribute("aria-sort") == "none"
    assert rows(opened)[0] == "ixi-eqsim_com_eqadv"


def test_what_was_not_measured_is_sorted_last(opened: Any) -> None:
    header = opened.locator(f"{IXI} table[data-table=test] th[data-measure=deformation_folded_share] button")
    for _ in range(2):
        header.click()
        assert rows(opened)[0] == "ixi-eqsim_com_eqadv"


def test_a_baseline_is_chosen(opened: Any) -> None:
    cell = opened.locator(f"{IXI} table[data-table=test] tr[data-experiment=ixi-eqsim_com_eqadv] td").first
    assert cell.locator(".delta").inner_text() == "best"
    opened.locator(f"{IXI} [data-baseline]").select_option("ixi-noreg")
    assert "better" in str(cell.locator(".delta").get_attribute("class"))
    assert cell.locator(".delta i").inner_text().startswith("[-")
    opened.locator(f"{IXI} [data-baseline]").select_option("")
    assert cell.locator(".delta").inner_text() == "best"


def test_test_and_validation_cases_are_switched(opened: Any) -> None:
    test, validation = (opened.locator(f"{IXI} table[data-table={split}]") for split in ("test", "validate"))
    assert test.is_visible()
    assert not validation.is_visible()
    opened.locator(f"{IXI} [data-split-button=validate]").click()
    assert validation.is_visible()
    assert not test.is_visible()


def test_hovering_shows_values(opened: Any) -> None:
    plot = opened.locator(f"{IXI} svg[data-curves]").first
    plot.scroll_into_view_if_needed()
    plot.hover()
    tip = opened.locator(".tip")
    assert tip.inner_text().startswith("epoch ")
    assert "A validation" in tip.inner_text()
    before = tip.inner_text()
    plot.focus()
    opened.keyboard.press("ArrowLeft")
    assert tip.inner_text() != before


def test_the_viewer_shows_cases_and_planes(opened: Any) -> None:
    viewer = opened.locator(f"{IXI} [data-viewer]")
    assert viewer.locator("figure").count() >= 3 + 3
    first = viewer.locator("img").first.get_attribute("src")
    opened.locator(f"{IXI} [data-viewer-planes] button", has_text="coronal").click()
    assert viewer.locator("img").first.get_attribute("src") != first
    cases = opened.locator(f"{IXI} [data-viewer-case]")
    second = viewer.locator("img").first.get_attribute("src")
    cases.select_option(index=1)
    assert viewer.locator("img").first.get_attribute("src") != second
    texts = viewer.inner_text()
    for words in ("input (T2)", "label as trained on", "aligned label", "Error", "Checkerboard", "Deformation"):
        assert words in texts


def test_a_held_prediction_turns_into_the_label(opened: Any) -> None:
    button = opened.locator(f"{IXI} .flip").first
    button.scroll_into_view_if_needed()
    image = button.locator("img")
    prediction = image.get_attribute("src")
    label = opened.locator(f"{IXI} [data-viewer] figure", has_text="aligned label").first.locator("img")
    button.hover()
    opened.mouse.down()
    assert image.get_attribute("src") == label.get_attribute("src")
    opened.mouse.up()
    assert image.get_attribute("src") == prediction
    button.focus()
    opened.keyboard.down("Space")
    assert image.get_attribute("src") == label.get_attribute("src")
    opened.keyboard.up("Space")
    assert image.get_attribute("src") == prediction
    opened.locator(f"{IXI} [data-viewer-flip]").check()
    assert opened.locator(f"{IXI} .flip.flipped").count() >= 1


def test_a_command_is_copied(opened: Any) -> None:
    button = opened.locator(f"{IXI} [data-copy]").first
    button.click()
    from playwright.sync_api import expect

    expect(button).to_have_text("Copied")  # the page's own policy forbids waiting inside of it


def test_pictures_of_it_are_taken_at_two_widths(browser: Any, report: Path, tmp_path: Path) -> None:
    import screenshots
    from PIL import Image

    taken = list(screenshots.take_page(browser, report, tmp_path))
    assert [path.name for path in taken] == [
        f"0-overview-{width}-{scheme}.png" for width in (1280, 420) for scheme in ("light", "dark")
    ]
    assert [Image.open(path).width for path in taken] == [1280, 1280, 420, 420]
