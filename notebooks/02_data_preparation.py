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
# # Data preparation: from pixels to point clouds, and what a network sees of them
#
# The paper's data are MNIST digits taken for point clouds (section 3.1). This notebook follows one digit on its way: from
# pixels to occupied cells, from cells to points, and from points to the numbers that enter a network. At the end the same
# steps are taken with a real cloud in three dimensions.

# %% tags=["parameters"]
dataset = "digits"  # "digits": embedded in scikit-learn, needs no files; "mnist": the paper's
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty means PCDD_DATA, else a download
seed = 0  # which digits are shown
max_points = 150  # a limit to the points of a cloud, to see what it does; the paper's is 250
shapes = ""  # an .npz with an array `points` (n, 3) in the order depth, height, width; empty: a piece of Tennessee
cells_per_axis = 24  # of the grid that this cloud is put on

# %%
import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import pcdd_core as pcdd

# %matplotlib inline

# %% [markdown]
# ## 1. From pixels to occupied cells
#
# A pixel is kept if it is brighter than a threshold; how bright it was is then forgotten. The paper's code takes the
# threshold 75/255, and the paper notes that MNIST has few values in between, so that little hangs on it. scikit-learn's
# digits are smoother: there the threshold decides how bold they are.
#
# Left, the brightness itself, put together from many thresholds. Then what each threshold leaves of it.

# %%
paper_threshold = 75 / 255
thresholds = [0.05, 0.15, paper_threshold, 0.45, 0.6, 0.75, 0.9]
config = pcdd.override(pcdd.Config(), {"data.name": dataset, "seed": seed})


def load(threshold):
    return pcdd.override(config, {"data.threshold": threshold}).data.load(data_folder or None).train


clouds_at = {threshold: load(threshold) for threshold in thresholds}
real = clouds_at[paper_threshold]
print(f"{len(real)} training clouds of {len(real.class_names)} classes on a grid of {real.grid} cells")

# %%
chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[:3]
images = {threshold: pcdd.project(clouds.select(chosen))[:, 0] for threshold, clouds in clouds_at.items()}
figure, panels = plt.subplots(3, len(thresholds) + 1, figsize=(11, 4.4), layout="constrained")
for row in range(3):
    panels[row, 0].imshow(torch.stack(list(images.values())).mean(0)[row], cmap="gray_r")
    for panel, (threshold, shown) in zip(panels[row, 1:], images.items()):
        panel.imshow(shown[row], cmap="gray_r")
        panel.set_title(f"> {threshold:.2f}" if row == 0 else "", fontsize=9)
panels[0, 0].set_title("brightness", fontsize=9)
for panel in panels.flat:
    panel.set(xticks=[], yticks=[])

# %% [markdown]
# The higher the threshold, the fewer points: over the whole training set, not only for these three.

# %%
points = pd.DataFrame({threshold: clouds.sizes.numpy() for threshold, clouds in clouds_at.items()})
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
panel.fill_between(thresholds, points.quantile(0.05), points.quantile(0.95), alpha=0.25, label="nine clouds of ten")
panel.plot(thresholds, points.mean(), marker="o", label="mean")
panel.axvline(paper_threshold, color="grey", linestyle=":", label="the paper's 75/255")
panel.set(xlabel="threshold (share of full brightness)", ylabel="points per cloud", ylim=(0, None))
panel.legend(frameon=False);

# %% [markdown]
# ## 2. A third axis
#
# Every occupied cell becomes a point with three coordinates: depth, height, width, counted in cells. An image has no
# depth, so an axis with a single cell is added and every point has depth 0 (the paper's section 3.1.1). Nothing else
# in the engine knows that these clouds are flat, which is why section 7 can simply put a real 3D cloud in.

# %%
one = real.select(chosen[:1])
name = one.class_names[int(one.labels[0])]
print(f"grid {one.grid}, one cloud of class {name} with {len(one[0])} points; the first five:")
pd.DataFrame(one[0][:5], columns=["depth", "height", "width"])

# %% [markdown]
# ## 3. Clouds have as many points as they have
#
# A 1 has fewer bright pixels than an 8. The engine keeps all clouds in one long list of points, and remembers where each
# begins, so no cloud is filled up or cut to a common size.

