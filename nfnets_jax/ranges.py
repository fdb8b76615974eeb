"""The numbers that a setting takes."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any, Literal

from nfnets_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers; infinite ones and NaN are in none.

    Attributes:
      low, high: its ends.
      whole: whether it holds whole numbers alone.
      above: whether ``low`` itself is left out.
      below: whether ``high`` itself is left out.
    """

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        """Returns whether a value is a number of the interval."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        number = float(value)
        if not math.isfinite(number) or (self.whole and number != int(number)):
            return False
        fits_low = number > self.low if self.above else number >= self.low
        return fits_low and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        if math.isinf(self.high):
            return f"{kind} {low}" if self.above else f"{kind} {low} on"
        high = f"{self.high:,}" if self.whole else f"{self.high:g}"
        return f"{kind} {low} to {f'below {high}' if self.below else high}"


@dataclasses.dataclass(frozen=True)
class AutoOr:
    """The word ``auto``, or a whole number, which a command line may give as text.

    Attributes:
      range: of the numbers.
    """

    range: Range

    def __contains__(self, value: Any) -> bool:
        """Returns whether a value is the word or a number of the range."""
        is_text = isinstance(value, str) and value.isdecimal()
        return value == "auto" or (int(value) if is_text else value) in self.range

    def __str__(self) -> str:
        return f"auto or {self.range}"

    def parse(self, value: int | str) -> int | Literal["auto"]:
        """Returns the word or the number of a value that it holds."""
        return "auto" if value == "auto" else int(value)


SHARE = Range(0, 1)
PROBABILITY = Range(0, 1, below=True)
WORKERS = AutoOr(Range(0, 1024, whole=True))


def check_ranges(settings: Any, ranges: Mapping[str, Range]) -> None:
    """Checks that settings are in their ranges.

    Args:
      settings: an object with attributes: numbers, several in a tuple, or None, which is in any.
      ranges: by name of the attribute.

    Raises:
      InputError: some are not; one line names them all.
    """
    found = []
    for name, allowed in ranges.items():
        value = getattr(settings, name)
        several = value if isinstance(value, tuple | list) else (value,)
        if value is not None and not all(number in allowed for number in several):
            found.append(f"{name} is {value}; it takes {allowed}")
    if found:
        raise InputError("; ".join(found))
