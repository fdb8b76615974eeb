import pytest

from nfnets_jax.errors import InputError
from nfnets_jax.training.profiling import parse_steps


def test_a_range_of_steps_is_read() -> None:
    assert parse_steps("") is None
    assert parse_steps("10-20") == (10, 20)


@pytest.mark.parametrize("text", ["10", "20-10", "0-3", "a-b", "1-2-3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"profile_steps is '{text}'; it takes a first and a"):
        parse_steps(text)