# %%
paper_limit = 250
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
panel.hist(real.sizes.numpy(), bins=40)
panel.axvline(paper_limit, color="black", linestyle=":", label=f"the paper's limit, {paper_limit}")
panel.axvline(max_points, color="tab:red", linestyle=":", label=f"max_points, {max_points}")
panel.set(xlabel="points per cloud", ylabel="clouds")
panel.legend(frameon=False);

# %% [markdown]
# The paper's code does cut: it keeps the first 250 points of a cloud. They come in raster order, row after row from the
# top, so what is lost is always the lowest part of the digit. The table says how many clouds that touches; below it
# are the largest clouds, cut to `max_points`.

# %%
pd.DataFrame(
    {
        f"first {limit} points": {
            "clouds cut, %": 100 * (real.sizes > limit).double().mean().item(),
            "points lost, % of all": 100 * ((real.sizes - limit).clamp(min=0).sum() / real.sizes.sum()).item(),
            "most points lost in one cloud": int((real.sizes - limit).clamp(min=0).max()),
        }
        for limit in (paper_limit, max_points)
    }
).round(2)

# %%
largest = real.sizes.argsort(descending=True)[:8]
figure, panels = plt.subplots(1, 8, figsize=(11, 1.8), layout="constrained")
for panel, cloud in zip(panels, largest.tolist()):
    _, height, width = real[cloud].T
    panel.scatter(width[:max_points], height[:max_points], s=3, c="#20508a", linewidths=0)
    panel.scatter(width[max_points:], height[max_points:], s=3, c="tab:red", linewidths=0)
    panel.set(xlim=(0, real.grid[2]), ylim=(real.grid[1], 0), aspect="equal", xticks=[], yticks=[])
    panel.set_title(f"{len(height)} points", fontsize=8)
figure.suptitle(f"The largest clouds; red: what is left out after the first {max_points} points", fontsize=10);

# %% [markdown]
# ## 4. Back to an image
#
# Classifiers are trained on images, so clouds are projected: coordinates are cut to integers and that pixel is set to 1.
# For real clouds this undoes sections 1 and 2 exactly. The next cell projects every training cloud and makes
# points of the pixels again; it stops with an error if a single point were different.

# %%
pixels = pcdd.project(real)[:, 0].nonzero()  # image, height, width of every pixel that is set
assert torch.equal(pixels[:, 0], real.cloud_index)
assert torch.equal(pixels[:, 1:], real.coordinates[:, 1:].long())
print(f"{len(pixels)} points of {len(real)} clouds came back exactly")

# %% [markdown]
# Distilled clouds do not come back like this. Their points lie anywhere in a cell, and several in one cell become a single
# pixel: the projection tells how many cells are occupied, not how many points there are.

# %%
scattered = config.start(real)
cells = pcdd.project(scattered).sum((1, 2, 3))
print(f"{len(scattered[0])} points scattered at random occupy {int(cells.min())} to {int(cells.max())} cells")

# %% [markdown]
# ## 5. Coordinates as features: what the paper's network sees
#
# A point's coordinates serve twice (section 3.1.3). Cut to integers they say *which cell* it lies in. As they are, they are
# the *three features* of that cell, the numbers that enter the network where an image has its red, green and blue.
# Here are the three channels of the digit above.

# %%
channels = pcdd.lifts.coordinates_as_features(one).dense()[0, :, 0]
occupied = pcdd.lifts.occupancy(one)[0, 0, 0] > 0
figure, panels = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for panel, channel, name in zip(panels, channels, ("depth", "height", "width")):
    drawn = panel.imshow(channel.masked_fill(~occupied, torch.nan), vmin=0, vmax=max(real.grid) - 1)
    panel.set(title=f"feature: {name}", xlabel="width in cells", ylabel="height in cells")
figure.colorbar(drawn, ax=panels, label="feature value in cells");

# %% [markdown]
# White cells are empty: a sparse network does not look at them, a dense one reads 0 there. So an occupied cell near the top
# left corner, with features close to 0, looks almost like an empty one. Remember this corner: in the notebook on the paper's
# Figure 3, points that are not wanted gather in it.
#
# Now three points, two of them in one cell. That cell's features are the *average* of its points. Then the first point is
# moved, once within its cell and once across the border of it.

