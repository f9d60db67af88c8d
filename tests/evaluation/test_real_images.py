"""Both sides of the FID: what is cut how, and statistics of the real side that serve every model."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equisynth.config import Intensity
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.datasets.synthetic import SyntheticDataset
from equisynth.evaluation import fid, frechet
from equisynth.evaluation.full_valid import FullValidSettings
from equisynth.evaluation.real_images import FILE, Cut, FidSettings, evaluate, kept
from equisynth.stages import real_images as stage
from equisynth.work import anew, remembered

SPLITS = {"train": ("t",), "validate": ("v",), "test": ("a", "b")}
TILES = FullValidSettings(tile=32, stride=16)


class MeanColour(torch.nn.Module):
    """Stands in for Inception, and counts the images."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.seen += len(images)
        return [torch.cat([images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)], dim=1)]


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeanColour:
    """In an empty repository with weights."""
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    fid.LOCAL_WEIGHTS.write_bytes(b"weights")
    result = MeanColour()
    monkeypatch.setattr(fid, "load_inception", lambda _: result)
    monkeypatch.setattr(fid, "_fused", lambda network: network)
    return result


def write(arrays: Callable[[str], dict[str, Any]], n_dims: int, name: str, **more: Any) -> Path:
    """A prepared dataset of a name with the cases of `SPLITS`."""
    folder = Path("data/prepared") / name
    for case in sum(SPLITS.values(), ()):
        write_case(folder, case, arrays(case), np.eye(4), n_dims=n_dims)
    write_info(folder, DatasetInfo(n_dims=n_dims, licence="-", name=name, splits=SPLITS, **more))
    return folder


def volumes(name: str = "heads", *, aligned: bool = True, seed: int = 0) -> Path:
    state = np.random.RandomState(seed)
    grey = Intensity(modality="MR", signal_range=2.0, unit="1")

    def arrays(case: str) -> dict[str, Any]:
        label = state.rand(6, 5, 7).astype(np.float32) * 2.5
        label[0] = 0  # empty slices count
        found = {"input": label / 2, "label": np.roll(label, 1, axis=2)}
        return found | ({"label_aligned": label} if aligned else {})

    return write(arrays, 3, name, voxel_size=(1, 1, 1), input=grey, label=grey)


def sections(side: int = 64) -> Path:
    state = np.random.RandomState(0)
    colour = Intensity(modality="H&E", channels=3, mean=(0,) * 3, std=(1,) * 3, signal_range=255, unit="8 bit")

    def arrays(case: str) -> dict[str, Any]:
        picture = state.randint(1, 255, (side, side, 3)).astype(np.uint8)
        mask = np.ones((side, side), np.uint8)
        mask[:, -10:] = 0
        return {"input": picture, "label": 255 - picture, "label_mask": mask}

    return write(arrays, 2, "sections", voxel_size=(1, 1), input=colour, label=colour)


def pictures() -> Path:
    state = np.random.RandomState(0)
    colour = Intensity(modality="photograph", channels=3, mean=(0,) * 3, std=(1,) * 3, signal_range=255, unit="8 bit")
    return write(
        lambda _: {"input": state.randint(0, 255, (40, 36, 3)).astype(np.uint8)}, 2, "photographs",
        voxel_size=(1, 1), input=colour, label=colour, stored=("input",),
    )  # fmt: skip


def parameters(name: str, **evaluation: Any) -> None:
    tree = {
        "scale": "demo", "seed": 0, "sources": {}, "methods": {}, "pipeline": {}, "search": {}, "registry": {},
        "datasets": {name: {"layout": "ixi", "data": {}, "preparation": {}, "training": {"patch_size": [64, 64]}}},
        "scales": {"demo": {name: {"training": {"patch_size": [32, 32]}}}}, "evaluation": evaluation,
    }  # fmt: skip
    Path("params.yaml").write_text(json.dumps(tree))


def run(folder: Path, **evaluation: Any) -> Path:
    """The stage; where its output lies."""
    parameters(folder.name, **evaluation)
    stage.run(folder.name, folder)
    return Path("reports/real_images") / folder.name


def fid_of(dataset: PreparedDataset, prediction: Callable[[str], Any], tiles: FullValidSettings = TILES) -> Any:
    return evaluate(dataset, "test", prediction, FidSettings(), tiles)


# --- what is compared


