"""Static pictures of clouds with matplotlib."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
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
    figure = _grid_of_axes(len(frames), len(chosen))
    for row, frame in enumerate(frames):
        at = clouds.with_coordinates(torch.from_numpy(trajectory["coordinates"][frame]))
        for column, cloud in enumerate(chosen):
            axes = figure.axes[row * len(chosen) + column]
            _draw(axes, at, cloud)
            if column == 0:
                axes.set_ylabel(f"{trajectory['updates'][frame]} updates", fontsize=7)
            if row == 0:
                _set_title(axes, clouds, cloud)
    return figure


def gallery(clouds: PointClouds, columns: int = 10, most: int = 100) -> Figure:
    """Draw the clouds, at most `most`, in rows of `columns`. The title of each is its class."""
    count = min(len(clouds), most)
    columns = min(columns, count)
    figure = _grid_of_axes(-(-count // columns), columns)
    for cloud, axes in enumerate(figure.axes):
        if cloud < count:
            _draw(axes, clouds, cloud)
            _set_title(axes, clouds, cloud)
        else:
            axes.set_visible(False)
    return figure


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, atomically. Raises InputError if the folder is not writable."""
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=130))


def _grid_of_axes(rows: int, columns: int) -> Figure:
    figure = Figure(figsize=(0.3 + 1.0 * columns, 0.2 + 1.05 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots(rows, columns, squeeze=False)
    return figure


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


def _draw(axes, clouds: PointClouds, cloud: int) -> None:
    """Draw one cloud with `seen`. On a grid with depth, deeper points are paler."""
    x, y, depth = seen(clouds[cloud].detach().cpu().numpy(), clouds.grid).T
    # An alpha for each point, because matplotlib snaps points to pixels if they share one alpha.
    shade = ((1 if clouds.grid[0] == 1 else 0.65) - 0.7 * depth / max(clouds.grid)).clip(0.25, 1)
    axes.scatter(x, y, s=1.2, c="#20508a", alpha=shade, linewidths=0)
    axes.set(**limits(clouds.grid), aspect="equal", xticks=[], yticks=[])


def _set_title(axes, clouds: PointClouds, cloud: int) -> None:
    """Write the class of a cloud above it, character by character: a name is no formula."""
    name = drawable(clouds.class_names[int(clouds.labels[cloud])])
    axes.set_title(name, fontsize=8, parse_math=False)


def _first_of_each_class(clouds: PointClouds) -> list[int]:
    labels = clouds.labels.tolist()
    return [labels.index(label) for label in sorted(set(labels))]
