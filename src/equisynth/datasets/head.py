"""An anatomically plausible head: tissue fractions around a real average brain.

Grey matter, white matter and the brain's outline are the MNI152 average that nilearn ships (no download). Scalp, skull,
neck, face and eyes are simple shapes around it. A `Subject` is one smooth random change of that anatomy.
All coordinates are millimetres of MNI space: x to the right, y to the front, z up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[np.float32]

TISSUES = ("white", "grey", "deep_grey", "csf", "bone", "marrow", "fat", "muscle", "skin", "vitreous", "cord", "lesion")

# Bounds of the atlas in mm: the head with room for a subject's own pose.
_LOWER, _UPPER = np.array([-112.0, -148.0, -116.0]), np.array([112.0, 124.0, 116.0])
_COARSE = np.float32(8.0)  # mm between the nodes of a subject's change


@dataclass(frozen=True)
class HeadAtlas:
    """Tissue fractions (T, X, Y, Z) in the order of `TISSUES`, on a regular grid; what is missing to one is air."""

    fractions: Array
    spacing: float

    def indices(self, positions: Array) -> Array:
        """MNI millimetres (3, ...) to indices of the grid."""
        origin = _LOWER.reshape(3, *[1] * (positions.ndim - 1))
        indices: Array = ((positions - origin) / self.spacing).astype(np.float32)
        return indices


@lru_cache(maxsize=2)
def head_atlas(voxel_size: tuple[float, float, float]) -> HeadAtlas:
    """The average head, blurred as a scan of ``voxel_size`` (mm) blurs it (partial volume)."""
    spacing = 1.0 if min(voxel_size) < 2 else 2.0
    shape = tuple(int(n) for n in np.round((_UPPER - _LOWER) / spacing).astype(int) + 1)
    grid = [_LOWER[a] + spacing * np.arange(shape[a]) for a in range(3)]
    x, y, z = (g.astype(np.float32).reshape([-1 if a == b else 1 for b in range(3)]) for a, g in enumerate(grid))

    grey, white, brain = _mni_tissues(shape, spacing)
    fractions = _surround(brain, x, y, z, spacing)
    # Thalami and basal ganglia: as dark as white matter on T2, yet not white matter.
    deep = ((np.abs(x) - 18) / 17) ** 2 + (y / 30) ** 2 + ((z - 4) / 15) ** 2 < 1
    inside = brain * np.clip(grey + white, 0, 1)
    share = grey / np.maximum(grey + white, 1e-6)
    fractions["white"] = inside * (1 - share)
    fractions["grey"] = inside * share * ~deep
    fractions["deep_grey"] = inside * share * deep
    fractions["csf"] = fractions["csf"] + brain - inside
    stacked = np.stack([np.broadcast_to(fractions.get(t, np.float32(0)), shape) for t in TISSUES]).astype(np.float32)
    for tissue in stacked:
        ndimage.gaussian_filter(tissue, 0.35 * np.array(voxel_size) / spacing, output=tissue)
    return HeadAtlas(stacked, spacing)


def _mni_tissues(shape: tuple[int, ...], spacing: float) -> tuple[Array, Array, Array]:
    """Grey matter, white matter and the filled brain outline on the atlas grid."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    maps = []
    for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_template):
        image = load()
        to_index = np.linalg.inv(image.affine)  # diagonal: the template is axis-aligned
        step, offset = np.diag(to_index)[:3], to_index[:3, 3]
        maps.append(
            ndimage.affine_transform(
                np.asarray(image.dataobj, dtype=np.float32),
                step * spacing,
                step * _LOWER + offset,
                shape,
                order=1,
                output=np.float32,
            )
        )
    grey, white, t1 = maps
    closed = ndimage.binary_closing(t1 > 0.15, iterations=round(6 / spacing))
    brain = ndimage.binary_fill_holes(closed).astype(np.float32)
    return grey, white, ndimage.gaussian_filter(brain, 0.4)


