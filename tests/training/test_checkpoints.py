import contextlib
import functools
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nfnets_jax import optax_agc
from nfnets_jax.errors import InputError
from nfnets_jax.training.checkpoints import Checkpoints

PARAMS = {"NFNet/~/nf_block/~/conv0": {"w": np.arange(6000.0, dtype=np.float32).reshape(2, 3000)}}
STATE = {"params": PARAMS, "opt": optax_agc.sgd_agc(lambda step: 0.1).init(PARAMS)}


def at(step: int) -> Any:
    return jax.tree.map(functools.partial(np.add, step), STATE)


def steps(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


def save(folder: Path, accuracies: dict[int, float | None], keep: int = 2) -> None:
    with contextlib.closing(Checkpoints(folder, keep)) as saved:
        for step, accuracy in accuracies.items():
            saved.save(step, at(step), {"at": step}, accuracy)


def restore(folder: Path) -> tuple[int, Any, dict[str, Any], list[str]] | None:
    messages: list[str] = []
    with contextlib.closing(Checkpoints(folder, 2)) as saved:
        found = saved.restore_latest(jax.eval_shape(lambda: STATE), messages.append)
    return found and (*found, messages)


def test_what_is_saved_comes_back_and_the_oldest_go(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert restore(folder) is None
    save(folder, {1: None, 2: None, 3: None})
    found = restore(folder)
    assert found
    step, restored, progress, messages = found
    assert (step, progress["at"], messages) == (3, 3, [])
    chex.assert_trees_all_equal_structs(restored, STATE)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b) + 3), restored, STATE)
    assert steps(folder) == {2, 3}


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    save(tmp_path, {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: None})
    assert steps(tmp_path) == {2, 4, 5}


def largest(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_bit(folder: Path) -> None:
    content = bytearray(largest(folder).read_bytes())
    content[len(content) // 2] ^= 1
    largest(folder).write_bytes(content)


def cut_short(folder: Path) -> None:
    content = largest(folder).read_bytes()
    largest(folder).write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": flip_a_bit,
    "cut short": cut_short,
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no progress": lambda folder: (folder / "progress" / "metadata").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, {1: None, 2: None})
    DAMAGES[damage](folder / "2")
    found = restore(folder)
    assert found
    step, restored, progress, messages = found
    assert (step, progress["at"]) == (1, 1)
    chex.assert_trees_all_equal(restored, at(1))
    assert len(messages) == 1
    assert messages[0].startswith("checkpoint 2 is damaged and skipped: ")
    assert len(list((tmp_path / "damaged").iterdir())) == 1
    save(folder, {2: None})  # Its step can be written again.
    found = restore(folder)
    assert found
    assert found[0] == 2


def test_nothing_is_touched_where_none_is_whole(tmp_path: Path) -> None:
    save(tmp_path, {1: None, 2: None})
    for step in (1, 2):
        cut_short(tmp_path / str(step))
    with pytest.raises(InputError, match="every checkpoint in .* is damaged .newest, 2: .*workdir"):
        restore(tmp_path)
    assert steps(tmp_path) == {1, 2}


def test_a_full_disk_ends_with_one_line_and_the_others_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, {1: None})

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1))
        with pytest.raises(InputError, match="No space left on device, .* needed, 0.0 free"):
            save(tmp_path, {2: None})
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(InputError, match="cannot be written in .*: No space left on device"):
            save(tmp_path, {2: None})
    found = restore(tmp_path)
    assert found
    assert found[0] == 1
