# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Data preparation: from pixels to point clouds and to the input of a network
#
# The paper converts MNIST digits to point clouds (section 3.1). This notebook follows one digit
# from pixels to occupied cells, from cells to points, and from points to the input of a network.
# Section 7 does the same with a real cloud in three dimensions.

# %% tags=["parameters"]
dataset = "digits"  # "digits": embedded in scikit-learn, needs no files; "mnist": the paper's
data_folder = ""  # for mnist: folder that holds MNIST/raw; empty: PCDD_DATA, else a download
seed = 0  # determines which digits the notebook draws
max_points = 150  # limit to the points of a cloud, as an example; the paper's limit is 250
# .npz with an array `points` (n, 3), in the order depth, height, width; empty: terrain
shapes = ""
cells_per_axis = 24  # grid of this cloud

# %%
import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import pcdd_core as pcdd

# %matplotlib inline
pcdd.check_parameters()

# %% [markdown]
# ## 1. From pixels to occupied cells
#
# A cell is occupied if its pixel is brighter than a threshold. Brightness has no other effect. The
# paper's code uses the threshold 75/255. According to the paper, MNIST has few intermediate values,
# so the choice of the threshold has little effect. The digits of scikit-learn are smoother. There
# the threshold determines the width of the strokes.
#
# The first column approximates the brightness by the mean over all thresholds. The other columns
# show the occupied cells for each threshold.

# %%
paper_threshold = 75 / 255
thresholds = [0.05, 0.15, paper_threshold, 0.45, 0.6, 0.75, 0.9]
config = pcdd.override(pcdd.Config(), {"data.name": dataset, "seed": seed})


def load(threshold):
    return pcdd.override(config, {"data.threshold": threshold}).data.load(data_folder or None).train


clouds_at = {threshold: load(threshold) for threshold in thresholds}
real = clouds_at[paper_threshold]
print(
    f"{len(real)} training clouds of {len(real.class_names)} classes on a grid of {real.grid} cells"
)

# %%
generator = torch.Generator().manual_seed(seed)
chosen = torch.randperm(len(real), generator=generator)[:3]
images_at = {
    threshold: pcdd.project(clouds.select(chosen))[:, 0] for threshold, clouds in clouds_at.items()
}
figure, panels = plt.subplots(3, len(thresholds) + 1, figsize=(11, 4.4), layout="constrained")
for row in range(3):
    panels[row, 0].imshow(torch.stack(list(images_at.values())).mean(0)[row], cmap="gray_r")
    for panel, (threshold, images) in zip(panels[row, 1:], images_at.items()):
        panel.imshow(images[row], cmap="gray_r")
        panel.set_title(f"> {threshold:.2f}" if row == 0 else "", fontsize=9)
panels[0, 0].set_title("brightness", fontsize=9)
for panel in panels.flat:
    panel.set(xticks=[], yticks=[])

# %% [markdown]
# The number of points falls with the threshold. The plot shows this for the whole training split.

# %%
points = pd.DataFrame({threshold: clouds.sizes.numpy() for threshold, clouds in clouds_at.items()})
low, high = points.quantile(0.05), points.quantile(0.95)
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
panel.fill_between(thresholds, low, high, alpha=0.25, label="5 % to 95 % quantile")
panel.plot(thresholds, points.mean(), marker="o", label="mean")
panel.axvline(paper_threshold, color="grey", linestyle=":", label="the paper's 75/255")
panel.set(
    xlabel="threshold (fraction of full brightness)", ylabel="points per cloud", ylim=(0, None)
)
panel.legend(frameon=False);

# %% [markdown]
# ## 2. A third axis
#
# Every occupied cell becomes a point at its centre. The point has three coordinates: depth, height
# and width, in cells. The centre of cell $i$ is at $i + 0.5$. An image has no depth. So the grid
# gets an additional axis with a single cell (section 3.1.1 of the paper), and every point has depth
# 0.5. The engine makes no other difference between flat clouds and clouds in three dimensions. So
# section 7 can use a 3D cloud without changes.

# %%
digit = real.select(chosen[:1])
class_name = digit.class_names[int(digit.labels[0])]
print(f"grid {digit.grid}, one cloud of class {class_name} with {len(digit[0])} points")
print("its first five points:")
pd.DataFrame(digit[0][:5], columns=["depth", "height", "width"])

# %% [markdown]
# ## 3. Clouds of different sizes
#
# Clouds differ in their number of points, because digits differ in their number of bright pixels.
# The engine stores all clouds in one list of points, with the offset of each cloud. This needs no
# padding and no limit to the number of points.

