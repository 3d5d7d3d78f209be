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
# MNIST was the paper's stand-in; point clouds are at home in three dimensions. This notebook goes the whole way: a mesh
# becomes a cloud, clouds become what a PointNet sees, scattered points become shapes while you watch, and classifiers that
# have seen nothing else are scored on real ones. At the end: what 1, 3 and 10 shapes per class are worth, from records.
#
# **Run all cells first**, then come back up and press *Start*. The default needs no files and runs in minutes.

# %% tags=["parameters"]
shapes = "solids"  # needs no files; "modelnet10-voxels24", "modelnet10", "folder", ...: see the table in docs/shapes.md
preset = "solids"  # for ModelNet10 at full size: "shapes-1", "shapes-1-split", "shapes-10", ...
data_folder = ""  # where published shapes are; empty means PCDD_DATA
shape_settings = {}  # any setting changed, for instance {"schedule.iterations": 100}
seed = 0
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one
output = "runs/shapes"  # the folder for the mesh and the page

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

# %% [markdown]
# ## 1. From a mesh to a cloud
#
# Shapes are mostly published as meshes: vertices, and triangles between them. Here is one, a stool of five boxes, written as
# such a file. Your own would do as well: any `.off` or `.ply`, or lists of points.

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
# A vertex is a bad point: large flat faces have few of them. So points are drawn **on the surface**, each triangle in
# proportion to its area. Then the cloud is moved to mean zero and scaled until its farthest point is at distance 1: where the
# mesh lay, and in which unit, is forgotten.

# %%
points = pcdd.read_shape(path, 1024, np.random.default_rng(seed))
figure = plt.figure(figsize=(9, 3))
mesh_panel, cloud_panel = (figure.add_subplot(1, 2, place, projection="3d") for place in (1, 2))
mesh_panel.plot_trisurf(*stool.vertices.T, triangles=stool.faces, color="#c9d6ea", edgecolor="#20508a", linewidth=0.4)
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
# The engine that moved points over 28 by 28 pixels moves them through a cubic grid: the unit ball is laid into its middle, and
# all lengths are in cells. A stool standing upright stays upright: the third axis becomes the grid's *height*, which runs
# downwards, as in pictures. Turn it with the mouse.

# %%
on_grid = pcdd.clouds_from_unit_ball(torch.from_numpy(points)[None], torch.tensor([0]), ["stool"], cells=24)
pcdd.show(pcdd.still(on_grid))

# %% [markdown]
# And the real shapes, one of each class. Training shapes are what is distilled; a part of them is held out, to choose by; test
# shapes are for the score alone.

# %%
config = pcdd.override(pcdd.preset(preset).config, {"data.name": shapes, "seed": seed, **shape_settings})
real = config.data.load(data_folder or None)
print({split: len(getattr(real, split)) for split in ("train", "validation", "test")})
pcdd.figures.gallery(pcdd.Random().choose(real.train, seed))

# %% [markdown]
# ## 3. What sees them: PointNet
#
# On a grid of 24 by 24 by 24 nearly all cells are empty. PointNet needs none: the same small network looks at every point by
# itself, and of each of its channels only **the largest value of any point** goes on. A maximum knows no order, so neither
# does the network: points shuffled are the same cloud.

# %%
torch.manual_seed(seed)
network = pcdd.PointNet(len(real.train.class_names), config.network.width)
seen = pcdd.lifts.centred_points(real.train.select(torch.arange(4)))
shuffled = seen[:, torch.randperm(seen.shape[1])]
with torch.no_grad():
    print(f"what it is shown: {tuple(seen.shape)}, what it says: {tuple(network(seen).shape)}")
    print(f"shuffled, it says something else by at most {float((network(seen) - network(shuffled)).abs().max()):.1e}")

# %% [markdown]
# The maximum has a price: a point that is the largest in no channel can be anywhere, and no gradient pulls at it. How many
# points of a cloud does a freshly drawn PointNet look at? That is one reason why every iteration draws another one: what one
# network does not see, the next may.

# %%
with torch.no_grad():
    largest = network.point_features(seen).argmax(1)
looked_at = [len(row.unique()) for row in largest]
print(f"of {seen.shape[1]} points, looked at: {looked_at}")

# %% [markdown]
# ## 4. The distillation, live
#
# From uniform scatter, as everywhere here: no synthetic point begins where a real one is. What is compared is the
# **distribution of features** that real and synthetic clouds of a class cause in each new PointNet (maximum mean discrepancy):
# for the solids of *all* points, each channel's values in order, so that every point is pulled (SADM, Yim et al. 2025); for
# `shapes-1` and its kin, which have four times the points and the channels, of the largest values. Both sides are shifted, scaled
# or turned about the vertical alike. Choose a class in the view, and turn it with the mouse.

