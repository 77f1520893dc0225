"""The command ``otclib``: train, evaluate, poison, table, explore, demo, doctor. ``otclib --install-completion``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otclib import processes

if TYPE_CHECKING:
    from datasets import Dataset

app = typer.Typer(
    name="otclib",
    help="Poison CLIP pre-training, defend it by optimal transport, look at the plans, measure the attack.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Name = Annotated[str, typer.Option(help="A data set by name, see otclib.data.")]
Root = Annotated[Path | None, typer.Option(help="Where a copy of the data set lies.")]
DataOptions = Annotated[str, typer.Option(metavar="JSON", help="What the data set takes besides.")]
Size = Annotated[int | None, typer.Option(help="Number of pairs; default all.")]
Attacks = Annotated[
    list[str], typer.Option("--attack", help="What is planted, one after the other; repeat it. 'none': nothing is.")
]

INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt
# the base of what typer raises for a wrong command: click's class, or that of typer's own copy of click
REFUSED: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


@contextmanager
def _refusing(command: str) -> Iterator[None]:
    """Say in one line what was refused, with exit code 2."""
    try:
        yield
    except (ValueError, FileNotFoundError, ModuleNotFoundError, NotImplementedError) as error:
        typer.echo(f"otclib {command}: {error}", err=True)
        raise typer.Exit(2) from None


def _read(option: str, text: str) -> dict:
    """An option that is given as JSON."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} takes JSON, such as '{{\"name\": 1}}', got {text!r}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{option} takes a JSON object, such as '{{\"name\": 1}}', got {text!r}")
    return found


def _planted(
    dataset: str, root: Path | None, size: int | None, seed: int, data_options: str, attack: list[str]
) -> tuple[Dataset, Dataset, Dataset | None]:
    """The pairs, the same with the attacks planted, and the manifest (None: nothing was planted)."""
    from otclib import attacks, data

    planned = [attacks.load(name) for name in attack if name != "none"]
    pairs = data.load(dataset, root=root, size=size, seed=seed, **_read("--data-options", data_options))
    return (pairs, *attacks.plant(pairs, planned, seed=seed)) if planned else (pairs, pairs, None)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder; an unfinished run is resumed.")],
    dataset: Name = "scenes",
    root: Root = None,
    data_options: DataOptions = "{}",
    size: Size = None,
    attack: Attacks = ["targeted", "badnets"],  # noqa: B006
    defense: Annotated[str, typer.Option(help="A defence by name, see otclib.defenses.")] = "otcclip",
    model: Annotated[str, typer.Option(help="'small', an open_clip name, or a weights file.")] = "small",
    seed: int = 0,
    epochs: Annotated[int | None, typer.Option(help="Default the defence's own.")] = None,
    batch_size: int = 64,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default the defence's own.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto: the faster one, by a measurement.")] = "auto",
    clean: Annotated[Path | None, typer.Option(help="A finished run without poison, to compare with.")] = None,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Keep every epoch's weights, for the explorer.")
    ] = False,
    options: Annotated[str, typer.Option(metavar="JSON", help="The options of the defence.")] = "{}",
) -> None:
    """Poison a data set, train under a defence, evaluate; prints the metrics."""
    from otclib import attacks, defenses
    from otclib.training import train as trained

    with _refusing("train"):
        own = _read("--options", options)
        if repeated := {"epochs", "lr"} & set(own):
            raise ValueError(f"--options must not repeat --{', --'.join(sorted(repeated))}")
        pairs, poisoned, manifest = _planted(dataset, root, size, seed, data_options, attack)
        if defenses.repairs(defense):  # it repairs a model, on pairs that no attack touched
            poisoned = attacks.trusted(pairs, manifest)
        what: dict[str, Any] = {"manifest": manifest, "defense": defense, "model": model, "seed": seed}
        how: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "precision": precision}
        run = trained(poisoned, **what, **how, out=out, clean=clean, snapshots=snapshots, **own)
    typer.echo((run / "metrics.json").read_text())


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    dataset: Annotated[str | None, typer.Option(help="Labelled test images; default the run's own scenes.")] = None,
    root: Root = None,
    split: Annotated[str, typer.Option(help="Of that data set.")] = "test",
    data_options: DataOptions = "{}",
    clean: Annotated[Path | None, typer.Option(help="A finished run without poison, to compare with.")] = None,
) -> None:
    """Evaluate a finished run anew; writes its metrics.json and prints it."""
    from otclib import data, evaluation

    with _refusing("evaluate"):
        test = data.load(dataset, root=root, split=split, **_read("--data-options", data_options)) if dataset else None
        found = evaluation.evaluate(run, test=test, clean=clean)
    typer.echo(json.dumps(found, indent=1))