# %%
paper_limit = 250
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
panel.hist(real.sizes.numpy(), bins=40)
panel.axvline(paper_limit, color="black", linestyle=":", label=f"the paper's limit, {paper_limit}")
panel.axvline(max_points, color="tab:red", linestyle=":", label=f"max_points, {max_points}")
panel.set(xlabel="points per cloud", ylabel="clouds")
panel.legend(frameon=False);

# %% [markdown]
# > **Predict, then run.** The paper's code has a limit: it keeps the first 250 points of a cloud.
# > Points are in raster order, row by row from the top. Which part of a digit does the limit
# > remove? How many clouds does it affect?
#
# <details><summary>Answer</summary>
#
# The lowest part, because the last points are those of the lowest rows. The table counts the
# affected clouds and the lost points. The digits of scikit-learn have no cloud of more than 250
# points. So the table and the figure also show the smaller limit `max_points`.
#
# </details>
#
# The figure shows the largest clouds.

# %%
limits = {}
for limit in (paper_limit, max_points):
    lost = (real.sizes - limit).clamp(min=0)
    limits[f"first {limit} points"] = {
        "clouds cut, %": 100 * (real.sizes > limit).double().mean().item(),
        "points lost, % of all": 100 * (lost.sum() / real.sizes.sum()).item(),
        "most points lost in one cloud": int(lost.max()),
    }
pd.DataFrame(limits).round(2)

# %%
largest = real.sizes.argsort(descending=True)[:8]
figure, panels = plt.subplots(1, 8, figsize=(11, 1.8), layout="constrained")
for panel, cloud in zip(panels, largest.tolist()):
    _, height, width = real[cloud].T
    panel.scatter(width[:max_points], height[:max_points], s=3, c="#20508a", linewidths=0)
    panel.scatter(width[max_points:], height[max_points:], s=3, c="tab:red", linewidths=0)
    panel.set(xlim=(0, real.grid[2]), ylim=(real.grid[1], 0), aspect="equal", xticks=[], yticks=[])
    panel.set_title(f"{len(height)} points", fontsize=8)
figure.suptitle(f"The largest clouds; red: points after the first {max_points}", fontsize=10);

# %% [markdown]
# ## 4. Projection to an image
#
# Classifiers train on images. The projection converts a cloud to an image: it cuts coordinates to
# integers and sets these pixels to 1. For real clouds it is the exact inverse of sections 1 and 2.
# The next cell projects every training cloud and converts the pixels to points again. It raises an
# error if any point differs.

# %%
pixels = pcdd.project(real)[:, 0].nonzero()  # image, height, width of every pixel that is set
assert torch.equal(pixels[:, 0], real.cloud_index)
assert torch.equal(pixels[:, 1:], real.coordinates[:, 1:].long())
print(f"{len(pixels)} points of {len(real)} clouds came back exactly")

# %% [markdown]
# For distilled clouds the projection has no inverse. Their points lie anywhere in a cell, and
# several points in one cell become one pixel. So an image shows the number of occupied cells, not
# the number of points.

# %%
scattered = config.start(real)
cells = pcdd.project(scattered).sum((1, 2, 3))
count = len(scattered[0])
print(f"{count} points at random positions occupy {int(cells.min())} to {int(cells.max())} cells")

# %% [markdown]
# ## 5. Coordinates as features: the input of the paper's network
#
# The coordinates of a point have two uses (section 3.1.3). Cut to integers, they give the *cell* of
# the point. Without the cut, they are the *three features* of that cell. They take the place of
# red, green and blue in an image. Let $P_c$ be the points in the cell $c$. The features of the cell
# are
#
# $$f_c = \frac{1}{|P_c|} \sum_{p \in P_c} p .$$
#
# The paper writes a real point as the index of its cell, which is the lower corner of the cell. So
# its lift moves real points by half a cell to this corner: `real=True`. The figure shows the three
# channels of the digit.

# %%
paper_lift = pcdd.CoordinatesAsFeatures()
channels = paper_lift(digit, real=True).dense()[0, :, 0]
occupied = pcdd.lifts.occupancy(digit)[0, 0, 0] > 0
figure, panels = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for panel, channel, axis in zip(panels, channels, ("depth", "height", "width")):
    image = panel.imshow(channel.masked_fill(~occupied, torch.nan), vmin=0, vmax=max(real.grid) - 1)
    panel.set(title=f"feature: {axis}", xlabel="width in cells", ylabel="height in cells")
figure.colorbar(image, ax=panels, label="feature value in cells");

# %% [markdown]
# White cells are empty. A sparse network skips them. A dense network reads 0 there. An occupied
# cell near the top left corner has features close to 0, so a dense network can hardly tell it from
# an empty cell. Notebook 07 measures how many points collect in this corner.

