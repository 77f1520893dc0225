"""The command ``otclib``: train, evaluate, poison, dose, table, explore, demo, doctor.

``otclib --install-completion`` makes the shell complete it.
"""

from __future__ import annotations

import json
import os
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
    list[str],
    typer.Option(
        "--attack",
        metavar="NAME|JSON",
        help="What is planted, one after the other; repeat it. 'none': nothing is. JSON: a name and its options, "
        "which may be a dose: a number, or 'least' (see `otclib dose`).",
    ),
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
    option = option if option.startswith("-") else f"--{option.replace('_', '-')}"
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} takes JSON, such as '{{\"name\": 1}}', got {text!r}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{option} takes a JSON object, such as '{{\"name\": 1}}', got {text!r}")
    return found


def _configured(context: typer.Context, file: Path | None) -> Path | None:
    """Take from a file what the command line leaves open: its keys are the names of the command's parameters."""
    if file is not None and not context.resilient_parsing:
        from otclib.experiments import config

        with _refusing("train"):
            options = [parameter.name for parameter in context.command.params if parameter.name != "config"]
            context.default_map = config.words(file, [name for name in options if name is not None])
    return file


def _merged(context: typer.Context, name: str, text: str) -> dict:
    """An option that is given as JSON: the mapping of the configuration file, and over it that of the command line."""
    return _read(name, (context.default_map or {}).get(name, "{}")) | _read(name, text)


def _planted(
    dataset: str, attack: list[str], seed: int, model: str = "small", **source: Any
) -> tuple[Dataset, Dataset, Dataset | None]:
    """The pairs, the same with the attacks planted, and the manifest (None: nothing was planted)."""
    from otclib import attacks, data
    from otclib.experiments import doses

    specs = [doses.with_dose(attacks.named(text), dataset, source, model) for text in attack if text != "none"]
    planned = [attacks.load(**spec) for spec in specs]
    pairs = data.load(dataset, seed=seed, **source)
    return (pairs, *attacks.plant(pairs, planned, seed=seed)) if planned else (pairs, pairs, None)


@app.command()
def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Run folder; an unfinished run is resumed.")],
    # whatever is added below is known to the configuration file, too
    config: Annotated[
        Path | None,
        typer.Option(
            callback=_configured, is_eager=True, help="A YAML file of these options; those of the command line win."
        ),
    ] = None,
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
    weight_decay: Annotated[float, typer.Option(help="Of the matrices.")] = 0.1,
    optimizer: Annotated[str, typer.Option(help="muon, or adamw as in the published codes.")] = "muon",
    betas: Annotated[tuple[float, float] | None, typer.Option(help="Adam's; default the optimiser's own.")] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="In which the learning rate rises; default 5 % of the training's.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto: the faster one, by a measurement.")] = "auto",
    image_memory: Annotated[
        int | None, typer.Option(help="Bytes: more images than fit are decoded anew in every epoch. Default 1 GiB.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode images; default one for each core.")
    ] = None,
    tracker: Annotated[
        str, typer.Option(help="tensorboard (in OUT/tensorboard), wandb, mlflow or none.")
    ] = "tensorboard",
    checkpoint_every: Annotated[int, typer.Option(help="Steps, besides the end of every epoch.")] = 1000,
    clean: Annotated[Path | None, typer.Option(help="A finished run without poison, to compare with.")] = None,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Keep every epoch's weights, for the explorer.")
    ] = False,
    options: Annotated[str, typer.Option(metavar="JSON", help="The options of the defence.")] = "{}",
    repair_size: Annotated[
        int | None, typer.Option(help="Number of trusted pairs that a repair such as CleanCLIP takes; default all.")
    ] = None,
) -> None:
    """Poison a data set, train under a defence, evaluate; prints the metrics."""
    from otclib import attacks, defenses, models
    from otclib.training import train as trained

    with _refusing("train"):
        own = _merged(context, "options", options)
        if repeated := {"epochs", "lr"} & set(own):
            raise ValueError(f"--options must not repeat --{', --'.join(sorted(repeated))}")
        given = _merged(context, "data_options", data_options)
        poison_of = models.name_of(model) if defenses.repairs(defense) else model  # a repair's was poisoned before
        pairs, poisoned, manifest = _planted(dataset, attack, seed, poison_of, root=root, size=size, **given)
        if defenses.repairs(defense):  # it repairs a model, on pairs that no attack touched
            poisoned = attacks.trusted(pairs, manifest, repair_size, seed)
        what: dict[str, Any] = {"manifest": manifest, "defense": defense, "model": model, "seed": seed}
        how: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "precision": precision}
        how |= {"weight_decay": weight_decay, "optimizer": optimizer, "betas": betas, "warmup_steps": warmup_steps}
        how |= {"tracker": tracker, "checkpoint_every": checkpoint_every, "workers": workers}
        how |= {} if image_memory is None else {"image_memory": image_memory}
        run = trained(poisoned, **what, **how, out=out, clean=clean, snapshots=snapshots, **own)
    if int(os.environ.get("RANK", 0)) == 0:  # of several processes the first one alone evaluates
        typer.echo((run / "metrics.json").read_text())


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run folder, or a file of weights.")],
    model: Annotated[str | None, typer.Option(help="The open_clip name of weights that do not say it.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Labelled test images; default the run's own scenes.")] = None,
    root: Root = None,
    split: Annotated[str, typer.Option(help="Of that data set.")] = "test",
    val_split: Annotated[str | None, typer.Option(help="Another, for retrieval and grounding.")] = None,
    data_options: DataOptions = "{}",
    size: Size = None,
    attack: Annotated[
        list[str], typer.Option(metavar="NAME|JSON", help="What the model is tested against; default a run's manifest.")
    ] = [],  # noqa: B006
    manifest: Annotated[Path | None, typer.Option(help="The parquet file of what was planted, instead.")] = None,
    clean: Annotated[Path | None, typer.Option(help="A run or weights without poison, to compare with.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the metrics; default a run's metrics.json.")] = None,
) -> None:
    """Evaluate a finished run anew, or any weights; prints the metrics. A run's metrics.json is written."""
    from otclib import data, evaluation

    with _refusing("evaluate"):
        if attack and manifest:
            raise ValueError("give --attack or --manifest, got both")
        if val_split and not dataset:
            raise ValueError(f"--val-split {val_split} is of a --dataset, got none")
        given = _read("--data-options", data_options)
        sets = {
            name: data.load(dataset, root=root, split=of, size=size, **given) if dataset and of else None
            for name, of in (("test", split), ("val", val_split))
        }
        found = evaluation.evaluate(run, model=model, **sets, attack=attack or manifest, clean=clean, out=out)
    typer.echo(json.dumps(found, indent=1))


