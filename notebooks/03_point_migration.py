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
# # Points on the move: watch a distillation, stop it, look back
#
# A distillation moves points. In this notebook ten clouds, one per class, start as random scatter
# and become digits while you watch. You can pause the run at any time and step through single
# iterations. Afterwards you can replay the whole run.
#
# **Run all cells first** (Run → Run All Cells). Then scroll up and press *Start*. Without
# JupyterLab (papermill, nbconvert) the run starts at once, and a picture replaces the live view.

# %% tags=["parameters"]
preset = "quickstart"  # see `pcdd presets`; it determines every setting
dataset = "digits"  # "digits": embedded in scikit-learn, needs no files; "mnist": the paper's
data_folder = ""  # folder that holds MNIST/raw; empty: PCDD_DATA, else a download
settings = {}  # settings that differ from the preset, for instance {"schedule.iterations": 100}
seed = 0
device = ""  # "cpu", "cuda", ...; empty: the GPU if there is one
output = "runs/point-migration"  # folder for the page, the GIF and the video

# %%
from base64 import b64encode
from pathlib import Path

import numpy as np
import torch
from IPython.display import FileLink, IFrame, Image, display
from matplotlib import cbook

import pcdd_core as pcdd

# %matplotlib inline
pcdd.check_parameters()

# %% [markdown]
# ## 1. The real clouds
#
# Each point of a real cloud is a bright pixel of an image, at the coordinates (depth, height,
# width) of its cell. Depth is 0 for images. No real cloud is copied. Real clouds only determine the
# gradients that move the scattered points.

# %%
config = pcdd.override(pcdd.preset(preset).config, {"data.name": dataset, "seed": seed, **settings})
real = config.data.load(data_folder or None)
pcdd.figures.gallery(pcdd.Random().choose(real.train, seed))

# %% [markdown]
# ## 2. The distillation, live
#
# *Start*, *Pause*, *Step*, *Stop* and *Restart* control the run. It runs in the background. Each
# button acts at the end of the current iteration. A stopped run keeps its recording. *Restart*
# starts again from the same scatter.
#
# The other controls change the view only, not the run:
#
# - **Class**: shows all clouds, or one large cloud.
# - **Colour**: *displacement* is the distance of a point from its initial position. *Gradient* is
#   the length of the gradient at the point. *Identity* is a hue for the direction of the initial
#   position from the centre.
# - **Trails**: show the last positions of each point.
# - **Projection**: shows the occupied cells. Classifiers train on this projection. The position of
#   a point within its cell does not affect them.
# - **Slider**: shows an earlier frame. Its right end follows the run.

# %% [markdown]
# > **Predict, then run.** Digits do not occupy the corners of the grid. Some points of the scatter
# > start there. Where are they at the end of the run?
#
# <details><summary>Answer</summary>
#
# Most of them are still in the corners, and other points join them. A digit needs fewer than 250
# points. A surplus point affects the features least in a corner, because most of its Gaussian lies
# outside the grid there.
#
# </details>

# %%
live = pcdd.watch(config, real.train, device or None)
live

# %% [markdown]
# Each button is also a method: `live.start()`, `live.step()`, `live.pause()`. `live.wait()` waits
# until the last order has taken effect.

# %%
print(live.status)

# %% [markdown]
# ## 3. How to read the two curves
#
# Let $\theta$ be the network of the current iteration, $R_c$ and $S_c$ the real and the synthetic
# clouds of class $c$, and $\ell$ the cross-entropy. The **matching loss** is the distance $D$
# between their gradients, summed over the classes:
#
# $$\mathcal{L}(S) = \sum_{c} D\big(\nabla_\theta \ell(\theta, R_c),\;
#   \nabla_\theta \ell(\theta, S_c)\big) .$$
#
# The **mean |gradient|** is the mean of $|\partial \mathcal{L} / \partial x|$ over the coordinates
# $x$, per cell. The negative gradient is the force on a point. If the gradient is very small,
# points stop, whatever the quality of the clouds. With the paper's layerwise cosine this happens.
#
# The loss has noise, because each iteration draws a new network and other real clouds. It also
# changes its meaning: the Gaussians of the lift narrow during the run, so only losses at the same
# bandwidth are comparable. A good set does not need a low loss at the end.
#
# > **Predict, then run.** Does the loss fall during the run above? Does it fall in the run of
# > section 5, in three dimensions?
#
# <details><summary>Answer</summary>
#
# Above it falls. In section 5 it rises, although the clouds improve. A narrow bandwidth gives the
# same clouds a larger loss, and there this effect is the larger one. To see it, set
# `"lift.bandwidth_start": 0.5`, which is the final bandwidth. The loss of the scatter is then
# larger than the loss at the end of the run.
#
# </details>

