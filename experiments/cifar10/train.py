"""Trains the record as it was measured: one process a core.

    python -m experiments.cifar10.train --config.data.dir=TFDS_DIR --workdir=DIR

All flags of ``experiments.run`` hold; ``--cpu_processes`` is the number of processes.
"""

import contextlib
import io
import sys
from collections.abc import Sequence

from absl import app, flags

from nfnets_jax.errors import InputError

from .. import run
from . import processes

_CPU_PROCESSES = flags.DEFINE_integer(
    "cpu_processes", 0, "Processes on a machine without accelerators; 0 is one a core."
)


def main(argv: Sequence[str]) -> None:
    """Starts the other processes, then trains."""
    if processes.is_follower():
        _follow(argv)
        return
    try:
        membership = processes.start(_CPU_PROCESSES.value, flags.FLAGS.config.batch_size)
    except InputError as error:
        sys.exit(f"error: --cpu_processes: {error}")
    for name, value in membership._asdict().items() if membership else ():
        setattr(flags.FLAGS, name, value)
    run.main(argv)


def _follow(argv: Sequence[str]) -> None:
    """Trains as a follower, without a word: the first process reports what all of them meet."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            run.main(argv)
    except SystemExit as end:
        sys.exit(1 if isinstance(end.code, str) else end.code)


def parse(argv: list[str]) -> list[str]:
    """Parses the command line as ``experiments.run`` does; the record is the default."""
    if not any(argument.lstrip("-").split("=")[0] == "config" for argument in argv[1:]):
        argv = [*argv[:1], "--config=nfnet_cifar10", *argv[1:]]
    return run.parse(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
