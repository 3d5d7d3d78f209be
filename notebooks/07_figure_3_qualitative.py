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
# # Figure 3: what the distilled digits look like
#
# The paper's Figure 3 shows its distilled clouds, projected back to images: on top those that were distilled through
# PyTorch's layers, below those through MinkowskiEngine's. Here are ours, made in the same way, and with them three
# rows that the paper does not have: MinkowskiEngine's network with all its second derivatives (`sparse`), our own setting,
# and plain real digits.

# %% tags=["parameters"]
scale = "small"  # "small": for two CPU cores; "paper": the paper's own, for a GPU
seeds = 5  # runs behind each score; the pictures are those of seed 0
dataset = "mnist"  # the records kept in the repository are of it; "digits" needs no files and runs in minutes
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty means PCDD_DATA, else a download
settings = {}  # any setting changed in every run, for instance {"schedule.iterations": 100}
runs_folder = "runs"  # where new runs go
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import pcdd_core as pcdd

# %matplotlib inline

# %% [markdown]
# ## 1. The runs
#
# Three layers for PyTorch and two for MinkowskiEngine: the depths at which the paper found each best. Runs whose records
# are kept are read; the others are run now, with their progress shown. Without MinkowskiEngine (`make minkowski` builds it)
# its row is left out, unless its record is there.

# %%
rows = {
    "paper-torch-3-sum-of-squares": "PyTorch, 3 layers",
    "paper-minkowski-2-sum-of-squares": "MinkowskiEngine, 2 layers",
    "paper-sparse-2-sum-of-squares": "sparse, 2 layers",
    "gaussian": "ours",
    "random-1": "real, at random",
}
table1 = pcdd.experiment("table1", scale, seeds, {"data.name": dataset, **settings})
cells = [cell for cell in table1 if cell.name.removesuffix("-small") in rows]
records = pcdd.obtain(cells, runs_folder, data_folder, device)

# %%
sets = {}
for record in records:
    if record["config"]["seed"] == 0 and record["clouds_file"]:
        sets[record["name"].removesuffix("-small")] = pcdd.load_clouds(record["clouds_file"])
sets = {text: sets[name] for name, text in rows.items() if name in sets}
print("sets to show:", "; ".join(sets))

# %% [markdown]
# ## 2. After projection
#
# What a classifier gets to see: a pixel is black if at least one point lies in it. This is the paper's Figure 3, with
# three rows added below.

# %%
columns = max(len(clouds.class_names) for clouds in sets.values())
figure, panels = plt.subplots(
    len(sets), columns, figsize=(1.1 * columns + 1, 1.15 * len(sets)), layout="constrained", squeeze=False
)
for row, (text, clouds) in zip(panels, sets.items()):
    for panel, image in zip(row, pcdd.project(clouds)[:, 0]):
        panel.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[])
    row[0].set_ylabel(text, rotation=0, ha="right", va="center", labelpad=8)
for panel, name in zip(panels[0], clouds.class_names):
    panel.set_title(name)

# %% [markdown]
# **What the paper says of its figure** (section 4.2): PyTorch's layers give the better overall quality, with digits that
# have the geometry of the right class; MinkowskiEngine's suffer from more noise and are less clear; key features of some
# digits are missed in both, of the 8 for example.
#
# **What is seen here**, in the records kept in the repository. PyTorch's row has strokes of digits, thin and broken but
# in the right places for several classes, and an 8 without its loops. MinkowskiEngine's row has no digits at all, only
# points in a ring around an empty middle. So the order of the two rows is the paper's. What differs is how far both get:
# the paper's MinkowskiEngine digits were noisy, ours are not digits. The small scale has an eighth of the paper's
# iterations and of its batch, a quarter of its width, and five times its step size; README says what else has been tried.
#
# The `sparse` row is MinkowskiEngine's network with the second derivatives that MinkowskiEngine leaves out. It has the same
# ring, so those are not what is missing (there is a notebook about them). Our own row shows that the same number of points
# from the same kind of scatter can become digits, the 8 too, once points feel what lies around them.

# %% [markdown]
# ## 3. Where the points are
#
# Projection hides how many points lie in a pixel. Here are all points of all classes on one grid, and how dense they are
# at each distance from the centre.

