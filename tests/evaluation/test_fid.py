"""FID against pytorch-fid itself, with the architecture's seeded random weights (no network, no download)."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from equisynth.errors import UserError
from equisynth.evaluation import fid, frechet
from equisynth.evaluation.frechet import Sample, Unavailable, compare, frechet_distance, number_of_images
from equisynth.files import sha256
from equisynth.work import Arrays
from inception import write_inception


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of seeded random weights."""
    path = tmp_path_factory.mktemp("weights") / "fid_inception.pth"
    write_inception(path)
    return path


@pytest.fixture(scope="session")
def network(weights: Path) -> torch.nn.Module:
    return fid.load_inception(weights)


def volumes(seed: int, count: int = 2) -> list[np.ndarray]:
    state = np.random.RandomState(seed)
    result = [np.cumsum(state.rand(2, 3, 2), axis=2).astype(np.float32) for _ in range(count)]
    for volume in result:
        volume[0] = 0
    return result


def sample(*parts: np.ndarray) -> Arrays:
    result = Sample()
    for part in parts:
        result.add(part)
    return result.to_arrays()


def test_the_network_is_the_one_of_the_file(weights: Path, network: torch.nn.Module) -> None:
    state = torch.load(weights, weights_only=True)
    assert torch.equal(network.blocks[0][0].conv.weight, state["Conv2d_1a_3x3.conv.weight"])
    assert not network.training


def test_activations_equal_pytorch_fid(network: torch.nn.Module, tmp_path: Path) -> None:
    from pytorch_fid.fid_score import get_activations

    images = fid.slices(volumes(0)[0], 0, 0.0, 6.5)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    expected = get_activations(sorted(tmp_path.glob("*.png")), network, batch_size=6, num_workers=0)
    assert np.allclose(fid.Activations(network, batch_size=4)(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "m", "d"), [(12, 9, 30), (60, 80, 24), (20, 200, 40)])
def test_distance_equals_pytorch_fid(n: int, m: int, d: int) -> None:
    fid.import_inception()
    from pytorch_fid.fid_score import calculate_frechet_distance

    state = np.random.RandomState(1)
    a, b = state.rand(n, d), state.rand(m, d) * 1.5 + 0.2
    expected = calculate_frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert frechet_distance(sample(a), sample(b)) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(sample(a), sample(a)) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fid_equals_pytorch_fid_on_exported_slices(weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """All of pytorch-fid, from PNG files on; its matrix square root takes most of the time."""
    module = fid.import_inception()
    from pytorch_fid.fid_score import calculate_fid_given_paths

    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: torch.load(weights, weights_only=True))
    state = np.random.RandomState(0)
    sides = [[state.rand(12, 20, 24).astype(np.float32) ** power for _ in range(2)] for power in (1.0, 3.0)]
    for side, images in zip("ab", sides, strict=True):
        (tmp_path / side).mkdir()
        for number, volume in enumerate(images):
            for place, image in enumerate(fid.slices(volume, 0, 0.0, 1.0)):
                Image.fromarray(image).save(tmp_path / side / f"{number}-{place}.png")
    expected = calculate_fid_given_paths([str(tmp_path / side) for side in "ab"], 12, "cpu", 2048, num_workers=0)
    found = fid.evaluate(*sides, 3, 0.0, 1.0, weights, axes=(0,))["axis0"]
    assert (found["images"], found["real_images"]) == (24, 24)
    assert found["value"] == pytest.approx(expected, rel=1e-3)
    assert found["value"] > 0


# --- many images


