"""Trains a network, or resumes its run.

    python -m experiments.run --config=NAME --workdir=DIR --config.KEY=VALUE

NAME is a configuration of ``experiments/configs``, which ``--list`` lists, or a path to your own.
``--show`` explains its values, ``--helpconfig`` all fields. The same command again resumes the run
where it stopped. Exit codes: 0, finished; 1, it cannot run, and one line says why; 130 or 143,
SIGINT or SIGTERM came, and the run is saved.
"""

import re
import runpy
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from nfnets_jax.errors import InputError, WorkerError, nearest
from nfnets_jax.training import schema

from . import commands, configs, process
from .projects import import_projects

if TYPE_CHECKING:
    from nfnets_jax.training.task import Score

_DEFAULT = "nfnet_digits"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"A file, or one of {', '.join(configs.FAMILIES)}; {_DEFAULT} by default."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where JAX cannot find the hosts itself."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of hosts in the run.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this host, from 0.")
_PROFILE = flags.DEFINE_string(
    "profile_steps", "", "First and last step to profile, as 10-20; the files go to profile/."
)
_LIST = flags.DEFINE_bool("list", False, "List the configurations, and end.")
_SHOW = flags.DEFINE_bool("show", False, "Show the configuration, explained, and end.")
_HELP_CONFIG = flags.DEFINE_bool("helpconfig", False, "Explain all fields, and end.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run's files; runs/NAME by default.")


def main(argv: Sequence[str]) -> None:
    """Runs the configuration on the command line."""
    # Imported once the flags are parsed, so that wrong ones are reported at once.
    from nfnets_jax.training import hosts, loop
    from nfnets_jax.training.profiling import parse_steps
    from nfnets_jax.training.task import find_task

    logging.set_verbosity(logging.WARNING)  # Orbax logs thirty lines a checkpoint.
    if argv[1:]:
        sys.exit(f"error: {argv[1]!r} is no flag; see --help")
    config, workdir = _CONFIG.value, Path(_WORKDIR.value or f"runs/{_name()}")
    process.keep_freed_memory()
    process.cache_compiled_programs()
    try:
        profile_steps = parse_steps(_PROFILE.value)
    except InputError as error:
        sys.exit(f"error: --{error}")
    try:
        hosts.connect(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        import_projects(config.get("imports", ()))
        summary = loop.train(config, workdir, profile_steps)
    except (InputError, WorkerError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except loop.Interrupted as interrupted:
        print(f"{interrupted}; the same command resumes it", file=sys.stderr)
        sys.exit(128 + interrupted.signal_number)
    if hosts.is_first():
        print(_results(summary, workdir, find_task(config.task.name).score))


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; where it is wrong, exits with code 1 and one line.

    What it asks to know of configurations is printed, and the command ends with code 0.
    """
    program = sys.modules["__main__"]  # Its docstring is the help that absl prints.
    program.__doc__ = commands.as_called(program.__doc__ or "")
    try:
        # config_flags reads overrides from sys.argv, not from the arguments it is given.
        sys.argv[:] = argv = _resolve_config(argv)
        rest = flags.FLAGS(argv)
    except (InputError, flags.Error) as error:
        sys.exit(f"error: {error}")
    if explanation := _explanation():
        print(explanation)
        sys.exit()
    return rest


def _explanation() -> str:
    """Returns what the command line asks to know of configurations, empty if nothing."""
    if _LIST.value:
        return configs.listing()
    if _HELP_CONFIG.value:
        return schema.explain()
    return schema.explain(_CONFIG.value) if _SHOW.value else ""


def _resolve_config(argv: Sequence[str]) -> list[str]:
    """Returns the command line with the configuration's file in place of its name, as first flag.

    Raises:
      InputError: there is no such configuration, or it does not have a field that is overridden.
    """
    program, *arguments = argv
    name = _DEFAULT
    for index, argument in enumerate(arguments):
        if match := re.fullmatch("--?config(?:=(.*))?", argument):
            words = 1 if "=" in argument else 2
            name = match[1] if words == 1 else " ".join(arguments[index + 1 : index + 2])
            del arguments[index : index + words]
            break
    path = configs.find(name)
    file, *config_argument = path.split(":", 1)
    fields = list(_fields(runpy.run_path(file)["get_config"](*config_argument)))
    for argument in arguments:
        match = re.match(r"--?config\.([^=]+)", argument)
        if match and match[1] not in fields:
            raise InputError(
                f"configuration {name} has no {match[1]!r}; {nearest(match[1], fields)}"
            )
    return [program, f"--config={path}", *arguments]


def _fields(config: ConfigDict, group: str = "") -> Iterable[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{group}{name}.")
        else:
            yield group + name


def _name() -> str:
    """Returns the configuration's name, or that of its file."""
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return argument or Path(file).stem


def _results(summary: dict[str, Any], workdir: Path, score: "Score") -> str:
    (name, label), test, train = score, summary["test"], summary["train"]
    if test:
        average = f"of the moving average {test[f'ema_{name}']:.2%}"
        result = f"test {label} {test[name]:.2%}, {average}"
    elif name in train:
        result = f"train {label} {train[name]:.2%}, no test images"
    else:
        result = f"train loss {train['loss']:.4f}, no test images"
    return (
        f"{result}, after {summary['steps']} steps in {summary['seconds']:.0f} s\n"
        f"checkpoint  {workdir / 'checkpoints' / str(summary['steps'])}\n"
        f"curves      {workdir / 'curves.png'}"
    )


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
