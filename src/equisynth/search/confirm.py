"""The best trials again, with fresh seeds: adversarial trainings are noisy, and the best of many is a lucky one.

A confirmation is a study of its own beside that of the search, whose trials are all queued; so it is shared,
interrupted and continued like it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from equisynth.search.plan import Plan
from equisynth.search.slots import SLOT, slots
from equisynth.search.space import SEED
from equisynth.search.study import alone, open_study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def confirmation(plan: Plan) -> Plan:
    """The plan of a study's confirmation."""
    return replace(plan, name=f"{plan.name}-confirm", total=None)


def queue(plan: Plan, best: Sequence[dict[str, Any]]) -> None:
    """Queues what a confirmation lacks of some trials, each with all of its fresh seeds.

    Args:
        plan: of the confirmation.
        best: entries of `results.summary`.
    """
    study = open_study(plan.name, plan.experiment, plan.options)
    assert study is not None
    first = int(plan.tree[SEED]) + 1
    with alone(plan.name):
        present = slots(study.get_trials(deepcopy=False))
        for entry in best:
            for seed in range(first, first + plan.options.confirm_seeds):
                slot = f"{entry['number']}/{seed}"
                if slot not in present:
                    study.enqueue_trial(entry["parameters"] | {SEED: seed}, user_attrs={SLOT: slot})


def confirmations(plan: Plan) -> list[FrozenTrial]:
    """The trials of a confirmation; none where there was none."""
    study = open_study(plan.name, plan.experiment, plan.options, create=False)
    return [] if study is None else list(study.get_trials(deepcopy=False))
