"""Runs a study: ``python -m experiments.studies.NAME --budget= --workdir= --data_dir=``."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nfnets_jax.errors import InputError

from .. import commands, process
from . import results

BUDGETS = ("smoke", "cpu", "gpu")

# Called as ``study(workdir, budget, data_dir)``.
Study = Callable[[Path, str, Path | None], results.Results]


def run(name: str, description: str, study: Study, budgets: Sequence[str] = BUDGETS) -> None:
    """Runs a study with the options of the command line and writes its results.

    Exits with one line if the study raises ``InputError``.

    Args:
      name: the study's module in ``experiments.studies``, or one's full name.
      description: the study's docstring, for ``--help``.
      study: measures with a budget in a working directory; ``data_dir`` is None if not given.
      budgets: that the study has.
    """
    module = name if "." in name else f"experiments.studies.{name}"
    parser = commands.parser(module.removeprefix("experiments."), description)
    parser.add_argument("--budget", default="smoke", choices=budgets)
    parser.add_argument("--workdir", type=Path, help=f"default: runs/studies/{name}/BUDGET")
    parser.add_argument("--data_dir", type=Path, help="data directory of TensorFlow Datasets")
    arguments = parser.parse_args()
    workdir = arguments.workdir or Path("runs/studies", name, arguments.budget)
    command = commands.as_called(f"python -m {module} --budget={arguments.budget}")
    if arguments.data_dir:
        command += " --data_dir=TFDS_DIR"
    if arguments.budget == "smoke":
        process.compile_quickly()
    process.keep_freed_memory()
    process.cache_compiled_programs()  # Runs that differ only by their seed share a program.
    try:
        found = study(workdir, arguments.budget, arguments.data_dir)
    except InputError as error:
        sys.exit(f"error: {error}")
    results.write(workdir, command, found)
    print(workdir / "results.md", flush=True)
