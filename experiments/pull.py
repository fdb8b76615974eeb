"""Pulls a model from the Hugging Face hub.

    python -m experiments.pull OWNER/NAME
    python -m experiments.pull OWNER/NAME@REVISION --out=FOLDER

The folder, in the hub's cache unless ``--out`` is given, is taken wherever a run is, and without
this command so is ``hf://OWNER/NAME``. Only files of data are downloaded, no code. It needs
``pip install 'nfnets_jax[hub]'``. Exit codes: 0; 1, with one line that says why.
"""

import sys
from pathlib import Path

from nfnets_jax.errors import InputError
from nfnets_jax.weights import hub

from . import commands


def main() -> None:
    """Pulls the model of the command line."""
    parser = commands.parser("pull", __doc__)
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.add_argument("--out", type=Path, help="folder for the files; the hub's cache by default")
    arguments = parser.parse_args()
    try:
        folder = hub.pull(arguments.repository, arguments.out)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(folder)
    for file, size in hub.sizes(folder):
        print(f"  {file:20}{size / 1e6:10.3f} MB")


if __name__ == "__main__":
    main()
