"""Inline SVG plots: well-formed, inside their box, whatever the values."""

from __future__ import annotations

import json
import re
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest

from equisynth.overview import plots
from equisynth.overview.plots import HEIGHT, WIDTH, Line


def numbers(path: str) -> list[float]:
    return [float(value) for value in re.findall(r"-?\d+\.?\d*", path)]


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [1e-9, 1e3, 5.0], [-3.0, 4.0], [1e7, 2e7]])
def test_curves_stay_in_their_box(values: list[float]) -> None:
    points = list(enumerate(values, 1))
    svg = ElementTree.fromstring(plots.curves("loss <b>", [Line("A train", 0, points, mark=1.0)]))
    path = numbers(next(found for found in svg.iter("path")).attrib["d"])
    assert all(0 <= x <= WIDTH for x in path[::2])
    assert all(0 <= y <= HEIGHT for y in path[1::2])
    assert len(path) == 2 * len(values)
    assert next(svg.iter("circle")) is not None


def test_curves_hold_their_values_for_hovering() -> None:
    drawn = plots.curves("loss", [Line("A train", 0, [(1.0, 0.5), (2.0, 0.25)])])
    found = re.search(r'data-curves="([^"]*)"', drawn)
    assert found is not None
    data = json.loads(unescape(found[1]))
    assert data["lines"] == [{"name": "A train", "text": {"1": "0.5000", "2": "0.2500"}}]
    assert set(data["places"]) == {"1", "2"}


def test_lower_values_are_drawn_lower() -> None:
    drawn = plots.curves("loss", [Line("A", 0, [(1.0, 9.0), (2.0, 1.0)])])
    _, first, _, last = numbers(next(ElementTree.fromstring(drawn).iter("path")).attrib["d"])
    assert first < last  # y goes down


def test_cases_are_joined_between_models() -> None:
    values = {"a": {"x": 1.0, "y<": 2.0}, "b": {"x": 1.5}, "c": {}}
    svg = ElementTree.fromstring(plots.cases("MAE", {"a": "A", "b": "B", "c": "C"}, values))
    groups = {group.attrib["data-case"]: group for group in svg.iter("g")}
    assert set(groups) == {"x", "y<"}
    assert len(numbers(groups["x"][1].attrib["d"])) == 4
    assert len(numbers(groups["y<"][1].attrib["d"])) == 2
    assert [text.text for text in svg.iter("text") if "letter" in text.attrib["class"]] == ["A", "B"]


def test_of_many_cases_some_are_drawn() -> None:
    values = {"a": {f"case{n}": float(n) for n in range(1000)}}
    drawn = ElementTree.fromstring(plots.cases("MAE", {"a": "A"}, values))
    names = [group.attrib["data-case"] for group in drawn.iter("g")]
    assert len(names) == len(set(names)) == plots.MAX_CASES
    assert "mean of 1000 cases 499.5" in "".join(drawn.itertext())


def test_nothing_is_drawn_of_nothing() -> None:
    assert plots.curves("loss", []) == ""
    assert plots.cases("MAE", {"a": "A"}, {"a": {}}) == ""


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_few_round_and_inside(seed: int) -> None:
    random = np.random.RandomState(seed)
    low, size = random.randn() * 10.0 ** random.randint(-3, 4), 10.0 ** random.uniform(-4, 5)
    found = plots.ticks(low, low + size)
    assert 2 <= len(found) <= 6
    assert low - 1e-9 * size <= found[0] < found[-1] <= low + size * (1 + 1e-9)


def test_later_series_repeat_the_colours() -> None:
    assert plots.series(1) == "s1"
    assert plots.series(9) == "s1 again"
