"""``make demo``: chapters 1 to 4, executed by papermill, with the runs in one folder.

python -m otclib.demo --out runs/demo            # the whole story
python -m otclib.demo --out runs/try --fast      # the same in a minute or two, on too little data to learn from
python -m otclib.demo --only 05_all_systems      # one notebook, into notebooks/, with its own parameters
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import shutil
import sys
import time
from pathlib import Path

from PIL import Image

from otclib import results

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
STORY = ("01_poisoning", "03_defense_training", "02_transport_plans", "04_attack_success")  # training comes first


def execute(name: str, target: Path, parameters: dict) -> None:
    """Execute one notebook; what it prints is shown as it comes. The notebook's own folder is not touched."""
    import nbformat
    import papermill

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part.ipynb")
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb",
        part,
        parameters=parameters,
        progress_bar=False,
        stdout_file=sys.stdout,
    )
    notebook = nbformat.read(part, as_version=4)
    for part_of in (notebook, *notebook.cells):  # times and paths of one machine are no part of the document
        part_of.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("remove-cell")  # from the book: that nobody sat there is no news to its readers
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = _smaller(output["data"]["image/png"])
    nbformat.write(notebook, part)
    part.replace(target)


def _joined(outputs: list) -> list:
    """What a cell printed line by line, as one output."""
    out = []
    for output in outputs:
        if out and output.output_type == out[-1].output_type == "stream" and output.name == out[-1].name:
            out[-1].text += output.text
        else:
            out.append(output)
    return out


def _smaller(png: str) -> str:
    """The same picture in 256 colours, none far off: a quarter of the bytes, for notebooks under a megabyte."""
    image, out = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m otclib.demo", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("runs/demo"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--fast", action="store_true")
    p.add_argument(
        "--publish", action="store_true", help="copy the executed notebooks and their figures to the repository"
    )
    p.add_argument("--only", metavar="NOTEBOOK", help="execute this one where it lies, and nothing else")
    a = p.parse_args(arguments)
    if a.only:
        os.chdir(NOTEBOOKS)  # where its default paths lead from
        execute(a.only, NOTEBOOKS / f"{a.only}.ipynb", {"INTERACTIVE": False})
        return
    start = time.perf_counter()
    for k, name in enumerate(STORY, 1):
        print(f"\n[{k}/{len(STORY)}] {name}   ({time.perf_counter() - start:.0f} s so far)", flush=True)
        parameters = {"out": str(a.out), "seed": a.seed, "fast": a.fast, "INTERACTIVE": False}
        execute(name, a.out / "notebooks" / f"{name}.ipynb", parameters)
        if a.publish:
            shutil.copy(a.out / "notebooks" / f"{name}.ipynb", NOTEBOOKS / f"{name}.ipynb")
    folder = a.out.with_name(a.out.name + "-fast") if a.fast else a.out
    print(f"\n{results.table([folder / 'clip', folder / 'otcclip'])}")
    print(f"\nDone in {(time.perf_counter() - start) / 60:.1f} minutes.")
    print(f"Runs and figures: {folder}    executed notebooks: {a.out / 'notebooks'}")


if __name__ == "__main__":
    main()
