"""How fast transport and matching are, against what else a user could pick, and how far from the floor.

    python -m benchmarks.transport --quick     two minutes, prints the tables
    make bench                                 20 minutes: larger batches, pools up to a million captions

Every speed is a ratio: the two ways are run in turn, in this process, and the median of the ratios is what counts. The
floor beside it is the product of the tokens, which every way needs to have a cost matrix at all.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
from functools import partial
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

import otclib
from benchmarks import solvers
from otclib import figures, losses, models
from otclib.data import grammar
from otclib.experiments.pages import into_page
from otclib.matching import CaptionPool
from otclib.matching.token_sets import TokenSets
from otclib.models import Features
from otclib.runs import code, write_json

HERE = Path(__file__).parent
SHAPES = ((49, 77, 512), (64, 16, 128))  # patches, words, numbers of a token: CLIP's RN50, and our small model
POOLS = (1_000, 21_845, 100_000, 1_000_000)


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def in_turn(ways: dict, times: int) -> dict[str, list[float]]:
    """Seconds of every way, run one after the other, ``times`` times, after one run to warm up."""
    out = {name: [] for name in ways}
    for k in range(times + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if k:
                out[name].append(time.perf_counter() - start)
    return out


# -- the inputs: random tokens, and those of a trained model ---------------------------------------------------------


def trained(run: Path, quick: bool) -> dict:
    """Features of a defended model of ours: images of the test split, and what encodes captions."""
    weights = run / "model.safetensors"
    if not weights.exists():
        print(f"no model in {run}: training a short one in runs/bench", flush=True)
        run = Path("runs/bench")
        pairs = otclib.data.load("scenes", size=2000 if quick else 12_000)
        run = otclib.train(pairs, defense="otcclip", out=run, epochs=2 if quick else 5)
        weights = Path(run) / "model.safetensors"
    model, _, tokenizer = models.load(weights)
    model.eval()
    images = otclib.data.image_tensor(otclib.data.load("scenes", split="test", size=256), 64)
    with torch.no_grad():
        image = models.encode_image(model, models.normalize(model)(images.float() / 255))
    return {"run": str(run), "model": model, "tokenizer": tokenizer, "image": image}


def captions(n: int, seed: int = 5) -> list[str]:
    rng = np.random.default_rng(seed)
    return [grammar.describe(grammar.sample(rng), rng)[0] for _ in range(n)]


@torch.no_grad()
def encoded(kit: dict, texts: list[str], length: int = 24) -> Features:
    ids = kit["tokenizer"](texts)
    return Features.cat([models.encode_text(kit["model"], part, length) for part in ids.split(2048)])


def problems(shape: tuple[int, int, int], kind: str, B: int, kit: dict):
    """C [B, N, M], a, b: random tokens in 64 dimensions, or trained ones, pooled to N places and padded to M words."""
    N, M, D = shape
    rng = torch.Generator().manual_seed(0)
    if kind == "random":
        v, t = (F.normalize(torch.randn(B, n, 64, generator=rng), dim=-1) for n in (N, M))
        mask = torch.ones(B, M)
    else:
        image, text = kit["image"], TokenSets.of(encoded(kit, captions(B)))
        grid = image.tokens[torch.arange(B) % len(image)].transpose(1, 2).unflatten(2, (8, 8))
        side = round(N**0.5)
        v = F.normalize(F.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2), dim=-1)
        t = F.pad(text.tokens, (0, 0, 0, max(0, M - text.tokens.shape[1])))[:, :M]
        mask = (torch.arange(M) < text.length[:, None]).float()
    a, b = torch.full((B, N), 1 / N), mask / mask.sum(1, keepdim=True)
    return (1 - v @ t.transpose(1, 2)).contiguous(), a, b


# -- the measurements ------------------------------------------------------------------------------------------------


def product_floor(shape: tuple[int, int, int], B: int) -> dict:
    """The product of the tokens alone: what it takes, and how fast it is here."""
    N, M, D = shape
    v, t = torch.randn(B, N, D), torch.randn(B, D, M)
    out = torch.empty(B, N, M)
    seconds = median(in_turn({"product": lambda: torch.bmm(v, t, out=out)}, 5)["product"])
    flops, size = 2 * N * M * D, 4 * (N * D + M * D + N * M)
    return {"per_second": B / seconds, "mflop": flops / 1e6, "kib": size / 1024, "gflops": flops * B / seconds / 1e9}


def sinkhorn_rows(quick: bool, kit: dict) -> list[dict]:
    rows = []
    for shape in SHAPES:
        floor = product_floor(shape, 256)
        for kind in ("random", "trained"):
            for reg in (0.1, 0.05) if quick else (0.1, 0.05, 0.01):
                headline = not quick and shape == SHAPES[0] and reg == 0.05
                B = 4096 if headline else 128 if quick else 512
                rows += _compare(shape, kind, reg, B, quick, kit, floor)
    return rows


def _compare(shape, kind, reg, B, quick, kit, floor) -> list[dict]:
    C, a, b = problems(shape, kind, B, kit)
    rows = []
    for name, solver in solvers.OTHERS.items():
        if quick and name.startswith("OTT"):
            continue  # compiling it takes longer than all the rest
        row = {"patches": shape[0], "words": shape[1], "features": kind, "reg": reg, "solver": name, "floor": floor}
        some = slice(0, 32 if quick else 128) if name in solvers.ONE_BY_ONE else slice(0, B)
        few, mine = (C[:64], a[:64], b[:64], reg), (C[some], a[some], b[some], reg)
        row["batch"] = some.stop
        try:
            effort, _ = (1, 0.0) if name == solvers.EXACT else solvers.least_effort(solver, *few)
        except ImportError as error:
            rows.append({**row, "note": f"not installed ({error.name})"})
            continue
        if effort is None:
            row["note"], effort = "timed at 100 iterations: never as exact as asked", 100
        rows.append(row | _race(solver, few, mine, effort, 3 if B < 4096 else 2))
        print(f"  {shape[0]}x{shape[1]} {kind} reg {reg}: {name}: {rows[-1]['ratio']:.1f} times", flush=True)
    gc.collect()
    return rows


def _race(solver, few, mine, effort: int, times: int) -> dict:
    def theirs():
        return (solver(*mine, effort) * mine[0]).sum((1, 2))

    with solvers.quiet():
        seconds = in_turn({"ours": lambda: solvers.ours(*mine), "theirs": theirs}, times)
        error = float(solvers.marginal_error(solver(*few, effort), *few[1:3]).max())
    return {
        "iterations": effort,
        "marginal_error": error if error == error else None,
        "per_second": len(mine[0]) / median(seconds["theirs"]),
        "ours_per_second": len(mine[0]) / median(seconds["ours"]),
        "ratio": median(t / o for t, o in zip(seconds["theirs"], seconds["ours"])),
    }


def hard_problem(times: int = 3) -> dict:
    """One problem with its cost times 50 in a batch of 256: what it costs the others."""
    C, a, b = problems(SHAPES[0], "random", 256, {})  # neither solves the hard one in the 1,000 iterations it has
    hard = C.clone()
    hard[7] *= 50
    out, l2 = {}, solvers.TOL / 77**0.5  # POT looks at the L2 error
    ways = {
        "ours": lambda C: otclib.transport.sinkhorn(C, a, b, reg=0.1, tol=solvers.TOL),
        "POT ot.batch, log domain": lambda C: solvers.solve_batch(C, 0.1, a, b, tol=l2, method="log_sinkhorn"),
    }
    for name, solve in ways.items():
        seconds = in_turn({"alone": partial(solve, C), "with": partial(solve, hard)}, times if name == "ours" else 1)
        out[name] = median(w / x for w, x in zip(seconds["with"], seconds["alone"]))
    return out


def loss_rows(kit: dict, times: int = 3) -> list[dict]:
    """The inter-modal loss of 256 images and 256 captions, forward and backward, against its token product's."""
    rows = []
    random = [_random_features(n, d) for shape in SHAPES for n, d in ((shape[0], shape[2]), (shape[1], shape[2]))]
    mine = [kit["image"][torch.arange(256)], encoded(kit, captions(256))]
    for kind, image, text in (("random", *random[:2]), ("random", *random[2:]), ("trained", *mine)):
        v, t = (z.tokens.clone().requires_grad_() for z in (image, text))
        x, y = (Features(z.pooled, w, z.mask) for z, w in ((image, v), (text, t)))
        (N, D), M = v.shape[1:], t.shape[1]
        weight, scale = torch.rand(256 * N, 256 * M), torch.tensor(10.0)

        def product(v=v, t=t, weight=weight, D=D):
            (v.reshape(-1, D) @ t.reshape(-1, D).T).backward(weight)

        def loss(x=x, y=y, scale=scale):
            losses.inter_modal(x, y, scale, 0.1).backward()

        seconds = in_turn({"product": product, "loss": loss}, times)
        ratio = median(a / b for a, b in zip(seconds["loss"], seconds["product"]))
        row = {"patches": N, "words": M, "dim": D, "features": kind, "ratio": ratio, "seconds": median(seconds["loss"])}
        rows.append(row)
    return rows


