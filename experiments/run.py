"""Trains a network: ``python -m experiments.run --config=NAME --workdir=DIR --config.KEY=VALUE``.

NAME is a file of ``experiments/configs`` or a path to one. The same command again goes on where the
run stopped. Exit codes: 0, finished; 1, it cannot run, and one line says why; 130 or 143, SIGINT or
SIGTERM came, and the run is saved.
"""

import re
import runpy
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import helpers, process
from nfnets_jax.errors import InputError, WorkerError, nearest

_CONFIGS = Path(__file__).parent / "configs"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A name in experiments/configs, or a file; nfnet_digits if not given."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where several hosts cannot tell."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many hosts take part.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_PROFILE = flags.DEFINE_string(
    "profile_steps", "", "First and last step to profile, as 10-20; the files go to profile/."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Where the run's files go; runs/NAME if not given.")


def main(argv: Sequence[str]) -> None:
    """Runs the configuration that the flags describe."""
    # After the flags, so that their errors come at once.
    from nfnets_jax.training import hosts, loop
    from nfnets_jax.training.profiling import parse_steps

    logging.set_verbosity(logging.WARNING)  # Orbax tells thirty lines a checkpoint.
    if argv[1:]:
        sys.exit(f"error: {argv[1]!r} is no flag; see --help")
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(_WORKDIR.value or f"runs/{name}")
    process.keep_freed_memory()
    process.keep_programs()
    try:
        membership = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        if membership == (None, None, None) and not hosts.in_cluster():
            together = helpers.start(_CONFIG.value.cpu_processes, _CONFIG.value.batch_size)
            membership = together or membership
        hosts.connect(*membership)
        summary = loop.train(_CONFIG.value, workdir, parse_steps(_PROFILE.value))
    except (InputError, WorkerError, FloatingPointError) as error:
        sys.exit(1 if helpers.is_helper() else f"error: {error}")
    except loop.Interrupted as interrupted:
        if not helpers.is_helper():
            print(f"{interrupted}; the same command goes on from there", file=sys.stderr)
        sys.exit(128 + interrupted.signal_number)
    if hosts.is_first():
        print(_closing_words(summary, workdir))


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; one line and exit code 1 if it cannot be."""
    try:
        # config_flags reads its overrides from sys.argv, not from what it is given.
        sys.argv[:] = argv = _with_config_path(argv)
        return flags.FLAGS(argv)
    except (InputError, flags.Error) as error:
        sys.exit(f"error: {error}")


def _with_config_path(argv: list[str]) -> list[str]:
    """The command line with the file of the configuration in place of its name, as first flag."""
    path = _CONFIGS / "nfnet_digits.py"
    rest = list(argv[1:])
    for index, argument in enumerate(rest):
        if match := re.fullmatch("--?config(=(.*))?", argument):
            words = 1 if match[1] else 2
            name = match[2] if match[1] else " ".join(rest[index + 1 : index + 2])
            del rest[index : index + words]
            path = _find_config(name)
            break
    overrides = [match[1] for word in rest if (match := re.match(r"--?config\.([^=]+)", word))]
    fields = list(_fields(runpy.run_path(str(path))["get_config"]()))
    for override in overrides:
        if override not in fields:
            raise InputError(
                f"configuration {path.stem} has no {override!r}; {nearest(override, fields)}"
            )
    return [*argv[:1], f"--config={path}", *rest]


def _find_config(name: str) -> Path:
    for path in (_CONFIGS / f"{name}.py", Path(name)):
        if name and path.is_file():
            return path
    known = sorted(path.stem for path in _CONFIGS.glob("[!_]*.py"))
    raise InputError(f"no configuration {name!r}; {nearest(name, known)}")


def _fields(config: ConfigDict, prefix: str = "") -> Iterable[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _closing_words(summary: dict[str, Any], workdir: Path) -> str:
    test = summary["test"]
    accuracy = (
        f"test top-1 {test['top1']:.2%}, of the moving average {test['ema_top1']:.2%}"
        if test
        else f"train top-1 {summary['train']['top1']:.2%}, no test images"
    )
    return (
        f"{accuracy}, after {summary['steps']} steps in {summary['seconds']:.0f} s\n"
        f"checkpoint  {workdir / 'checkpoints' / str(summary['steps'])}\n"
        f"curves      {workdir / 'curves.png'}"
    )


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
