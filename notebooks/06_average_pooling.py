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
# # Average pooling against max pooling, sparse against dense
#
# Gradient matching of images uses average pooling (Zhao et al. 2021). The paper uses max pooling
# and explains why in section 4.4, in words only:
#
# - MinkowskiEngine averages over occupied cells only. Average pooling yields "relatively similar
#   performance".
# - PyTorch averages over all cells, and empty ones are zeros. This makes "a huge bias towards
#   unoccupied cells thus significantly hurting performance".
#
# This notebook gives figures from records of finished runs, and pictures of the bias.

# %% tags=["parameters"]
scale = "paper"  # "paper": the paper's own; "small": a smoke run whose scores mean nothing
run_missing = False  # True: also run what has no record, about 20 minutes each on one core
seeds = 5  # runs per row of the table
dataset = "mnist"  # the records kept in the repository are of it; "digits" needs no files
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty: PCDD_DATA, else a download
settings = {}  # any setting changed in every run, for instance {"optimiser.step_size": 5}
runs_folder = ""  # for finished and new runs; empty: PCDD_RUNS, else runs/ of the checkout
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one

# %%
import json
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display

import pcdd_core as pcdd

# %matplotlib inline
pcdd.check_parameters()
runs_folder = runs_folder or pcdd.runs_folder()

# %% [markdown]
# ## 1. The runs
#
# Each network of the paper with 2 and with 3 layers, pooled by the maximum and by the average.
# Nothing else changes. `sparse` is MinkowskiEngine's network with all second derivatives. Scale and
# networks are the paper's, except that real gradients come from a pool of batches per class.


# %%
def records_of(name, **options):
    """Return the runs of an experiment, and the records of those that are finished."""
    plans = pcdd.experiment(name, scale, seeds, {"data.name": dataset, **settings}, **options)
    if run_missing:
        found = pcdd.obtain(plans, runs_folder, data_folder or None, device or None)
    else:
        found = pcdd.finished(plans, runs_folder)
    if len(found) < len(plans):
        changed = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        words = ["pcdd", "sweep", name, f"data.name={dataset}", *changed, "--scale", scale]
        words += ["--seeds", str(seeds), "--runs", str(Path(runs_folder).resolve())]
    missing = f"; the others: {shlex.join(words)}" if len(found) < len(plans) else ""
    print(f"{name}: {len(found)} of {len(plans)} records{missing}")
    for scored_on in {record["scored_on"]: None for record in found if "scored_on" in record}:
        print(f"scored on: {scored_on}")
    return plans, found


plans, records = records_of("ablation")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
backends = {"minkowski": "MinkowskiEngine", "torch": "PyTorch", "sparse": "sparse"}
words_of_paper = {"MinkowskiEngine": "relatively similar", "PyTorch": "significantly hurting"}
protocols = ("standard", "paper")
results = []  # sentences computed below, shown together at the end


def say(sentence):
    results.append(sentence)
    print(sentence)


def key_of(config):
    network = config["network"]
    return backends[network["name"]], network["layers"]


def in_words(values):
    """Mean ± standard deviation over seeds (number of seeds)."""
    if values.empty or values.isna().all():
        return "no record" if values.empty else "no score"
    values = values.dropna()
    spread = f" ± {values.std(ddof=0):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread} ({len(values)})"


def moved_of(record):
    """Mean displacement of a coordinate per iteration, over the first 1,250 iterations."""
    curves = record.get("curves", {"iteration": [], "mean_absolute_displacement": []})
    moved = zip(curves["iteration"], curves["mean_absolute_displacement"])
    return pd.Series([value for iteration, value in moved if iteration < 1250], dtype=float).mean()


rows = []
for record in records:
    if record["name"].startswith("paper-"):
        row = dict(zip(("backend", "layers"), key_of(record["config"])))
        row |= {"pooling": record["config"]["network"]["pooling"], "seed": record["config"]["seed"]}
        for protocol in protocols:
            row[protocol] = record["scores"].get(protocol, {}).get("mean")
        mean = record.get("mean_absolute_gradient")  # of runs too short for the logged one
        row["gradient"] = record.get("mean_absolute_gradient_as_logged", mean)
        row["moved"] = moved_of(record)
        rows.append(row)