def test_volumes_are_cut_into_all_slices_of_the_aligned_label(network: MeanColour) -> None:
    out = run(volumes())
    said = json.loads((out / FILE).read_text())
    assert said["images"] == {"axis0": 12, "axis1": 10, "axis2": 14}
    assert (said["role"], said["cut"], said["axes"], said["split"]) == ("label_aligned", "slices", [0, 1, 2], "test")
    dataset = PreparedDataset.open("data/prepared/heads")
    with np.load(out / "axis0.npz", allow_pickle=False) as stored:
        found = stored["activations"]
    expected = np.concatenate([dataset.image(case, "label_aligned") for case in "ab"]).clip(0, 2) / 2
    np.testing.assert_allclose(found[:, 0], np.rint(255 * expected).mean(axis=(1, 2)) / 255, rtol=1e-5)
    assert found.dtype == np.float32


def test_without_an_aligned_label_the_training_s_is_real(network: MeanColour) -> None:
    assert json.loads((run(volumes(aligned=False)) / FILE).read_text())["role"] == "label"


def test_sections_are_cut_into_full_valid_tiles(network: MeanColour) -> None:
    folder = sections()
    out = run(folder, full_valid={"tile": 64}, scales={"demo": {"full_valid": {"tile": 32, "stride": 16}}})
    said = json.loads((out / FILE).read_text())
    assert (said["cut"], said["tile"], said["stride"]) == ("tiles", 32, 16)
    assert said["images"] == {"tiles": 2 * 3 * 2}  # columns 0 and 16: from 32 on a tile would leave the label
    dataset = PreparedDataset.open(folder)

    def beyond(case: str) -> np.ndarray:
        values = np.array(dataset.image(case, "label"))
        values[:, 50:] = 99
        return values

    network.seen = 0
    found = fid_of(dataset, beyond)
    assert (found["tiles"]["images"], found["tiles"]["real_images"]) == (12, 12)
    assert found["tiles"]["value"] == pytest.approx(0, abs=1e-9)
    assert network.seen == 12
    assert fid_of(dataset, lambda case: 255 - beyond(case))["tiles"]["value"] > 1e-6


def test_sections_smaller_than_a_tile_are_taken_whole(network: MeanColour) -> None:
    dataset = PreparedDataset.open(sections(side=24))
    found = fid_of(dataset, lambda case: dataset.image(case, "label"))
    assert found["images"]["images"] == 2


def test_a_split_without_full_valid_tiles_has_none(network: MeanColour) -> None:
    dataset = PreparedDataset.open(sections())
    tiles = TILES.model_copy(update={"tile": 60})
    found = fid_of(dataset, lambda case: dataset.image(case, "label"), tiles)
    assert found == {"split": "test", "computed": False, "reason": "there are no images to compare"}


def test_pairs_have_the_size_that_the_dataset_s_trainings_say(network: MeanColour) -> None:
    folder = pictures()
    said = json.loads((run(folder) / FILE).read_text())
    assert (said["role"], said["cut"], said["images"]) == ("label_aligned", "whole", {"images": 2})
    for size, source in (((32, 32), "reports/real_images/photographs"), ((16, 16), "computed here: reports/")):
        pairs = SyntheticDataset(PreparedDataset.open(folder), stage.STILL, size, seed=3)
        found = evaluate(pairs, "test", partial(pairs.image, role="label_aligned"), FidSettings(), TILES)
        assert found["real_side"].startswith(source)
        assert found["images"]["value"] == pytest.approx(0, abs=1e-9)


def test_pairs_whose_size_nobody_says_are_left_to_the_experiments(network: MeanColour) -> None:
    assert stage.real_dataset(pictures(), {}) == "pairs are made at patch_size, which only experiments say"


# --- kept


def test_a_model_is_compared_with_what_is_kept(network: MeanColour) -> None:
    """The same to the last bit as without, and no real image passes the network again."""
    folder = volumes()
    dataset = PreparedDataset.open(folder)

    def prediction(case: str) -> np.ndarray:
        return 2 * dataset.image(case, "input") + 0.3

    here = fid_of(dataset, prediction)
    assert here.pop("real_side") == "computed here: reports/real_images/heads is absent"
    run(folder)
    network.seen = 0
    found = fid_of(dataset, prediction)
    assert network.seen == 2 * (6 + 5 + 7)
    assert found.pop("real_side") == "reports/real_images/heads"
    assert found == here
    assert found["axis1"]["real_images"] == 10