def _random_features(n: int, dim: int) -> Features:
    tokens = F.normalize(torch.randn(256, n, dim, generator=torch.Generator().manual_seed(n)), dim=-1)
    return Features(tokens[:, 0], tokens, torch.ones(256, n, dtype=torch.bool))


def matching_rows(quick: bool, kit: dict) -> list[dict]:
    """Exact nearest captions of 256 images: pruned against brute force, both by ours, the fastest of the table."""
    image, rows = TokenSets.of(kit["image"]), []
    for size in POOLS[:2] if quick else POOLS:
        pool = CaptionPool(size, 24, image.tokens.shape[-1], dtype=torch.float32 if size <= 100_000 else torch.float16)
        texts = captions(size)
        for k in range(0, size, 50_000):
            pool.add(encoded(kit, texts[k : k + 50_000]))
        del texts
        for weight, reg in ((0.5, 0.1), (0.5, 0.05), (0.0, 0.1), (0.0, 0.05)):
            if reg == 0.05 or (size <= 100_000 and not quick):
                rows.append(_match(image, pool, weight, reg, quick))
                if size > 100_000:
                    _brute_of_a_tenth(rows)
                print(f"  {size:,} captions, w {weight}, reg {reg}: {rows[-1]['ratio']:.0f} times", flush=True)
        if size == 100_000:
            rows.append({"captions": size, "index": index_race(image, pool)})
        del pool
        gc.collect()
    return rows


