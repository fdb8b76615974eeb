"""Converts parameters between the published files, ours and timm's.

    python -m experiments.convert F0_haiku.npz nfnet_f0.safetensors --model=nfnet_f0
    python -m experiments.convert F0_haiku.npz timm.safetensors --model=nfnet_f0 --to=timm

SOURCE is anything that ``load_pretrained`` takes: a published file, a ``.safetensors`` of ours,
timm's state dict in ``.safetensors`` or ``.pth``, a run, a URL. Its content decides which. A
``.safetensors`` keeps the class names of a run, of another ``.safetensors``, or of ``--classes``.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import create_model
from nfnets_jax.weights import hub
from nfnets_jax.weights.checking import check_class_names, count_classes
from nfnets_jax.weights.files import write_safetensors
from nfnets_jax.weights.pretrained import (
    class_names_metadata,
    load_class_names,
    load_pretrained,
    save_pretrained,
)
from nfnets_jax.weights.published import Tree, write_published
from nfnets_jax.weights.timm_names import to_timm

from . import commands, opening

_FORMATS = {".safetensors": "ours", ".npz": "published", ".pkl": "published"}


def main() -> None:
    """Converts the file of the command line."""
    parser = commands.parser("convert", __doc__)
    parser.add_argument("source", help="file, run or URL")
    parser.add_argument("target", type=Path, help=f"file to write: {', '.join(_FORMATS)}")
    parser.add_argument("--model", required=True, help="such as nfnet_f0")
    parser.add_argument("--to", choices=sorted({*_FORMATS.values(), "timm"}), help="by the suffix")
    parser.add_argument("--classes", type=Path, help="a file of class names, one a line")
    parser.add_argument("--raw", action="store_true", help="a run's last parameters, unaveraged")
    arguments = parser.parse_args()
    try:
        arguments.source = hub.local(arguments.source)
        settings = opening.model_of_run(arguments.source) or {"name": arguments.model}
        if settings["name"] != arguments.model:
            raise InputError(f"{arguments.source} is a run of {settings['name']}")
        write = _writer(arguments.target, arguments.to, settings)
        names = opening.read_class_names(arguments.classes)
        average = not arguments.raw
        params = load_pretrained(path_or_url=arguments.source, average=average, **settings)
        num_classes = count_classes(create_model(**settings), params)
        if names is None:
            names = load_class_names(arguments.source, num_classes)
        else:
            names = check_class_names(str(arguments.classes), names, num_classes)
        write(params, names)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(arguments.target)


def _writer(
    target: Path, to: str | None, settings: dict[str, Any]
) -> Callable[[Tree, Sequence[str] | None], None]:
    """Returns the function that writes parameters and class names, chosen before any work."""
    config = create_model(**settings).config
    to = to or _FORMATS.get(target.suffix)
    if to == "published":
        return lambda params, names: _write_published(target, params, names)
    if target.suffix != ".safetensors":
        known = ", ".join(_FORMATS)
        raise InputError(f"{target} must end in one of {known}")
    if to == "timm":
        return lambda params, names: write_safetensors(
            target, to_timm(params, config), class_names_metadata(names)
        )
    return lambda params, names: save_pretrained(target, params, names)


def _write_published(target: Path, params: Tree, names: Sequence[str] | None) -> None:
    write_published(target, params)
    if names is not None:
        print(f"{target} has no place for class names: they are left out", file=sys.stderr)


if __name__ == "__main__":
    main()