# %%
places = {
    "at first": [[0, 10.2, 5.3], [0, 10.8, 5.9], [0, 12.5, 7.1]],
    "moved within its cell": [[0, 10.9, 5.3], [0, 10.8, 5.9], [0, 12.5, 7.1]],
    "moved across the border": [[0, 11.1, 5.3], [0, 10.8, 5.9], [0, 12.5, 7.1]],
}
rows = []
for when, coordinates in places.items():
    three = pcdd.clouds_from_list([torch.tensor(coordinates)], [0], real.grid, real.class_names)
    seen = pcdd.lifts.coordinates_as_features(three)
    for cell, features in zip(seen.cells[:, 1:].tolist(), seen.features):
        rows.append({"first point": when, "cell": str(cell), "features": [round(float(value), 2) for value in features]})
pd.DataFrame(rows).set_index(["first point", "cell"])

# %% [markdown]
# Within the cell only features change, smoothly. Across the border the set of cells changes, all at once. A gradient knows
# about smooth changes only: it can tell a point to have a larger or smaller feature, not that the neighbouring
# cell would be the better place.

# %% [markdown]
# ## 6. Gaussian occupancy: a lift that feels the neighbourhood
#
# Our own setting blurs every point to a Gaussian. A cell receives the mass that falls into it, and the network sees one
# channel: how occupied each cell is. The bandwidth, the Gaussian's standard deviation in cells, is wide at first and narrow
# at last. Above the real digit, below a random scatter of points, as they are at the start of a run.

# %%
lift = pcdd.preset("gaussian").config.lift
half = torch.tensor([0.0, 0.5, 0.5])  # a real point stands for its whole cell: take the middle
centred = one.with_coordinates(one.coordinates + half)
bandwidths = [lift.bandwidth_start, 1.5, 1.0, lift.bandwidth_end]
figure, panels = plt.subplots(2, 5, figsize=(11, 4.6), layout="constrained")
for row, (name, cloud) in zip(panels, {"real": centred, "scattered": scattered.select(torch.tensor([0]))}.items()):
    row[0].set_ylabel(name)
    for panel, bandwidth in zip(row, bandwidths):
        seen = pcdd.lifts.gaussian_occupancy(cloud, bandwidth, lift.saturation)[0, 0, 0]
        drawn = panel.imshow(seen, cmap="gray_r", vmin=0, vmax=1)
        panel.set_title(f"bandwidth {bandwidth} cells", fontsize=9)
    row[-1].imshow(pcdd.project(cloud)[0, 0], cmap="gray_r")
    row[-1].set_title("projected", fontsize=9)
for panel in panels.flat:
    panel.set(xticks=[], yticks=[])
figure.colorbar(drawn, ax=panels, label="occupancy", shrink=0.7);

# %% [markdown]
# The difference between the two lifts in one picture: a single point slides along the width axis, and we watch the cell
# from 5 to 6. With coordinates as features the cell is empty, then suddenly carries the point's coordinate, then is empty
# again; outside, the slope is 0, so nothing draws the point nearer. With Gaussian occupancy there is a slope from
# far away, and the narrower the Gaussian, the closer this comes to plain occupancy.

# %%
position = torch.linspace(2, 9, 701)
point = torch.stack([torch.zeros(701), torch.zeros(701), position], dim=1)
sliding = pcdd.clouds_from_list(point.split(1), [0] * 701, (1, 1, 12), ("a point",))
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3), layout="constrained")
left.plot(position, pcdd.lifts.coordinates_as_features(sliding).dense()[:, 2, 0, 0, 5])
left.set(title="coordinates as features", ylabel="feature of the cell, in cells")
for bandwidth in bandwidths:
    seen = pcdd.lifts.gaussian_occupancy(sliding, bandwidth, lift.saturation)[:, 0, 0, 0, 5]
    right.plot(position, seen, label=f"bandwidth {bandwidth} cells")
right.set(title="Gaussian occupancy", ylabel="occupancy of the cell")
right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
for panel in (left, right):
    panel.axvspan(5, 6, color="grey", alpha=0.15)
    panel.set_xlabel("where the point is, in cells");

# %% [markdown]
# ## 7. The same in three dimensions
#
# A real cloud, unless `shapes` names another: heights of the terrain at the Jacksboro fault in Tennessee, which matplotlib carries among its samples.
# Every sample becomes a point: north, up and east in metres. Mountains are flat compared with their extent, so heights are
# exaggerated, as on relief maps. `into_grid` then moves and scales the points to fill a grid, with one scale for all three
# axes.

