import re
from pathlib import Path

import pytest

from nfnets_jax import optax_agc

PAGE = (Path(__file__).parents[2] / "docs" / "agc.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("index", range(4))
def test_examples_run(index: int) -> None:
    names: dict[str, object] = {}
    exec(compile(EXAMPLES[index], f"example {index}", "exec"), names)
    if index == 3:
        assert optax_agc.summarize(names["state"])["up/clipped"] == 1


def test_all_examples_are_run() -> None:
    assert len(EXAMPLES) == 4
