import pytest

from nfnets_jax.data.read_errors import ReadErrors, check_readable
from nfnets_jax.errors import InputError
from tests.data.fake_sources import Files


def test_each_error_is_reported_once_and_too_many_fail_with_the_list() -> None:
    warnings: list[str] = []
    errors = ReadErrors("training images", 1000, 0.002, warnings.append, ["a.jpg: old"])
    errors.add(["b.jpg: short", "a.jpg: old"])
    errors.add(["b.jpg: short"])
    assert errors.messages == ["a.jpg: old", "b.jpg: short"]
    assert warnings == ["not readable, left out: b.jpg: short"]
    with pytest.raises(InputError) as raised:
        errors.add(["c.jpg: gone"])
    first, *rest = str(raised.value).splitlines()
    assert first.startswith("3 of 1000 training images cannot be read, more than the share of ")
    assert rest == ["a.jpg: old", "b.jpg: short", "c.jpg: gone"]


def test_a_source_fails_the_check_if_no_sampled_image_can_be_read() -> None:
    check_readable(Files(30, set(range(29))))
    with pytest.raises(InputError, match="no image can be read; the first: file 0: "):
        check_readable(Files(30, set(range(30))))
