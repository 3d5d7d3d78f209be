"""Settings that no machine can satisfy. They are refused before anything is allocated."""

from typing import Any

from ..errors import InputError
from ..geometry.storage import LARGEST_SET
from .config import Config, to_dict

LARGEST_COUNT = 2**31 - 1  # of any setting that counts something; the seed is no count
LARGEST: dict[str, int] = {"network.layers": 64, "network.width": 2**14, "evaluation.width": 2**14}
BYTES_PER_POINT = 12


def refuse_too_large(config: Config, classes: int) -> None:
    """Raise InputError if a number in the settings is larger than a run can be.

    classes: number of classes of the data
    """
    for name, value in _numbers("", to_dict(config)):
        largest = LARGEST.get(name, LARGEST_COUNT)
        if name != "seed" and value > largest:
            raise InputError(f"setting {name} = {value}: too large; expected at most {largest}")
    clouds = _total(config.clouds.clouds_per_class, classes)
    points = max(_total(config.clouds.points_per_cloud or 1, clouds), clouds)
    if points * BYTES_PER_POINT > LARGEST_SET:
        raise InputError(
            f"settings clouds.clouds_per_class and clouds.points_per_cloud: {clouds} clouds with "
            f"{points} points are too many; expected at most {LARGEST_SET // BYTES_PER_POINT} "
            "points, the largest set that can be stored"
        )


def _total(counts: int | tuple[int, ...], of: int) -> int:
    """Return the sum of counts that are given as one number for all, or one by one."""
    return counts * of if isinstance(counts, int) else sum(counts)


def _numbers(name: str, value: Any) -> list[tuple[str, int | float]]:
    """Return all numbers in nested settings, with their dotted names."""
    if isinstance(value, dict):
        return [
            number
            for key, part in value.items()
            for number in _numbers(f"{name}.{key}" if name else key, part)
        ]
    if isinstance(value, list):
        return [number for part in value for number in _numbers(name, part)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [(name, value)] if is_number else []
