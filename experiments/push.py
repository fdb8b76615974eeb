"""Pushes a model to the Hugging Face hub, with its classes and a model card.

    python -m experiments.push runs/nfnet_digits OWNER/NAME
    python -m experiments.push mine.safetensors OWNER/NAME --model=nfnet_f0 --classes=names.txt
    python -m experiments.push runs/nfnet_digits OWNER/NAME --dry_run=FOLDER

SOURCE is a run, whose moving average is pushed, or anything else that ``load_pretrained`` takes. A
new repository is private unless ``--public`` is given; one that exists stays as it is, and keeps
its README.md. config.json is uploaded without the folders that it names. It needs
``pip install 'nfnets_jax[hub]'`` and ``hf auth login``. Exit codes: 0; 1, with one line that says
why.
"""

import sys
import tempfile
from pathlib import Path

from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import create_model
from nfnets_jax.serving.preprocessing import published_view
from nfnets_jax.weights import hub
from nfnets_jax.weights.checking import check_class_names, count_classes
from nfnets_jax.weights.model_folder import ModelForOthers, check_new, write_model_folder
from nfnets_jax.weights.pretrained import load_class_names, load_pretrained
from nfnets_jax.weights.run import find_run, read_model_state, read_run

from . import commands, opening


def main() -> None:
    """Pushes the model of the command line."""
    parser = commands.parser("push", __doc__)
    parser.add_argument("source", help="run, file or URL")
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.add_argument("--model", help="such as nfnet_f0; a run knows its own")
    parser.add_argument("--classes", type=Path, help="a file of class names, one a line")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument(
        "--dry_run", type=Path, metavar="FOLDER", help="write the files there, and upload nothing"
    )
    arguments = parser.parse_args()
    try:
        if arguments.dry_run:
            name = hub.parse(arguments.repository).name
            check_new(arguments.dry_run)
        else:
            name = hub.check_push(arguments.repository)
        classes = opening.read_class_names(arguments.classes)
        model = read_model(arguments.source, arguments.model, classes)
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.dry_run or Path(temporary)
            write_model_folder(folder, model, name)
            where = folder if arguments.dry_run else f"uploading to {name}"
            print(f"{where}: {model.config['model']['name']}")
            for file, size in hub.sizes(folder):
                print(f"  {file:20}{size / 1e6:10.3f} MB", flush=True)
            if not arguments.dry_run:
                print(hub.push(folder, name, private=not arguments.public, log=print))
    except InputError as error:
        sys.exit(f"error: {error}")


def read_model(source: str, name: str | None, classes: tuple[str, ...] | None) -> ModelForOthers:
    """Reads a model with all that its folder needs.

    Args:
      source: as ``load_pretrained`` takes it.
      name: of the model; a run's own if None.
      classes: names of the classes; those that the source brings if None.

    Raises:
      InputError: it cannot be read, or no model is named.
    """
    source = hub.local(source)
    settings = opening.find_model(name, source)
    params = load_pretrained(path_or_url=source, **settings)
    num_classes = count_classes(create_model(**settings), params)
    if classes is None:
        classes = load_class_names(source, num_classes)
    else:
        classes = check_class_names("--classes", classes, num_classes)
    if opening.is_run(source):
        path = Path(source)
        config, state = read_run(path).config, read_model_state(path, average=True)
        return ModelForOthers(params, state, config, classes, find_run(path))
    view = published_view(create_model(**settings))
    data = {
        "name": "imagenet",
        "test_image_size": view.size,
        "test_margin": view.margin,
        "test_crop": view.crop,
    }
    return ModelForOthers(params, {}, {"model": settings, "data": data}, classes)


if __name__ == "__main__":
    main()