numbers = [*protocols, "gradient", "moved"]
runs = pd.DataFrame(rows, columns=["backend", "layers", "pooling", "seed", *numbers])
runs = runs.astype({name: float for name in numbers})
of_paper = [plan for plan in plans if plan.preset.startswith("paper-")]
networks = sorted({key_of(pcdd.to_dict(plan.config)) for plan in of_paper})


def by_pooling(network, column):
    """A row per seed, a column per kind of pooling."""
    found = runs[(runs.backend == network[0]) & (runs.layers == network[1])]
    table = found.pivot_table(index="seed", columns="pooling", values=column)
    return table.reindex(columns=["max", "average"])


# %% [markdown]
# ## 2. The table
#
# Accuracy in percent before iteration 1,250: mean ± standard deviation over seeds (number of
# seeds). Guessing gives 10. The difference is taken within a seed, from the same scatter and
# weights: mean ± standard error (number of pairs).

# %%
lines = {}
for network in networks:
    for protocol in protocols:
        scores = by_pooling(network, protocol)
        gain = (scores["average"] - scores["max"]).dropna()
        error = f" ± {gain.sem():.1f}" if len(gain) > 1 else ""
        lines[(*network, protocol)] = {
            "max": in_words(scores["max"].dropna()),
            "average": in_words(scores["average"].dropna()),
            "average - max": f"{gain.mean():+.1f}{error} ({len(gain)})" if len(gain) else "no pair",
            "average, in the paper's words": words_of_paper.get(network[0], ""),
        }
table = pd.DataFrame(lines).T.rename_axis(["backend", "layers", "protocol"])
table

# %%
for (backend, layers, protocol), line in table.iterrows():
    if protocol == "paper" and line["average - max"] != "no pair":
        paper = words_of_paper.get(backend)
        beside = f'; the paper: "{paper}"' if paper else ""
        say(f"{backend}, {layers} layers, average - max: {line['average - max']} points{beside}.")

# %% [markdown]
# ## 3. The gradient that moves points
#
# A difference between two scores near chance says little. Average pooling shows earlier: in the
# gradient that moves points, and in how far they move. Both are means over the first 1,250
# iterations, after which runs with average pooling end. One mark is one run.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9.5, 3), sharey=True, layout="constrained")
quantities = {"gradient": "mean absolute gradient", "moved": "cells per iteration"}
shades = {"max": ("#20508a", -0.1), "average": ("#e08a1e", 0.1)}
for panel, (column, label) in zip(panels, quantities.items()):
    for pooling, (colour, shift) in shades.items():
        found = runs[runs.pooling == pooling]
        places = [networks.index(row) + shift for row in zip(found.backend, found.layers)]
        panel.plot(found[column], places, "o", color=colour, ms=5, alpha=0.7, label=pooling)
    names = [f"{backend}, {layers} layers" for backend, layers in networks]
    panel.set(xlabel=label, ylim=(len(networks) - 0.5, -0.5))
    panel.set_yticks(range(len(networks)), names)
    panel.set_xscale("log" if runs[column].gt(0).any() else "linear")
panels[1].legend(fontsize=8, frameon=False, title="pooling", bbox_to_anchor=(1, 1))
plt.show()

# %%
ratios = []
for network in networks:
    gradients = by_pooling(network, "gradient").dropna()
    if len(gradients) and gradients["average"].mean() > 0:
        times = gradients["max"].mean() / gradients["average"].mean()
        ratios.append(f"{network[0]}, {network[1]} layers {times:.3g}")
if ratios:
    say(f"Gradient under max / under average: {'; '.join(ratios)}.")

# %% [markdown]
# ## 4. The bias, in pictures
#
# One cloud. In the paper's lift every occupied cell holds its point's coordinates as features; the
# pictures show one of them, the width coordinate, which grows from left to right. White cells are
# empty. Blocks of 2 x 2 cells are pooled once and twice, in three ways:
#
# $$\max_{\text{occupied}} f, \qquad
# \frac{1}{|\text{occupied}|} \sum_{\text{occupied}} f \;\;(\text{MinkowskiEngine}), \qquad
# \frac{1}{|\text{block}|} \sum_{\text{block}} f \;\;(\text{PyTorch: empty cells are } 0).$$
#
# > **Predict, then run.** A block at width 14 has one occupied cell of four. What does each average
# > say about its place?
#
# <details><summary>Answer</summary>
#
# Over occupied cells: 14. Over the block: 14 / 4 = 3.5, the same as a full block at width 3.5.
# Place and emptiness are mixed up.
#
# </details>

