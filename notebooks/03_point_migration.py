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
# A distillation moves points. Here you see them do it: ten clouds, one per class, begin as random scatter and become
# digits while you watch. You can halt the run at any moment, make it go one iteration at a time, and afterwards look
# at every moment of it again.
#
# **Run all cells first** (Run → Run All Cells), then come back up and press *Start*. Without JupyterLab (papermill,
# nbconvert) the run is made at once, and pictures stand where the live view would be.

# %% tags=["parameters"]
preset = "quickstart"  # see `pcdd presets`; every setting comes from there
dataset = "digits"  # "digits": embedded in scikit-learn, needs no files; "mnist": the paper's
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty means PCDD_DATA, else a download
settings = {}  # any setting changed, for instance {"schedule.iterations": 100}
seed = 0
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one
output = "runs/point-migration"  # the folder for the page, the GIF and the video

# %%
from base64 import b64encode
from pathlib import Path

import numpy as np
import torch
from IPython.display import HTML, FileLink, Image, display
from matplotlib import cbook

import pcdd_core as pcdd

# %matplotlib inline

# %% [markdown]
# ## 1. What is about to move
#
# The real clouds: each point is a bright pixel of an image, at the coordinates (depth, height, width) of its cell.
# Depth is 0 for images. None of these clouds is copied; they only say in which direction the scattered points have to
# go.

# %%
config = pcdd.override(pcdd.preset(preset).config, {"data.name": dataset, "seed": seed, **settings})
real = config.data.load(data_folder or None)
pcdd.figures.gallery(pcdd.Random().choose(real.train, seed))

# %% [markdown]
# ## 2. The distillation, live
#
# *Start*, *Pause*, *Step*, *Stop* and *Restart* steer the run: it is made in the background, so they act as soon as
# the iteration in progress is done. A stopped run keeps what it has; *Restart* begins again from the same scatter.
#
# The other controls choose how you look at it, and change nothing in the run:
#
# - **Class**: all clouds side by side, or one of them, large.
# - **Colour**: how far a point is from where it started (*displacement*), how hard it is pulled at (*gradient*), or
#   where it came from (*identity*: a hue for the direction in which it lay from the middle).
# - **Trails**: where points have just been. **Projection**: the cells that hold a point. That hard grid is what
#   classifiers will be trained on; where inside its cell a point lies, they do not see.
# - **The slider**: any earlier moment; at its right end you see the newest one again.

# %%
live = pcdd.watch(config, real.train, device or None)
live

# %% [markdown]
# The methods behind the buttons can be called as well: `live.step()`, `live.pause()`, and `live.wait()`, which waits
# until nothing moves any more.

# %%
print(live.status)

# %% [markdown]
# ## 3. How to read the two curves
#
# The **matching loss** says how far the gradients that the synthetic clouds cause in a network are from those that
# real clouds cause, summed over the classes: the energy that falls as points find their places. It is noisy, because
# every iteration draws another network and other real clouds. Its derivative with respect to the coordinates is the
# force on the points; the **mean |gradient|** is how strong it is on average, per cell. If that gets very small,
# points stop moving, however bad the clouds still are: that is how the paper's layerwise cosine got stuck.
#
# Neither needs to end low for the clouds to be good. The blur of the points narrows during the run, so the energy
# itself changes under way.

# %% [markdown]
# ## 4. Afterwards: the recording
#
# What you have watched is kept. It can leave the notebook in three forms: a page that plays it in any browser,
# without a network and without Python; an animated GIF; a video. Run the cell again after a longer run.

# %%
recording = live.recording
folder = Path(output)
if len(recording) < 2:
    print("Only the scatter so far. Press Start above, let points move, and run this cell again.")
else:
    for name in ("points.gif", "points.mp4"):
        pcdd.save_animation(recording, folder / name)
    pcdd.save_player(recording, folder / "points.html")
    print(f"{len(recording)} frames, the last after {recording.updates[-1]} updates:")
    for name in ("points.html", "points.gif", "points.mp4"):
        display(FileLink(folder / name))
    display(Image(filename=folder / "points.gif", width=720))

# %% [markdown]
# The page, as a browser shows it (here in a frame of its own; what it draws with lies in the file):

# %%
page = folder / "points.html"
if len(recording) > 1:
    source = b64encode(page.read_bytes()).decode()
    display(HTML(f'<iframe src="data:text/html;base64,{source}" width="100%" height="660" style="border: 0"></iframe>'))

# %% [markdown]
# ## 5. The lab: change the settings while points move
#
# The same view, with a panel of settings around it. Step size and bandwidth change in a run, any other setting begins
# another run from the same scatter. *Second run* puts a second run beside the first, one setting apart. Click a point
# for its way and its force. Notebook 13 has the lab on a page of its own, and `docs/lesson.md` a lesson with it.

# %%
small = {"clouds.points_per_cloud": 60, "schedule.iterations": 60, "network.width": 16}
lab = pcdd.lab(preset, {"data.name": dataset, "seed": seed, **small, **settings}, data_folder or None, device or None)
lab

# %% [markdown]
# ## 6. The same in three dimensions
#
# Nothing so far needed depth to be 0. Here the real clouds are pieces of a real landscape, elevations around the
# Jacksboro fault that matplotlib brings along: squares of 20 by 20 measurements, in two classes, those with small and
# those with large differences in height. In the view that can be turned, points leave the scatter for a layer, flat
# in one class and rugged in the other. Points that are not wanted stay in corners.

# %%
elevation = cbook.get_sample_data("jacksboro_fault_dem.npz")["elevation"].astype(float)
side, grid = 20, (16, 16, 16)
north, east = np.mgrid[:side, :side]
pieces, differences = [], []
for row in range(0, elevation.shape[0] - side, side // 2):
    for column in range(0, elevation.shape[1] - side, side // 2):
        piece = elevation[row : row + side, column : column + side]
        points = torch.tensor(np.stack([north, -piece / 15, east], axis=-1).reshape(-1, 3))  # up is -height
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
# To save this notebook with the live views in it, so that they can be looked at again without running anything,
# switch on Settings → Save Widget State Automatically. Without that a saved notebook shows the pictures below them.
