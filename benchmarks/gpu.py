"""Measures everything that docs/speed.md says of a GPU, in one command.

    benchmarks/gpu.sh [--smoke] [--minutes=8] [--peer_python=PYTHON] [--images=PHOTOGRAPHS]

Writes ``gpu_DEVICE.json``, ``.md`` and ``.png`` to ``benchmarks/results`` after every row, the most
important rows first: training and inference of NFNet-F0 and F3 over timm, what batch normalization
costs, and the input pipeline; below them the device's rates and the largest differences from the
published networks' figures. AGC has files of its own, from ``benchmarks.agc``. ``--smoke`` takes
tiny networks and any device. Rows that find no time are named.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nfnets_jax
from benchmarks import compare, machine
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.registry import PRECISIONS
from tests import golden

_FACTS = [sys.executable, "-m", "benchmarks.gpu", "--facts"]


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny networks, to try the program")
    parser.add_argument("--minutes", type=float, default=8, help="time for all rows")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side")
    parser.add_argument("--peer_python", default=sys.executable, help="a Python with torch, timm")
    parser.add_argument("--images", default="", help="photographs, one folder per class")
    parser.add_argument("--out", type=Path, default=compare.RESULTS)
    parser.add_argument("--facts", action="store_true", help="print rates and differences alone")
    arguments = parser.parse_args()
    if arguments.facts:
        print(json.dumps(facts(arguments.smoke)))
        return
    deadline = time.monotonic() + 60 * arguments.minutes
    # This process must not occupy the device: each measurement has one of its own.
    found = subprocess.run(
        [*_FACTS, *["--smoke"] * arguments.smoke], check=True, capture_output=True, text=True
    )
    conditions = {"commit": _commit(), **json.loads(found.stdout.splitlines()[-1])}
    rows = comparisons(arguments)
    if any("timm" in name for name in rows):
        conditions |= _peer(arguments)[1]
    compare.measure(rows, conditions, arguments.out / "gpu", deadline)
    rounds = 3 if arguments.smoke else 30
    agc = [sys.executable, "-m", "benchmarks.agc", f"--rounds={rounds}", f"--out={arguments.out}"]
    subprocess.run(agc, check=True)


def comparisons(arguments: argparse.Namespace) -> dict[str, compare.Comparison]:
    """Returns the rows of the table, the most important first."""
    steps = "--steps=2" if arguments.smoke else "--steps=12"

    def ours(model: str, batch: int, size: int, *flags: str) -> list[str]:
        if arguments.smoke:
            model = "nfnet_micro" if model.startswith("nfnet") else f"{model[:-2]}26_small"
            batch, size = 2, 16
        shape = [f"--model={model}", f"--batch={batch}", f"--size={size}", steps]
        command = [sys.executable, "-m", "benchmarks.train_step", "--precision=bfloat16"]
        return [*command, *shape, *flags]

    def timm(model: str, batch: int, size: int, *flags: str) -> list[str]:
        if arguments.smoke:
            batch, size = 2, 64
        shape = [f"--model={model}", f"--batch={batch}", f"--size={size}", steps]
        return [arguments.peer_python, str(script), "--dtype=bfloat16", *shape, *flags]

    script, absent = None, ""
    try:
        script, _ = _peer(arguments)
    except compare.CommandError as error:
        absent = str(error)
    f0, f3, served = (256, 192), (64, 320), ("--forward", "--folded")
    rows = {
        "F0 training, over timm, torch.compile": (
            ours("nfnet_f0", *f0),
            timm("dm_nfnet_f0", *f0, "--compile"),
        ),
        "F0 inference, over timm, torch.compile": (
            ours("nfnet_f0", *f0, *served),
            timm("dm_nfnet_f0", *f0, "--forward", "--compile"),
        ),
        "F0 training, over F0 that normalizes batches": (
            ours("nfnet_f0", *f0),
            ours("nfnet_f0", *f0, "--batch_norm"),
        ),
        "NF-ResNet-50 training, over ResNet-50": (
            ours("nf_resnet50", 256, 224),
            ours("resnet50", 256, 224),
        ),
        "F0 training, over timm, eager": (ours("nfnet_f0", *f0), timm("dm_nfnet_f0", *f0)),
        "F3 training, over timm, torch.compile": (
            ours("nfnet_f3", *f3),
            timm("dm_nfnet_f3", *f3, "--compile"),
        ),
        "F3 inference, over timm, torch.compile": (
            ours("nfnet_f3", *f3, *served),
            timm("dm_nfnet_f3", *f3, "--forward", "--compile"),
        ),
    }
    made = {}
    for name, sides in rows.items():
        if absent and "timm" in name:
            print(f"{name}: omitted: {absent}", flush=True)
        else:
            made[name] = compare.Comparison(*sides, arguments.rounds)
    if arguments.images:
        read = [sys.executable, "-m", "benchmarks.input_pipeline", f"--dir={arguments.images}"]
        read += ["--json", "--augmentation=nfnet_f0", "--images=2000"]
        name = f"reading images in threads, over {os.cpu_count()} processes"
        made[name] = compare.Comparison(
            [*read, "--workers=0"], [*read, f"--workers={os.cpu_count()}"], 1, "images_per_second"
        )
    return made


def _peer(arguments: argparse.Namespace) -> tuple[Path, Mapping[str, str]]:
    """Finds timm's program and the versions that it runs with, as ``compare.peer`` does."""
    return compare.peer("timm_step.py", arguments.peer_python, ("torch", "timm"))


def facts(smoke: bool) -> dict[str, Any]:
    """Measures the device's rates, and how far F0 is from the published figures, by name."""
    found: dict[str, Any] = {}
    for precision, dtype in PRECISIONS.items():
        products = Policy(tensorfloat32=precision == "tensorfloat32").precision_of(dtype)
        rate = machine.matmul_rate(dtype, products) / 1e12
        found[f"TFLOP/s of {precision} products"] = round(rate, 1)
    found["GB/s of memory"] = round(machine.memory_rate() / 1e9)
    if smoke:
        return found
    for precision in ("float32", "tensorfloat32"):
        found[f"largest difference of {precision} logits"] = float(f"{_difference(precision):.1e}")
    return found


def _difference(precision: str) -> float:
    """Returns the largest difference of F0's logits from the golden ones, over their deviation."""
    expected = golden.load("nfnet_f0.json")
    model = nfnets_jax.create_model("nfnet_f0", precision=precision)
    images = golden.images(expected["batch"], expected["image_size"])
    params, state = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(images))
    shapes = {m: {p: list(x.shape) for p, x in ps.items()} for m, ps in params.items()}
    apply = jax.jit(lambda params, x: model.apply(params, state, None, x, False)[0]["logits"])
    logits = np.asarray(apply(golden.parameters(shapes), images))
    difference = np.abs(logits[:, :8] - np.asarray(expected["logits_first8"])).max()
    return float(difference / expected["logits_std"])


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