# %%
live = pcdd.watch(config, real.train, device or None)
live

# %%
recording = live.recording
if len(recording) < 2:
    print("Only the scatter so far. Press Start above, let points move, and run this cell and the next again.")
else:
    page = Path(output) / "shapes.html"
    pcdd.save_player(recording, page)
    display(FileLink(page))
    print(f"{recording.updates[-1]} updates; the page plays them in any browser, without Python")

# %% [markdown]
# ## 5. What they are worth
#
# The test of a distilled set: PointNets that see nothing but these clouds, scored on real test shapes; beside them PointNets
# that see as many real shapes, drawn at random.

# %%
candidates = {"distilled": recording.clouds, "random real": pcdd.Random(config.clouds.clouds_per_class).choose(real.train, seed)}
for name, clouds in candidates.items():
    clouds, record = pcdd.score(clouds, name, config, data=data_folder or None, device=device or None)
    score = record["scores"]["standard"]
    print(f"{name}: {score['mean']:.1f} ± {score['standard_deviation']:.1f} % on {record['scored_on']}")

# %% [markdown]
# ## 6. ModelNet10, as far as a grid of 24 cells keeps it
#
# The records that come with pcdd are of ModelNet10's shapes after they were cut to grids of 24 by 24 by 24, `modelnet10-voxels24`:
# thin parts are lost, so its numbers are not the literature's, and 71 of its 906 test shapes equal a training shape. Within
# the table all rows are scored alike: 500 epochs, batches of 8, three PointNets for each seed (ten per class: one).
#
# - *from scatter*: whole clouds of 1,024 points, from noise. *From real ones*: the same, begun at random real shapes.
# - *split*: as many points, but eight times as many clouds of 128 points. A PointNet does not need 1,024 points to know a
#   chair; it needs to see more chairs (the idea of 3DDP, 2026). *Random real ones* are 128 points each of as many real shapes, and
#   where *split, from real ones* begins.
# - *256 points*: as many clouds as in the first row, each with a quarter of the points.
# - *random*, *herding*, *k-center*: real shapes as many; the last two chosen by what a PointNet knows that was trained on all.

# %%
KINDS = ["from scatter", "256 points, from scatter", "from real ones", "split, from scatter", "split, from real ones", "split, random real ones", "random", "herding", "k-center"]


def row_of(record):
    """The name of its row, and how many clouds of 1,024 points per class it stands for."""
    kind, count = record["name"].split("-")[:2]
    if kind != "shapes":
        if record["name"].endswith("points"):
            return "split, random real ones", int(count) // 8
        return kind.replace("_", "-"), int(count)
    begun = "from real ones" if record["config"]["clouds"]["name"] == "real" else "from scatter"
    if record["name"].endswith("split"):
        return f"split, {begun}", int(count)
    if record["config"]["clouds"]["points_per_cloud"] == 256:
        return f"256 points, {begun}", int(count)
    return begun, int(count)


cells = pcdd.experiment("shapes", "paper", seeds=3)


def in_main_table(cell):
    if cell.config.evaluation.classifier.name != "pointnet":
        return False
    if cell.baseline:
        return cell.baseline.name != "whole" and cell.baseline.points is None
    return cell.label.split()[1:] in ([], ['clouds.name="real"'], ["clouds.points_per_cloud=256"])


records = pcdd.finished([cell for cell in cells if in_main_table(cell)])
ceiling = pcdd.finished([cell for cell in cells if isinstance(cell.baseline, pcdd.Whole)])
scores = pd.DataFrame(
    [(*row_of(record), record["scores"]["standard"]["mean"], record["seconds"].get("distillation")) for record in records],
    columns=["set", "per class", "accuracy", "seconds"],
)
print(f"{len(records)} records, scored on {records[0]['scored_on'] if records else '-'}")
table = scores.groupby(["set", "per class"]).agg(accuracy=("accuracy", "mean"), sd=("accuracy", lambda values: values.std(ddof=0)), seeds=("accuracy", "size"))
table["text"] = [f"{row.accuracy:.1f}" + (f" ± {row.sd:.1f}" if row.seeds > 1 else "") for row in table.itertuples()]
table["text"].unstack().reindex([kind for kind in KINDS if kind in set(scores["set"])]).fillna("")

