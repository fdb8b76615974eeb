"""Compares a run that is killed again and again with one that is not.

    python -m benchmarks.survival --kills=20 --damages=3

trains a small network on the digits to its end. Then it trains the network again and kills it
(SIGKILL) at random moments, some of them while a checkpoint is written; three times it damages the
newest checkpoint before the next start. Both runs must end with the same parameters, bit for bit,
and with the metrics of each step once. It prints a table of what happened and writes it to
``results/survival_DEVICE.md``. The exit code is 1 if the runs differ.
"""

import argparse
import dataclasses
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import compare, machine

_TIMED = ("images_per_second", "data_wait")
# From the first step to a kill.
_LONGEST_SECONDS = 3.0
_CONFIG = '''"""A very small run."""

from nfnets_jax.training import recipes


def get_config():
    config = recipes.small_images("nfnet_micro", "digits", size=8)
    config.model.update({{"depth": (1,), "width": (16,), "strides": (1,), "group_size": 8}})
    config.update({{"batch_size": 8, "num_devices": 1, "log_every": 10}})
    config.update({{"num_steps": {steps}, "checkpoint_every": {checkpoint_every}}})
    return config
'''


@dataclasses.dataclass
class Start:
    """One start of the run, and how it ended.

    Attributes:
      damage: what was done to the newest checkpoint before it, empty for nothing.
      resumed: step that it resumed at, 0 for the beginning.
      reached: last step that it reported.
      ended: what ended it.
    """

    damage: str
    resumed: int
    reached: int
    ended: str


def main() -> None:
    """Kills and resumes a run, and reports what differs from an undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--damages", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--checkpoint_every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=compare.RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), arguments.steps, arguments.checkpoint_every)
        starts = run.survive(arguments.kills, arguments.damages, random.Random(arguments.seed))
        faults = run.faults(starts, arguments.kills)
    text = _table(starts, faults, arguments.checkpoint_every)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"survival_{machine.describe()['device']}.md").write_text(text)
    if faults:
        sys.exit(1)


class Run:
    """A small run in two workdirs: undisturbed in one, killed in the other."""

    def __init__(self, folder: Path, steps: int, checkpoint_every: int):
        self._calm, self._rough = folder / "calm", folder / "rough"
        self._checkpoint_every = checkpoint_every
        config = folder / "survival.py"
        config.write_text(_CONFIG.format(steps=steps, checkpoint_every=checkpoint_every))
        self._command = [sys.executable, "-m", "experiments.run", f"--config={config}"]

    def survive(self, kills: int, damages: int, moments: random.Random) -> list[Start]:
        """Trains undisturbed, then with ``kills`` kills; returns the starts of the second run."""
        began = time.monotonic()
        subprocess.run([*self._command, f"--workdir={self._calm}"], check=True, capture_output=True)
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
        starts: list[Start] = []
        for index in range(kills + 1):
            damage = ""
            # Two checkpoints, so that one is left; at random, but in time.
            hurry = kills - index < damages
            if damages and len(self._checkpoints()) > 1 and (hurry or moments.random() < 0.3):
                damages, damage = damages - 1, self._damage(moments)
            # Every third kill comes while a checkpoint is written.
            how = None if index == kills else "writing" if index % 3 == 2 else "any"
            starts.append(self._start(damage, how, moments))
            print(f"start {index + 1} of {kills + 1}: {starts[-1]}", flush=True)
        return starts

    def _start(self, damage: str, kill: str | None, moments: random.Random) -> Start:
        """Starts the run and kills it at a random moment, or waits for its end."""
        output = self._rough.with_name("output.txt")
        with output.open("w") as file:
            process = subprocess.Popen(
                [*self._command, f"--workdir={self._rough}"], stdout=file, stderr=file
            )

        def wait(event: Callable[[], bool]) -> None:
            while process.poll() is None and not event():
                time.sleep(0.001)

        ended = "finished"
        if kill:
            wait(lambda: "compiled in" in output.read_text())
            moment = time.monotonic() + moments.uniform(0, _LONGEST_SECONDS)
            wait(lambda: time.monotonic() > moment)
            if kill == "writing":
                wait(self._writing)
            if process.poll() is None:
                ended = "killed while a checkpoint was written" if self._writing() else "killed"
                process.kill()
        process.wait()
        printed = output.read_text()
        if process.returncode not in (0, -9):
            ended = f"failed: {printed.splitlines()[-1]}"
        resumed = re.search(r"resumed at step (\d+)", printed)
        return Start(damage, int(resumed[1]) if resumed else 0, self._reached(), ended)

    def _writing(self) -> bool:
        return any(self._rough.glob("checkpoints/*tmp*"))

    def _reached(self) -> int:
        return max((row["step"] for row in _rows(self._rough)), default=0)

    def _checkpoints(self) -> list[Path]:
        return [path for path in self._rough.glob("checkpoints/*") if path.name.isdigit()]

    def _damage(self, moments: random.Random) -> str:
        """Damages the newest checkpoint, as disks do."""
        newest = max(self._checkpoints(), key=lambda path: int(path.name))
        files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 99]
        file = moments.choice(files)
        content = bytearray(file.read_bytes())
        kind = moments.choice(("cut short", "a bit changed", "lost"))
        if kind == "lost":
            file.unlink()
        elif kind == "cut short":
            file.write_bytes(content[: len(content) // 2])
        else:
            content[moments.randrange(len(content))] ^= 1
            file.write_bytes(content)
        return f"{newest.name}: {file.relative_to(newest)} {kind}"

    def faults(self, starts: Sequence[Start], kills: int) -> list[str]:
        """Returns what differs from a run without kills."""
        found = [f"start {i}: {start.ended}" for i, start in enumerate(starts, 1)
                 if start.ended.startswith("failed")]  # fmt: skip
        killed = sum(start.ended.startswith("killed") for start in starts)
        if killed < kills:
            found.append(f"only {killed} of {kills} kills came before the end: take more steps")
        calm, rough = (_summary(workdir) for workdir in (self._calm, self._rough))
        if calm["params_sha256"] != rough.get("params_sha256"):
            found.append("the parameters differ")
        if _rows(self._calm) != _rows(self._rough):
            found.append("the metrics differ")
        return found


def _rows(workdir: Path) -> list[dict[str, Any]]:
    """Returns the complete rows of the metrics, without those that measure time."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [
        {name: value for name, value in json.loads(line).items() if name not in _TIMED}
        for line in lines
    ]


def _summary(workdir: Path) -> dict[str, Any]:
    file = workdir / "summary.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _table(starts: Sequence[Start], faults: Sequence[str], checkpoint_every: int) -> str:
    lines = ["| start | damaged before | went on from | reached | lost | ended |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    losses = []
    for index, (start, after) in enumerate(itertools.zip_longest(starts, starts[1:]), 1):
        lost = start.reached - after.resumed if after else 0
        losses.append(lost if after and not after.damage else 0)
        lines.append(
            f"| {index} | {start.damage} | {start.resumed} | {start.reached} | {lost} | "
            f"{start.ended} |"
        )
    killed = sum(start.ended.startswith("killed") for start in starts)
    verdict = "; ".join(faults) or "parameters and metrics are those of the undisturbed run"
    described = ", ".join(f"{key} {value}" for key, value in machine.describe().items())
    return "\n".join(lines) + (
        f"\n\n{killed} kills, {sum(bool(start.damage) for start in starts)} damaged checkpoints: "
        f"{verdict}. A kill cost at most {max(losses)} steps (undamaged; a checkpoint every "
        f"{checkpoint_every}). {described}.\n"
    )


if __name__ == "__main__":
    main()
