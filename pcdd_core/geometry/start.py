"""Synthetic clouds before the first iteration."""

from abc import abstractmethod
from collections.abc import Sequence

from ..errors import InputError
from ..pieces import Count, Piece, setting
from ..seeds import generator
from .clouds import PointClouds, members_per_class, resampled, sample
from .grid import scattered
from .storage import LARGEST_SET, load_clouds

BYTES_PER_POINT = 12
PER_CLASS = "clouds per class: one number, or a list with one number per class"
PER_CLOUD = "points per cloud: one number, or a list with one number per cloud"


class Start(Piece):
    """A kind of initial synthetic clouds. A choice defines `clouds`."""

    @abstractmethod
    def clouds(self, real: PointClouds, seed: int) -> PointClouds:
        """Return the initial clouds for these training clouds.

        Raises InputError if the settings do not fit `real`, or if a file is not usable.
        """


class Scatter(Start, name="scatter"):
    """Points uniform in the grid, the paper's initialisation (section 3.1.2)."""

    clouds_per_class: Count | tuple[Count, ...] = setting(default=1, help=PER_CLASS)
    points_per_cloud: Count | tuple[Count, ...] = setting(default=250, help=PER_CLOUD)

    def clouds(self, real: PointClouds, seed: int) -> PointClouds:
        """Scatter the points."""
        return scatter(real, self.clouds_per_class, self.points_per_cloud, seed)


class RealClouds(Start, name="real"):
    """Random training clouds."""

    clouds_per_class: Count | tuple[Count, ...] = setting(default=1, help=PER_CLASS)
    points_per_cloud: Count | tuple[Count, ...] | None = setting(
        default=250, help=f"{PER_CLOUD}; null: as many as in the training cloud"
    )

    def clouds(self, real: PointClouds, seed: int) -> PointClouds:
        """Sample the clouds, and resample their points."""
        labels = _labels(real, self.clouds_per_class)
        counts = [labels.count(label) for label in range(len(real.class_names))]
        draws = generator(seed, "initial clouds")
        chosen = sample(members_per_class(real), counts, draws, real.class_names)
        sampled = real.select(chosen)
        points = self.points_per_cloud or tuple(sampled.sizes.tolist())
        return resampled(sampled, _points(points, labels), draws)


class FromFile(Start, name="file"):
    """A distilled set in a file."""

    file: str = setting(default="", help="a distilled set (.npz) to start from")

    def clouds(self, real: PointClouds, seed: int) -> PointClouds:
        """Read the set and check that it fits the data."""
        if not self.file:
            raise InputError("setting clouds.file = '': expected a distilled set (.npz)")
        given = load_clouds(self.file)
        if given.grid != real.grid or given.class_names != real.class_names:
            raise InputError(
                f"{self.file}: grid {given.grid} and classes {list(given.class_names)}; "
                f"expected those of the data: {real.grid} and {list(real.class_names)}"
            )
        if missing := set(range(len(real.class_names))) - set(given.labels.tolist()):
            raise InputError(
                f"{self.file}: no cloud of class '{given.class_names[min(missing)]}'; every "
                "class needs at least one"
            )
        return given


def scatter(
    real: PointClouds,
    clouds_per_class: int | Sequence[int] = 1,
    points: int | Sequence[int] = 250,
    seed: int = 0,
) -> PointClouds:
    """Place points uniformly in the grid of `real`: the paper's initialisation (section 3.1.2).

    clouds_per_class: one number, or one number per class
    points: per cloud; one number, or one number per cloud
    Raises InputError if a list does not have one number per class or per cloud.
    """
    labels = _labels(real, clouds_per_class)
    draws = generator(seed, "initial clouds")
    return scattered(_points(points, labels), labels, real.grid, real.class_names, draws)


def _labels(real: PointClouds, clouds_per_class: int | Sequence[int]) -> list[int]:
    classes = len(real.class_names)
    counts = _one_per(clouds_per_class, classes, "clouds.clouds_per_class", "class")
    _refuse_too_many(sum(counts), "clouds.clouds_per_class", "clouds")
    return [label for label, count in enumerate(counts) for _ in range(count)]


def _points(points: int | Sequence[int], labels: list[int]) -> list[int]:
    sizes = _one_per(points, len(labels), "clouds.points_per_cloud", "cloud")
    _refuse_too_many(sum(sizes), "clouds.points_per_cloud", "points")
    return sizes


def _refuse_too_many(count: int, setting: str, of: str) -> None:
    """Raise InputError for more points or clouds than a set that can be stored."""
    most = LARGEST_SET // BYTES_PER_POINT
    if count > most:
        raise InputError(f"setting {setting}: {count} {of} are too many; expected at most {most}")


def _one_per(value: int | Sequence[int], count: int, setting: str, of: str) -> list[int]:
    values = [value] * count if isinstance(value, int) else list(value)
    if len(values) != count:
        raise InputError(
            f"setting {setting} has {len(values)} numbers; expected one number, or one per {of}: "
            f"{count}"
        )
    return values