# %% [markdown]
# > **Predict, then run.** A cloud has three points. Two of them, at heights 10.2 and 10.8, are in
# > one cell. The first point moves to 10.9, then to 11.1. How do the occupied cells and their
# > features change?
#
# <details><summary>Answer</summary>
#
# At 10.9 the same cells are occupied. Only the mean height of the shared cell changes, from 10.5 to
# 10.85. At 11.1 the point is alone in a new cell. The set of occupied cells changes in a jump, and
# the old cell now has the features of the second point.
#
# A gradient describes continuous changes only. It can increase or decrease a feature of a point. It
# has no information about the neighbouring cell.
#
# </details>

# %%
positions = {
    "initial position": [[0, 10.2, 5.3], [0, 10.8, 5.9], [0, 12.5, 7.1]],
    "moved within its cell": [[0, 10.9, 5.3], [0, 10.8, 5.9], [0, 12.5, 7.1]],
    "moved across the border": [[0, 11.1, 5.3], [0, 10.8, 5.9], [0, 12.5, 7.1]],
}
rows = []
for case, coordinates in positions.items():
    cloud = pcdd.clouds_from_list([torch.tensor(coordinates)], [0], real.grid, real.class_names)
    lifted = pcdd.lifts.coordinates_as_features(cloud)
    for cell, features in zip(lifted.cells[:, 1:].tolist(), lifted.features):
        rounded = [round(float(value), 2) for value in features]
        rows.append({"first point": case, "cell": str(cell), "features": rounded})
pd.DataFrame(rows).set_index(["first point", "cell"])

# %% [markdown]
# ## 6. Gaussian occupancy: a lift with gradients towards neighbouring cells
#
# Our own setting converts every point $p$ to a Gaussian with the bandwidth $\sigma$, its standard
# deviation in cells. A cell $c$ receives the mass $m_c$ of the Gaussians that falls into it. The
# network gets one channel, the occupancy $o_c$ of each cell, with the saturation $\kappa$:
#
# $$m_c = \sum_p \int_c \mathcal{N}(x;\, p,\, \sigma^2 I)\, dx,
# \qquad o_c = 1 - e^{-\kappa\, m_c} .$$
#
# The bandwidth is wide at the start of a run and narrow at the end. The upper row shows the real
# digit, the lower row random points as at the start of a run.

# %%
lift = pcdd.preset("gaussian").config.lift
random_cloud = scattered.select(torch.tensor([0]))
bandwidths = [lift.bandwidth_start, 1.5, 1.0, lift.bandwidth_end]
figure, panels = plt.subplots(2, 5, figsize=(11, 4.6), layout="constrained")
for row, (label, cloud) in zip(panels, {"real": digit, "random": random_cloud}.items()):
    row[0].set_ylabel(label)
    for panel, bandwidth in zip(row, bandwidths):
        occupancy = pcdd.lifts.gaussian_occupancy(cloud, bandwidth, lift.saturation)[0, 0, 0]
        image = panel.imshow(occupancy, cmap="gray_r", vmin=0, vmax=1)
        panel.set_title(f"bandwidth {bandwidth} cells", fontsize=9)
    row[-1].imshow(pcdd.project(cloud)[0, 0], cmap="gray_r")
    row[-1].set_title("projected", fontsize=9)
for panel in panels.flat:
    panel.set(xticks=[], yticks=[])
figure.colorbar(image, ax=panels, label="occupancy", shrink=0.7);

# %% [markdown]
# > **Predict, then run.** A single point moves along the width axis. The network reads the input at
# > the cell from 5 to 6. For which positions of the point does this input have a slope, under each
# > of the two lifts?
#
# <details><summary>Answer</summary>
#
# Coordinates as features: the input is 0 outside the cell and jumps to the coordinate of the point
# at the borders. Outside the cell the slope is 0, so no gradient moves the point towards the cell.
#
# Gaussian occupancy: the slope is not 0 at a distance either, up to about four bandwidths. The
# narrower the Gaussian, the closer the curve is to plain occupancy.
#
# </details>

# %%
position = torch.linspace(2, 9, 701)
moving_point = torch.stack([torch.zeros(701), torch.zeros(701), position], dim=1)
clouds = pcdd.clouds_from_list(moving_point.split(1), [0] * 701, (1, 1, 12), ("a point",))
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3), layout="constrained")
left.plot(position, pcdd.lifts.coordinates_as_features(clouds).dense()[:, 2, 0, 0, 5])
left.set(title="coordinates as features", ylabel="feature of the cell, in cells")
for bandwidth in bandwidths:
    occupancy = pcdd.lifts.gaussian_occupancy(clouds, bandwidth, lift.saturation)[:, 0, 0, 0, 5]
    right.plot(position, occupancy, label=f"bandwidth {bandwidth} cells")
right.set(title="Gaussian occupancy", ylabel="occupancy of the cell")
right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
for panel in (left, right):
    panel.axvspan(5, 6, color="grey", alpha=0.15)
    panel.set_xlabel("position of the point, in cells")