# %%
if shapes:
    with np.load(shapes, allow_pickle=False) as archive:
        metres, title = torch.from_numpy(archive["points"]), shapes
else:
    exaggeration, metres_per_degree, every = 12, 111_200, 3
    with np.load(matplotlib.cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)) as terrain:
        up = torch.from_numpy(terrain["elevation"][::every, ::every]).double() * exaggeration
        latitude = np.radians((terrain["ymin"] + terrain["ymax"]) / 2)
        north = -torch.arange(up.shape[0]).double() * every * float(terrain["dy"]) * metres_per_degree
        east = torch.arange(up.shape[1]).double() * every * float(terrain["dx"] * np.cos(latitude)) * metres_per_degree
    metres = torch.stack([north[:, None].expand_as(up), up, east[None].expand_as(up)], dim=-1).reshape(-1, 3)
    title = f"Jacksboro fault, heights x {exaggeration}"
grid = (cells_per_axis,) * 3
shape = pcdd.clouds_from_list([pcdd.into_grid(metres, grid)], [0], grid, (title,))
print(f"{title}: {len(shape[0])} points on {grid} cells")
pd.DataFrame({"lowest": shape[0].amin(0), "highest": shape[0].amax(0)}, index=["depth", "height", "width"]).T.round(1)

# %% [markdown]
# Left the points, right the cells that they occupy. Many points share a cell; most cells are empty.

# %%
depth, height, width = shape[0].T
occupied = pcdd.lifts.occupancy(shape)[0, 0] > 0
figure = plt.figure(figsize=(11, 5), layout="constrained")
left, right = figure.add_subplot(1, 2, 1, projection="3d"), figure.add_subplot(1, 2, 2, projection="3d")
left.scatter(width, depth, height, c=height, s=1.5, cmap="terrain", linewidths=0, depthshade=False)
levels = torch.arange(cells_per_axis) / (cells_per_axis - 1)
low, high = height.min() / (cells_per_axis - 1), height.max() / (cells_per_axis - 1)
colours = plt.get_cmap("terrain")(((levels - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).numpy())
right.voxels(
    occupied.permute(2, 0, 1).numpy(),  # matplotlib's vertical axis comes last
    facecolors=np.broadcast_to(colours, (cells_per_axis, cells_per_axis, cells_per_axis, 4)),
    edgecolor="#00000030",
    linewidth=0.2,
)
for panel, name in ((left, f"{len(height)} points"), (right, f"{int(occupied.sum())} occupied cells")):
    panel.set(title=name, xlabel="width in cells", ylabel="depth in cells", zlabel="height in cells")
    panel.set(xlim=(0, cells_per_axis), ylim=(cells_per_axis, 0), zlim=(0, cells_per_axis), box_aspect=(1, 1, 1))

# %% [markdown]
# From here on nothing differs from the flat digit. Coordinates as features give the same kind of sparse tensor, cells with
# three features each, now with a depth that means something; Gaussian occupancy gives a solid grid. This is also where
# sparse tensors pay: compare the share of cells that a sparse network has to look at.

# %%
solid, flat = pcdd.lifts.coordinates_as_features(shape), pcdd.lifts.coordinates_as_features(one)
pd.DataFrame(
    {
        name: {
            "cells of the grid": int(np.prod(seen.grid)),
            "occupied cells": len(seen.cells),
            "occupied, %": round(100 * len(seen.cells) / np.prod(seen.grid), 1),
            "features": str(tuple(seen.features.shape)),
        }
        for name, seen in {"the digit": flat, title: solid}.items()
    }
)

# %%
seen = pcdd.lifts.gaussian_occupancy(shape, lift.bandwidth_end, lift.saturation)[0, 0]
figure, panels = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
for panel, at in zip(panels, np.linspace(0, cells_per_axis - 1, 4).round().astype(int)):
    drawn = panel.imshow(seen[at], cmap="gray_r", origin="lower", vmin=0, vmax=1)
    panel.set(title=f"slice at depth {at}", xlabel="width in cells", ylabel="height in cells")
figure.colorbar(drawn, ax=panels, label="occupancy");

# %% [markdown]
# Next: the notebooks on the paper's tables distil such clouds; the one on its Figure 3 shows what becomes of the points.
