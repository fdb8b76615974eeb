import pytest

from nfnets_jax.data.unreadable import Unreadable
from nfnets_jax.errors import InputError


def test_each_is_told_once_and_too_many_end_with_the_list() -> None:
    told: list[str] = []
    account = Unreadable("training images", 1000, 0.002, told.append, ["a.jpg: old"])
    account.add(["b.jpg: short", "a.jpg: old"])
    account.add(["b.jpg: short"])
    assert account.names == ["a.jpg: old", "b.jpg: short"]
    assert told == ["not readable, left out: b.jpg: short"]
    with pytest.raises(InputError) as ended:
        account.add(["c.jpg: gone"])
    first, *rest = str(ended.value).splitlines()
    assert first.startswith("3 of 1000 training images cannot be read, more than data.max_unreada")
    assert rest == ["a.jpg: old", "b.jpg: short", "c.jpg: gone"]
