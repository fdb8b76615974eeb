"""Makes a site of the repository as it is, so that a link that is right on GitHub is right there.

MkDocs calls these functions. Files keep their paths: pages are the repository's ``.md`` files, and
pictures and source files are copied. The reference is generated, one page for each room.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import nfnets_jax

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "docs", "examples", "experiments", "nfnets_jax")
SUFFIXES = {".cff", ".csv", ".ipynb", ".jpg", ".json", ".md", ".png", ".py"}
ROOMS = ("models", "optax_agc", "data", "weights", "serving", "training")
LINK = re.compile(r"\]\(([^)#:\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Replaces the files of ``docs`` by those of the repository and the pages of the reference."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in _paths():
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for folder in sorted({path.parent for path in _paths()} - {ROOT}):
        if not (folder / "README.md").exists():
            name = (folder / "README.md").relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, content=_listing(folder)))
    files.append(File.generated(config, "docs/api/nfnets_jax.md", content=_front_door()))
    for room in ROOMS:
        modules = sorted((ROOT / "nfnets_jax" / room).rglob("[a-z]*.py"))
        names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
        content = "\n\n".join([f"# {room}", *(f"::: {name}" for name in names)])
        files.append(File.generated(config, f"docs/api/{room}.md", content=content + "\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points links to folders at the folders' pages."""
    folder = ROOT / os.path.dirname(page.file.src_uri)

    def resolve(link: re.Match[str]) -> str:
        target = link[1].rstrip("/")
        return f"]({target}/README.md)" if (folder / target).is_dir() else link[0]

    return LINK.sub(resolve, markdown)


def _paths() -> Iterator[Path]:
    yield from (path for path in sorted(ROOT.iterdir()) if path.suffix in SUFFIXES)
    yield ROOT / "LICENSE"
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                yield path


def _listing(folder: Path) -> str:
    """Returns a page that lists the files of a folder that has no page of its own."""
    names = sorted(path.name for path in _paths() if path.parent == folder)
    links = [f"- [`{name}`]({name})" for name in names]
    return "\n".join([f"# {folder.relative_to(ROOT)}", "", *links, ""])


def _front_door() -> str:
    """Returns a page that lists what ``import nfnets_jax`` has, with links to the rooms' pages."""
    lines = ["# nfnets_jax", "", "| name | says |", "| --- | --- |"]
    for name in nfnets_jax.__all__:
        value = getattr(nfnets_jax, name)
        sentence = (value.__doc__ or "").strip().splitlines()[0]
        lines.append(f"| [`{name}`][{value.__module__}.{name}] | {sentence} |")
    lines.append("| [`optax_agc`](optax_agc.md) | Adaptive Gradient Clipping for any optimizer. |")
    return "\n".join([*lines, ""])
