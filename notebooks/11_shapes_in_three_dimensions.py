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
# # Shapes in three dimensions: from a mesh to a distilled shape
#
# The paper's data are flat digits. Point clouds usually have three dimensions. This notebook
# converts a mesh to a cloud, shows the input of a PointNet, moves scattered points until they form
# shapes, and scores PointNets that train on these shapes only. Sections 6 to 8 compare sets of 1, 3
# and 10 shapes per class of ModelNet10, from the committed records.
#
# **Run all cells first.** Then scroll up to section 4 and press *Start*. The defaults need no files
# and run in minutes. If your data folder has ModelNet10, set `shapes = "modelnet10"`: then chairs,
# beds and tables form in section 4.

# %% tags=["parameters"]
# "solids": needs no files; "modelnet10", "modelnet40", "folder", ...: see docs/shapes.md
shapes = "solids"
preset = "solids"  # minutes; at full size: "shapes-1", "shapes-1-split", "shapes-10", ...
data_folder = ""  # folder of published shapes; empty: PCDD_DATA
shape_settings = {}  # settings that differ from the preset: {"schedule.iterations": 100}
seed = 0
device = ""  # "cpu", "cuda", ...; empty: the GPU if there is one
output = "runs/shapes"  # folder for the mesh and the page

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import trimesh
from IPython.display import FileLink, display

import pcdd_core as pcdd

# %matplotlib inline
pcdd.check_parameters()

# %% [markdown]
# ## 1. From a mesh to a cloud
#
# Most shapes are published as meshes, which have vertices and triangles. The next cell writes the
# mesh of a stool, which consists of five boxes. Your own file works as well: `.off`, `.ply`, or a
# list of points.

# %%
seat = trimesh.creation.box((1.0, 1.0, 0.12))
seat.apply_translation((0, 0, 0.9))
legs = [trimesh.creation.box((0.1, 0.1, 0.9)) for _ in range(4)]
for leg, (x, y) in zip(legs, [(-0.42, -0.42), (-0.42, 0.42), (0.42, -0.42), (0.42, 0.42)]):
    leg.apply_translation((x, y, 0.45))
stool = trimesh.util.concatenate([seat, *legs])
path = Path(output) / "stool.off"
path.parent.mkdir(parents=True, exist_ok=True)
stool.export(path)
print(f"{path}: {len(stool.vertices)} vertices, {len(stool.faces)} triangles")

# %% [markdown]
# Vertices alone describe a shape badly, because large flat faces have few of them. So `read_shape`
# draws points $x_i$ **on the surface**, on each triangle with a probability proportional to its
# area. Then it normalises the cloud to mean 0 and largest radius 1:
#
# $$x_i \;\mapsto\; \frac{x_i - \bar{x}}{\max_j \lVert x_j - \bar{x} \rVert} .$$
#
# The position and the unit of the mesh have no effect.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
points = pcdd.read_shape(path, 1024, np.random.default_rng(seed))
figure = plt.figure(figsize=(9, 3))
mesh_panel, cloud_panel = (figure.add_subplot(1, 2, place, projection="3d") for place in (1, 2))
style = {"color": "#c9d6ea", "edgecolor": "#20508a", "linewidth": 0.4}
mesh_panel.plot_trisurf(*stool.vertices.T, triangles=stool.faces, **style)
mesh_panel.set_title("the mesh", fontsize=9)
cloud_panel.scatter(*points.T, s=1, color="#20508a")
cloud_panel.set_title("1,024 points on its surface", fontsize=9)
for panel in (mesh_panel, cloud_panel):
    panel.set_aspect("equal")
    panel.tick_params(labelsize=6)
plt.show()

# %% [markdown]
# ## 2. On the grid
#
# A cubic grid replaces the 28 by 28 pixels of a digit. The unit ball lies in its centre. All
# lengths are in cells. The third axis of the mesh becomes the *height* of the grid, which points
# downwards, as in images. Drag the view to rotate it.

# %%
unit_ball = torch.from_numpy(points)[None]
on_grid = pcdd.clouds_from_unit_ball(unit_ball, torch.tensor([0]), ["stool"], cells=24)
pcdd.show(pcdd.still(on_grid))

# %% [markdown]
# The next picture shows one real shape per class. The distillation uses the training split. The
# validation split serves choices. The test split serves the scores only.

