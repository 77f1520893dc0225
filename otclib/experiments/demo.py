"""``make demo``: chapters 1 to 4, executed by papermill, with the runs in one folder.

python -m otclib.experiments.demo --out runs/demo            # the whole story
python -m otclib.experiments.demo --out runs/try --fast      # the same in a minute or two, on too little data
python -m otclib.experiments.demo --world emoji-scenes       # the whole story on drawings by six artists
python -m otclib.experiments.demo --only 05_all_systems      # one notebook, into notebooks/, with its own parameters
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from otclib import data, processes
from otclib.experiments.records import table

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
STORY = ("01_poisoning", "03_defense_training", "02_transport_plans", "04_attack_success")  # training comes first


def execute(name: str, target: Path, parameters: dict) -> None:
    """Execute a copy of one notebook, and show its output as it comes. The notebook's own folder is not touched.

    The kernel ends with this process. ``as_opened`` turns the copy into the notebook that is committed.
    """
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
        kernel_manager_class=_kernel_manager(),
    )
    notebook = nbformat.read(part, as_version=4)
    for part_of in (notebook, *notebook.cells):  # times and paths of one machine do not belong to the document
        part_of.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = _smaller(output["data"]["image/png"])
    nbformat.write(notebook, part)
    part.replace(target)


def as_opened(executed: Path, target: Path) -> None:
    """Write an executed notebook as it is committed: with its outputs, and with the parameters of its own cell.

    The cell that papermill added is left out, so that a reader who runs the notebook has widgets. The widgets' state is
    left out too.
    """
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    notebook.metadata.pop("widgets", None)
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    part = target.with_name(target.name + ".part")
    nbformat.write(notebook, part)
    part.replace(target)


def _kernel_manager() -> type:
    """Return a manager of kernels that end with this process; it interrupts them first, so cells end their workers."""
    from jupyter_client.manager import AsyncKernelManager

    class Interrupting(AsyncKernelManager):
        shutdown_wait_time = 2.0  # seconds until the kernel is killed; it is terminated after half of them

        # jupyter_client declares its methods as synchronous, and wraps coroutines
        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            if sys.platform == "linux":  # works from its first instruction on; its own check of its parent begins later
                options["preexec_fn"] = processes.killed_with_parent
            quiet = "--log-level=ERROR"  # it warns of TCP to this process, which stays on this machine
            options["extra_arguments"] = [*options.get("extra_arguments", []), quiet]
            await super().start_kernel(**options)

        async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:  # type: ignore[override]
            await self.interrupt_kernel()  # an idle kernel ignores it
            await super().shutdown_kernel(now, restart)

    return Interrupting


def _joined(outputs: list) -> list:
    """Join what a cell printed line by line into one output."""
    out: list = []
    for output in outputs:
        if out and output.output_type == out[-1].output_type == "stream" and output.name == out[-1].name:
            out[-1].text += output.text
        else:
            out.append(output)
    return out


def _smaller(png: str) -> str:
    """Return the picture in 256 close colours: a quarter of the bytes, for notebooks under a megabyte."""
    image, out = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m otclib.experiments.demo", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("runs/demo"))
    p.add_argument("--world", choices=data.DRAWN, default="scenes", help="the drawn set of the story")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--fast", action="store_true")
    p.add_argument("--publish", action="store_true", help="copy the executed notebooks to the repository")
    p.add_argument("--only", metavar="NOTEBOOK", help="execute this one where it lies, and nothing else")
    a = p.parse_args(arguments)
    if a.only:
        os.chdir(NOTEBOOKS)  # its default paths are relative to this folder
        with tempfile.TemporaryDirectory() as folder:
            executed = Path(folder) / f"{a.only}.ipynb"
            execute(a.only, executed, {"INTERACTIVE": False})
            as_opened(executed, NOTEBOOKS / f"{a.only}.ipynb")
        return
    start = time.perf_counter()
    for k, name in enumerate(STORY, 1):
        print(f"\n[{k}/{len(STORY)}] {name}   ({time.perf_counter() - start:.0f} s so far)", flush=True)
        parameters = {"dataset": a.world, "out": str(a.out), "seed": a.seed, "fast": a.fast, "INTERACTIVE": False}
        if a.world != "scenes" and not a.fast:  # what the set needs; the default doses are those of scenes
            parameters["attack"] = [{"name": kind, "dose": "least"} for kind in ("targeted", "badnets")]
        execute(name, a.out / "notebooks" / f"{name}.ipynb", parameters)
        if a.publish:
            as_opened(a.out / "notebooks" / f"{name}.ipynb", NOTEBOOKS / f"{name}.ipynb")
    folder = a.out.with_name(a.out.name + "-fast") if a.fast else a.out
    print(f"\n{table([folder / name for name in ('clip', 'otcclip', 'otcclip-plus')])}")
    print(f"\nDone in {(time.perf_counter() - start) / 60:.1f} minutes.")
    print(f"Runs and figures: {folder}    executed notebooks: {a.out / 'notebooks'}")


if __name__ == "__main__":
    with processes.stoppable("otclib.experiments.demo", "the same command goes on from its last checkpoint"):
        main()
