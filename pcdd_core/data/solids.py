"""Three-dimensional shapes generated as simple solids, which need no files.

All shapes have equally many points, zero mean and largest norm 1.
"""

from collections.abc import Callable

import numpy as np

from .shape_files import Shapes, normalised


def solids(
    points: int, seed: int = 0, train: int = 100, test: int = 50
) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Generate a data set of eight simple solids, which needs no files.

    train, test: number of shapes per solid
    Each shape has random proportions, a random rotation about the vertical and a small random tilt.
    Returns training shapes, test shapes and class names.
    """
    names = tuple(SOLIDS)
    splits = []
    for split, count in enumerate((train, test)):
        generated = []
        for label, name in enumerate(names):
            for number in range(count):
                draws = np.random.default_rng((seed, split, label, number))
                shape = SOLIDS[name](points, draws) * draws.uniform(0.6, 1.4, 3)
                generated.append(
                    normalised(
                        shape @ _rotation(draws.uniform(0, 2 * np.pi), draws.normal(0, 0.1, 2)).T,
                        name,
                    )
                )
        splits.append(Shapes(np.stack(generated), np.repeat(np.arange(len(names)), count)))
    return *splits, names


def _rotation(angle: float, tilt: np.ndarray) -> np.ndarray:
    """Return the matrix (3, 3) of a rotation about z, followed by small ones about x and y.

    angle, tilt: radians
    """
    matrix = np.eye(3)
    for axes, by in (((0, 1), angle), ((1, 2), tilt[0]), ((0, 2), tilt[1])):
        step = np.eye(3)
        step[np.ix_(axes, axes)] = [[np.cos(by), -np.sin(by)], [np.sin(by), np.cos(by)]]
        matrix = step @ matrix
    return matrix


def _mesh(name: str) -> Callable[[int, np.random.Generator], np.ndarray]:
    def sampled(points: int, draws: np.random.Generator) -> np.ndarray:
        import trimesh

        make = {
            "ball": lambda: trimesh.creation.icosphere(radius=1.0),
            "box": lambda: trimesh.creation.box((1.5, 1.5, 1.5)),
            "cylinder": lambda: trimesh.creation.cylinder(0.7, 2.0),
            "cone": lambda: trimesh.creation.cone(0.9, 2.0),
            "ring": lambda: trimesh.creation.torus(0.8, 0.25),
            "capsule": lambda: trimesh.creation.capsule(1.5, 0.4),
        }[name]
        return np.asarray(trimesh.sample.sample_surface(make(), points, seed=draws)[0])

    return sampled


def _cross(points: int, draws: np.random.Generator) -> np.ndarray:
    """Sample points in three bars at right angles."""
    along, across = draws.uniform(-1, 1, points), draws.uniform(-0.15, 0.15, (points, 2))
    bar, sampled = draws.integers(3, size=points), np.empty((points, 3))
    for axis in range(3):
        own = bar == axis
        sampled[own, axis], sampled[np.ix_(own, [(axis + 1) % 3, (axis + 2) % 3])] = (
            along[own],
            across[own],
        )
    return sampled


def _table(points: int, draws: np.random.Generator) -> np.ndarray:
    """Sample points in a plate on four legs."""
    sampled = draws.uniform((-1, -1, 0.7), (1, 1, 0.8), (points, 3))
    legs = draws.random(points) < 0.4
    corner = draws.choice([-0.85, 0.85], (points, 2))
    sampled[legs] = np.column_stack(
        [corner + draws.uniform(-0.06, 0.06, (points, 2)), draws.uniform(-1, 0.7, points)]
    )[legs]
    return sampled


SOLIDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    **{name: _mesh(name) for name in ("ball", "box", "cylinder", "cone", "ring", "capsule")},
    "cross": _cross,
    "table": _table,
}
