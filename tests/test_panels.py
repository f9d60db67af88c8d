"""Panels: what they show lies where it should, in true proportions and turned as a patient is; few bytes are read."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from equisynth import panels
from equisynth.orientation import sizes_to_ras, to_ras

EVERYTHING = (slice(None), slice(None))


def oriented_head(orientation: str) -> np.ndarray:
    """A volume of (R, A, S) = (20, 24, 28) voxels whose value says where a voxel lies, stored in an orientation."""
    right, front, up = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (20, 24, 28)), indexing="ij")
    volume = right + 100 * front + 10_000 * up
    axes, flipped = [], []
    for code in orientation:
        axis = next(k for k, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        axes.append(axis)
        flipped.append(code in "LPI")
    stored = np.transpose(volume, axes)
    return stored[tuple(slice(None, None, -1) if flip else slice(None) for flip in flipped)]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "ASR", "IPL"])
def test_a_volume_of_any_orientation_is_seen_to_the_right_the_front_and_up(orientation: str) -> None:
    stored = oriented_head(orientation)
    turned = to_ras(stored, orientation)
    np.testing.assert_array_equal(turned, oriented_head("RAS"))
    assert np.shares_memory(turned, stored)
    assert sizes_to_ras(stored.shape, orientation) == turned.shape


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "ASR", "IPL"])
def test_vectors_turn_with_their_field(orientation: str) -> None:
    """Where p + u(p) is read before turning, there it is read after."""
    stored = oriented_head(orientation)
    field = np.zeros((3, *stored.shape), np.float32)
    field[0], field[1], field[2] = 1, 2, -1
    turned = to_ras(stored, orientation)
    moved = [read((slice(None),) * 3) for read in panels.field_to_ras(field, orientation)]
    middle = np.array([9, 11, 13])
    target = tuple(middle + [int(component[tuple(middle)]) for component in moved])
    place = tuple(int(i) for i in np.argwhere(stored == turned[tuple(middle)])[0])
    assert turned[target] == stored[place[0] + 1, place[1] + 2, place[2] - 1]


def test_slices_show_the_patient_s_right_on_the_right_the_front_above_and_up_above() -> None:
    volume = oriented_head("RAS")
    axial, coronal, sagittal = (
        panels.cut(volume.__getitem__, view) for view in panels.slices(volume.shape, (1, 1, 1), (4, 5, 6))
    )
    front_right = volume[19, 23, 6]
    assert axial[0, -1] == front_right
    assert coronal[0, -1] == volume[19, 5, 27]
    assert sagittal[0, -1] == volume[4, 23, 27]
    assert (axial.shape, coronal.shape, sagittal.shape) == ((24, 20), (28, 20), (28, 24))


def test_pixels_are_square_and_of_the_smallest_size() -> None:
    volume = np.zeros((20, 24, 10), np.float32)
    shapes = [
        panels.cut(volume.__getitem__, view).shape for view in panels.slices(volume.shape, (1, 1, 2.5), (4, 5, 6))
    ]
    assert shapes == [(24, 20), (25, 20), (25, 24)]


def test_long_slices_shrink() -> None:
    volume = np.zeros((640, 100, 4), np.float32)
    axial = panels.cut(volume.__getitem__, panels.slices(volume.shape, (1, 1, 1), (0, 0, 0))[0])
    assert axial.shape == (50, panels.LONGEST_SLICE)


def test_the_middle_is_that_of_the_mask() -> None:
    mask = np.zeros((10, 12, 14), np.uint8)
    mask[2:5, 6:12, 3] = 1
    assert panels.middle_of(mask, mask.shape) == (3, 9, 3)
    assert panels.middle_of(None, (10, 12, 14)) == (5, 6, 7)
    assert panels.middle_of(mask * 0, mask.shape) == (5, 6, 7)


@pytest.mark.parametrize("shape", [(12, 8), (13, 11), (13, 11, 3)])
def test_thinning_takes_means_and_reads_bands(shape: tuple[int, ...]) -> None:
    values = np.random.RandomState(0).rand(*shape).astype(np.float32)
    largest = 0

    def read(place: panels.Place) -> np.ndarray:
        nonlocal largest
        largest = max(largest, values[place].size)
        return values[place]

    found = panels.thinned(read, (shape[0], shape[1]), 4)
    assert found.shape[:2] == (-(-shape[0] // 4), -(-shape[1] // 4))
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            square = values[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            np.testing.assert_allclose(found[row, column], square.mean(axis=(0, 1)), rtol=1e-5)
    assert largest <= 4 * np.prod(shape[1:])


def test_large_pictures_are_thinned_and_the_part_has_full_resolution() -> None:
    assert panels.whole((512, 300), (1, 1)).step == 1
    view = panels.whole((1300, 700), (1, 1))
    assert view.step == 3
    values = np.random.RandomState(0).rand(1300, 700).astype(np.float32)
    assert panels.cut(values.__getitem__, view).shape == (434, 234)
    part = panels.part((1044, 3), (1300, 700), (1, 1))
    np.testing.assert_array_equal(panels.cut(values.__getitem__, part), values[1044:1300, 3:259])
    assert panels.part((0, 0), (1300, 100), (1, 1)).shape == (256, 100)


def test_the_most_detailed_part_is_valid_and_varies_most() -> None:
    random, step, shape = np.random.RandomState(0), 2, (1000, 800)
    values, valid = np.full(shape, 0.5, np.float32), np.ones(shape, np.float32)
    values[500:700, 300:500] += random.rand(200, 200) - 0.5
    values[:200] += 5 * (random.rand(200, 800) - 0.5)  # varies more, but there is no picture
    valid[:200] = 0
    moments = np.stack([values * valid, values**2 * valid, valid], axis=-1)
    row, column = panels.most_detailed(panels.thinned(moments.__getitem__, shape, step), step, shape)
    assert 444 <= row <= 500
    assert 244 <= column <= 300
    nothing = np.zeros((500, 400, 3), np.float32)
    assert panels.most_detailed(nothing, step, shape) == (0, 0)


def test_the_part_never_sticks_out() -> None:
    shape, step = (1001, 257), 2
    values = np.zeros(shape, np.float32)
    values[-100:, -20:] = np.random.RandomState(0).rand(100, 20)
    moments = np.stack([values, values**2, np.ones(shape)], axis=-1)
    row, column = panels.most_detailed(panels.thinned(moments.__getitem__, shape, step), step, shape)
    assert row <= 1001 - 256
    assert column <= 1
    assert row > 700


def test_values_are_shown_within_their_window() -> None:
    values = np.array([[-1.0, 0.0, 1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(panels.shown(values, (0.0, 2.0)), [[0, 0, 128, 255, 255]])
    assert panels.shown(np.zeros((2, 2, 3)), (0, 1)).shape == (2, 2, 3)
    np.testing.assert_array_equal(panels.shown(np.array([[[0.0, 1.0]]]), (0, 1)), [[128]])


def test_a_window_leaves_outliers_out_and_is_never_empty() -> None:
    values = np.concatenate([np.linspace(0, 1, 10_001), [50.0]])
    low, high = panels.window_of([values[:5000], values[5000:]])
    assert 0 < low < 0.01
    assert 0.99 < high < 1
    assert panels.window_of([np.zeros((3, 3))]) == (0.0, 1.0)
    assert panels.error_limit((0.0, 255.0)) == 64.0


def test_errors_have_the_colours_of_the_bar_and_are_hidden_where_nothing_is_compared() -> None:
    valid = np.array([[1, 1, 1, 0.5, 0.4, 1]])
    error = np.array([[0, 1, 9, 0.5, 0.4, 0.5]])
    found = panels.error_map(np.stack([error, valid], axis=-1), 1.0)[0]
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in found]
    last, middle = panels.ERROR_COLOURS[-1], panels.ERROR_COLOURS[len(panels.ERROR_COLOURS) // 2]
    assert colours == [panels.ERROR_COLOURS[0], last, last, last, panels.ERROR_HIDDEN, middle]


def test_a_checkerboard_of_one_picture_with_itself_is_that_picture() -> None:
    random = np.random.RandomState(0)
    first, second = (random.randint(0, 256, (32, 40)).astype(np.uint8) for _ in range(2))
    np.testing.assert_array_equal(panels.checkerboard(first, first), first)
    mixed = panels.checkerboard(first, second)
    np.testing.assert_array_equal(mixed[:5, :5], first[:5, :5])
    np.testing.assert_array_equal(mixed[:5, 5:10], second[:5, 5:10])
    assert panels.checkerboard(first, np.zeros((32, 40, 3), np.uint8)).shape == (32, 40, 3)


def lines(picture: np.ndarray) -> np.ndarray:
    """Where a grid covers a black picture, 0 to 1."""
    return picture[..., 0] / (0.85 * panels.GRID_COLOUR[0])


def test_the_grid_of_no_deformation_is_straight_and_even() -> None:
    covered = lines(panels.grid_over(np.zeros((256, 256), np.uint8), np.zeros((2, 256, 256))))
    columns = covered[8]  # between two lines along rows
    np.testing.assert_allclose(covered[120], columns, atol=0.01)
    assert np.isclose(columns.sum(), panels.GRID_LINES, rtol=0.07)
    np.testing.assert_allclose(covered, covered.T)


def test_the_grid_moves_against_the_field_as_the_label_does() -> None:
    """label(p) = aligned(p + u): with u = 4 along columns, all that the aligned label has lies 4 to the left."""
    black = np.zeros((256, 256), np.uint8)
    still = panels.grid_over(black, np.zeros((2, 256, 256)))
    field = np.zeros((2, 256, 256))
    field[1] = 4.0
    np.testing.assert_array_equal(panels.grid_over(black, field)[:, :-4], still[:, 4:])


def test_a_small_picture_is_enlarged_and_its_field_with_it() -> None:
    field = np.zeros((2, 64, 48))
    field[0] = 2.0
    drawn, still = (panels.grid_over(np.zeros((64, 48), np.uint8), u) for u in (field, 0 * field))
    assert drawn.shape == (256, 192, 3)
    np.testing.assert_array_equal(drawn[:-8], still[8:])


@pytest.mark.parametrize("channels", [(), (3,)])
def test_lossless_files_hold_each_value_and_bytes_repeat(channels: tuple[int, ...]) -> None:
    picture = np.random.RandomState(0).randint(0, 256, (20, 30, *channels)).astype(np.uint8)
    content = panels.to_webp(picture, lossless=True)
    assert content == panels.to_webp(picture.copy(), lossless=True)
    with Image.open(BytesIO(content)) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), panels.coloured(picture))
    lossy = panels.to_webp(picture, lossless=False)
    assert (lossy[:4], lossy[8:12]) == (b"RIFF", b"WEBP")
    assert len(lossy) < len(content)
