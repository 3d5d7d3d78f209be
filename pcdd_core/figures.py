"""Static pictures of clouds, drawn with matplotlib."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .clouds import Grid, PointClouds
from .files import atomic_write


def migration(
    trajectory: dict[str, np.ndarray], clouds: PointClouds, rows: int = 6, columns: int = 10
) -> Figure:
    """The clouds over time: a column per cloud (the first of each class, at most `columns`), a row per moment.

    trajectory: `updates` (frames,) and `coordinates` (frames, points, 3), see `runs`. clouds: whose points they are.
    """
    frames = np.linspace(0, 1, rows) ** 2 * (
        len(trajectory["updates"]) - 1
    )  # more rows early, where most happens
    frames = sorted(set(frames.round().astype(int)))
    shown = _first_of_each_class(clouds)[:columns]
    figure = _grid_of_axes(len(frames), len(shown))
    for row, frame in enumerate(frames):
        at = clouds.with_coordinates(torch.from_numpy(trajectory["coordinates"][frame]))
        for column, cloud in enumerate(shown):
            axes = figure.axes[row * len(shown) + column]
            _draw(axes, at, cloud)
            if column == 0:
                axes.set_ylabel(f"{trajectory['updates'][frame]} updates", fontsize=7)
            if row == 0:
                axes.set_title(clouds.class_names[int(clouds.labels[cloud])], fontsize=8)
    return figure


def gallery(clouds: PointClouds, columns: int = 10, most: int = 100) -> Figure:
    """Every cloud (at most `most`), in rows of `columns`, named by its class."""
    count = min(len(clouds), most)
    columns = min(columns, count)
    figure = _grid_of_axes(-(-count // columns), columns)
    for cloud, axes in enumerate(figure.axes):
        if cloud < count:
            _draw(axes, clouds, cloud)
            axes.set_title(clouds.class_names[int(clouds.labels[cloud])], fontsize=8)
        else:
            axes.set_visible(False)
    return figure


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, atomically."""
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=130))


def _grid_of_axes(rows: int, columns: int) -> Figure:
    figure = Figure(figsize=(0.3 + 1.0 * columns, 0.2 + 1.05 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots(rows, columns, squeeze=False)
    return figure


def seen(places: np.ndarray, grid: Grid) -> np.ndarray:
    """Where places (points, 3) are drawn: x, y and depth (points, 3), y downwards. A flat grid as it is, a solid one turned a little."""
    if grid[0] == 1:
        return places[:, ::-1]
    depth, height, width = (places - np.array(grid) / 2).T
    yaw, pitch = 0.6, 0.45  # as player.js begins
    behind = np.cos(yaw) * depth - np.sin(yaw) * width
    x = np.sin(yaw) * depth + np.cos(yaw) * width
    y = np.cos(pitch) * height - np.sin(pitch) * behind
    return np.stack([x, y, np.cos(pitch) * behind + np.sin(pitch) * height], axis=1)


def limits(grid: Grid) -> dict[str, tuple[float, float]]:
    """The corners of what `seen` draws, as `axes.set` takes them."""
    if grid[0] == 1:
        return {"xlim": (0, grid[2]), "ylim": (grid[1], 0)}
    reach = float(np.linalg.norm(grid)) / 2
    return {"xlim": (-reach, reach), "ylim": (reach, -reach)}


def _draw(axes, clouds: PointClouds, cloud: int) -> None:
    """As `seen`; of a solid grid deeper points are paler."""
    x, y, depth = seen(clouds[cloud].detach().cpu().numpy(), clouds.grid).T
    shade = ((1 if clouds.grid[0] == 1 else 0.65) - 0.7 * depth / max(clouds.grid)).clip(
        0.25, 1
    )  # for each point: one for all snaps to pixels
    axes.scatter(x, y, s=1.2, c="#20508a", alpha=shade, linewidths=0)
    axes.set(**limits(clouds.grid), aspect="equal", xticks=[], yticks=[])


def _first_of_each_class(clouds: PointClouds) -> list[int]:
    labels = clouds.labels.tolist()
    return [labels.index(label) for label in sorted(set(labels))]