# %% jupyter={"source_hidden": true} tags=["hide-input"]
others = pcdd.experiment("ingredients", seeds=1) if dataset == "mnist" else []
herding = [
    record["clouds_file"]
    for record in [*records, *pcdd.finished(others, runs_folder)]
    if record["name"].startswith("herding") and record["clouds_file"]
]
real = pcdd.load_clouds(herding[0]) if herding else pcdd.released("mnist-1")
kind = "real clouds (herding)" if herding else "distilled clouds, as there are no real ones here"
print(f"pictures of: {kind}")
paper_lift = pcdd.CoordinatesAsFeatures()
sparse = paper_lift(real.select(torch.tensor([5])), real=bool(herding))
window = (1, 2, 2)  # the depth axis has one cell only


def pooled(times):
    """The cloud after some poolings, in each of the three ways, on the dense grid."""
    maximum = average = sparse
    block = sparse.dense()
    for _ in range(times):
        maximum, average = pcdd.sparse.pool(maximum, "max"), pcdd.sparse.pool(average, "average")
        block = F.avg_pool3d(block, window)
    return {
        "maximum": maximum.dense(),
        "average over\noccupied cells": average.dense(),
        "average over\nthe block": block,
    }


width_axis, last = 2, sparse.grid[2] - 1
figure, panels = plt.subplots(3, 3, figsize=(7.4, 6.4), layout="constrained")
for column, title in enumerate(("not pooled", "pooled once", "pooled twice")):
    for line, (name, features) in enumerate(pooled(column).items()):
        panel, shown = panels[line, column], features[0, width_axis, 0]
        shown = torch.where(shown > 0, shown, torch.nan)
        picture = panel.imshow(shown, vmin=0, vmax=last, cmap="viridis")
        panel.set(xticks=[], yticks=[])
        panel.set_title(title if line == 0 else "", fontsize=10)
        panel.set_ylabel(name if column == 0 else "", fontsize=10)
figure.colorbar(picture, ax=panels, shrink=0.5, label="width coordinate, in cells")
plt.show()

# %% [markdown]
# In the upper two rows the colour changes from left to right only. In the lowest row it also
# depends on how full a block is: the edge of a stroke is closer to (0, 0).

# %% [markdown]
# ## 5. How large is it?
#
# The average over a block is the average over its occupied cells, times the share of its cells that
# are occupied. So count that share, in blocks that hold anything: for these clouds, and for the
# scatter that a run starts from.

# %%
start = of_paper[0].config.start(real)
figure, panels = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
shares, colours = {}, ("#20508a", "#e08a1e")
for number, (name, shown) in enumerate({kind: real, "scattered points": start}.items()):
    occupied = pcdd.lifts.occupancy(shown)
    for times, panel in zip((1, 2), panels):
        cells_of_block = 4**times
        share = F.avg_pool3d(occupied, (1, 2**times, 2**times)).flatten()
        share = share[share > 0]
        values = torch.arange(1, cells_of_block + 1) / cells_of_block
        counts = torch.stack([(share == value).float().mean() for value in values])
        places, width = values + (number - 0.5) * 0.4 / cells_of_block, 0.4 / cells_of_block
        panel.bar(places, counts, width, label=name, color=colours[number])
        panel.set(xlabel=f"share occupied of a block of {2**times} x {2**times} cells")
        shares[name, f"pooled {('once', 'twice')[times - 1]}"] = share.mean().item()
