"""params.yaml and the command line."""

from __future__ import annotations

import math
from pathlib import Path

from wrong_inputs.entry import Arrange, Wrong, together
from wrong_inputs.workplace import EXPERIMENT, REMOVED, change, remove, text

RESOLVE = f"resolve {EXPERIMENT}"
TRAINING, METHOD, DEMO = "datasets/ixi/training", "methods/eqsim_com_eqadv", "scales/demo/ixi/training"
OVERRIDES = f"pipeline/{EXPERIMENT}/overrides"


def _append(content: str) -> Arrange:
    def arrange(folder: Path) -> None:
        with open(folder / "params.yaml", "a", encoding="utf-8") as file:
            file.write(content)

    return arrange


def _setting(name: str, what: str, key: str, value: object, *words: str, command: str = RESOLVE) -> Wrong:
    return Wrong(name, what, command, ("params.yaml", *words), change(key, value))


ENTRIES = (
    # the command line
    Wrong("no such command", "a command that does not exist", "trian", ("'trian'", "'train'"), program=True),
    Wrong("no argument", "a command without its argument", "prepare", ("dataset", "equisynth prepare --help")),
    Wrong("two arguments", "one argument too many", "resolve a b", ("(b)", "equisynth resolve --help")),
    Wrong("no such option", "an option that does not exist", "train a --gpu", ("--gpu", "equisynth train --help")),
    Wrong("no number", "a word where an option takes a number", "raw ixi --jobs many", ("--jobs", "integer")),
    Wrong("below range", "an option's number out of range", "raw ixi --jobs -5", ("--jobs", "-1")),
    Wrong("predict without image", "`predict` without an image", "predict", ("IMAGE", "--model", "--output")),
    Wrong(
        "predict both ways",
        "`predict` of an experiment and of a file at once",
        f"predict T2.nii.gz --experiment {EXPERIMENT}",
        ("--experiment", "IMAGE"),
    ),
    # the file
    Wrong(
        "no params", "no params.yaml", RESOLVE, ("params.yaml", "not found", "run from the top"), remove("params.yaml")
    ),
    Wrong("empty params", "an empty params.yaml", RESOLVE, ("params.yaml", "mapping"), text("params.yaml", "")),
    Wrong(
        "no YAML",
        "params.yaml is not YAML",
        RESOLVE,
        ("params.yaml", "not valid YAML", "line"),
        text("params.yaml", "scale: [demo\nseed: 0\n"),
    ),
    Wrong(
        "binary params",
        "params.yaml holds bytes that are no text",
        RESOLVE,
        ("params.yaml", "not valid YAML"),
        lambda folder: (folder / "params.yaml").write_bytes(b"\xff\xfe\x00"),
    ),
    Wrong(
        "params is folder",
        "params.yaml is a folder",
        RESOLVE,
        ("params.yaml", "folder"),
        together(remove("params.yaml"), lambda folder: (folder / "params.yaml").mkdir()),
    ),
    Wrong("key twice", "the same key twice", RESOLVE, ("params.yaml", "'scale'", "twice"), _append("scale: paper\n")),
    _setting("unknown section", "an unknown section", "trainer", {}, "unknown key 'trainer'", "known"),
    _setting("missing section", "a section is missing", "registry", REMOVED, "'registry'", "missing"),
    _setting("section no mapping", "a section that is a list", "methods", ["eqsim"], "methods", "list", "mapping"),
    # keys, in every layer
    _setting(
        "unknown dataset key",
        "an unknown key in a dataset",
        f"{TRAINING}/batchsize",
        2,
        "datasets.ixi.training.batchsize",
        "no such key",
        "batch_size",
    ),
    _setting(
        "unknown data key",
        "an unknown key in what the images are",
        "datasets/ixi/data/spacing",
        [1, 1, 1],
        "datasets.ixi.data.spacing",
        "no such key",
        "voxel_size",
    ),
    _setting(
        "unknown method key",
        "an unknown key in a method",
        f"{METHOD}/loss/comutation",
        1.0,
        "methods.eqsim_com_eqadv.loss.comutation",
        "no such key",
        "commutation",
    ),
    _setting(
        "unknown scale key",
        "an unknown key in a scale",
        f"{DEMO}/patchsize",
        [8, 8, 8],
        "scales.demo.ixi.training.patchsize",
        "no such key",
        "patch_size",
    ),
    _setting(
        "unknown scale part",
        "an unknown part of a scale",
        "scales/demo/ixi/trainig",
        {},
        "scales.demo.ixi",
        "'trainig'",
        "training",
    ),
    _setting(
        "unknown override",
        "an unknown key in an experiment's overrides",
        f"{OVERRIDES}/epoch",
        3,
        f"pipeline.{EXPERIMENT}.overrides.epoch",
        "no such key",
        "epochs",
    ),
    _setting(
        "key not for this layer",
        "a key that this layer cannot set",
        f"{OVERRIDES}/dataset",
        "ixi",
        f"pipeline.{EXPERIMENT}.overrides.dataset",
        "cannot be set here",
    ),
    _setting(
        "overrides no mapping",
        "overrides that are no mapping",
        OVERRIDES,
        3,
        f"pipeline.{EXPERIMENT}.overrides",
        "mapping",
    ),
    # values
    _setting("seed negative", "a negative seed", "seed", -1, "seed", "-1", "at least 0"),
    _setting("seed word", "a word as the seed", "seed", "zero", "seed", "'zero'", "whole number"),
    _setting(
        "word for number",
        "a word where a number belongs",
        f"{TRAINING}/learning_rate/generator",
        "fast",
        "learning_rate.generator",
        "'fast'",
        "number",
    ),
    _setting("number for list", "a number where a list belongs", f"{DEMO}/patch_size", 8, "patch_size", "8"),
    _setting("fraction for count", "a fraction of an epoch", f"{DEMO}/epochs", 1.5, "epochs", "1.5", "whole number"),
    _setting("no epochs", "zero epochs", f"{DEMO}/epochs", 0, "scales.demo.ixi.training.epochs", "found 0", "1"),
    _setting(
        "negative weight",
        "a negative loss weight",
        f"{METHOD}/loss/commutation",
        -1.0,
        "methods.eqsim_com_eqadv.loss.commutation",
        "-1.0",
        "greater than or equal to 0",
    ),
    _setting(
        "negative voxel size",
        "a negative voxel size",
        "scales/demo/ixi/data/voxel_size",
        [2, 2, -2],
        "voxel_size",
        "-2",
        "greater than 0",
    ),
    _setting(
        "NaN setting", "NaN as a number", f"{TRAINING}/loss/adversarial", math.nan, "loss.adversarial", "nan", "finite"
    ),
    _setting(
        "range reversed",
        "a range whose ends are exchanged",
        f"{TRAINING}/random_transformation/translation",
        [8, -8],
        "translation",
        "lower <= upper",
    ),
    _setting(
        "share above one",
        "a share above one",
        f"{DEMO}/min_valid_ratio",
        {"input": 1.5},
        "min_valid_ratio.input",
        "1.5",
        "less than or equal to 1",
    ),
    _setting(
        "unknown choice",
        "an unknown similarity",
        f"{TRAINING}/loss/similarity",
        "ssim",
        "loss.similarity",
        "'ssim'",
        "'mae'",
    ),
    _setting(
        "unknown label",
        "an unknown kind of label",
        f"{TRAINING}/trains_on_label",
        "true",
        "trains_on_label",
        "'true'",
        "deformed",
    ),
    # values that do not fit each other
    _setting(
        "patch and depth",
        "a patch size that the networks cannot halve",
        f"{DEMO}/patch_size",
        [8, 8, 9],
        "patch_size",
        "[8, 8, 9]",
        "divisible by",
    ),
    _setting(
        "patch axes",
        "a patch of two axes for volumes",
        f"{DEMO}/patch_size",
        [8, 8],
        "patch_size",
        "2 values",
        "expected 3",
    ),
    _setting(
        "stride and patch",
        "a stride at which tiles leave gaps",
        f"{DEMO}/inference_stride",
        [16, 16, 16],
        "inference_stride",
        "[16, 16, 16]",
        "[8, 8, 8]",
        "gaps",
    ),
    _setting(
        "groups and widths",
        "normalisation groups that do not divide a width",
        f"{DEMO}/normalization_groups",
        3,
        "normalization_groups",
        "3",
        "divisor of 4",
    ),
    _setting(
        "batch of one", "a batch of one with a discriminator", f"{DEMO}/batch_size", 1, "batch_size", "1", "at least 2"
    ),
    _setting(
        "network missing",
        "a discriminator without its network's widths",
        f"{DEMO}/features/discriminator",
        None,
        "features.discriminator",
        "needed",
    ),
    _setting(
        "weight without network",
        "a weight for a network that the method lacks",
        f"{METHOD}/loss/similarity_weight",
        1.0,
        "methods.eqsim_com_eqadv.loss.similarity_weight",
        "equivariant",
        "take it out",
    ),
    _setting(
        "weight without network in overrides",
        "an experiment's weight for a network that its method lacks",
        OVERRIDES,
        {"loss": {"similarity_weight": 1.0}},
        f"pipeline.{EXPERIMENT}.overrides.loss.similarity_weight",
        "equivariant",
        "take it out",
    ),
    # names
    _setting("unknown scale", "an unknown scale", "scale", "big", "scale", "'big'", "paper, demo"),
    Wrong(
        "unknown scale option",
        "an unknown scale on the command line",
        f"{RESOLVE} --scale big",
        ("scale", "'big'", "demo"),
    ),
    Wrong("unknown experiment", "an unknown experiment", "train ixi-magic", ("'ixi-magic'", EXPERIMENT, "eqsim_eqadv")),
    Wrong("unknown dataset argument", "an unknown dataset", "prepare mri", ("datasets", "'mri'", "ixi")),
    Wrong("unknown raw dataset", "an unknown dataset to make", "raw mri", ("datasets", "'mri'", "ixi")),
    _setting(
        "unknown dataset",
        "an experiment of an unknown dataset",
        f"pipeline/{EXPERIMENT}/dataset",
        "mri",
        f"pipeline.{EXPERIMENT}.dataset",
        "'mri'",
        "ixi",
    ),
    _setting(
        "unknown method",
        "an experiment of an unknown method",
        f"pipeline/{EXPERIMENT}/method",
        "magic",
        f"pipeline.{EXPERIMENT}.method",
        "'magic'",
        "eqsim_com_eqadv",
    ),
    _setting(
        "unknown method file",
        "a method without a file of its own",
        f"{METHOD}/method",
        "cyclegan",
        "methods.eqsim_com_eqadv.method",
        "'cyclegan'",
        "equivariant",
    ),
    _setting(
        "code",
        "`code` is not the method's file",
        f"pipeline/{EXPERIMENT}/code",
        "supervised",
        f"pipeline.{EXPERIMENT}.code",
        "'supervised'",
        "'equivariant'",
    ),
    _setting(
        "code missing",
        "`code` is missing",
        f"pipeline/{EXPERIMENT}/code",
        REMOVED,
        f"pipeline.{EXPERIMENT}",
        "'code'",
        "missing",
    ),
)
