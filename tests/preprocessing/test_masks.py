"""Morphology, body mask, brain mask."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from equisynth.errors import UserError
from equisynth.preprocessing import morphology
from equisynth.preprocessing.body_mask import body_mask
from equisynth.preprocessing.brain_mask import brain_mask, robex_brain_mask
from pipeline_repository import ROOT as REPOSITORY


def ball(shape: tuple[int, ...], radius: float, voxel_size: tuple[float, ...] = (1, 1, 1)) -> np.ndarray:
    index = np.indices(shape)
    squares = sum(((i - (n - 1) / 2) * v) ** 2 for i, n, v in zip(index, shape, voxel_size, strict=True))
    return np.sqrt(squares) <= radius


def test_axes_are_not_swapped() -> None:
    mask = np.zeros((7, 9, 11), np.uint8)
    mask[3, 4, 2:9] = 1
    dilated = morphology.dilate(mask, 1)
    assert dilated[2, 4, 5]
    assert dilated[3, 3, 5]
    assert dilated[3, 4, 1]
    assert not dilated[1, 4, 5]
    assert not dilated[3, 4, 0]


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 7)])
def test_majority_is_the_median_above_a_threshold(shape: tuple[int, ...]) -> None:
    values = np.random.RandomState(0).rand(*shape).astype(np.float32)
    median = sitk.GetArrayFromImage(sitk.Median(sitk.GetImageFromArray(values), [1] * len(shape)))
    assert np.array_equal(morphology.majority(values > 0.5), median > 0.5)
    assert 0.2 < (median > 0.5).mean() < 0.8


@pytest.mark.parametrize("shape", [(29, 28), (19, 18, 17)])
def test_a_small_ball_is_that_of_itk(shape: tuple[int, ...]) -> None:
    mask = (np.random.RandomState(1).rand(*shape) > 0.05).astype(np.uint8)
    image, radius = sitk.GetImageFromArray(mask), [1] * len(shape)
    eroded = sitk.GetArrayFromImage(sitk.BinaryErode(image, radius, sitk.sitkBall, 0, 1, False))
    dilated = sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(eroded), radius, sitk.sitkBall, 0, 1))
    assert np.array_equal(morphology.erode(mask, 1), eroded)
    assert np.array_equal(morphology.dilate(eroded, 1), dilated)
    assert 0 < eroded.sum() < dilated.sum() < mask.sum()


def test_close_keeps_bodies_at_the_border_and_fills_gaps() -> None:
    mask = np.ones((12, 12, 12), np.uint8)
    mask[6, 4:8, 4:8] = 0
    closed = morphology.close(mask, 2)
    assert closed[6, 5, 5]
    assert closed[0, 0, 0] == 1
    assert closed[11, 6, 6] == 1


def test_largest_component_and_holes() -> None:
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[1:7, 1:7, 1:7] = 1
    mask[3, 3, 3] = 0
    mask[9, 9, 9] = 1
    largest = morphology.largest_component(mask)
    assert largest[9, 9, 9] == 0
    assert largest.sum() == 6**3 - 1
    assert morphology.fill_holes(largest).sum() == 6**3
    assert not morphology.largest_component(np.zeros_like(mask)).any()


def test_body_mask_is_the_solid_body() -> None:
    random = np.random.RandomState(0)
    body = ball((40, 44, 36), 14)
    image = np.where(body, 1.0, 0.0) + 0.03 * np.abs(random.randn(*body.shape))
    image[ball(body.shape, 5)] = 0.02  # a cavity
    image[1, 1, 1] = 1.0  # a speck
    image[2:4, 30:40, 2:4] = 1.0  # something small beside the body
    mask = body_mask(image.astype(np.float32), closing=3)
    assert mask.dtype == np.uint8
    assert mask[20, 22, 18] == 1
    assert mask[1, 1, 1] == 0
    assert mask[3, 35, 3] == 0
    assert (mask != body).mean() < 0.01


@pytest.mark.parametrize("voxel_size", [(2.0, 2.0, 2.0), (3.0, 2.5, 3.6)])
def test_brain_mask_leaves_the_scalp_out(voxel_size: tuple[float, float, float]) -> None:
    shape = tuple(int(200 / size) for size in voxel_size)
    image = np.zeros(shape)
    image[ball(shape, 88, voxel_size)] = 1.1  # scalp
    image[ball(shape, 80, voxel_size)] = 0.08  # skull
    brain = ball(shape, 70, voxel_size)
    image[brain] = 0.75
    image[ball(shape, 45, voxel_size)] = 1.0
    image += 0.02 * np.abs(np.random.RandomState(0).randn(*shape))
    found = brain_mask((image * 700).astype(np.float32), voxel_size) > 0
    assert 2 * (found & brain).sum() / (found.sum() + brain.sum()) > 0.95


def test_dice_on_the_phantoms_is_printed() -> None:
    command = [sys.executable, REPOSITORY / "benchmarks" / "brain_mask.py", "--cases", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {line["dataset"]: line["dice_lowest"] for line in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"ixi", "cermep"}
    assert min(found.values()) > 0.95


def test_no_brain() -> None:
    with pytest.raises(UserError, match="no brain"):
        brain_mask(np.zeros((20, 20, 20), np.float32), (3.0, 3.0, 3.0))


def robex(folder: Path, body: str) -> Path:
    program = folder / "runROBEX.sh"
    program.write_text("#!/bin/sh\n" + body)
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    return program


def test_robex_is_called_with_scan_stripped_and_mask(tmp_path: Path) -> None:
    t1 = ball((8, 9, 10), 3).astype(np.float32)
    found = robex_brain_mask(t1, np.eye(4), robex(tmp_path, 'cp "$1" "$3"\n'))
    assert np.array_equal(found, t1 > 0)


def test_robex_failing_or_absent(tmp_path: Path) -> None:
    t1 = np.ones((4, 4, 4), np.float32)
    with pytest.raises(UserError, match=r"robex_path: .*failed \(no atlas\)"):
        robex_brain_mask(t1, np.eye(4), robex(tmp_path, "echo no atlas >&2; exit 3\n"))
    with pytest.raises(UserError, match="robex_path: .*not found"):
        robex_brain_mask(t1, np.eye(4), tmp_path / "nowhere")
