"""The command ``nfnets``: each program of this package by its name.

An installed library has this package as ``nfnets_jax.experiments``; a checkout has it as
``experiments`` too. Its modules import one another relatively, so they work under both names.
"""

import argparse
import ast
import os
import re
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nfnets_jax
from nfnets_jax.errors import nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The module of each command.
COMMANDS = {
    "train": "run",
    "predict": "predict",
    "evaluate": "evaluate",
    "convert": "convert",
    "export": "export",
    "prepare": "prepare",
    "plan": "plan",
    "push": "push",
    "pull": "pull",
    "show_augmentations": "show_augmentations",
}


def main() -> None:
    """Runs the command that the first argument names; without one, lists the commands."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(listing())
        return
    if name == "--version":
        print(nfnets_jax.__version__)
        return
    if name not in COMMANDS:
        sys.exit(f"error: no command {name!r}; {nearest(name, COMMANDS)}")
    if not sys.flags.safe_path:  # As python -m does: a project's modules are found.
        sys.path.insert(0, os.getcwd())
    sys.argv[1:] = arguments
    # As the main module, so that what absl and multiprocessing look up there is the command's.
    runpy.run_module(f"{__package__}.{COMMANDS[name]}", run_name="__main__", alter_sys=True)


def listing() -> str:
    """Returns the commands, a line each: the first of their module's docstring."""
    lines = ["usage: nfnets COMMAND ...; nfnets COMMAND --help says more"]
    for name, module in COMMANDS.items():
        source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        lines.append(f"    {name:20}{about}")
    return "\n".join(lines)


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Returns a parser of a command's arguments.

    Args:
      module: name of the command's module in this package.
      description: the module's docstring, for ``--help``.
    """
    return argparse.ArgumentParser(
        prog=as_called(f"python -m experiments.{module}"),
        description=as_called(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def as_called(text: str) -> str:
    """Returns a text with each ``python -m experiments.MODULE`` as the user calls it."""
    if Path(*sys.orig_argv[1:2]).stem == "nfnets":
        for name, module in COMMANDS.items():
            text = re.sub(rf"python -m experiments\.{module}\b", f"nfnets {name}", text)
    return text.replace("python -m experiments.", f"python -m {__package__}.")


def save_figure(figure: "Figure", file: Path) -> None:
    """Writes a figure and prints where it is; ends the program with one line if it cannot."""
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {file} cannot be written: {error}")
    print(file)