def _surround(brain: Array, x: Array, y: Array, z: Array, spacing: float) -> dict[str, Array]:
    """Everything outside the brain, by distance from it and from the skin."""

    def ellipsoid(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> npt.NDArray[np.bool_]:
        inside: npt.NDArray[np.bool_] = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1
        return inside

    beyond = ndimage.distance_transform_edt(brain < 0.5, sampling=spacing).astype(np.float32)
    neck = (((x / 52) ** 2 + ((y + 42) / 56) ** 2) < 1) & (z < -30)
    face = ellipsoid(0, 42, -62, 62, 50, 62) | ellipsoid(0, 92, -58, 13, 17, 20)
    jaw = ellipsoid(0, 28, -100, 46, 52, 30)
    head = (beyond < 14.5) | neck | face | jaw
    depth = ndimage.distance_transform_edt(head, sampling=spacing).astype(np.float32)

    canal = np.hypot(x, y + 44) + 0 * z
    below = z < -62
    cord = below & (canal < 7) & (brain < 0.5)
    fluid = below & (canal < 11) & ~cord & (brain < 0.5)
    vertebra = below & (canal >= 11) & (np.hypot(x / 1.2, y + 36) < 23)
    skull = (beyond > 2.5) & (beyond < 9) & ~(below & (canal < 11))
    diploe = skull & (beyond > 4.5) & (beyond < 7)
    eyes = ellipsoid(31, 58, -36, 12, 12, 12) | ellipsoid(-31, 58, -36, 12, 12, 12)
    orbit = ellipsoid(30, 44, -36, 19, 30, 18) | ellipsoid(-30, 44, -36, 19, 30, 18)
    air = ellipsoid(0, 56, -58, 13, 32, 19) | ellipsoid(34, 48, -70, 13, 15, 13) | ellipsoid(-34, 48, -70, 13, 15, 13)
    air = air | ellipsoid(0, 8, -92, 11, 9, 30)

    outside = (brain < 0.5) & head
    labels = [  # the first that holds wins
        ("cord", cord), ("csf", fluid), ("csf", beyond <= 2.5),
        ("marrow", diploe), ("bone", skull),
        ("air", air & (depth > 4)), ("marrow", vertebra & (canal > 14)), ("bone", vertebra),
        ("vitreous", eyes & (depth > 1)), ("skin", depth <= 2.2), ("fat", orbit | (depth <= 6)), ("muscle", head),
    ]  # fmt: skip
    fractions: dict[str, Array] = {}
    free = outside.copy()
    for name, where in labels:
        taken = free & where
        free &= ~taken
        # The rim of the brain is fractional, so that what surrounds it takes the rest of the voxel.
        fractions[name] = (fractions.get(name, np.float32(0)) + taken * (1 - brain)).astype(np.float32)
    rim = (brain >= 0.5) & (brain < 1)
    fractions["csf"] = (fractions["csf"] + rim * (1 - brain)).astype(np.float32)
    fractions.pop("air")
    return fractions


@dataclass(frozen=True)
class Subject:
    """One person: a pose in the scanner, a smooth change of the average anatomy, a tissue texture, lesions."""

    atlas: HeadAtlas
    pose: npt.NDArray[np.float64]  # (4, 4) scanner mm -> MNI mm
    change: Array  # (3, x, y, z) mm on a coarse grid over the atlas
    texture: Array  # (X, Y, Z) on the atlas grid, about unit variance
    lesions: npt.NDArray[np.float64]  # (L, 4) centre (MNI mm) and radius

    @classmethod
    def draw(cls, atlas: HeadAtlas, random_state: np.random.RandomState) -> Subject:
        """Draws a person; ``change`` is about 3 mm strong per axis and 25 mm smooth, so it never folds."""
        angles = np.deg2rad(random_state.uniform(-4, 4, size=3))
        scale = random_state.uniform(1.01, 1.10, size=3)  # > 1 is a smaller head than the average one
        pose = np.eye(4)
        pose[:3, :3] = np.diag(scale) @ _rotation(angles)
        centre = np.array([0.0, -18.0, 10.0])
        pose[:3, 3] = centre - pose[:3, :3] @ (centre + random_state.uniform(-3, 3, size=3))
        shape = tuple(int(n) for n in np.ceil((_UPPER - _LOWER) / _COARSE).astype(int) + 1)
        change = random_state.standard_normal((3, *shape)).astype(np.float32)
        change = np.stack([ndimage.gaussian_filter(c, 25 / _COARSE) for c in change])
        change *= 3.0 / change.std()
        texture = random_state.standard_normal(atlas.fractions.shape[1:]).astype(np.float32)
        texture = ndimage.gaussian_filter(texture, 3.0 / atlas.spacing)
        texture /= texture.std()
        count = random_state.randint(4, 12)
        side = random_state.choice([-1.0, 1.0], size=count)
        lesions = np.stack([side * random_state.uniform(18, 38, count), random_state.uniform(-60, 40, count),
                            random_state.uniform(8, 40, count), random_state.uniform(3, 7, count)], axis=1)  # fmt: skip
        return cls(atlas, pose, change, texture, lesions)

    def scan(
        self, shape: tuple[int, int, int], affine: npt.NDArray[np.float64], weights: npt.NDArray[np.floating]
    ) -> tuple[Array, Array]:
        """Weighted sums of the tissue fractions on the grid of a scan, and the texture there.

        Args:
            shape: of the scan.
            affine: its voxel index to mm, (4, 4).
            weights: (M, T), one row per sum, in the order of `TISSUES`; the identity gives the fractions themselves.

        Returns:
            (M, *shape) and (*shape).
        """
        position = self._anatomy_at(shape, affine)
        at = self.atlas.indices(position)
        white, lesion = TISSUES.index("white"), TISSUES.index("lesion")
        sums = [
            ndimage.map_coordinates(np.tensordot(row, self.atlas.fractions, axes=1), at, order=1)
            for row in weights.astype(np.float32)
        ]
        white_fraction = ndimage.map_coordinates(self.atlas.fractions[white], at, order=1)
        for x, y, z, radius in self.lesions:  # they take the place of white matter
            squared = sum((p - c) ** 2 for p, c in zip(position, (x, y, z), strict=True))
            share = white_fraction * np.clip(1.5 - np.sqrt(squared) / radius, 0, 1)
            white_fraction -= share
            for total, row in zip(sums, weights, strict=True):
                total += share * np.float32(row[lesion] - row[white])
        texture = ndimage.map_coordinates(self.texture, at, order=1)
        return np.stack(sums).reshape(-1, *shape), texture.reshape(shape)

    def _anatomy_at(self, shape: tuple[int, int, int], affine: npt.NDArray[np.float64]) -> Array:
        """Where in the average anatomy each voxel of a scan lies: MNI mm (3, N)."""
        index = np.indices(shape, dtype=np.float32).reshape(3, -1)
        to_mni = (self.pose @ affine).astype(np.float32)
        position = to_mni[:3, :3] @ index + to_mni[:3, 3:]
        coarse = (position - _LOWER[:, None].astype(np.float32)) / _COARSE
        position += np.stack([ndimage.map_coordinates(c, coarse, order=1, mode="nearest") for c in self.change])
        return position


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rotations about the three axes, one after the other."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (a for a in range(3) if a != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result
