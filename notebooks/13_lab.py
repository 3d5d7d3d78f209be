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
# # The lab: play with a distillation
#
# Points move in a force field that a network makes. Here you change the field, and the points react
# at once. **Run all cells first** (Run → Run All Cells), then press *Start*. `docs/lesson.md` is a
# lesson of ten minutes with this page. Without JupyterLab the run is made at once, and a picture
# replaces the lab.

# %% tags=["parameters"]
preset = "quickstart"  # the settings to begin with, see `pcdd presets`
dataset = "digits"  # "digits": embedded in scikit-learn, needs no files; "mnist"; "solids"
data_folder = ""  # folder that holds MNIST/raw; empty: PCDD_DATA, else a download
settings = {"clouds.points_per_cloud": 100, "schedule.iterations": 200}  # changes of the preset
seed = 0
device = ""  # "cpu", "cuda", ...; empty: the GPU if there is one
output = "runs/lab"  # folder for the page of the recording

# %%
from pathlib import Path

from IPython.display import FileLink

import pcdd_core as pcdd

# %matplotlib inline
pcdd.check_parameters()

# %% [markdown]
# ## 1. The lab
#
# - **Step size** and **bandwidth** change in a run, from its next iteration on. Any other setting
#   begins another run from the same scatter.
# - **Second run** puts a second run beside the first: the same scatter, the same seed, one setting
#   apart. **Difference** draws lines from the points of the first run to the same points of the
#   second.
# - **Score every**: a small classifier trains on the clouds while they move, and is tested on
#   validation clouds. Its curve is beside those of random clouds, of herding and of the class mean.
#   It takes at most a tenth of the time.
# - **Click a point**, or press *N* in the picture: its way, its force, its place. **Forces** draws
#   the arrows of all points, **Real mean** the cells that real clouds occupy. **Energy map**, while
#   the run rests, colours the matching loss with the point elsewhere.
# - **Copy settings**: the command and the program that make this run without the lab.
#
# **Predict, then run.** Choose *Second run*: Lift, with *coordinates*, and press *Start*. In which
# of the two runs do points form digits?
#
# <details><summary>Answer</summary>
#
# In the left one. A Gaussian is wide at first, so a point feels targets far away. With coordinates
# as features the gradient says nothing about neighbouring cells: points wander and form nothing.
#
# </details>

# %%
changes = {"data.name": dataset, "seed": seed, **settings}
lab = pcdd.lab(preset, changes, data_folder or None, device or None)
lab

# %% [markdown]
# **Exercise.** Pause, draw the forces, and press *Step*. Do the points follow their arrows exactly?
#
# <details><summary>Answer</summary>
#
# Not exactly. Adam moves each coordinate by about the step size, however long the arrow is, and it
# remembers earlier forces. With the optimiser *sgd* and a step size that fits, moves are as long as
# arrows say.
#
# </details>

# %% [markdown]
# ## 2. What it made
#
# A page that plays the runs in any browser, without Python and without a network. `lab.recording`
# is the first run, for pictures and animations. Run the cell again after a longer run.

# %%
page = Path(output) / "points.html"
lab.save(page)
print(f"{lab.status}; {len(lab.recording)} frames")
FileLink(page)