# %%
figure, panels = plt.subplots(1, len(sets), figsize=(2.3 * len(sets) + 0.8, 2.8), layout="constrained", squeeze=False)
density = {}
for panel, (text, clouds) in zip(panels[0], sets.items()):
    _, height, width = clouds.coordinates.numpy().T
    edges = [np.arange(cells + 1) for cells in clouds.grid[1:]]
    density[text] = np.histogram2d(height, width, edges)[0] / len(clouds)
    drawn = panel.imshow(np.log10(density[text] + 0.1), cmap="magma_r", vmin=-1, vmax=1)
    panel.set(title=text, xlabel="width in cells")
panels[0, 0].set_ylabel("height in cells")
bar = figure.colorbar(drawn, ax=panels, label="points per cell and cloud")
bar.set_ticks(np.log10(np.array([0, 0.3, 1, 3]) + 0.1), labels=["0", "0.3", "1", "3"])

# %%
figure, panel = plt.subplots(figsize=(7, 3.2), layout="constrained")
grid = np.array(clouds.grid[1:])
height, width = np.indices(grid) + 0.5
distance = np.hypot(height - grid[0] / 2, width - grid[1] / 2)
rings = np.arange(0, grid.max() / 2 + 0.1, 2)
for text, points in density.items():
    share = [points[(distance >= low) & (distance < low + 2)].mean() / points.mean() for low in rings[:-1]]
    panel.plot(rings[:-1] + 1, share, marker="o", markersize=4, label=text)
panel.axhline(1, color="grey", linestyle=":", label="even scatter")
panel.set(xlabel="distance from the centre in cells", ylabel="density of points,\nas a multiple of an even scatter")
panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5));

# %% [markdown]
# In the records kept here, points that are not wanted get out of the way, each row's in their own. Under PyTorch's layers
# they go to the **corner** at (0, 0): features are coordinates, so only there are they 0 and the point as good as gone.
# MinkowskiEngine's network normalises each channel over the occupied cells, so that small coordinates are not small
# features any more, and the corner is no refuge; its points, and those of `sparse`, leave the middle for a **ring**. Why
# just a ring, we do not know. Our own setting has points to spare as well: some share cells that are taken already, which
# change little by it, and the rest end at the edges.
#
# The table counts it; the last row is an even scatter of as many points.

# %%
grid = clouds.grid
even = pcdd.initial_clouds(cells[0].config, clouds)
counted = {}
for text, shown in {**sets, "even scatter": even}.items():
    _, height, width = shown.coordinates.T
    edge = (height < 2) | (width < 2) | (height >= grid[1] - 2) | (width >= grid[2] - 2)
    counted[text] = {
        "points per cloud": len(shown.coordinates) / len(shown),
        "occupied cells per cloud": float(pcdd.project(shown).sum() / len(shown)),
        "points within 8 cells of (0, 0), %": 100 * float((height**2 + width**2 < 8**2).double().mean()),
        "points in the two outermost rows or columns, %": 100 * float(edge.double().mean()),
    }
pd.DataFrame(counted).T.round(1)

# %% [markdown]
# ## 4. What the pictures are worth
#
# Accuracy on the test set in percent: mean over the seeds and the standard deviation between them. *Standard* is the field's
# protocol; *as the paper scored* augments the test images too, as the paper's code does, and is the column to hold against
# the paper's figure.

# %%
if dataset != "mnist":
    print(f"The paper's figures are of MNIST; these runs are of {dataset}.")


def score(row, protocol):
    """Mean and standard deviation over seeds, as text."""
    mean, deviation = row.get(protocol), row.get(f"{protocol} sd")
    if mean is None:
        return "failed"
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


table = pcdd.table(records)
pd.DataFrame(
    {
        "seeds": [row["seeds"] for row in table],
        "standard": [score(row, "standard") for row in table],
        "as the paper scored": [score(row, "paper") for row in table],
        "the paper's figure": [row["paper's figure"] or "" for row in table],
    },
    index=[rows[row["name"].split()[0].removesuffix("-small")] for row in table],
)

# %% [markdown]
# The paper's two figures contradict its pictures a little: MinkowskiEngine's noisier digits scored higher (33.9 %) than
# PyTorch's (30.22 %). In the records kept here scores follow the pictures: MinkowskiEngine's ring is worth about as much
# as guessing (10 %), PyTorch's strokes are worth more, and a real digit drawn at random is worth far more than either. The
# notebooks on the tables and on second derivatives look for the reasons.
