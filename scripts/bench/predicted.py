"""``python -m scripts.bench.predicted [--json]``: a learner step on an H100, predicted on a machine without a GPU.

The real trainer runs on CUDA tensors that hold no data (scripts/bench/fake_cuda), for combinations of options. Every
operation is counted: kernels, bytes, multiply-adds and memory. Times are by the roofline of an H100, so nothing of this
is a measurement. Time and MFU are of a micro-batch without the optimizer; MFU counts 6 operations for each parameter
and token, the reference pass not included. What ``learner.compile`` generates counts as one kernel for each function.
Needs a CPU build of torch and g++.

The exit code is 1 if the step waits for the GPU between micro-batches, takes tensors of the CPU together with those of
the GPU, multiplies float32 matrices, or needs another peak of memory than scripts.ops.dry_run says, by more than 5%.
Weights of two layers that travel between ranks may be missing from the peak, because here they arrive at once.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from common.config import Config, load
from common.process import FatalError
from scripts.bench.fake_cuda import shim
from scripts.bench.table import Json, Row, report
from scripts.ops.command_line import command

# Nothing that imports torch may be imported here: the pretended GPU must be loaded before torch.

_SHAPES = Path(__file__).parents[2] / "configs" / "models"
_NEARLY = 0.05  # how far dry_run may be from the peak, as a share of it
_QUICK = (  # for one rank, and for several
    ("LoRA, compiled, checkpointing",),
    ("compiled, no checkpointing, weights stay gathered", "checkpointing, reference in host memory"),
)
# Column of the table in Markdown -> figure of a case, digits.
_COLUMNS = {
    "ms": ("time of a micro-batch", 0),
    "tokens/s a GPU": ("throughput", 0),
    "MFU %": ("MFU (6N)", 1),
    "kernels": ("kernels of a micro-batch", 0),
    "GB moved": ("bytes of a micro-batch", 0),
    "peak GB": ("peak memory", 1),
}


@dataclass(frozen=True)
class Case:
    """A configuration to predict."""

    name: str
    flags: tuple[str, ...]


def cases(ranks: int, quick: bool = False) -> list[Case]:
    """The combinations of options that the documentation shows, for so many ranks.

    Args:
        quick: a few of them, in which most options are once, for 1 and 4 ranks together.
    """
    whole, none = ("--learner.activation_checkpointing", "true"), ("--learner.activation_checkpointing", "false")
    half = (*whole, "--learner.checkpointed_layers", "0.5")
    on_cpu, compiled = ("--learner.reference_on_cpu", "true"), ("--learner.compile", "true")
    lora, gathered = ("--lora.rank", "32"), ("--learner.keep_gathered", "true")
    found = {
        "checkpointing": whole,
        "half of the layers checkpointed": half,
        "no checkpointing": none,
        "compiled, checkpointing": (*whole, *compiled),
        "compiled, half of the layers checkpointed": (*half, *compiled),
        "compiled, no checkpointing": (*none, *compiled),
        "compiled, no checkpointing, weights stay gathered": (*none, *compiled, *gathered),
        "checkpointing, reference in host memory": (*whole, *on_cpu),
        "LoRA, checkpointing": (*whole, *lora),
        "LoRA, no checkpointing": (*none, *lora),
        "LoRA, compiled, no checkpointing": (*none, *compiled, *lora),
        "LoRA, compiled, checkpointing": (*whole, *compiled, *lora),
    }
    names = _QUICK[ranks > 1] if quick else tuple(found)
    return [Case(f"{ranks} rank{'s'[: ranks > 1]}, {name}", found[name]) for name in names]


def configure(shape: str, tokens: int, ranks: int, case: Case) -> Config:
    """The configuration of a case."""
    flags = ["--model.path", shape, "--learner.microbatch_tokens", str(tokens), "--learner.ranks", str(ranks)]
    return load([*flags, *case.flags])


def rows(config: Config, case: Case, expected: float, travelling: float, layers: int = 0) -> list[Row]:
    """The figures of one case, each in a row.

    Args:
        expected: bytes of peak memory, as ``dry_run`` says.
        travelling: those of them that are weights on their way between ranks, which here have arrived at once.
    """
    from scripts.bench.fake_cuda.learner import predict
    from scripts.bench.fake_cuda.meter import PEAK_FLOPS
    from scripts.ops.dry_run import GB

    found = predict(config, layers=layers)
    batch, optimizer = found.micro_batch, found.phases["optimizer"]
    mfu = 6 * found.parameters * found.tokens / (batch.seconds * PEAK_FLOPS)
    fits = (expected - travelling) / (1 + _NEARLY) <= found.peak <= expected / (1 - _NEARLY)
    problems = found.waits + found.foreign + found.wide
    table: list[Any] = [
        ("time of a micro-batch", batch.seconds * 1e3, "ms"),
        *((f"of it {name}", part.seconds * 1e3, "ms") for name, part in found.phases.items() if name != "optimizer"),
        ("time of the optimizer", optimizer.seconds * 1e3, "ms"),
        ("throughput", found.tokens / batch.seconds, "tokens/s a GPU"),
        ("MFU (6N)", 100 * mfu, "%"),
        ("kernels of a micro-batch", batch.kernels, ""),
        ("bytes of a micro-batch", batch.bytes / GB, "GB"),
    ]
    result = [Row(f"{case.name}: {metric}", value, unit) for metric, value, unit in table]
    result.append(
        Row(f"{case.name}: peak memory", found.peak / GB, "GB", f"dry_run: {expected / GB:.2f}", expected / found.peak,
            f"within {_NEARLY:.0%}", fits)
    )  # fmt: skip
    what = f"{case.name}: waits, foreign and float32 operations"
    result.append(Row(what, len(problems), "; ".join(problems[:3]), goal="0", ok=not problems))
    return result


def table_line(model: str, case: Case, found: list[Row], expected: float) -> str:
    """A case as a line of the table in Markdown; without figures of a step where none was predicted.

    Args:
        expected: bytes of peak memory, as ``dry_run`` says.
    """
    values = {row.metric.removeprefix(f"{case.name}: "): row.value for row in found}
    cells = [f"{values[metric]:,.{digits}f}" if found else "" for metric, digits in _COLUMNS.values()]
    return f"| {' | '.join([model, case.name, *cells, f'{expected / 1e9:.1f}'])} |"


@command()
def main(
    *,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="config.json of a model, or the name of one in configs/models; may be given several times."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of a micro-batch.")] = 16384,
    ranks: Annotated[list[int] | None, typer.Option(min=1, help="Learner ranks; may be given several times.")] = None,
    layers: Annotated[int, typer.Option(min=0, help="Layers of the model; 0 for all.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer combinations of options.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Only cases whose name contains this; may be given several times.")
    ] = None,
    gpu_gb: Annotated[
        float, typer.Option(min=0, help="Predict no step that needs more memory than this, by dry_run.")
    ] = math.inf,
    as_json: Json = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="A line for each case, as soon as it is predicted.")
    ] = False,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        shim.load(shim.build(Path(directory)))
    from scripts.ops.dry_run import GB, ModelShape, peak_memory

    ok = True
    if as_markdown:
        names = ["model", "learner", *_COLUMNS, "`dry-run` GB"]
        print("\n".join(f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names))), flush=True)
    for model in shape or ["qwen2.5-1.5b"]:
        path = str(_SHAPES / f"{model}.json") if (_SHAPES / f"{model}.json").exists() else model
        sizes, found = ModelShape(path, layers=layers), list[Row]()
        chosen = [(number, case) for number in ranks or [1, 4] for case in cases(number, quick)]
        chosen = [(number, case) for number, case in chosen if any(one in case.name for one in only or [""])]
        if not chosen:
            raise FatalError(
                f"--only: no case's name contains {' or '.join(map(repr, only or []))}; without it all run"
            )
        for number, case in chosen:
            config = configure(path, tokens, number, case)
            expected = peak_memory(sizes, config)
            fits = expected / GB <= gpu_gb
            travelling = 2 * sizes.layer * 2 if number > 1 else 0  # two layers, in bfloat16
            figures = rows(config, case, expected, travelling, layers) if fits else []
            if as_markdown:
                print(table_line(model, case, figures, expected), flush=True)
            found += figures or [Row(f"{case.name}: left out, as dry_run says it needs", expected / GB, "GB")]
        if not as_markdown:
            report(f"predicted, {model}", found, as_json)
        ok = ok and not any(row.ok is False for row in found)
    if not ok:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
