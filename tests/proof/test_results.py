"""Means, spread, paired differences and verdicts from results that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from equisynth.errors import UserError
from equisynth.proof import results
from equisynth.proof.protocol import Reference
from equisynth.proof.results import Found, Spread


def found(variant: str, seed: int, psnr: float, cases: list[float] | None = None, task: str = "photographs") -> Found:
    cases = cases or [psnr] * 8
    pooled = {"psnr": psnr, "ssim": 0.5, "mae": 1.0}
    run = {"task": task, "variant": variant, "seed": seed}
    run["regime"] = variant.partition("_")[0] if task == "photographs" else None
    last = {"pooled": pooled, "cases": {f"case{i}": {"psnr": value} for i, value in enumerate(cases)}}
    return Found({"run": run, "last": last, "best": {"pooled": pooled}}, [], Path())


def test_spread_over_seeds() -> None:
    runs = [found("lc_defsim", seed, psnr) for seed, psnr in enumerate((20.0, 21.0, 25.0))]
    value = results.spread(runs, lambda run: run.number("last", "psnr"))
    assert value == Spread(22.0, pytest.approx(7**0.5), 3)  # ((-2)² + (-1)² + 3²) / 2
    assert results.spread(runs[:1], lambda run: run.number("last", "psnr")) == Spread(20.0, None, 1)
    assert results.spread(runs, lambda run: None) is None


def test_comparison_pairs_seeds_and_cases() -> None:
    first = [found("a", 0, 25.0, [24.0, 26.0] * 4), found("a", 1, 27.0, [27.0] * 8), found("a", 2, 0.0)]
    second = [found("b", 0, 22.0, [21.0, 23.0] * 4), found("b", 1, 22.0, [21.0] * 8)]
    compared = results.compare(first, second, 3.0)
    assert compared is not None
    assert compared.seeds == (0, 1)  # the third seed has no partner
    assert compared.ahead == pytest.approx(4.0)
    assert compared.paired.cases == 8
    assert compared.paired.mean == pytest.approx(4.5)  # (3 + 6) / 2 in every case
    assert compared.paired.interval == pytest.approx((4.5, 4.5))
    assert compared.holds
    assert results.compare(first[2:], second, 3.0) is None


@pytest.mark.parametrize(
    ("gain", "cases", "demanded", "holds"),
    [
        (3.0, [3.0] * 8, 3.0, True),
        (2.9, [3.0] * 8, 3.0, False),  # not far enough
        (3.0, [20.0] + [-1.0] * 7, 3.0, False),  # one case carries it
        (3.0, [3.0] * 5, 3.0, False),  # too few cases for an interval
        (-1.0, [-1.0] * 8, None, None),  # reported only
    ],
)
def test_what_holds(gain: float, cases: list[float], demanded: float | None, holds: bool | None) -> None:
    compared = results.compare([found("a", 0, gain, cases)], [found("b", 0, 0.0, [0.0] * len(cases))], demanded)
    assert compared is not None
    assert compared.holds is holds


def test_comparisons_take_what_there_is() -> None:
    ahead = (("lc_eqsim_com", "lc_noreg_aug", 3.0), ("lr_eqsim_com", "lr_defsim", None))
    reference = Reference(measured={}, tolerance_db=0.5, ahead=ahead)
    runs = [found("lc_eqsim_com", 0, 25.0), found("lc_noreg_aug", 0, 21.0), found("lr_defsim", 0, 1.0)]
    (only,) = results.comparisons(runs, reference)
    assert (only.first, only.second, only.demanded) == ("lc_eqsim_com", "lc_noreg_aug", 3.0)


def test_variants_go_from_the_simplest_method_on() -> None:
    names = ["lc_eqsim_com", "lc_defsim_aug", "lc_noreg_aug", "lc_eqsim", "lc_defsim"]
    runs = [found(name, seed, 0.0) for name in names for seed in (1, 0)] + [found("noreg", 0, 0.0, task="brain")]
    shown = results.variants(runs, "photographs", "lc")
    assert list(shown) == ["lc_noreg_aug", "lc_defsim", "lc_defsim_aug", "lc_eqsim", "lc_eqsim_com"]
    assert all([run.seed for run in seeds] == [0, 1] for seeds in shown.values())
    assert list(results.variants(runs, "brain")) == ["noreg"]
    assert results.regimes(runs) == ["lc"]


@pytest.mark.parametrize(
    ("variant", "title"),
    [
        ("lc_eqsim_com", "EqSim+Com"),
        ("lr_noreg_aug", "NoReg+Aug"),
        ("noreg_on_aligned", "NoReg on aligned labels"),
        ("eqsim_com_eqadv", "EqSim+Com+EqAdv"),
        ("equivariance_translation_rotation", "DefSim+Com+EqAdv, equivariant to translation, rotation"),
    ],
)
def test_titles_are_the_paper_s(variant: str, title: str) -> None:
    assert results.title(variant) == title


def test_nothing_to_load_says_what_to_run() -> None:
    with pytest.raises(UserError, match="make proof"):
        results.load([])