# %% [markdown]
# ± is the standard deviation over seeds (dividing by their number), each with another scatter, other networks and, for real
# shapes, another choice; without one there is a single seed yet. Now the same as a picture, with what it costs to distil on
# one core of a CPU (too much for ten *from scatter*: two of its three runs were not alone on theirs); the line is
# what all real training shapes teach (one PointNet, 30 epochs).

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
styles = {"from scatter": "o-", "256 points, from scatter": "^-", "from real ones": "s-", "split, from scatter": "D-", "split, from real ones": "v-"}
for kind, group in scores.groupby("set"):
    means = group.groupby("per class").accuracy.mean()
    look = {"color": f"C{KINDS.index(kind)}", "markersize": 4}
    left.plot(means.index, means, styles.get(kind, "x:"), label=kind, **look)
    spent = group.dropna(subset="seconds").groupby("per class").seconds.mean() / 60
    if len(spent):
        right.plot(spent.index, spent, styles.get(kind, "x:"), **look)
for record in ceiling:
    left.axhline(record["scores"]["standard"]["mean"], color="grey", linewidth=0.8, label="all real shapes")
for panel, label in ((left, "accuracy on the test shapes, %"), (right, "minutes to distil")):
    panel.set(xscale="log", xticks=[1, 3, 10], xticklabels=[1, 3, 10], xlabel="clouds of 1,024 points per class", ylabel=label)
    panel.minorticks_off()
if len(scores):
    figure.legend(fontsize=7, loc="outside right upper")
plt.show()

# %% [markdown]
# ## 7. Other objectives and other eyes, one cloud per class
#
# From scatter, all else alike. *Sorted features* is SADM's (Yim et al. 2025): of every channel not only the largest value counts
# but all of them in order, so every point is pulled; *gradient matching* is the paper's, with the distance of DC. *On a grid*
# points are Gaussians in cells, and 384 of them are moved by the features of convolutional networks, sparse or dense; that PointNets
# learn from them at all is transfer between kinds of networks. There the grid is closed: where mass beyond its edge is lost, points
# that are not wanted hide in the corners, and PointNet looks at the outermost points.

# %%
others = pcdd.finished([cell for cell in cells if cell.preset == "shapes-1" and not cell.baseline and cell.config.clouds.name == "scatter"
                        and cell.config.clouds.points_per_cloud in (384, 1024)])  # fmt: skip
NAMES = {"maximum_mean_discrepancy": "distribution of features", "distribution_matching": "mean of features",
         "sorted_feature_matching": "sorted features (SADM)", "gradient_matching": "gradients (DC)"}  # fmt: skip
GRIDS = {"sparse": ", on a grid, sparse network", "torch": ", on a grid, dense network"}
rows = []
for record in others:
    turned = ", clouds turned" if record["config"]["optimiser"]["turn_step_size"] else ""
    kind = NAMES[record["config"]["objective"]["name"]] + turned + GRIDS.get(record["config"]["network"]["name"], "")
    rows.append({"compared": kind, "accuracy": record["scores"]["standard"]["mean"], "minutes": record["seconds"]["distillation"] / 60})
pd.DataFrame(rows, columns=["compared", "accuracy", "minutes"]).groupby("compared", sort=False).mean().round(1)

# %% [markdown]
# ## 8. Seen by other networks
#
# The clouds were moved by what PointNets see, each point by itself. DGCNN and PointNet++ look at neighbourhoods: do they learn from the
# same 8 clouds of 128 points? (Test clouds are thinned for them to as many points.) One network, 100 epochs, so not to be held against
# the table of PointNets above.

# %%
seen = pcdd.finished([cell for cell in cells if cell.config.evaluation.classifier.name != "pointnet"])
rows = [(record["config"]["evaluation"]["classifier"]["name"], "random real ones" if record["name"].startswith("random") else "distilled",
         record["scores"]["standard"]["mean"]) for record in seen]  # fmt: skip
pd.DataFrame(rows, columns=["classifier", "clouds", "accuracy"]).pivot_table("accuracy", "classifier", "clouds").round(1)

# %% [markdown]
# The sets themselves are not given away with pcdd: ModelNet's shapes are for academic research, and whether a set made of them
# may be passed on its terms do not say. `pcdd distill --preset shapes-1-split` makes one from your copy, and takes minutes.
# Solids are our own, so theirs does come with pcdd (`pcdd distill --preset solids` made it, from scatter):

# %%
record = pcdd.read_record(pcdd.released_path("solids").with_suffix(".json"))
print(f"{record['scores']['standard']['mean']:.1f} % on {record['scored_on']}, distilled in {record['seconds']['distillation']:.0f} s")
pcdd.show(pcdd.still(pcdd.released("solids")))
