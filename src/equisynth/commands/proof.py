"""Commands of the proof, see `make proof`."""

from __future__ import annotations

from typing import Annotated

import typer

from equisynth.commands.options import timed_stage

app = typer.Typer(no_args_is_help=True, help="Train and measure the proof's runs, make its page (see `make proof`).")
Part = Annotated[str, typer.Option(help="short or full, see proof/params.yaml.")]


@app.command("crops")
def proof_crops() -> None:
    """Photographs that libraries ship -> prepared crops: data/proof/photographs."""
    from equisynth import params
    from equisynth.proof import crops, protocol

    name, out = protocol.DATASETS[protocol.PHOTOGRAPHS], protocol.PREPARED[protocol.PHOTOGRAPHS]
    data = params.data_settings(params.read(), name, protocol.BENEATH[protocol.PHOTOGRAPHS])
    crops.write_dataset(protocol.read().photographs, data, name, out)


@app.command("train")
def proof_train(
    part: Part = "short",
    jobs: Annotated[int, typer.Option(min=1, envvar="PROOF_JOBS", help="Runs at a time.")] = 2,
    device: Annotated[str, typer.Option(envvar="PROOF_DEVICE", help="cpu or cuda.")] = "cpu",
) -> None:
    """Train what is left of a part's runs: reports/proof/PART. Finished runs are not repeated."""
    from equisynth.proof import stage

    with timed_stage(f"proof@{part}"):
        stage.train(part, jobs, device)


@app.command("run")
def proof_run(name: Annotated[str, typer.Argument(help="Of the run.")]) -> None:
    """Train and measure one run, or what is left of it."""
    from equisynth.proof import training

    print(training.train(name))


@app.command("page")
def proof_page(part: Part = "short") -> None:
    """The runs of a part -> docs/results.md and its pictures, and the README's table of them."""
    from equisynth.proof import page

    page.write(part)
