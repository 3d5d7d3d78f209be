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
# # Table 2: two distances, and why one of them gets stuck
#
# Gradient matching compares the gradient $g$ that real clouds cause in a network with the gradient
# $h$ that synthetic clouds cause. The paper's Table 2 compares two distances between them:
#
# $$D_{\text{squares}}(g, h) = \sum_{\text{layers}} \sum_{\text{rows } i} \lVert g_i - h_i \rVert^2,
# \qquad
# D_{\text{cosine}}(g, h) = \sum_{\text{layers}} \sum_{\text{rows } i}
# \Big(1 - \frac{g_i \cdot h_i}{\lVert g_i \rVert\, \lVert h_i \rVert}\Big).$$
#
# The paper finds that the gradients of the cosine "are too small to move the points around". This
# notebook rebuilds the table from records of finished runs, then examines the causes.

# %% tags=["parameters"]
scale = "paper"  # "paper": the paper's own; "small": a smoke run whose scores mean nothing
run_missing = False  # True: also run what has no record, about 20 minutes each on one core
seeds = 5  # runs per row of the table (of the step sizes in section 7, three at most)
dataset = "mnist"  # the records kept in the repository are of it; "digits" needs no files
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty: PCDD_DATA, else a download
settings = {}  # any setting changed in every run, for instance {"network.width": 64}
runs_folder = ""  # for finished and new runs; empty: PCDD_RUNS, else runs/ of the checkout
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one

# %%
import json
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import pcdd_core as pcdd

# %matplotlib inline
pcdd.check_parameters()
runs_folder = runs_folder or pcdd.runs_folder()

# %% [markdown]
# ## 1. The runs
#
# The paper takes each backend at its best depth: MinkowskiEngine with 2 layers, PyTorch with 3. The
# third network, `sparse`, is MinkowskiEngine's with all second derivatives. Scale and networks are
# the paper's, except that real gradients come from a pool of batches per class.


# %%
def records_of(name, most_seeds=seeds, **options):
    """Return the runs of an experiment, and the records of those that are finished."""
    changes = {"data.name": dataset, **settings}
    plans = pcdd.experiment(name, scale, min(seeds, most_seeds), changes, **options)
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


plans, records = records_of("table2")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
backends = {"minkowski": "MinkowskiEngine", "torch": "PyTorch", "sparse": "sparse"}
distances = {"layerwise_cosine": "layerwise cosine", "sum_of_squares": "sum of squares"}
protocols = ("standard", "paper")
comparable = scale == "paper" and dataset == "mnist"  # else the paper's figures do not apply
stated_gradients = {  # the paper's Table 2; its accuracies are in the presets
    ("MinkowskiEngine, 2 layers", "layerwise cosine"): 4e-4,
    ("MinkowskiEngine, 2 layers", "sum of squares"): 0.033,
    ("PyTorch, 3 layers", "layerwise cosine"): 5e-4,
    ("PyTorch, 3 layers", "sum of squares"): 0.05,
}
results = []  # sentences computed below, shown together at the end


def say(sentence):
    results.append(sentence)
    print(sentence)


def key_of(config):
    """The network and the distance."""
    network = config["network"]
    name = f"{backends[network['name']]}, {network['layers']} layers"
    return name, distances[config["objective"]["distance"]]


def score_of(record, protocol):
    return record["scores"].get(protocol, {}).get("mean", float("nan"))


def in_words(values, digits=".1f"):
    """Mean ± standard deviation over seeds (number of seeds)."""
    if values.empty or values.isna().all():
        return "no record" if values.empty else "no score"
    values = values.dropna()
    spread = f" ± {values.std(ddof=0):{digits}}" if len(values) > 1 else ""
    return f"{values.mean():{digits}}{spread} ({len(values)})"


