"""Static pictures of clouds, drawn with matplotlib."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .clouds import PointClouds
from .files import atomic_write


def migration(trajectory: dict[str, np.ndarray], clouds: PointClouds, rows: int = 6, columns: int = 10) -> Figure:
    """The clouds over time: a column per cloud (the first of each class, at most `columns`), a row per moment.

    trajectory: `updates` (frames,) and `coordinates` (frames, points, 3), see `runs`. clouds: whose points they are.
    """
    frames = np.linspace(0, 1, rows) ** 2 * (len(trajectory["updates"]) - 1)  # more rows early, where most happens
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


def _draw(axes, clouds: PointClouds, cloud: int) -> None:
    """Height against width, the depth axis looked along; deeper points are paler."""
    depth, height, width = clouds[cloud].detach().cpu().numpy().T
    shade = 1 - 0.7 * depth / max(clouds.grid[0] - 1, 1)
    axes.scatter(width, height, s=1.2, c="#20508a", alpha=shade, linewidths=0)
    axes.set(xlim=(0, clouds.grid[2]), ylim=(clouds.grid[1], 0), aspect="equal", xticks=[], yticks=[])


def _first_of_each_class(clouds: PointClouds) -> list[int]:
    labels = clouds.labels.tolist()
    return [labels.index(label) for label in sorted(set(labels))]