def _match(image: TokenSets, pool: CaptionPool, weight: float, reg: float, quick: bool) -> dict:
    how = {"reg": reg, "global_weight": weight}
    size = len(pool)
    start = time.perf_counter()
    found = pool.match(image, **how)  # makes what is made once
    first = time.perf_counter() - start
    # brute force on all is 256 / n times that on n images
    n = 256 if size <= 1_000 else 16 if quick else 64 if size <= 21_845 else 4
    few, brute = image[:n], {}

    def by_brute_force():
        brute["match"] = pool.match(few, method="brute", **how)

    ways = {"pruned": lambda: pool.match(image, **how), "brute": by_brute_force}
    seconds = in_turn(ways, 1 if quick or size > 100_000 else 3)
    same = torch.equal(brute["match"].index, found.index[:n]) and torch.equal(
        brute["match"].distance, found.distance[:n]
    )
    return {
        "captions": size,
        "global_weight": weight,
        "reg": reg,
        "dtype": str(pool._all.tokens.dtype).removeprefix("torch."),
        "bytes_per_caption": pool.bytes_per_caption,
        "seconds": median(seconds["pruned"]),
        "seconds_first": first,
        "brute_images": n,
        "seconds_brute": median(seconds["brute"]) * 256 / n,
        "ratio": median(b / p for b, p in zip(seconds["brute"], seconds["pruned"])) * 256 / n,
        "solved_share": found.solved / (256 * size),
        "same_as_brute": bool(same),
    }