def moved_of(record):
    """Mean displacement of a coordinate per iteration, over the first 1,250 iterations."""
    curves = record.get("curves", {"iteration": [], "mean_absolute_displacement": []})
    moved = zip(curves["iteration"], curves["mean_absolute_displacement"])
    return pd.Series([value for iteration, value in moved if iteration < 1250], dtype=float).mean()


def frame_of(records):
    """A row per record of the paper's networks."""
    rows = []
    for record in records:
        if record["name"].startswith("paper-"):
            row = dict(zip(("network", "distance"), key_of(record["config"])))
            row |= {protocol: score_of(record, protocol) for protocol in protocols}
            row["seed"] = record["config"]["seed"]
            row["step size"] = record["config"]["optimiser"]["step_size"]
            mean = record.get("mean_absolute_gradient")  # of runs too short for the logged one
            row["gradient"] = record.get("mean_absolute_gradient_as_logged", mean)
            row["moved"] = moved_of(record)
            row["diverged"] = record["health"]["state"] in ("diverged", "failed")
            rows.append(row)
    numbers = [*protocols, "step size", "gradient", "moved"]
    frame = pd.DataFrame(rows, columns=["network", "distance", "seed", "diverged", *numbers])
    return frame.astype({name: float for name in numbers})


def rows_of(frame, row):
    return frame[(frame.network == row[0]) & (frame.distance == row[1])]


of_paper = [record for record in records if record["name"].startswith("paper-")]
runs = frame_of(records)
starts, stated = {}, {}  # of each row of the table: the settings of seed 0, the paper's accuracy
for plan in plans:
    if plan.preset.startswith("paper-") and plan.config.seed == 0:
        key = key_of(pcdd.to_dict(plan.config))
        starts[key] = plan.config
        stated[key] = pcdd.PRESETS[plan.preset].paper_accuracy if comparable else None
stated = dict(sorted(stated.items()))
if not comparable:
    stated_gradients = {}

# %% [markdown]
# ## 2. The table
#
# The **gradient** is $\partial\mathcal{L}/\partial x$, its absolute value averaged over points,
# axes and every 100th of the first 1,250 iterations, as the paper logs it (shorter runs: all
# iterations). The **accuracy** is that of the clouds before iteration 1,250, in percent; guessing
# gives 10. Compare the paper's accuracy with the column `paper`, whose protocol augments test
# images too.
#
# All of ours: mean ± standard deviation over seeds (number of seeds).

# %%
lines = {}
for row, accuracy in stated.items():
    found, gradient = rows_of(runs, row), stated_gradients.get(row)
    lines[row] = {
        "gradient": in_words(found["gradient"], ".2g"),
        "the paper's gradient": "" if gradient is None else f"{gradient:g}",
        "standard": in_words(found["standard"]),
        "paper": in_words(found["paper"]),
        "the paper's accuracy": "" if accuracy is None else f"{accuracy:g}",
    }
pd.DataFrame(lines).T.rename_axis(["network", "distance"])

# %% [markdown]
# How many times larger is the gradient of the sum of squares? Same network, mean over seeds:

# %%
means = {row: rows_of(runs, row)["gradient"].mean() for row in stated}
ratios = {}
for network in dict.fromkeys(network for network, _ in stated):
    pair = [(network, "sum of squares"), (network, "layerwise cosine")]
    ours, theirs = (
        values[pair[0]] / values[pair[1]] if all(values.get(row) for row in pair) else np.nan
        for values in (means, stated_gradients)
    )
    ratios[network] = {"ours": ours, "the paper's": theirs}
    if ours == ours:
        beside = f"; the paper's figures: {theirs:.3g} times" if theirs == theirs else ""
        say(f"{network}: sum of squares has {ours:.3g} times the gradient of the cosine{beside}.")
pd.DataFrame(ratios).T.style.format("{:.0f}", na_rep="")