@pytest.mark.parametrize("sizes", [(40,), (7, 1, 30, 2), (10, 1, 29), (11, 29)])
def test_moments_of_many_images_are_those_of_all(sizes: tuple[int, ...], monkeypatch: Any) -> None:
    """However they come in parts; and the distance is the same as from the images themselves."""
    state = np.random.RandomState(2)
    x, other = (100 + state.rand(40, 6) @ state.rand(6, 6)).astype(np.float32), state.rand(30, 6).astype(np.float32)
    expected = frechet_distance(sample(x), sample(other))
    monkeypatch.setattr(frechet, "FEW_IMAGES", 10)
    found = sample(*np.split(x, np.cumsum(sizes)[:-1]))
    assert set(found) == {"mu", "sigma", "images"}
    assert number_of_images(found) == 40
    np.testing.assert_allclose(found["mu"], x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found["sigma"], np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)
    assert frechet_distance(found, sample(other)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(found, found) == pytest.approx(0, abs=1e-7)


def test_few_images_are_kept_as_they_are() -> None:
    x = np.random.RandomState(0).rand(5, 3).astype(np.float32)
    found = sample(x[:2], x[2:2], x[2:])
    assert list(found) == ["activations"]
    assert found["activations"].dtype == np.float32
    assert np.array_equal(found["activations"], x)


def test_a_warning_stands_beside_values_of_few_images_alone(monkeypatch: Any) -> None:
    monkeypatch.setattr(frechet, "FEW_IMAGES", 10)
    state = np.random.RandomState(0)
    many, few = (sample(state.rand(count, 3).astype(np.float32)) for count in (12, 9))
    assert "warning" not in compare({"tiles": many}, {"tiles": many}, "abc")["tiles"]
    found = compare({"tiles": few}, {"tiles": many}, "abc")
    assert (found["tiles"]["images"], found["tiles"]["real_images"]) == (9, 12)
    assert found["tiles"]["weights_sha256"] == found["weights_sha256"] == "abc"
    assert "fewer than 10" in found["tiles"]["warning"]


def test_gaussians_in_closed_form() -> None:
    """Of one dimension: (mean - mean)² + (deviation - deviation)²."""
    x = np.array([[-1.0], [1.0], [0.0]])  # sample deviation 1
    assert frechet_distance(sample(x), sample(3 * x + 4)) == pytest.approx(4**2 + 2**2)
    assert frechet_distance(sample(x), sample(0 * x)) == pytest.approx(1)  # equal images have no spread


# --- images


def test_whole_evaluation(weights: Path, network: torch.nn.Module) -> None:
    predictions, labels = volumes(0), volumes(1, count=3)
    result = fid.evaluate(iter(predictions), iter(labels), 3, 0.0, 6.5, weights)
    assert result["computed"] is True
    assert result["weights_sha256"] == sha256(weights)
    activations = fid.Activations(network)
    for axis in range(3):
        entry = result[f"axis{axis}"]
        assert entry["images"] == 2 * predictions[0].shape[axis]
        assert entry["real_images"] == 3 * predictions[0].shape[axis]
        assert entry["weights_sha256"] == result["weights_sha256"]
        assert "fewer than 2048" in entry["warning"]
        if axis != 1:
            continue
        sides = [
            np.concatenate([activations(fid.slices(volume, axis, 0.0, 6.5)) for volume in side])
            for side in (predictions, labels)
        ]
        assert entry["value"] == pytest.approx(frechet_distance(*map(sample, sides)), rel=1e-6)
        assert entry["value"] > 0


def test_identical_slices_are_passed_once(network: torch.nn.Module) -> None:
    passed = []
    activations = fid.Activations(network)
    forward = activations._forward
    activations._forward = lambda images: passed.append(len(images)) or forward(images)  # type: ignore[method-assign]
    images = np.zeros((5, 8, 8), np.uint8)
    images[3] = 7
    found = activations(images)
    activations(images)
    assert passed == [2]
    assert np.array_equal(found[0], found[4])
    assert not np.array_equal(found[0], found[3])


def test_slices_are_8_bit() -> None:
    volume = np.array([-1.0, 0.0, 3.25, 6.5, 9.0], np.float32).reshape(5, 1, 1)
    assert fid.slices(volume, 0, 0.0, 6.5).ravel().tolist() == [0, 0, 128, 255, 255]
    assert fid.slices(volume, 1, -1.0, 5.0).shape == (1, 5, 1)


def test_colour_images_are_taken_whole(weights: Path) -> None:
    state = np.random.RandomState(0)
    images = [state.randint(0, 255, (20, 30, 3)).astype(np.uint8) for _ in range(4)]
    result = fid.evaluate(images[:2], images[2:], 2, 0.0, 255.0, weights)
    assert result["images"]["images"] == 2
    result = fid.evaluate([images[0][..., :2]] * 2, images[2:], 2, 0.0, 255.0, weights)
    assert result == {"computed": False, "reason": "the network sees grey or three colours, the images have 2 channels"}


def test_without_weights_there_is_no_number(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    for download, reason in ((True, "no route"), (False, "downloads are off")):
        result = fid.evaluate(volumes(0), volumes(1), 3, 0.0, 6.5, download=download)
        assert result.keys() == {"computed", "reason"}
        assert result["computed"] is False
        assert reason in result["reason"]
    assert not list(tmp_path.rglob("*.pth"))


def test_where_weights_are_found(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"cached")
    assert fid.find_weights(download=False) == cached
    fid.LOCAL_WEIGHTS.parent.mkdir()
    fid.LOCAL_WEIGHTS.write_bytes(b"local")
    assert fid.find_weights(download=False) == fid.LOCAL_WEIGHTS
    assert fid.find_weights(cached, download=False) == cached


def test_a_download_with_another_hash_is_not_kept(tmp_path: Path, monkeypatch: Any) -> None:
    import io

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"something else"))
    with pytest.raises(Unavailable, match="6726825d"):
        fid.find_weights()
    assert not list(tmp_path.rglob("*.pth"))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.pth: not found"):
        fid.evaluate(volumes(0), volumes(1), 3, 0.0, 6.5, tmp_path / "absent.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other.pth: are not"):
        fid.load_inception(tmp_path / "other.pth")


def test_one_image_is_not_enough() -> None:
    with pytest.raises(Unavailable, match="at least two"):
        sample(np.ones((1, 4)))