# %% [markdown]
# ## 7. The same in three dimensions
#
# Unless `shapes` names another cloud, this section uses the heights of the terrain at the Jacksboro
# fault in Tennessee. They are sample data of matplotlib. Every sample becomes a point: north, up
# and east in metres. Heights are small compared with the horizontal extent. So the cell multiplies
# them by `exaggeration`, as relief maps do. `into_grid` shifts and scales the points to fill a
# grid, with one scale for all three axes.

# %%
if shapes:
    with np.load(shapes, allow_pickle=False) as archive:
        metres, title = torch.from_numpy(archive["points"]), shapes
else:
    exaggeration, metres_per_degree, every = 12, 111_200, 3
    path = matplotlib.cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)
    with np.load(path) as terrain:
        up = torch.from_numpy(terrain["elevation"][::every, ::every]).double() * exaggeration
        latitude = np.radians((terrain["ymin"] + terrain["ymax"]) / 2)
        row_step = every * float(terrain["dy"]) * metres_per_degree
        column_step = every * float(terrain["dx"] * np.cos(latitude)) * metres_per_degree
    north = -torch.arange(up.shape[0]).double() * row_step
    east = torch.arange(up.shape[1]).double() * column_step
    axes = [north[:, None].expand_as(up), up, east[None].expand_as(up)]
    metres = torch.stack(axes, dim=-1).reshape(-1, 3)
    title = f"Jacksboro fault, heights x {exaggeration}"
grid = (cells_per_axis,) * 3
shape = pcdd.clouds_from_list([pcdd.into_grid(metres, grid)], [0], grid, (title,))
print(f"{title}: {len(shape[0])} points on {grid} cells")
extent = {"lowest": shape[0].amin(0), "highest": shape[0].amax(0)}
pd.DataFrame(extent, index=["depth", "height", "width"]).T.round(1)

# %% [markdown]
# The left panel shows the points, the right panel the cells that they occupy.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
depth, height, width = shape[0].T
occupied = pcdd.lifts.occupancy(shape)[0, 0] > 0
figure = plt.figure(figsize=(11, 5), layout="constrained")
left, right = (figure.add_subplot(1, 2, place, projection="3d") for place in (1, 2))
left.scatter(width, depth, height, c=height, s=1.5, cmap="terrain", linewidths=0, depthshade=False)
levels = torch.arange(cells_per_axis) / (cells_per_axis - 1)
low, high = height.min() / (cells_per_axis - 1), height.max() / (cells_per_axis - 1)
relative = ((levels - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
colours = plt.get_cmap("terrain")(relative.numpy())
right.voxels(
    occupied.permute(2, 0, 1).numpy(),  # matplotlib's vertical axis comes last
    facecolors=np.broadcast_to(colours, (*grid, 4)),
    edgecolor="#00000030",
    linewidth=0.2,
)
titles = {left: f"{len(height)} points", right: f"{int(occupied.sum())} occupied cells"}
for panel, text in titles.items():
    panel.set(
        title=text, xlabel="width in cells", ylabel="depth in cells", zlabel="height in cells"
    )
    panel.set(xlim=(0, cells_per_axis), ylim=(cells_per_axis, 0), zlim=(0, cells_per_axis))
    panel.set(box_aspect=(1, 1, 1))

# %% [markdown]
# The lifts work as for the flat digit. Coordinates as features give a sparse tensor, cells with
# three features each. Now depth differs between cells. Gaussian occupancy gives a dense grid. The
# table compares the fractions of occupied cells. A sparse network computes only these cells.

# %%
lifted = {
    "the digit": paper_lift(digit, real=True),
    title: pcdd.lifts.coordinates_as_features(shape),
}
pd.DataFrame(
    {
        name: {
            "cells of the grid": int(np.prod(sparse.grid)),
            "occupied cells": len(sparse.cells),
            "occupied, %": round(100 * len(sparse.cells) / np.prod(sparse.grid), 1),
            "features": str(tuple(sparse.features.shape)),
        }
        for name, sparse in lifted.items()
    }
)

# %%
occupancy = pcdd.lifts.gaussian_occupancy(shape, lift.bandwidth_end, lift.saturation)[0, 0]
slices = np.linspace(0, cells_per_axis - 1, 4).round().astype(int)
figure, panels = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
for panel, index in zip(panels, slices):
    image = panel.imshow(occupancy[index], cmap="gray_r", origin="lower", vmin=0, vmax=1)
    panel.set(title=f"slice at depth {index}", xlabel="width in cells", ylabel="height in cells")
figure.colorbar(image, ax=panels, label="occupancy");

# %% [markdown]
# Next: the notebooks on the paper's tables distil such clouds. Notebook 07, on the paper's Figure
# 3, shows where the points end.
