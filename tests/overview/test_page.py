"""The page itself: self-contained, escaped, the same for the same inputs, whatever is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import overview_example
from equisynth.overview.collect import collect
from equisynth.overview.page import to_html
from equisynth.params import read

VOID = {"meta", "link", "img", "input", "br", "wbr"}


class Reader(HTMLParser):
    """Checks that tags are closed in order; keeps elements and the text of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


def parse(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    overview_example.make_reports(folder)
    return folder


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return to_html(collect(read(repository / "params.yaml"), repository / "reports"))


@pytest.fixture(scope="module")
def reader(page: str) -> Reader:
    return parse(page)


def test_it_needs_no_other_file(page: str, reader: Reader) -> None:
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"@import|url\(", page)
    assert len(page) < 15e6
    assert reader.all("meta", charset="utf-8")


def test_equal_reports_make_equal_pages(repository: Path, page: str) -> None:
    assert to_html(collect(read(repository / "params.yaml"), repository / "reports")) == page


def test_names_are_escaped_everywhere(page: str, reader: Reader) -> None:
    assert "<img src=x" not in page
    assert not [found for found in reader.all("img") if "onerror" in found]
    assert "onerror=document.title" in reader.text  # shown as text
    assert "</script" not in page.split('id="data">')[1].split("</script>")[0]


def test_states_are_shown(reader: Reader) -> None:
    text = " ".join(reader.text.split())
    for words in (
        "Not for clinical use", "not run", "not evaluated", "not computed (no weights: weights/fid_inception.pth",
        "No intervals: 3 cases, at least 6 needed", "a clear difference", "lookup table",
        "images: 3 against 3 real ones",
    ):  # fmt: skip
        assert words in text


def test_columns_say_direction_and_sorting(reader: Reader) -> None:
    heads = {str(found["data-measure"]): found for found in reader.all("th") if "data-measure" in found}
    assert heads["mae"]["data-direction"] == "lower"
    assert heads["mae"]["aria-sort"] == "ascending"
    assert heads["ssim"]["data-direction"] == "higher"
    assert "fid/images" in heads
    assert "deformation_drift_axis0_voxels" not in heads


def test_one_best_value_per_column_with_a_direction(page: str) -> None:
    table = page.split('data-table="test"')[1].split("</table>")[0]
    rows = re.findall(r"<tr data-experiment=.*?</tr>", table)
    assert len(rows) == 4
    for column in range(5):
        cells = [re.findall(r"<td[^>]*>", row)[column] for row in rows]
        assert sum("best-cell" in cell for cell in cells) == 1
    assert "best-cell" in rows[0]


def test_versions_can_be_pulled_by_a_copied_command(reader: Reader) -> None:
    commands = [found["data-copy"] for found in reader.all("button") if "data-copy" in found]
    assert "equisynth predict input.nii.gz --model models:/ixi/1 --output synthesised.nii.gz" in commands


def test_only_the_last_version_that_was_promoted_is_the_champion(tmp_path: Path) -> None:
    """What was found when an earlier version was registered still says that it became the champion then."""
    tree = overview_example.make_reports(tmp_path)
    for path in sorted((tmp_path / "reports/registry").iterdir()):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"champion": True}))
    assert len(list((tmp_path / "reports/registry").iterdir())) > 1
    page = to_html(collect(tree, tmp_path / "reports"))
    (row,) = [row for row in page.split("<tr>") if "@champion" in row and "models:/ixi/" in row]
    versions = [json.loads(path.read_text())["version"] for path in (tmp_path / "reports/registry").iterdir()]
    assert f"models:/ixi/{max(versions)}<" in row


def test_the_card_compares_with_the_best_reference(tmp_path: Path) -> None:
    """A linear map may be better than a lookup table: the model must beat that, too."""
    tree = overview_example.make_reports(tmp_path)
    for path in (tmp_path / "reports/evaluation").iterdir():
        found = json.loads(path.read_text())
        worse, better = {"mae": 1e3}, {"mae": 1e-6}
        found["references"] = {"lookup_table": worse, "linear_fit": better, "mean_label": worse}
        path.write_text(json.dumps(found))
    page = to_html(collect(tree, tmp_path / "reports"))
    assert "<strong>not better than</strong> the best linear fit (" in page
    assert "better than</strong> the best lookup table" not in page


def test_curves_mark_the_best_epoch(page: str) -> None:
    assert "best epoch of A validation" in page


def test_the_script_s_data_are_json(page: str) -> None:
    data: dict[str, Any] = json.loads(page.split('id="data">')[1].split("</script>")[0])
    ixi = data["datasets"]["ixi"]
    assert [model["letter"] for model in ixi["models"]] == ["A", "B", "C"]
    case = next(found for found in ixi["cases"] if found["name"] == "case2")
    assert set(case["planes"]) == set(overview_example.BRAIN)
    shared = case["planes"]["axial"]["shared"]
    assert len(shared["aligned"]) == 1  # three models, one image
    keys = {key for images in shared.values() for key in images}
    assert keys <= data["images"].keys()
    states = {cell["state"] for cell in ixi["differences"]["test"]["mae"]["ixi-noreg"].values()}
    assert states <= {"better", "worse", "open"}


@pytest.mark.parametrize("limit", [0, 5000])
def test_images_without_room_are_said_to_be_left_out(repository: Path, limit: int) -> None:
    overview = collect(read(repository / "params.yaml"), repository / "reports", max_image_bytes=limit)
    assert overview.left_out > 0
    assert f"{overview.left_out} images left out" in parse(to_html(overview)).text


def test_a_repository_without_reports_has_a_page(repository: Path, tmp_path: Path) -> None:
    text = parse(to_html(collect(read(repository / "params.yaml"), tmp_path / "reports"))).text
    assert text.count("not run") >= 6
    assert "0 evaluated experiments" in text


def test_an_empty_pipeline_has_a_page(tmp_path: Path) -> None:
    tree = read(overview_example.ROOT / "params.yaml") | {"pipeline": {}}
    assert "No experiments yet" in parse(to_html(collect(tree, tmp_path))).text
