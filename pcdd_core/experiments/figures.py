"""Static pictures of clouds with matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ..files import atomic_write
from ..geometry.clouds import Grid, PointClouds
from ..text import drawable


def migration(
    trajectory: dict[str, np.ndarray], clouds: PointClouds, rows: int = 6, columns: int = 10
) -> Figure:
    """Draw the clouds over time: one column per cloud, one row per frame.

    trajectory: `updates` (frames,) and `coordinates` (frames, points, 3) in cells, see `runs`
    clouds: the clouds of these points; the first of each class is drawn
    rows, columns: largest number of frames and of clouds
    """
    # more rows at the beginning, where points move most
    frames = np.linspace(0, 1, rows) ** 2 * (len(trajectory["updates"]) - 1)
    frames = sorted(set(frames.round().astype(int)))
    chosen = _first_of_each_class(clouds)[:columns]
    tiles = []
    for frame in frames:
        moved = clouds.with_coordinates(torch.from_numpy(trajectory["coordinates"][frame]))
        tiles += [(moved, cloud) for cloud in chosen]
    labels = [f"{trajectory['updates'][frame]} updates" for frame in frames]
    return _mosaic(tiles, len(chosen), titles=len(chosen), row_labels=labels)


def gallery(clouds: PointClouds, columns: int = 10, most: int = 100) -> Figure:
    """Draw the clouds, at most `most`, in rows of `columns`. The title of each is its class."""
    count = min(len(clouds), most)
    tiles = [(clouds, cloud) for cloud in range(count)]
    return _mosaic(tiles, min(columns, count), titles=count)


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, atomically. Raises InputError if the folder is not writable."""
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=130))


# Of pictures: sides of a tile, gaps between tiles, heights of titles, and widths of row labels.
TILE, GAP, TITLE, ROW_LABEL = 0.94, 0.06, 0.2, 0.2  # inches


def _mosaic(
    tiles: Sequence[tuple[PointClouds, int]],
    columns: int,
    titles: int,
    row_labels: Sequence[str] = (),
) -> Figure:
    """Draw clouds side by side in rows of `columns`.

    tiles: each is a cloud of a set
    titles: the first `titles` tiles have their class as title
    row_labels: texts to the left of the rows; none: no texts
    All tiles share one pair of axes, in inches. A pair for each tile would take more time than a
    short run.
    """
    rows = -(-len(tiles) // columns)
    left = GAP + (ROW_LABEL if row_labels else 0)
    pitch = TILE + (TITLE if titles > columns else GAP)
    width, height = left + (TILE + GAP) * columns, TITLE + pitch * rows
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    points, shades, frames = [], [], []
    for number, (clouds, cloud) in enumerate(tiles):
        row, column = divmod(number, columns)
        corner = np.array([left + (TILE + GAP) * column, TITLE + pitch * row])
        frames.append(corner + TILE * np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]))
        x, y, depth = seen(clouds[cloud].detach().cpu().numpy(), clouds.grid).T
        points.append(corner + TILE * _in_tile(x, y, clouds.grid))
        deepest = 1 if clouds.grid[0] == 1 else 0.65  # on a grid with depth, deeper is paler
        shades.append((deepest - 0.7 * depth / max(clouds.grid)).clip(0.25, 1))
        if number < titles:  # a name is no formula
            name = drawable(clouds.class_names[int(clouds.labels[cloud])])
            middle, above = corner + (TILE / 2, -GAP / 2)
            axes.text(middle, above, name, fontsize=8, parse_math=False, ha="center")
    for row, text in enumerate(row_labels):
        middle = TITLE + pitch * row + TILE / 2
        axes.text(left - GAP, middle, text, fontsize=7, rotation=90, ha="right", va="center")
    axes.add_collection(LineCollection(frames, colors="black", linewidths=0.6))
    # An alpha for each point, because matplotlib snaps points to pixels if they share one alpha.
    x, y = np.concatenate(points).T
    alpha: Any = np.concatenate(shades)  # matplotlib's types allow one number only
    axes.scatter(x, y, s=1.2, c="#20508a", alpha=alpha, linewidths=0)
    return figure


def _in_tile(x: np.ndarray, y: np.ndarray, grid: Grid) -> np.ndarray:
    """Return places in a tile, 0 to 1 from its upper left corner: (points, 2).

    x, y: from `seen`. Both axes have the same scale, and the grid is centred.
    """
    (first, last), (bottom, top) = limits(grid).values()
    side = max(last - first, bottom - top)
    middle = np.array([first + last, top + bottom]) / 2
    return (np.stack([x, y], 1) - middle) / side + 0.5


def seen(places: np.ndarray, grid: Grid) -> np.ndarray:
    """Project points to the drawing plane. Clouds on a grid with depth are rotated a little.

    places: coordinates (points, 3) in cells. Returns x, y and depth (points, 3), with y downwards.
    """
    if grid[0] == 1:
        return places[:, ::-1]
    depth, height, width = (places - np.array(grid) / 2).T
    yaw, pitch = 0.6, 0.45  # radians; the initial view of player.js
    behind = np.cos(yaw) * depth - np.sin(yaw) * width
    x = np.sin(yaw) * depth + np.cos(yaw) * width
    y = np.cos(pitch) * height - np.sin(pitch) * behind
    return np.stack([x, y, np.cos(pitch) * behind + np.sin(pitch) * height], axis=1)


def limits(grid: Grid) -> dict[str, tuple[float, float]]:
    """Return the axis limits for the results of `seen`, as arguments of `axes.set`."""
    if grid[0] == 1:
        return {"xlim": (0, grid[2]), "ylim": (grid[1], 0)}
    reach = float(np.linalg.norm(grid)) / 2
    return {"xlim": (-reach, reach), "ylim": (reach, -reach)}


def _first_of_each_class(clouds: PointClouds) -> list[int]:
    labels = clouds.labels.tolist()
    return [labels.index(label) for label in sorted(set(labels))]