# %%
changed = {"data.name": shapes, "seed": seed, **shape_settings}
config = pcdd.override(pcdd.preset(preset).config, changed)
real = config.data.load(data_folder or None)
splits = {split: len(getattr(real, split)) for split in ("train", "validation", "test")}
print(", ".join(f"{split} split: {count} clouds" for split, count in splits.items()))
pcdd.figures.gallery(pcdd.Random().choose(real.train, seed))

# %% [markdown]
# Real shapes vary more than solids. If the data folder has ModelNet10, the next cell shows some of
# its chairs, drawn from the training split.

# %%
try:
    furniture = pcdd.load_data("modelnet10", data_folder or None).train
except pcdd.InputError:
    print("no picture of real chairs: the data folder has no readable ModelNet10")
else:
    chairs = furniture.labels == furniture.class_names.index("chair")
    display(pcdd.figures.gallery(furniture.select(chairs.nonzero().flatten()[::90])))

# %% [markdown]
# ## 3. The network: PointNet
#
# Almost all cells of a grid of 24 by 24 by 24 are empty. A PointNet needs no grid. The same small
# network $h$ converts each point to channels. The cloud keeps **the maximum of each channel** over
# its points, and a classifier $\gamma$ follows:
#
# $$f(P) = \gamma\Big(\max_{p \in P} h(p)\Big) .$$
#
# > **Predict, then run.** The next cell shuffles the points of each cloud. How do the outputs of
# > the network change?
#
# <details><summary>Answer</summary>
#
# They stay the same up to rounding. A maximum does not depend on the order of its arguments.
#
# </details>

# %%
torch.manual_seed(seed)
network = pcdd.PointNet(len(real.train.class_names), config.network.width)
inputs = pcdd.lifts.centred_points(real.train.select(torch.arange(4)))
shuffled = inputs[:, torch.randperm(inputs.shape[1])]
with torch.no_grad():
    outputs, difference = network(inputs), (network(inputs) - network(shuffled)).abs().max()
print(f"input {tuple(inputs.shape)}, output {tuple(outputs.shape)}")
print(f"largest difference after shuffling: {float(difference):.1e}")

# %% [markdown]
# > **Predict, then run.** A point that is the maximum of no channel gets no gradient. How many of
# > the 256 points of a solid are the maximum of at least one channel of a random PointNet?
#
# <details><summary>Answer</summary>
#
# About half of them. The other points do not move in this iteration. For this reason each iteration
# draws a new network: its maxima are at other points.
#
# </details>

# %%
with torch.no_grad():
    largest = network.point_features(inputs).argmax(1)
counts = [len(cloud.unique()) for cloud in largest]
print(f"of {inputs.shape[1]} points, maximum of at least one channel: {counts}")

# %% [markdown]
# ## 4. The distillation, live
#
# The synthetic points start as uniform scatter. The loss is the squared **maximum mean
# discrepancy** between the features $\varphi$ of the real and synthetic clouds of a class, with a
# new PointNet in each iteration:
#
# $$\mathcal{L} = \overline{k(\varphi(s), \varphi(s'))} - 2\, \overline{k(\varphi(s), \varphi(r))}
#   + \overline{k(\varphi(r), \varphi(r'))} .$$
#
# For solids, $\varphi$ has the values of *all* points, sorted in each channel, so every point gets
# a gradient (SADM, Yim et al. 2025). For `shapes-1` and similar presets, which have four times as
# many points and channels, $\varphi$ has the maxima only. The same random shifts, scales and
# rotations about the vertical axis augment real and synthetic clouds. Choose a class in the view
# and drag to rotate it.

# %%
live = pcdd.watch(config, real.train, device or None)
live

# %%
recording = live.recording
if len(recording) < 2:
    print("The points have not moved. Press Start above, then run this and the next code cell.")
else:
    page = Path(output) / "shapes.html"
    pcdd.save_player(recording, page)
    display(FileLink(page))
    print(f"update {recording.updates[-1]} of {recording.iterations}; a browser plays the page")

# %% [markdown]
# ## 5. The score
#
# The score of the distilled set is the accuracy on real test shapes of PointNets that train on this
# set only. For comparison, PointNets train on the same number of real shapes, drawn at random. The
# presets of ModelNet10 score by two protocols, see section 6. The cell skips the scores until the
# points have moved.

# %%
per_class = config.clouds.clouds_per_class
candidates = {}
if len(recording) > 1:
    updates = f"update {recording.updates[-1]} of {recording.iterations}"
    candidates[f"distilled ({updates})"] = recording.clouds
    candidates["random real"] = pcdd.Random(per_class).choose(real.train, seed)
