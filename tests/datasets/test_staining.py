"""Virtual staining: the phantom slides, what a prepared case holds, bounded memory; what is wrong in slides."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from joblib import parallel_config
from scipy import ndimage

from equisynth.datasets import staining
from equisynth.datasets.archives import CaseSkipped
from equisynth.datasets.staining import (
    ARCHIVE,
    StainingArchives,
    StainingPathSource,
    StainingPreparation,
    constants,
    locate,
    prepare_case_into,
    published_splits,
)
from equisynth.datasets.staining_phantom import StainingPhantom, make_phantoms, section, write_case
from equisynth.datasets.tissue import positions
from equisynth.errors import UserError
from equisynth.files import read_json
from equisynth.preprocessing.registration import BSplineStep, Registration, RigidStep

SOURCE = StainingPhantom(cases={"train": 1, "validate": 1, "test": 1}, shape=(448, 400))
CASE = "sample_16"


def preparation(iterations: int) -> StainingPreparation:
    step = {"iterations": iterations, "samples": 1000, "step_size_samples": 500}
    return StainingPreparation(
        registration_side=224,
        registration=Registration(
            rigid=RigidStep(**step), bspline=BSplineStep(**step, grid_spacing=32, sample_region=120)
        ),
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantoms(SOURCE, tmp_path_factory.mktemp("staining"))["slides"]


@pytest.fixture(scope="module")
def slides(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    with StainingArchives({"slides": archive}) as opened:
        return opened.read(CASE, tmp_path_factory.mktemp("slides"))


@pytest.fixture(scope="module")
def prepared(slides: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("case")
    return folder, prepare_case_into(folder, slides, CASE, preparation(100))


# --- phantom


def test_layout_is_the_public_one(archive: Path, slides: dict[str, Path]) -> None:
    assert archive.name == "virtual-staining-data.tar"
    with tarfile.open(archive, "r:") as tar:
        assert tar.getnames() == [
            f"data/sample_{n}/sample_{n}_{kind}.tif" for n in (16, 17, 18) for kind in ("mask", "stained", "unstained")
        ]
    assert read_json(archive.parent / "splits.json") == {
        "train": ["sample_16"], "validate": ["sample_17"], "test": ["sample_18"],
    }  # fmt: skip
    for path in slides.values():
        with tifffile.TiffFile(path) as file:
            assert file.pages[0].shape == (*SOURCE.shape, 3)
            assert file.pages[0].dtype == np.uint8
            assert file.pages[0].photometric == tifffile.PHOTOMETRIC.RGB


def test_archive_has_the_same_bytes_for_any_number_of_jobs(archive: Path, tmp_path: Path) -> None:
    with parallel_config(backend="threading"):  # processes would have to start and load everything
        assert make_phantoms(SOURCE, tmp_path, jobs=2)["slides"].read_bytes() == archive.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["splits.json", ARCHIVE]


def test_tissue_looks_stained_and_unstained(slides: dict[str, Path]) -> None:
    mask, stained, unstained = (tifffile.imread(slides[kind]).astype(float) for kind in staining.KINDS)
    assert set(np.unique(mask)) == {0, 255}
    inside = mask.all(axis=-1)
    assert 0.3 < inside.mean() < 0.9
    red, green, blue = stained[inside].mean(axis=0)
    assert green < red - 20  # pink and violet
    assert green < blue - 20
    assert np.ptp(unstained[inside].mean(axis=0)) < 8  # grey
    assert stained[inside].std() > 1.5 * unstained[inside].std()
    outside = ndimage.binary_erosion(~inside, iterations=40)
    assert stained[outside].mean() > 230
    assert min(stained.min(), unstained.min()) >= 1


def test_sections_lie_off_each_other_by_a_few_pixels() -> None:
    tissue, here = section(SOURCE, CASE), positions(range(448), 400)
    offset = tissue.displaced(here) - here
    length = np.linalg.norm(offset, axis=0)
    assert 3 < length.mean() < 30
    assert np.linalg.norm(offset - offset.mean(axis=(1, 2), keepdims=True), axis=0).mean() > 1.5  # not a shift alone
    other = section(SOURCE, "sample_17")
    assert np.abs(other.displaced(here) - here - offset).mean() > 1


# --- one case


def test_files_are_mapped_and_hold_what_the_slides_hold(prepared: tuple[Path, dict], slides: dict[str, Path]) -> None:
    folder, facts = prepared
    assert sorted(path.name for path in folder.iterdir()) == [
        "input.tif",
        "label.tif",
        "label_registered.tif",
        "mask.tif",
    ]
    for role, kind in (("input", "unstained"), ("label", "stained")):
        mapped = tifffile.memmap(folder / f"{role}.tif", mode="r")
        assert isinstance(mapped, np.memmap)
        assert np.array_equal(mapped, tifffile.imread(slides[kind]))
    mask = tifffile.memmap(folder / "mask.tif", mode="r")
    assert mask.shape == SOURCE.shape
    assert np.array_equal(mask, tifffile.imread(slides["mask"])[..., 0] // 255)
    registered = tifffile.memmap(folder / "label_registered.tif", mode="r")
    assert not registered[mask == 0].any()
    assert facts["shape"] == list(SOURCE.shape)
    assert facts["valid_ratio"] == pytest.approx(mask.mean(), abs=0.01)
    assert facts["registered_ratio"] == pytest.approx(registered[mask > 0].any(axis=-1).mean(), abs=0.01)
    assert facts["registered_ratio"] > 0.85
    assert json.loads(json.dumps(facts)) == facts


def test_registered_label_lies_on_the_input(prepared: tuple[Path, dict]) -> None:
    folder, facts = prepared
    tissue, here = section(SOURCE, CASE), positions(range(448), 400)
    truth = tissue.stained(here, np.zeros((*SOURCE.shape, 3), np.float32)).astype(float)
    label, registered = (tifffile.imread(folder / f"{role}.tif") for role in ("label", "label_registered"))
    valid = registered.any(axis=-1)
    before, after = (np.abs(values - truth)[valid].mean() for values in (label, registered))
    assert after < 0.75 * before
    true = np.linalg.norm(tissue.displaced(here) - here, axis=0)[valid].mean()
    assert facts["mean_displacement"] == pytest.approx(true, rel=0.25)


def test_a_repeat_gives_the_same_bytes(prepared: tuple[Path, dict], slides: dict[str, Path], tmp_path: Path) -> None:
    facts = prepare_case_into(tmp_path, slides, CASE, preparation(100))
    assert facts == prepared[1]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (prepared[0] / path.name).read_bytes()


def test_windows_join_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    random, factor = np.random.RandomState(0), 3
    label = random.randint(1, 256, (61, 83, 3)).astype(np.uint8)
    mask = np.ones(label.shape[:2], np.uint8)
    mask[:20, :25] = 0
    coarse = np.stack([ndimage.gaussian_filter(random.randn(21, 28), 3) * 12 for _ in range(2)]).astype(np.float32)

    def whole(window: int) -> np.ndarray:
        monkeypatch.setattr(staining, "WINDOW", window)
        result = np.full_like(label, 77)
        for place, values in staining._displaced(label, mask, coarse, factor):
            result[place] = values
        return result

    expected = whole(1000)
    assert (np.abs(whole(16).astype(int) - expected) <= 1).mean() > 0.9999  # rounding
    here = np.indices(mask.shape).astype(float)
    fine = factor * np.stack([ndimage.map_coordinates(c, (here - 1) / factor, order=1, mode="nearest") for c in coarse])
    read_at = here + fine
    share = ndimage.map_coordinates(mask.astype(float), read_at, order=1, mode="constant")
    valid = (share > 1 - 1e-5) & (mask > 0)
    assert 0.3 < valid.mean() < 0.95
    plain = np.stack(
        [ndimage.map_coordinates(label[..., c].astype(float), read_at, order=1) for c in range(3)], axis=-1
    )
    assert (np.abs(plain * valid[..., None] - expected) > 0.6).mean() < 1e-3  # rounding, and the very border


def test_small_pictures_are_means_of_squares() -> None:
    picture = np.random.RandomState(0).randint(0, 256, (10, 12, 3)).astype(np.uint8)
    small = staining._shrunken(picture, 4, staining._brightness)
    assert small.shape == (3, 3)
    assert small[1, 2] == pytest.approx(picture[4:8, 8:12].mean())
    assert small[2, 0] == pytest.approx(picture[[8, 9, 9, 9], :4].mean())


# --- slides of other kinds


def test_slides_of_any_storage(tmp_path: Path, slides: dict[str, Path]) -> None:
    """Grey masks, strips, no compression, 16 bits; a folder in place of the archive."""
    mask, stained, unstained = (tifffile.imread(slides[kind]) for kind in staining.KINDS)
    home = tmp_path / "data" / "sample_1"
    home.mkdir(parents=True)
    tifffile.imwrite(home / "sample_1_mask.tif", mask[..., 0], photometric="minisblack")
    tifffile.imwrite(
        home / "sample_1_stained.tif", stained, photometric="rgb", compression="adobe_deflate", rowsperstrip=7
    )
    tifffile.imwrite(home / "sample_1_unstained.tiff", unstained.astype(np.uint16) * 257, photometric="rgb")
    (tmp_path / "out").mkdir()
    with StainingArchives(locate(StainingPathSource(kind="path", path=tmp_path))) as opened:
        assert opened.cases() == ["sample_1"]
        assert opened.full_name("1") == "sample_1"
        found = opened.read("sample_1", tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()  # the user's own files are read where they are
    prepare_case_into(tmp_path / "out", found, "sample_1", preparation(1))
    for role, values in (("input", unstained), ("label", stained), ("mask", mask[..., 0] // 255)):
        assert np.array_equal(tifffile.imread(tmp_path / "out" / f"{role}.tif"), values)


def _plain(folder: Path, **pictures: np.ndarray) -> dict[str, Path]:
    for kind, values in pictures.items():
        tifffile.imwrite(folder / f"{kind}.tif", values, photometric="rgb")
    return {kind: folder / f"{kind}.tif" for kind in staining.KINDS}


def test_bad_slides_are_skipped_with_a_reason(tmp_path: Path) -> None:
    picture = np.random.RandomState(0).randint(1, 256, (64, 64, 3)).astype(np.uint8)
    good = _plain(tmp_path, mask=picture, stained=picture, unstained=picture)

    def skipped(reason: str, **slides: Path) -> None:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        with pytest.raises(CaseSkipped, match=reason) as error:
            prepare_case_into(out, {**good, **slides}, CASE, preparation(1))
        assert "\n" not in str(error.value)

    tifffile.imwrite(tmp_path / "small.tif", picture[:60], photometric="rgb")
    skipped("differ in size: mask 64 x 64, stained 60 x 64", stained=tmp_path / "small.tif")
    tifffile.imwrite(tmp_path / "empty.tif", np.zeros_like(picture), photometric="rgb")
    skipped("mask is zero everywhere", mask=tmp_path / "empty.tif")
    (tmp_path / "noise.tif").write_bytes(b"no picture")
    skipped(r"noise\.tif: cannot be read", unstained=tmp_path / "noise.tif")
    tifffile.imwrite(tmp_path / "float.tif", picture.astype(np.float32), photometric="rgb")
    skipped(r"float\.tif: holds float32", unstained=tmp_path / "float.tif")


def test_archives_that_lack_slides(tmp_path: Path, slides: dict[str, Path]) -> None:
    home = tmp_path / "data" / "sample_2"
    home.mkdir(parents=True)
    (home / "sample_2_mask.tif").write_bytes(slides["mask"].read_bytes())
    with StainingArchives({"slides": tmp_path}) as opened:
        assert opened.cases() == []
        assert opened.incomplete_cases() == ["sample_2"]
        with pytest.raises(CaseSkipped, match="no stained and no unstained slide"):
            opened.read("sample_2", tmp_path)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "sample_2_mask.tif").write_bytes(b"")
    with (
        StainingArchives({"slides": tmp_path}) as opened,
        pytest.raises(
            CaseSkipped, match=r"holds it 2 times \(again/sample_2_mask\.tif, data/sample_2/sample_2_mask\.tif"
        ),
    ):
        opened.read("sample_2", tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: holds no slide named"), StainingArchives({"slides": tmp_path / "none"}):
        pass
    with pytest.raises(UserError, match=r"sources\.staining\.path: .*absent not found"):
        locate(StainingPathSource(kind="path", path=tmp_path / "absent"))


def test_published_splits_and_constants() -> None:
    splits = published_splits([f"sample_{n}" for n in range(10, 40)])
    assert {split: len(cases) for split, cases in splits.items()} == {"train": 9, "validate": 1, "test": 7}
    known = constants(StainingPreparation())
    assert known["kind"] == "staining"
    assert json.loads(json.dumps(known)) == known


# --- memory


def _tiled(folder: Path, side: int, small: dict[str, Path]) -> dict[str, Path]:
    """Slides of any size from a small sample, repeated."""
    folder.mkdir()
    paths = {}
    for kind, path in small.items():
        tile, paths[kind] = tifffile.imread(path), folder / f"{kind}.tif"
        repeats = -(-side // tile.shape[1])
        band = np.tile(tile[:256], (1, repeats, 1))[:, :side]
        pieces = [np.ascontiguousarray(band[:, left : left + 256]) for left in range(0, side, 256)]
        with tifffile.TiffWriter(paths[kind]) as writer:
            writer.write(
                (piece for _ in range(0, side, 256) for piece in pieces),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(256, 256),
                compression="adobe_deflate",
                photometric="rgb",
                metadata=None,
            )
    return paths


def test_memory_does_not_grow_with_the_slide(
    slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What numpy allocates beside elastix; the picture of the larger side alone has 7 MB."""

    def shift(image: np.ndarray, label: np.ndarray, factor: int, settings: Registration) -> np.ndarray:
        return np.full((2, *(-(-n // factor) for n in image.shape[:2])), 1.5, np.float32)

    monkeypatch.setattr(staining, "_registered", shift)
    monkeypatch.setattr(staining, "WINDOW", 256)
    peaks = []
    for side in (768, 1536):
        paths, out = _tiled(tmp_path / str(side), side, slides), tmp_path / f"out{side}"
        out.mkdir()
        tracemalloc.start()
        prepare_case_into(out, paths, CASE, preparation(1))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 3e6  # a band is twice as long


_CHILD = """
import json, sys, threading
from pathlib import Path
from equisynth.datasets.staining import StainingPreparation, prepare_case_into

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))

peak, done = [0], threading.Event()

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anonymous())

threading.Thread(target=watch, daemon=True).start()
paths = {kind: Path(path) for kind, path in json.loads(sys.argv[1]).items()}
prepare_case_into(Path(sys.argv[2]), paths, "a", StainingPreparation.model_validate_json(sys.argv[3]))
done.set()
print(peak[0])
"""


@pytest.mark.slow
def test_peak_of_anonymous_memory(slides: dict[str, Path], tmp_path: Path) -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs Linux's /proc")
    settings = preparation(10).model_copy(update={"registration_side": 1024}).model_dump_json()
    peaks = []
    for side in (4096, 8192):
        paths, out = _tiled(tmp_path / str(side), side, slides), tmp_path / f"out{side}"
        out.mkdir()
        names = json.dumps({kind: str(path) for kind, path in paths.items()})
        command = [sys.executable, "-c", _CHILD, names, str(out), settings]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 200e6
    assert max(peaks) < 2 * 2**30


def test_write_case_depends_on_seed_and_name_only(tmp_path: Path, slides: dict[str, Path]) -> None:
    more = SOURCE.model_copy(update={"cases": {"train": 5, "validate": 1, "test": 1}})
    again = write_case(more, CASE, tmp_path)
    assert again["stained"].read_bytes() == slides["stained"].read_bytes()
    other = write_case(SOURCE.model_copy(update={"seed": 1}), CASE, tmp_path)
    assert other["stained"].read_bytes() != slides["stained"].read_bytes()