def test_other_weights_or_images_are_not_compared_with(network: MeanColour) -> None:
    folder = volumes()
    out = run(folder)
    dataset = PreparedDataset.open(folder)
    cut = Cut(dataset, "test", (0, 1, 2), TILES)
    weights = json.loads((out / FILE).read_text())["weights_sha256"]
    assert set(kept(out, cut, weights)[0] or {}) == {"axis0", "axis1", "axis2"}
    assert kept(out, cut, "0" * 64) == (None, f"computed here: {out} is of other weights")
    for other in (
        Cut(dataset, "validate", (0, 1, 2), TILES),
        Cut(dataset, "test", (0, 2), TILES),
        Cut(PreparedDataset.open(volumes(seed=1)), "test", (0, 1, 2), TILES),
    ):
        assert kept(out, other, weights) == (None, f"computed here: {out} is of other images")
    fid.LOCAL_WEIGHTS.write_bytes(b"other weights")
    found = fid_of(dataset, lambda case: dataset.image(case, "label"))
    assert found["real_side"].endswith("is of other weights")
    assert found["computed"]


def test_sections_with_other_masks_are_other_images(network: MeanColour) -> None:
    dataset = PreparedDataset.open(sections())
    cut = Cut(dataset, "test", (), TILES)
    before = cut.sha256()
    assert Cut(dataset, "test", (), TILES).sha256() == before
    mask = np.zeros((64, 64), np.uint8)
    mask[:40] = 1
    arrays = {role: np.array(dataset.image("a", role)) for role in ("input", "label")}
    write_case(dataset.folder, "a", {**arrays, "label_mask": mask}, np.eye(4), n_dims=2)
    assert Cut(PreparedDataset.open(dataset.folder), "test", (), TILES).sha256() != before


def test_of_many_images_the_moments_are_kept_as_pytorch_fid_reads_them(
    network: MeanColour, monkeypatch: pytest.MonkeyPatch
) -> None:
    fid.import_inception()
    from pytorch_fid.fid_score import compute_statistics_of_path

    folder = volumes()
    dataset = PreparedDataset.open(folder)
    few = fid_of(dataset, lambda case: dataset.image(case, "label") * 0.8)
    monkeypatch.setattr(frechet, "FEW_IMAGES", 11)
    out = run(folder)
    with np.load(out / "axis1.npz") as stored:
        assert list(stored) == ["activations"]
    with np.load(out / "axis0.npz") as stored:
        assert int(stored["images"]) == 12
    mu, sigma = compute_statistics_of_path(str(out / "axis0.npz"), None, 1, 6, "cpu", 0)
    assert (mu.shape, sigma.shape) == ((6,), (6, 6))
    found = fid_of(dataset, lambda case: dataset.image(case, "label") * 0.8)
    assert found["real_side"] == str(out)
    for axis in range(3):
        assert found[f"axis{axis}"]["value"] == pytest.approx(few[f"axis{axis}"]["value"], rel=1e-6, abs=1e-9)


def test_without_weights_both_sides_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    folder = volumes()
    out = run(folder)
    said = json.loads((out / FILE).read_text())
    assert said["computed"] is False
    assert "no route" in said["reason"]
    assert [path.name for path in out.iterdir()] == [FILE]
    dataset = PreparedDataset.open(folder)
    found = fid_of(dataset, lambda case: dataset.image(case, "label"))
    assert found["reason"] == said["reason"]
    assert found["computed"] is False


def test_statistics_without_numbers_do_not_stop_who_has_weights_now(network: MeanColour) -> None:
    folder = volumes()
    out = run(folder)
    (out / FILE).write_text(json.dumps({"computed": False, "reason": "no weights"}))
    dataset = PreparedDataset.open(folder)
    found = fid_of(dataset, lambda case: dataset.image(case, "label"))
    assert found["computed"]
    assert found["real_side"] == f"computed here: {out} holds no statistics"


def test_an_interrupted_stage_passes_no_case_twice(network: MeanColour, tmp_path: Path) -> None:
    cut = Cut(PreparedDataset.open(volumes()), "test", (0,), TILES)
    remember, loaded = remembered(tmp_path / "parts"), fid.Network()
    whole = loaded.sample(cut.real(), anew)
    first = next(iter(cut.real()))
    loaded.sample([first], remember)
    network.seen = 0
    again = loaded.sample(cut.real(), remember)
    assert network.seen == 6
    assert np.array_equal(again["axis0"]["activations"], whole["axis0"]["activations"])


def test_the_stage_repeats_to_the_bit(network: MeanColour) -> None:
    folder = volumes()
    contents = [{path.name: path.read_bytes() for path in run(folder).iterdir()} for _ in range(2)]
    assert contents[0] == contents[1]