@app.command()
def poison(
    out: Annotated[Path, typer.Option(help="Folder for the poisoned table and its manifest; must not exist.")],
    dataset: Name = "scenes",
    root: Root = None,
    data_options: DataOptions = "{}",
    size: Size = None,
    attack: Attacks = ["targeted", "badnets"],  # noqa: B006
    seed: int = 0,
) -> None:
    """Write a poisoned table for other codes: OUT/pairs, saved by Hugging Face datasets, and OUT/manifest.parquet."""
    from otclib.runs import write_table

    with _refusing("poison"):
        if out.exists():
            raise ValueError(f"out must be a new folder, {out} exists already")
        _, pairs, manifest = _planted(dataset, root, size, seed, data_options, attack)
        if manifest is None:
            raise ValueError("poison needs at least one --attack, got none")
        part = out.with_name(out.name + ".part")
        pairs.save_to_disk(part / "pairs")
        write_table(part / "manifest.parquet", manifest)
        part.rename(out)
    typer.echo(f"{len(pairs):,} pairs, {len(manifest)} of them planted: {out}")


@app.command()
def table(runs: Annotated[list[Path], typer.Argument(help="Finished run folders.")]) -> None:
    """Print a Markdown table of runs, a column per defence, mean and range over seeds."""
    from otclib.experiments import records

    with _refusing("table"):
        typer.echo(records.table(runs))


@app.command()
def explore(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or weights that models.load takes.")],
    out: Annotated[Path, typer.Option(help="The page that is written.")] = Path("plans.html"),
    dataset: Annotated[str, typer.Option(help="The pairs that are shown beside the planted ones.")] = "scenes",
    root: Root = None,
    data_options: DataOptions = "{}",
    seed: int = 0,
) -> None:
    """Write the transport plans of some pairs as one page with sliders, which needs no kernel and no network."""
    from datasets import Dataset, concatenate_datasets

    from otclib import data
    from otclib.explorer import Explorer

    with _refusing("explore"):
        pairs = data.load(dataset, root=root, size=600, seed=seed, **_read("--data-options", data_options))
        pairs = pairs.select_columns(["id", "image", "caption"])
        file = next((run / "manifest.parquet" for run in runs if (run / "manifest.parquet").exists()), None)
        manifest = Dataset.from_parquet(str(file)) if file else None
        if manifest is not None:
            planted = manifest.select_columns(["id", "image", "poison_caption"]).rename_column(
                "poison_caption", "caption"
            )
            pairs = concatenate_datasets([planted.cast(pairs.features), pairs])
        explorer = Explorer({run.name: run for run in runs}, pairs, manifest=manifest)
        typer.echo(explorer.save_html(out))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of its runs, figures and executed notebooks.")] = Path("runs/demo"),
    seed: int = 0,
    fast: Annotated[bool, typer.Option("--fast", help="In a minute or two, on too little data to learn from.")] = False,
) -> None:
    """Execute chapters 1 to 4: poison, train twice, look at plans, measure."""
    from otclib.experiments import demo as story

    story.main(["--out", str(out), "--seed", str(seed), *(["--fast"] if fast else [])])


@app.command()
def doctor() -> None:
    """Say what this machine has, what a demo will take on it, and what is missing."""
    from otclib.doctor import report

    typer.echo(report())


def call(arguments: list[str] | None = None, name: str = "otclib") -> None:
    """Run a command; what is refused ends with exit code 2. Ctrl-C stays a KeyboardInterrupt, for ``stoppable``."""
    try:
        code = app(arguments, prog_name=name, standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except REFUSED as error:
        error.show()
        code = error.exit_code
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def main() -> None:
    """The entry point: a stopped command says in one line how it goes on."""
    with processes.stoppable("otclib"):
        call()


if __name__ == "__main__":
    main()