def _brute_of_a_tenth(rows: list[dict]) -> None:
    """Brute force grows with the captions, and in a float16 pool a few images would pay for decoding it for all."""
    last = rows[-1]
    same = ("global_weight", "reg")
    tenth = next(r for r in rows if r["captions"] == last["captions"] // 10 and all(r.get(k) == last[k] for k in same))
    last |= {"seconds_brute": 10 * tenth["seconds_brute"], "brute_images": 0}
    last["ratio"] = last["seconds_brute"] / last["seconds"]


def index_race(image: TokenSets, pool: CaptionPool) -> dict:
    """All captions whose first bound is below the distance found: a matrix product, or faiss's exact index."""
    try:
        import faiss
    except ImportError:
        return {"note": "faiss-cpu is not installed"}
    query, summary, weight = image.queries(0.5), pool._all.summary, 0.5
    best = pool.match(image, reg=0.1, global_weight=weight).distance
    index = faiss.IndexFlatIP(summary.shape[1])
    index.add(summary.numpy())
    threshold = float((1 - best).median())  # faiss knows one for all images
    seconds = in_turn(
        {
            "product": lambda: (query @ summary.T >= threshold).nonzero(),
            "faiss": lambda: index.range_search(query.numpy(), threshold),
        },
        3,
    )
    return {name: median(s) for name, s in seconds.items()}


def cuda_rows() -> list[dict] | str:
    """Pairs per second of the fused kernel, and the share of the chip's bf16 peak that its token product is."""
    if not torch.cuda.is_available():
        return "not measured: no GPU on this machine"
    from otclib.matching import cuda

    big = [torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2)]

    def timed(work, times=5):
        work(), torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / times

    peak = 2 * 8192**3 / timed(lambda: big[0] @ big[1])  # what this chip reaches in a large product
    rows = []
    for N, M, D in SHAPES:
        v, t = (F.normalize(torch.randn(512, n, D, device="cuda"), dim=-1).bfloat16() for n in (N, M))
        n, m = (torch.full((512,), k, device="cuda") for k in (N, M))
        i, j = (x.reshape(-1) for x in torch.meshgrid(*2 * [torch.arange(512, device="cuda")], indexing="ij"))
        for reg in (0.1, 0.05, 0.01):
            seconds = timed(lambda: cuda.pair_costs(v, n, t, m, i, j, reg=reg))  # noqa: B023
            share = 2 * N * M * D * len(i) / seconds / peak
            rows.append({"patches": N, "words": M, "dim": D, "reg": reg, "per_second": len(i) / seconds, "peak": share})
    return rows


# -- what is shown ---------------------------------------------------------------------------------------------------


def _pivot(rows: list[dict], reg: float) -> list[str]:
    """Solvers down, problems across."""
    columns = list(dict.fromkeys((r["patches"], r["words"], r["features"]) for r in rows))
    cells = {(r["solver"], r["patches"], r["words"], r["features"]): r for r in rows}
    lines = [f"| reg {reg} | " + " | ".join(f"{n} x {k}, {kind}" for n, k, kind in columns) + " |"]
    lines += ["|---|" + "---:|" * len(columns)]
    for name in dict.fromkeys(r["solver"] for r in rows):
        line = f"| {name} |"
        for column in columns:
            r = cells[(name, *column)]
            if "ratio" not in r:
                line += f" {r['note']} |"
            elif "note" in r:
                line += f" {r['ratio']:.1f}* ({r['per_second']:,.0f}) |"
            else:
                line += f" **{r['ratio']:.1f}** ({r['per_second']:,.0f}) |"
        lines.append(line)
    own = (
        max(r.get("ours_per_second", 0) for r in rows if (r["patches"], r["words"], r["features"]) == c)
        for c in columns
    )
    return [*lines, "| ours, problems/s |" + "".join(f" {x:,.0f} |" for x in own)]