else:
    print("no distilled set yet: press Start in section 4, then run the code cells from there")
options = {"data": data_folder or None, "device": device or None}
for name, clouds in candidates.items():
    clouds, record = pcdd.score(clouds, name, config, **options)
    for protocol, score in record["scores"].items():
        accuracy = f"{score['mean']:.1f} ± {score['standard_deviation']:.1f} %"
        print(f"{name}: {accuracy} ({protocol}) on {record['scored_on']}")

# %% [markdown]
# ## 6. ModelNet10
#
# ModelNet10 has CAD models of furniture in 10 classes. The committed records of the experiment
# `modelnet10` compare sets with equal numbers of points per class. Two protocols score each set on
# the official test split:
#
# - *sadm*: the PointNet of SADM's published code, with an input transform, batch norm and dropout.
#   Nothing is augmented. Its scores can stand beside the published ones in docs/shapes.md.
# - *standard*: the PointNet of section 3. Random shifts, scales and rotations augment its training.
#
# Both train for 501 epochs in batches of 8, with three networks per seed. The rows are:
#
# - *from scatter*: clouds of 1,024 points, from uniform scatter.
# - *from real ones*: clouds of 1,024 points that start as random real shapes.
# - *split*: as many points in total, in eight times as many clouds of 128 points (the idea of 3DDP,
#   2026). *split, random real ones* are 128 points each of as many real shapes.
# - *random*, *herding*, *k-center*: as many real shapes. Herding and k-center choose them by the
#   features of a PointNet that was trained on all training shapes.
#
# The table shows the rows that have records. `pcdd sweep modelnet10 --seeds 3` makes the others.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
KINDS = [
    "from scatter",
    "from real ones",
    "split, from scatter",
    "split, from real ones",
    "split, random real ones",
    "random",
    "herding",
    "k-center",
]
PROTOCOLS = ["sadm", "standard"]
NOT_RUN = "no records of this part yet: pcdd sweep modelnet10 --seeds 3"


def row_of(record):
    """Return the row of a record, and the number of clouds of 1,024 points per class."""
    kind, count = record["name"].split("-")[:2]
    if kind != "shapes":
        if record["name"].endswith("points"):
            return "split, random real ones", int(count) // 8
        return kind.replace("_", "-"), int(count)
    start = "from real ones" if record["config"]["clouds"]["name"] == "real" else "from scatter"
    return f"split, {start}" if record["name"].endswith("split") else start, int(count)


def in_main_table(plan):
    """Return whether a run belongs to this table."""
    if plan.config.evaluation.classifier.name != "pointnet":
        return False
    if plan.baseline:
        return plan.baseline.name != "whole"
    return plan.label.split()[1:] in ([], ['clouds.name="real"'])


def scores_of(record):
    """Return the mean accuracy of each protocol; None where the record has no score."""
    return [record["scores"].get(protocol, {}).get("mean") for protocol in PROTOCOLS]


def minutes_of(record):
    """Return the minutes of the distillation; None for real shapes."""
    seconds = record.get("seconds", {}).get("distillation")
    return seconds and seconds / 60


def with_spread(values):
    """Format the mean of the seeds, with their standard deviation if there are several."""
    values = values.dropna()
    spread = f" ± {values.std(ddof=0):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread}" if len(values) else ""


plans = pcdd.experiment("modelnet10", "paper", seeds=3)
records = pcdd.finished([plan for plan in plans if in_main_table(plan)])
rows = [(*row_of(record), *scores_of(record), minutes_of(record)) for record in records]
scores = pd.DataFrame(rows, columns=["set", "per class", *PROTOCOLS, "minutes"])
scores = scores.astype(dict.fromkeys([*PROTOCOLS, "minutes"], float))
if records:
    print(f"{len(records)} records, scored on {records[0]['scored_on']}")
    table = scores.groupby(["set", "per class"])[PROTOCOLS].agg(with_spread)
    present = [kind for kind in KINDS if kind in set(scores["set"])]
    display(table.unstack().reindex(present).fillna(""))
else:
    print(NOT_RUN)

