"""Writes the folder of a model for others: parameters, configuration, classes and a card.

It is like the folder of a run, with ``model.safetensors`` in place of checkpoints, so whatever
takes a run takes it.
"""

import copy
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nfnets_jax.atomic import atomic_write_for_user
from nfnets_jax.errors import InputError
from nfnets_jax.weights import files, hub
from nfnets_jax.weights.downloading import is_url
from nfnets_jax.weights.pretrained import save_pretrained
from nfnets_jax.weights.published import Tree
from nfnets_jax.weights.run import PARAMS_FILE, STATE_FILE

# Groups and fields of a configuration that say how the parameters were learned.
_RECIPE = (
    "model",
    "init",
    "augment",
    "batch_size",
    "num_steps",
    "precision",
    "label_smoothing",
    "ema_decay",
    "optimizer",
    "seed",
)
_METRICS = ("loss", "top1", "top5", "ema_loss", "ema_top1", "ema_top5")
# How many classes the card names.
_NAMED = 20


class ModelForOthers(NamedTuple):
    """What a model's folder is made of.

    Attributes:
      params: the parameters.
      state: running statistics; {} if the network has none.
      config: its ``model``, and its ``data`` for crop and normalization; of a run all fields.
      class_names: in the order of the labels; None if they are not known.
      run: folder of the run that it comes from; None if it comes from a file.
    """

    params: Tree
    state: Tree
    config: Mapping[str, Any]
    class_names: Sequence[str] | None = None
    run: Path | None = None


def write_model_folder(folder: Path, model: ModelForOthers, repository: str) -> None:
    """Writes the files of a model into a folder, the card last.

    Args:
      folder: made if it does not exist.
      model: the model.
      repository: ``OWNER/NAME`` on the Hugging Face hub, for the card.

    Raises:
      InputError: the folder holds something, or a file cannot be written.
    """
    check_new(folder)
    save_pretrained(folder / PARAMS_FILE, model.params, model.class_names)
    if model.state:
        files.write_safetensors(folder / STATE_FILE, files.flatten(model.state))
    _write_json(folder / "config.json", without_paths(model.config))
    if model.class_names is not None:
        _write_json(folder / "classes.json", list(model.class_names))
    if model.run and (model.run / "curves.png").is_file():
        with atomic_write_for_user(folder / "curves.png") as partial:
            shutil.copyfile(model.run / "curves.png", partial)
    with atomic_write_for_user(folder / hub.CARD) as partial:
        partial.write_text(model_card(model, repository), encoding="utf-8")


def check_new(folder: Path) -> None:
    """Checks that a folder is absent or empty.

    Raises:
      InputError: it is neither.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: give a new folder")


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration without what it says of the machine: its folders and its account."""
    public = copy.deepcopy(dict(config))
    for group, field in (("data", "dir"), ("data", "test_dir")):
        if field in public.get(group, {}):
            public[group][field] = ""
    public.pop("wandb", None)
    weights = public.get("init", {}).get("weights", "")
    if weights and not is_url(weights) and not hub.is_hub(weights):
        public["init"]["weights"] = Path(weights).name
    return public


def model_card(model: ModelForOthers, repository: str) -> str:
    """Returns the text of ``README.md``: how to use the model, data, metrics, recipe, curves.

    The license is left to the user: a comment in the head says where it goes.
    """
    config, name = without_paths(model.config), model.config["model"]["name"]
    head = [
        "---",
        "# license: apache-2.0, or what you choose",
        "library_name: nfnets_jax",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in ("image-classification", "jax", json.dumps(name))),
        "---",
    ]
    parts = [
        "\n".join(head),
        f"# {repository.partition('/')[2]}",
        f"An image classifier, `{name}`, for nfnets_jax.",
        "```\npip install 'nfnets_jax[train,hub]'\n"
        f"nfnets predict PHOTO --weights=hf://{repository}\n```",
    ]
    rows = _rows(model.run)
    if "num_steps" in config:
        parts += ["## Data", _data(config, model.class_names)]
        if rows:
            parts += ["## Metrics", _metrics(rows, config)]
        parts += ["## Recipe", _table(("field", "value"), _flat(config, _RECIPE))]
    else:
        parts.append("*Say here where the parameters come from, and what they were trained on.*")
    if model.run and (model.run / "curves.png").is_file():
        parts += ["## Curves", "![Loss and top-1 by step](curves.png)"]
    return "\n\n".join(parts) + "\n"


def _data(config: Mapping[str, Any], class_names: Sequence[str] | None) -> str:
    data, names = config["data"], list(class_names or ())
    size = data["test_image_size"]
    text = f"`{data['name']}`, {len(names)} classes; test images of {size} pixels."
    if 0 < len(names) <= _NAMED:
        text += " Classes: " + ", ".join(f"`{name}`" for name in names) + "."
    return text


def _rows(run: Path | None) -> list[dict[str, Any]]:
    """Returns the newest row of each split of a run's ``metrics.jsonl``."""
    file = run and run / "metrics.jsonl"
    if not file or not file.is_file():
        return []
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: it is damaged") from error
    return list({row["split"]: row for row in rows}.values())


def _metrics(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    names = [name for name in _METRICS if any(name in row for row in rows)]
    table = _table(
        ("images", "step", *names),
        ((row["split"], row["step"], *(_figure(row.get(name)) for name in names)) for row in rows),
    )
    average = "`ema`: of the moving average of the parameters, which these are."
    return f"{table}\n\n{average}" if config.get("ema_decay") else table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _flat(config: Mapping[str, Any], names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns fields, ``group.field``, with their values as code."""
    flat = []
    for name in names:
        value = config.get(name)
        if isinstance(value, dict):
            flat += [(f"{name}.{field}", text) for field, text in _flat(value, value)]
        elif value is not None:
            flat.append((name, f"`{json.dumps(value)}`"))
    return flat


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in cells)


def _write_json(path: Path, value: Any) -> None:
    with atomic_write_for_user(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
