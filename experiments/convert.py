"""Converts parameters between the published files, ours and timm's.

    python -m experiments.convert F0_haiku.npz nfnet_f0.safetensors --model=nfnet_f0
    python -m experiments.convert F0_haiku.npz timm.safetensors --model=nfnet_f0 --to=timm

SOURCE is whatever ``load_pretrained`` takes: a published file, a ``.safetensors`` of ours, timm's
state dict in ``.safetensors`` or ``.pth``, a run, a URL. What it is shows by its content.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import create_model
from nfnets_jax.weights.files import write_safetensors
from nfnets_jax.weights.pretrained import load_pretrained, save_pretrained
from nfnets_jax.weights.published import Tree, write_published
from nfnets_jax.weights.timm_names import to_timm

_FORMATS = {".safetensors": "ours", ".npz": "published", ".pkl": "published"}


def main() -> None:
    """Converts what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="file, run or URL")
    parser.add_argument("target", type=Path, help=f"file to write: {', '.join(_FORMATS)}")
    parser.add_argument("--model", required=True, help="such as nfnet_f0")
    parser.add_argument("--to", choices=sorted({*_FORMATS.values(), "timm"}), help="by the suffix")
    parser.add_argument("--raw", action="store_true", help="of a run, not the moving average")
    arguments = parser.parse_args()
    try:
        write = _writer(arguments.target, arguments.to, arguments.model)
        params = load_pretrained(arguments.model, arguments.source, average=not arguments.raw)
        write(params)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(arguments.target)


def _writer(target: Path, to: str | None, model: str) -> Callable[[Tree], None]:
    """What writes parameters of the model to the file, chosen before any work is done."""
    config = create_model(model).config
    to = to or _FORMATS.get(target.suffix)
    if to == "published":
        return lambda params: write_published(target, params)
    if target.suffix != ".safetensors":
        known = ", ".join(_FORMATS)
        raise InputError(f"{target} has none of the suffixes that can be written: {known}")
    if to == "timm":
        return lambda params: write_safetensors(target, to_timm(params, config))
    return lambda params: save_pretrained(target, params)


if __name__ == "__main__":
    main()