# %% [markdown]
# ## 4. The recording
#
# The view records the run. The next cell exports the recording in three forms: an HTML page that
# needs no network and no Python, an animated GIF, and a video. After a longer run, run the cell
# again.

# %%
recording = live.recording
folder = Path(output)
if len(recording) < 2:
    print("The recording has only the scatter. Press Start above, then run this cell again.")
else:
    for name in ("points.gif", "points.mp4"):
        pcdd.save_animation(recording, folder / name)
    pcdd.save_player(recording, folder / "points.html")
    print(f"{len(recording)} frames, the last after {recording.updates[-1]} updates:")
    for name in ("points.html", "points.gif", "points.mp4"):
        display(FileLink(folder / name))
    display(Image(filename=folder / "points.gif", width=720))

# %% [markdown]
# The next cell shows the page in a frame:

# %%
page = folder / "points.html"
if len(recording) > 1:
    source = b64encode(page.read_bytes()).decode()
    address = f"data:text/html;base64,{source}"
    display(IFrame(address, width="100%", height=660))

# %% [markdown]
# ## 5. The lab: change the settings while points move
#
# The same view, with a panel of settings around it. Step size and bandwidth change in a run. Any
# other setting begins another run from the same scatter. *Second run* puts a second run beside the
# first, one setting apart. Click a point for its way and its force. Notebook 13 has the lab on a
# page of its own, and `docs/lesson.md` has a lesson with it.

# %%
small = {"clouds.points_per_cloud": 60, "schedule.iterations": 60, "network.width": 16}
changes = {"data.name": dataset, "seed": seed, **small, **settings}
lab = pcdd.lab(preset, changes, data_folder or None, device or None)
lab

# %% [markdown]
# ## 6. The same in three dimensions
#
# The same code handles clouds with depth. Here the real clouds are pieces of terrain: elevations
# around the Jacksboro fault, which are sample data of matplotlib. Each piece has 20 by 20 samples.
# The two classes are pieces with small and with large differences in height. The view rotates when
# you drag it. Points move from the scatter to a layer, which is flat in one class and rough in the
# other. Surplus points stay in the corners.

# %%
elevation = cbook.get_sample_data("jacksboro_fault_dem.npz")["elevation"].astype(float)
side, grid = 20, (16, 16, 16)
north, east = np.mgrid[:side, :side]
pieces, differences = [], []
for row in range(0, elevation.shape[0] - side, side // 2):
    for column in range(0, elevation.shape[1] - side, side // 2):
        piece = elevation[row : row + side, column : column + side]
        # up is -height
        points = torch.tensor(np.stack([north, -piece / 15, east], axis=-1).reshape(-1, 3))
        pieces.append(pcdd.into_grid(points, grid))
        differences.append(piece.max() - piece.min())
labels = [int(difference > np.median(differences)) for difference in differences]
landscape = pcdd.clouds_from_list(pieces, labels, grid, ("plain", "mountains"))
print(f"{len(landscape)} pieces of landscape, {side * side} points each")

# %%
small = {"schedule.iterations": 120, "network.width": 16, "objective.real_batch": 12}
solid = pcdd.watch(pcdd.override(config, {**small, **settings}), landscape, device or None)
solid

# %% [markdown]
# A saved notebook keeps a picture and a player below each live view. They need no kernel.