panels[0].set_ylabel("share of the blocks\nthat hold anything")
panels[1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()
shares = pd.Series(shares).unstack()
display(shares.style.format("{:.2f}"))

# %%
for times, share in shares.items():
    words = ", ".join(f"{share[name]:.2f} for {name}" for name in (kind, "scattered points"))
    say(f"{times}: average over the block / over occupied cells = {words}.")

# %% [markdown]
# If the two factors differ, then the dense network sees the same coordinates at different sizes in
# a synthetic cloud and in a real one.

# %% [markdown]
# ## 6. How it adds up in a network
#
# Convolutions spread features over neighbouring cells, so empty cells do not stay zeros. Do
# features shrink all the same? Here the clouds pass three layers with random weights, as in the
# paper's PyTorch network: shifted to the origin, then convolution, ReLU, pooling.
#
# > **Predict, then run.** The paper's code pads the depth axis too: depth 1 becomes 3, and pooling
# > by 2 keeps a constant plane and the plane with the points. What does that cost each kind of
# > pooling?
#
# <details><summary>Answer</summary>
#
# The maximum ignores the constant plane wherever the points have larger values. The average takes
# half of every block from a plane without points, in every layer: a further factor of about 1/2 per
# layer.
#
# </details>
#
# The third line has an instance norm after each convolution, which sets every channel to mean 0 and
# variance 1. **No network in the paper's tables has one**; it shows what a norm would undo.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
dense = paper_lift(real, real=bool(herding)).dense(shift=True)


@torch.no_grad()
def sizes(pool, norm):
    """Mean absolute feature before the first layer and after each one."""
    torch.manual_seed(0)
    features, found = dense, [dense.abs().mean().item()]
    for _ in range(3):
        convolution = torch.nn.Conv3d(features.shape[1], 32, (1, 3, 3), padding=1)
        features = pool(norm(convolution(features)).relu(), 2)
        found.append(features.abs().mean().item())
    return found


ways = {
    "max": sizes(F.max_pool3d, torch.nn.Identity()),
    "average": sizes(F.avg_pool3d, torch.nn.Identity()),
    "average, with instance norm": sizes(F.avg_pool3d, F.instance_norm),
}
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for (name, found), mark, colour in zip(ways.items(), "os^", ("#20508a", "#e08a1e", "#4f9153")):
    axes.plot(range(4), found, mark + "-", color=colour, label=name)
axes.set(
    yscale="log", xticks=range(4), xlabel="after so many layers", ylabel="mean absolute feature"
)
axes.legend(fontsize=8, frameon=False, title="pooling", loc="upper left", bbox_to_anchor=(1, 1))
plt.show()
factors = [f"{name} {found[3] / found[0]:.2g}" for name, found in ways.items()]
say(f"Random weights, three layers multiply the mean feature by: {'; '.join(factors)}.")

# %% [markdown]
# If features shrink, the gradients of the weights shrink with them, and their sum of squares
# shrinks faster still. The step size stays.
#
# Between the two networks of the paper's tables, three differences touch average pooling:
#
# 1. PyTorch averages over all cells of a block, MinkowskiEngine over occupied ones.
# 2. The paper's PyTorch network averages a constant plane in.
# 3. Its convolutions have a bias, which makes empty cells constants instead of zeros.
#    MinkowskiEngine's convolutions have none.
#
# A norm is not among them: neither network has one. The paper's explanation names the first.
#
# How much of the effect is size alone? A larger step size gives back what the gradient lost: try
# `settings = {"optimiser.step_size": 5}` with `seeds = 1` and `run_missing = True`.

# %% [markdown]
# ## 7. Beside it
#
# Our `gaussian` setting pools by the average on a dense grid too. But its network has an instance
# norm, and its lift blurs the points. Real clouds, one per class, are scored by the same
# classifiers.

# %%
kinds = {
    "gaussian": "our setting `gaussian`, from scatter",
    "random": "real clouds, drawn at random",
    "herding": "real clouds, nearest to their class's mean (herding)",
}
lines = {}
for start_of_name, name in kinds.items():
    found = [record["scores"] for record in records if record["name"].startswith(start_of_name)]
    lines[name] = {}
    for protocol in protocols:
        scores = [score.get(protocol, {}).get("mean") for score in found]
        lines[name][protocol] = in_words(pd.Series(scores, dtype=float))
pd.DataFrame(lines).T

# %% [markdown]
# ## Results
#
# All sentences that the cells above computed:

# %%
for sentence in results:
    print("-", sentence)