# %%
for network in ratios:
    scores = {
        distance: rows_of(runs, (network, distance))["paper"] for distance in distances.values()
    }
    if all(len(found.dropna()) for found in scores.values()):
        words = ", ".join(f"{distance} {in_words(found)}" for distance, found in scores.items())
        say(f"{network}, accuracy under the paper protocol: {words}.")

# %% [markdown]
# ## 3. Over the iterations
#
# Are the gradients small from the start, or do they fade? Mean over seeds, in thirty stretches of
# the run. Runs with the cosine end at iteration 1,250.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
colours = {"layerwise cosine": "#c0504d", "sum of squares": "#20508a"}
dashes = {"M": "-", "P": "--", "s": ":"}  # by the network's first letter
quantities = {
    "mean_absolute_gradient": "mean absolute gradient",
    "mean_absolute_displacement": "cells per iteration",
}
grouped = {}
for record in of_paper:
    if "curves" in record:
        grouped.setdefault(key_of(record["config"]), []).append(record["curves"])
if grouped:
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 3.4), layout="constrained")
    for row, curves in sorted(grouped.items()):
        style = {"color": colours[row[1]], "ls": dashes[row[0][0]], "label": ", ".join(row)}
        for panel, quantity in zip(panels, quantities):
            mean = np.mean([curve[quantity] for curve in curves], axis=0)
            panel.plot(curves[0]["iteration"], mean, **style)
    for panel, label in zip(panels, quantities.values()):
        panel.set(yscale="log", xlabel="iteration", ylabel=label)
    panels[1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()
else:
    print("no record here has curves")

# %% [markdown]
# ## 4. A cosine does not grow
#
# > **Predict, then run.** Make both gradients $g$ and $h$ ten times larger. By which factor does
# > each distance grow?
#
# <details><summary>Answer</summary>
#
# $D_{\text{squares}}(10g, 10h) = 100\, D_{\text{squares}}(g, h)$, but
# $D_{\text{cosine}}(10g, 10h) = D_{\text{cosine}}(g, h)$: lengths cancel in the fraction. So the
# gradient of the sum of squares depends on the units of the features. Here these are raw
# coordinates up to 27, which make large gradients. The gradient of the cosine does not depend on
# them.
#
# </details>

# %%
draws = torch.Generator().manual_seed(0)
real, synthetic = torch.randn(2, 32, 75, generator=draws)  # two gradients of a small layer, 32 rows
lines = {}
for size in (0.1, 1.0, 10.0, 100.0):
    g, h = size * real, size * synthetic
    cosine = (1 - torch.nn.functional.cosine_similarity(g, h, dim=1)).sum().item()
    squares = (g - h).square().sum().item()
    lines[f"both {size:g} times as large"] = {"layerwise cosine": cosine, "sum of squares": squares}
pd.DataFrame(lines).T.style.format("{:.6g}")

# %% [markdown]
# On images the same cosine works with the same step size (Zhao et al. 2021): there a small change
# of a pixel value is already a change of the picture. **A coordinate has to change by whole
# cells.**

# %% [markdown]
# ## 5. How far do points get?
#
# Gradient descent with step size $\eta$ and momentum $\mu$ moves a coordinate that feels a steady
# gradient $\gamma$ by $\eta\gamma / (1 - \mu)$ per iteration. So after $n$ iterations its **reach**
# is
#
# $$r = \frac{n\,\eta\,\gamma}{1 - \mu} \quad\text{cells.}$$
#
# > **Predict, then run.** The paper's cosine gradient is $\gamma = 4 \cdot 10^{-4}$, with
# > $\eta = 0.1$, $\mu = 0.5$ and $n = 1250$. How many cells is that?
#
# <details><summary>Answer</summary>
#
# $1250 \cdot 0.1 \cdot 4 \cdot 10^{-4} / 0.5 = 0.1$ cells. A point leaves its cell only if it
# starts within a tenth of a cell of a border. For the sum of squares, $\gamma = 0.033$ gives 8.25
# cells.
#
# </details>
#
# *Moved* and *in another cell* are measured, for the set of seed 0: the median distance of a point
# from its start, and the share of the points that ended in another cell.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
kept = {
    key_of(record["config"]): record
    for record in of_paper
    if record["config"]["seed"] == 0 and record["clouds_file"] and record["scores"]
}
lines, ways = {}, {}
for row, config in ((row, starts[row]) for row in stated):
    n = config.evaluation.iteration or config.schedule.iterations  # updates before scoring
    per_gradient = n * config.optimiser.step_size / (1 - config.optimiser.momentum)
    lines[row] = {"reach": per_gradient * means[row]}
    lines[row]["reach, the paper's"] = per_gradient * stated_gradients.get(row, np.nan)
    if row in kept:
        end = pcdd.load_clouds(kept[row]["clouds_file"])
        start = config.start(end).coordinates
        start = start.minimum(start.new_tensor(end.grid) - 1)  # as iteration 0 begins
        ways[row] = (end.coordinates - start).norm(dim=1)
        left = (end.coordinates.floor() != start.floor()).any(1)
        lines[row]["moved"] = ways[row].median().item()
        lines[row]["in another cell"] = left.float().mean().item()
columns = ["reach", "reach, the paper's", "moved", "in another cell"]
reach = pd.DataFrame(lines).T.reindex(columns=columns).rename_axis(["network", "distance"])
formats = dict(zip(columns, ["{:.2g}", "{:.2g}", "{:.2g}", "{:.0%}"]))
reach.style.format(formats, na_rep="")

# %% [markdown]
# Two thresholds make a cell all or nothing. The classifier sees hard projections: nothing changes
# for it as long as a point stays in its cell. The distillation network knows the place of a point
# by its cell too. The gradient comes through the features only, so it does not tell a point that
# other neighbours wait behind the border.

# %%
if ways:
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    for (network, distance), way in ways.items():
        style = {"color": colours[distance], "ls": dashes[network[0]]}
        axes.ecdf(way, complementary=True, label=f"{network}, {distance}", **style)
    axes.axvline(1, color="grey", lw=0.8, label="one cell")
    axes.set(xscale="log", xlim=(1e-3, 40), xlabel="distance from the start in cells")
    axes.set_ylabel("share of points beyond")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()
for distance in distances.values():
    shares = reach["in another cell"].xs(distance, level="distance").dropna()
    if len(shares):
        words = ", ".join(f"{share:.0%} ({network})" for network, share in shares.items())
        say(f"{distance}, points of seed 0 that ended in another cell: {words}.")

# %% [markdown]
# ## 6. MinkowskiEngine: part of the gradient is missing
#
# Its convolutions return gradients without a graph, so what should move the points through them is
# lost. Each record measures this at the start of its run, against the same network with all second
# derivatives. *Share* is the part of the true gradient that comes through a layer (a ratio of
# norms, so shares need not add up to 1). *Missed* is how much of it is lost.

# %%
missed = {}
for record in of_paper:
    found, distance = record.get("second_derivatives"), key_of(record["config"])[1]
    if found and found["gradients_without_graph"]:
        layers = found["layers"] | {"all": {"share": 1.0, "missed": found["missed"]}}
        for layer, part in layers.items():
            for quantity, value in part.items():
                missed.setdefault((distance, quantity), {}).setdefault(layer, []).append(value)
if missed:
    lost = pd.DataFrame({key: pd.Series(parts).map(np.mean) for key, parts in missed.items()})
    display(lost.style.format("{:.1%}"))
    for distance in dict.fromkeys(distance for distance, _ in missed):
        number, part = len(missed[distance, "missed"]["all"]), lost.loc["all", (distance, "missed")]
        say(f"{distance} on MinkowskiEngine: {part:.1%} of the true gradient is missed ({number}).")
else:
    print("no record of MinkowskiEngine here")

# %% [markdown]
# Do points stop under the cosine for this reason? The `sparse` rows of section 2 miss nothing. If
# their points stop as well, then the missing part is not the only reason.

# %% [markdown]
# ## 7. Other step sizes
#
# Larger steps can compensate for small gradients. The runs use 0.1, 1, 10 and 100 times the usual
# step size. Compare the distances that points move with the clouds that they form. A point that
# moves hundreds of cells jumps between the borders of the grid.

# %%
_, of_sizes = records_of("step-size", 3, beside=False)
sizes = frame_of(of_sizes)
varied = sizes["step size"].nunique() > 1  # Table 2's own runs have the usual one
if not varied:
    print("no record of another step size: section skipped")
else:
    lines = {}
    for key, group in sizes.groupby(["network", "distance", "step size"]):
        lines[key] = {protocol: in_words(group[protocol]) for protocol in protocols}
        lines[key]["cells per iteration"] = in_words(group["moved"], ".2g")
        lines[key]["diverged"] = int(group["diverged"].sum())
    display(pd.DataFrame(lines).T.rename_axis(["network", "distance", "step size"]))

# %%
if varied:
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for (network, distance), group in sizes.groupby(["network", "distance"]):
        style = {"color": colours[distance], "ls": dashes[network[0]], "marker": "o", "ms": 4}
        by_size = group.groupby("step size")[["moved", "paper"]]
        mean, spread = by_size.mean(), by_size.std(ddof=0)
        panels[0].plot(mean["moved"], **style)
        label = f"{network}, {distance}"
        panels[1].errorbar(
            mean.index, mean["paper"], spread["paper"], capsize=3, label=label, **style
        )
        best = mean["paper"].dropna()
        if len(best):
            size, score = best.idxmax(), best.max()
            say(f"{label}: the best of {len(best)} step sizes is {size:g}, {score:.1f} %.")
    panels[0].set(xscale="log", xlabel="step size", ylabel="cells per iteration")
    panels[0].set_yscale("log" if sizes["moved"].gt(0).any() else "linear")
    panels[1].axhline(10, color="grey", ls="--", lw=0.8)
    panels[1].set(xscale="log", xlabel="step size", ylabel="accuracy in %, paper protocol")
    panels[1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()

# %% [markdown]
# What the layerwise cosine makes of seed 0 at each step size, in the network where it does best:

# %%
of_cosine = sizes[sizes.distance == "layerwise cosine"].groupby("network")["paper"].max().dropna()
for record in of_sizes if varied and len(of_cosine) else ():
    if key_of(record["config"]) != (of_cosine.idxmax(), "layerwise cosine"):
        continue
    if record["config"]["seed"] == 0 and record["clouds_file"]:
        step, score = record["config"]["optimiser"]["step_size"], score_of(record, "paper")
        print(f"{of_cosine.idxmax()}, step size {step:g}: {score:.1f} % (paper protocol)")
        display(pcdd.figures.gallery(pcdd.load_clouds(record["clouds_file"])))

# %% [markdown]
# ## 8. Is it the cosine as such?
#
# Our `gaussian` setting uses a layerwise cosine too, on the same scatter. It measures steps in
# cells (Adam), redraws the network, and its lift gives a point gradients towards neighbouring
# cells. For comparison: real clouds, one per class. All are scored by the same classifiers.

# %%
kinds = {
    "gaussian": "our setting `gaussian`, from scatter",
    "random": "real clouds, drawn at random",
    "herding": "real clouds, nearest to their class's mean (herding)",
}
lines = {}
for kind, name in kinds.items():
    found = [record for record in records if record["name"].startswith(kind)]
    lines[name] = {
        protocol: in_words(pd.Series([score_of(record, protocol) for record in found], dtype=float))
        for protocol in protocols
    }
pd.DataFrame(lines).T

# %% [markdown]
# ## Results
#
# All sentences that the cells above computed:

# %%
for sentence in results or ["no record yet, so there is nothing to say"]:
    print("-", sentence)
