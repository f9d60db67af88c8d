"""Which settings a method has a use for, known without importing it, and thus torch.

Datasets and scales state the widths and weights of all networks; an experiment keeps those that its method has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from equisynth.config import Features, Loss

Tree = dict[str, Any]


class Uses(NamedTuple):
    """What a method with our networks reads of ``features`` and ``loss``, and whether of the other two."""

    features: frozenset[str] = frozenset(Features.model_fields)
    loss: frozenset[str] = frozenset(Loss.model_fields)
    rigidity: bool = True
    network: bool = False


_JUDGED = frozenset({"similarity", "discriminator", "adversarial", "equivariant_adversarial"})
USES = {
    "equivariant": Uses(loss=frozenset(Loss.model_fields) - {"similarity_weight"}),
    "supervised": Uses(frozenset({"i2i", "discriminator"}), _JUDGED | {"similarity_weight"}, rigidity=False),
    "nemar_equivariant": Uses(
        frozenset({"i2i", "discriminator", "cross_modality_reg"}),
        _JUDGED | {"cross_modality_similarity", "forward_rigidity"},
        network=True,
    ),
}
"""By file. One that is not listed has networks of its own if its settings have ``network``; else it reads all."""
OWN_NETWORKS = frozenset(
    {
        "features", "loss", "rigidity", "normalization_groups", "final_activation", "discriminator",
        "learning_rate.discriminator",
    }
)  # fmt: skip
"""What says nothing to a method with networks of its own."""


def unused(fields: Tree) -> frozenset[str]:
    """Dotted keys of composed settings that their method has no use for."""
    uses = USES.get(str(fields.get("method")))
    if uses is None:
        return OWN_NETWORKS if fields.get("network") else frozenset()
    features, loss = uses.features, uses.loss
    if fields.get("discriminator", "none") == "none":
        features, loss = features - {"discriminator"}, loss - {"discriminator", "adversarial"}
    keys = {f"features.{name}" for name in Features.model_fields.keys() - features}
    keys |= {f"loss.{name}" for name in Loss.model_fields.keys() - loss}
    parts = {"rigidity": uses.rigidity, "network": uses.network}
    return frozenset(keys | {name for name, used in parts.items() if not used})


def without(fields: Tree, keys: frozenset[str]) -> Tree:
    """Composed settings without some dotted keys (of one or two parts)."""
    kept = {}
    for name, value in fields.items():
        if name in keys:
            continue
        inner = isinstance(value, dict)
        kept[name] = {key: item for key, item in value.items() if f"{name}.{key}" not in keys} if inner else value
    return kept


def stated(layer: Tree, keys: frozenset[str]) -> list[tuple[str, Any]]:
    """Which of some dotted keys a layer sets to something, in order."""
    found = []
    for dotted in sorted(keys):
        name, _, inner = dotted.partition(".")
        value: Any = layer.get(name)
        if inner:
            value = value.get(inner) if isinstance(value, dict) else None
        if value:
            found.append((dotted, value))
    return found