def tables(record: dict) -> str:
    """The record as the Markdown that the README shows."""
    m = record["machine"]
    lines = [
        f"Measured on {m['cpu']}, {m['threads']} threads, torch {m['torch']}: medians of runs in turn, to the costs",
        "<P, C>. Each of the others has the fewest iterations (within a tenth) that bring 64 of the problems to",
        f"a marginal error of {solvers.TOL:g}, or 100 where no 1,024 do (*: no fair ratio, what they leave is larger,",
        "or NaN); ours stops itself. Batches of 512; of 4,096, which leave the cache, for 49 x 77 at reg 0.05; of",
        "128 for what goes one by one, on one core. Random tokens have 64 numbers. Trained ones are our small",
        "model's; of a caption's 77 or 16 words 5.6 are real on average, and the others have weight zero.",
        "",
        "**How many times faster ours is**, and in brackets the problems that the other solves in a second:",
    ]
    for reg in sorted({r["reg"] for r in record["sinkhorn"]}, reverse=True):
        lines += ["", *_pivot([r for r in record["sinkhorn"] if r["reg"] == reg], reg)]
    floors = {(r["patches"], r["words"]): r["floor"] for r in record["sinkhorn"]}
    lines += ["", "The floor, the product of the tokens alone (float32):", ""]
    for (n, k), f in floors.items():
        here = f"{f['per_second']:,.0f} problems/s here ({f['gflops']:.0f} GFLOP/s)"
        lines.append(f"- {n} x {k}: {f['mflop']:.2f} MFLOP and {f['kib']:.0f} KiB a problem, {here}.")
    if "hard" in record:
        hard = ", ".join(f"{name} {x:.1f}" for name, x in record["hard"].items())
        lines += ["", "One hard problem (cost times 50, solved by neither in 1,000 iterations) in a batch of 256"]
        lines += [f"multiplies the time by: {hard}."]
    lines += [
        "",
        "Exact nearest captions of 256 images, trained features; brute force solves every pair, by the same solver:",
        "",
    ]
    lines += [
        "| captions | global weight | reg | pruned, s | first time, s | brute, s | **faster by** | problems solved |"
    ]
    lines += ["|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for r in record["matching"]:
        if "index" in r:
            continue
        source = f"from {r['brute_images']} images" if r["brute_images"] else "10 times that of a tenth"
        brute = f"{r['seconds_brute']:.1f}" + ("" if r["brute_images"] == 256 else f" ({source})")
        what = f"| {r['captions']:,} | {r['global_weight']} | {r['reg']} | {r['seconds']:.3f} "
        what += f"| {r['seconds_first']:.2f} | {brute} "
        lines.append(f"{what}| **{r['ratio']:.0f}** | {100 * r['solved_share']:.3f} % |")
    for r in record["matching"]:
        if "product" in r.get("index", {}):
            how = (
                f"{r['index']['product']:.2f} s as a matrix product, {r['index']['faiss']:.2f} s by faiss's exact index"
            )
            lines += ["", f"The search by the first bound among {r['captions']:,} captions: {how}."]
    loss = "; ".join(f"{r['ratio']:.1f} for {r['patches']} x {r['words']}, {r['features']}" for r in record["loss"])
    lines += ["", "The inter-modal loss of 256 x 256 pairs, forward and backward, takes this many times"]
    lines += [f"its token product's own forward and backward: {loss}."]
    if isinstance(record["cuda"], str):
        return "\n".join([*lines, "", f"The fused CUDA kernel: {record['cuda']}."])
    lines += ["", f"The fused CUDA kernel on {m['gpu']}:", ""]
    for r in record["cuda"]:
        share = f"the token product at {100 * r['peak']:.1f} % of what the chip reaches in bf16"
        lines.append(f"- {r['patches']} x {r['words']}, reg {r['reg']}: {r['per_second']:,.0f} pairs/s, {share}.")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches and pools: two minutes; writes nothing")
    parser.add_argument(
        "--only", nargs="+", choices=("sinkhorn", "hard", "loss", "matching"), help="measure these anew"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/demo/otcclip"), help="the model whose features are used")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the JSON goes")
    args = parser.parse_args(argv)
    kit = trained(args.run, args.quick)
    old = args.out / "transport.json"
    record = json.loads(old.read_text()) if args.only else {}
    record |= {"machine": machine(), "code": code(), "run": kit["run"]}
    parts = {
        "sinkhorn": lambda: sinkhorn_rows(args.quick, kit),
        "hard": hard_problem,
        "loss": lambda: loss_rows(kit, 1 if args.quick else 3),
        "matching": lambda: matching_rows(args.quick, kit),
    }
    for name in args.only or [n for n in parts if n != "hard" or not args.quick]:
        print(name, flush=True)
        record[name] = parts[name]()
    record["cuda"] = cuda_rows()
    print("\n" + tables(record))
    if not args.quick:
        args.out.mkdir(parents=True, exist_ok=True)
        name = "transport" if record["machine"]["gpu"] is None else "transport-gpu"
        write_json(args.out / f"{name}.json", record)
        if name == "transport":
            into_page("speed", tables(record))
            figures.matching_speed([r for r in record["matching"] if "ratio" in r]).savefig(
                "figures/matching.png", dpi=150
            )
            plt.close("all")


if __name__ == "__main__":
    main()