@app.command()
def poison(
    out: Annotated[Path, typer.Option(help="Folder for the poisoned pairs and their manifest; must not exist.")],
    dataset: Name = "scenes",
    root: Root = None,
    data_options: DataOptions = "{}",
    size: Size = None,
    attack: Attacks = ["targeted", "badnets"],  # noqa: B006
    seed: int = 0,
    form: Annotated[
        str, typer.Option("--format", help="datasets (Hugging Face's), or for open_clip: csv or webdataset.")
    ] = "datasets",
    shards: Annotated[int | None, typer.Option(help="Of webdataset; default one for 1,000 pairs, at least 8.")] = None,
) -> None:
    """Write poisoned pairs for other codes, and OUT/manifest.parquet; says how open_clip trains on them."""
    from otclib import attacks

    with _refusing("poison"):
        attacks.check_export(out, form, shards)
        source = {"root": root, "size": size, **_read("--data-options", data_options)}
        _, pairs, manifest = _planted(dataset, attack, seed, **source)
        if manifest is None:
            raise ValueError("poison needs at least one --attack, got none")
        typer.echo(attacks.export(pairs, manifest, out, form=form, shards=shards, seed=seed))


@app.command()
def shard(
    folder: Annotated[Path, typer.Argument(help="What otclib poison --format webdataset wrote.")],
    name: Annotated[str, typer.Argument(help="The number of the shard, such as 00000.")],
) -> None:
    """Stream a shard of a poisoned set to the standard output as a tar, for webdataset and open_clip."""
    from otclib.shard import to_stdout

    with _refusing("shard"):
        raise typer.Exit(to_stdout(folder, name))


@app.command()
def dose(
    dataset: Name = "scenes",
    root: Root = None,
    data_options: DataOptions = "{}",
    size: Size = None,
    attack: Attacks = ["targeted", "badnets"],  # noqa: B006
    model: Annotated[str, typer.Option(help="'small', or another open_clip name.")] = "small",
    seed: Annotated[list[int], typer.Option(help="A tuning seed; repeat it.")] = [10, 11, 12],  # noqa: B006
    start: Annotated[int | None, typer.Option(help="The first dose; default 8 pairs, or 2 copies.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default those of the undefended model.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones are kept.")] = Path("runs/doses"),
) -> None:
    """Find the least dose that an undefended model learns; --attack '{"name": ..., "dose": "least"}' then takes it."""
    from otclib.experiments import doses

    with _refusing("dose"):
        given: dict[str, Any] = {"options": _read("--data-options", data_options), "size": size, "root": root}
        how: dict[str, Any] = {"precision": precision} | ({} if epochs is None else {"epochs": epochs})
        doses.least(dataset, attack, model=model, seeds=seed, start=start, out=out, **given, **how)


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
    from otclib import data
    from otclib.explorer import Explorer

    with _refusing("explore"):
        pairs = data.load(dataset, root=root, size=600, seed=seed, **_read("--data-options", data_options))
        typer.echo(Explorer.of_runs(runs, pairs).save_html(out))


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
def doctor(
    data: Annotated[
        str | None, typer.Option(help="A data set to examine, see otclib.data; default this machine.")
    ] = None,
    root: Root = None,
    data_options: DataOptions = "{}",
    split: Annotated[str, typer.Option(help="Of that data set.")] = "train",
    size: Annotated[int | None, typer.Option(help="Number of pairs that are examined; default all.")] = None,
    seed: int = 0,
) -> None:
    """Say what this machine has and lacks; or what is in a data set, and how it would be split and poisoned."""
    from otclib import doctor as reports

    if data is None:
        typer.echo(reports.report())
        return
    with _refusing("doctor"):
        options = _read("--data-options", data_options) | {"size": size, "seed": seed}
        typer.echo(reports.report_of_data(data, root=root, split=split, **options))


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