# %% [markdown]
# ± is the standard deviation over seeds. Each seed has another scatter, other networks and, for
# real shapes, another choice. An entry without ± has a single seed.
#
# The next figure shows the same accuracies, and the time of the distillation. The grey line is a
# PointNet of section 3 that trains on all real training shapes for 30 epochs.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw():
    """Draw the accuracies of both protocols, and the minutes, over the number of clouds."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    handles = {}
    for kind, group in scores.groupby("set"):
        way = "x:" if group["minutes"].isna().all() else "o-"
        style = {"color": f"C{KINDS.index(kind)}", "markersize": 4}
        for panel, column in zip(panels, [*PROTOCOLS, "minutes"]):
            means = group.groupby("per class")[column].mean().dropna()
            if len(means):
                (handles[kind],) = panel.plot(means.index, means, way, **style)
    for record in pcdd.finished([plan for plan in plans if isinstance(plan.baseline, pcdd.Whole)]):
        whole = record["scores"]["standard"]["mean"]
        handles["all real shapes"] = panels[1].axhline(whole, color="grey", linewidth=0.8)
    labels = ["accuracy (sadm), %", "accuracy (standard), %", "minutes of distillation"]
    for panel, label in zip(panels, labels):
        panel.set(xscale="log", xlabel="clouds of 1,024 points per class", ylabel=label)
        panel.set(xticks=[1, 3, 10], xticklabels=[1, 3, 10])
        panel.minorticks_off()
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside right upper")
    plt.show()


if len(scores):
    draw()
else:
    print(NOT_RUN)

# %% [markdown]
# ## 7. Other objectives, one cloud per class
#
# All runs start from scatter and differ in the compared quantity:
#
# - *distribution of features*: the maximum mean discrepancy of section 4, as in all rows above.
# - *mean of features*: distribution matching.
# - *sorted features*: all values of each channel in order, not the maximum only (SADM).
# - *gradients*: gradient matching, the paper's objective, with the distance of DC.
# - *clouds rotate*: each cloud also rotates as a whole.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
COMPARED = {
    "maximum_mean_discrepancy": "distribution of features",
    "distribution_matching": "mean of features",
    "sorted_feature_matching": "sorted features (SADM)",
    "gradient_matching": "gradients (DC)",
}


def from_scatter(plan):
    """Return whether a run starts from scatter, with one cloud per class."""
    return plan.preset == "shapes-1" and not plan.baseline and plan.config.clouds.name == "scatter"


rows = []
for record in pcdd.finished([plan for plan in plans if from_scatter(plan)]):
    settings = record["config"]
    kind = COMPARED[settings["objective"]["name"]]
    kind += ", clouds rotate" if settings["optimiser"]["turn_step_size"] else ""
    rows.append((kind, *scores_of(record), minutes_of(record)))
others = pd.DataFrame(rows, columns=["compared", *PROTOCOLS, "minutes"]).set_index("compared")
if rows:
    display(others.astype(float).groupby("compared", sort=False).mean().style.format("{:.1f}"))
else:
    print(NOT_RUN)

# %% [markdown]
# ## 8. Other classifiers
#
# The features of a PointNet moved these points, and a PointNet converts each point separately.
# DGCNN and PointNet++ use the neighbourhoods of points. They train on the same 8 clouds of 128
# points per class. Their test clouds have 128 points, too. The scores rest on one network and 100
# epochs, so they are not comparable with the table of PointNets above. Does the distilled set teach
# these networks more than random real clouds of as many points?

# %% jupyter={"source_hidden": true} tags=["hide-input"]
other = [plan for plan in plans if plan.config.evaluation.classifier.name != "pointnet"]
rows = []
for record in pcdd.finished(other):
    clouds = "random real" if record["name"].startswith("random") else "distilled"
    classifier = record["config"]["evaluation"]["classifier"]["name"]
    rows.append((classifier, clouds, scores_of(record)[1]))
by_classifier = pd.DataFrame(rows, columns=["classifier", "clouds", "accuracy"])
if rows:
    display(by_classifier.pivot_table("accuracy", "classifier", "clouds").round(1))
else:
    print(NOT_RUN)

# %% [markdown]
# ## 9. The set of solids
#
# pcdd does not contain sets of ModelNet. Its terms allow academic research, and do not say whether
# distilled sets may be published. `pcdd distill --preset shapes-1-split` makes one from your copy
# in minutes. The solids are our own data, so pcdd contains their set, which `pcdd distill --preset
# solids` made from scatter.

# %%
record = pcdd.read_record(pcdd.released_path("solids").with_suffix(".json"))
accuracy, seconds = record["scores"]["standard"]["mean"], record["seconds"]["distillation"]
print(f"{accuracy:.1f} % on {record['scored_on']}, distilled in {seconds:.0f} s")
pcdd.show(pcdd.still(pcdd.released("solids")))
