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
# # Limits: initialisation, depth, step size
#
# The paper's section 4.5 lists what limits its method: the same experiment from another random start may end quite
# differently, layers added or taken away change the result much, so a lot of tuning is needed, and moving points in three
# coordinates is harder than setting one brightness per pixel. Each is measured here.

# %% tags=["parameters"]
scale = "small"  # "small": for two CPU cores; "paper": the paper's own, for a GPU
initialisations = 10  # random starts
seeds = 5  # runs of each network of the paper's Table 1
seeds_per_step = 3  # runs with each step size
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
# Every run leaves a record; here is one row per run. Accuracies are in percent of the test set, gradients per cell and
# displacements in cells per iteration.

# %%
changed = {"data.name": dataset, **settings}


def one_row_per_run(records):
    rows = []
    for record in records:
        network, scores = record["config"].get("network", {}), record["scores"]
        name = record["name"].removesuffix("-small")
        rows.append(
            {
                "name": name,
                "backend": network.get("backend"),
                "layers": network.get("layers"),
                "step size": record["config"].get("optimiser", {}).get("step_size"),
                "seed": record["config"]["seed"],
                "standard": scores.get("standard", {}).get("mean", np.nan),
                "paper": scores.get("paper", {}).get("mean", np.nan),
                "between classifiers": scores.get("standard", {}).get("standard_deviation", np.nan),
                "gradient": record.get("mean_absolute_gradient", np.nan),
                "displacement": record.get("mean_absolute_displacement", np.nan),
                "the paper's figure": pcdd.PRESETS[name].paper_accuracy if name in pcdd.PRESETS else None,
                "health": record.get("health", "").split(" at iteration")[0],
            }
        )
    return pd.DataFrame(rows)


def spread(values):
    """Mean and standard deviation over runs, as text."""
    values = values.dropna()
    if len(values) == 0:
        return "failed"
    return f"{values.mean():.1f}" if len(values) == 1 else f"{values.mean():.1f} ± {values.std(ddof=0):.1f}"


if dataset != "mnist":
    print(f"The paper's figures are of MNIST; these runs are of {dataset}.")

# %% [markdown]
# ## 1. Initialisation
#
# *"Initialization seems to have a huge impact on performance as running the same experiment multiple times may lead to
# significantly different results."* Here is the paper's PyTorch network of three layers, run again and again. A seed decides
# where points are scattered, which random network they are matched with, and which real clouds make up each batch.
# Beside it our own setting, which draws a new network in every iteration, and real clouds, one per class drawn at random.

# %%
again = one_row_per_run(
    pcdd.obtain(pcdd.experiment("initialisation", scale, initialisations, changed), runs_folder, data_folder, device)
)
starts = {
    "PyTorch, 3 layers,\nas in the paper": again[again.name == "paper-torch-3-sum-of-squares"],
    "ours": again[again.name == "gaussian"],
    "real, at random": again[again.name == "random-1"],
}

# %%
paper_figure = pcdd.PRESETS["paper-torch-3-sum-of-squares"].paper_accuracy
figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
for panel, protocol, title in zip(panels, ("standard", "paper"), ("standard protocol", "scored as in the paper")):
    for place, (name, runs) in enumerate(starts.items()):
        aside = place + np.linspace(-0.25, 0.25, len(runs)) if len(runs) > 1 else [place]
        panel.scatter(aside, runs.sort_values(protocol)[protocol], s=16)
        panel.hlines(runs[protocol].mean(), place - 0.35, place + 0.35, color="black", linewidth=1)
    panel.axhline(10, color="grey", linewidth=0.8, linestyle="--", label="guessing")
    panel.set(title=title, ylim=(0, 100))
    panel.set_xticks(range(len(starts)), starts)
panels[1].plot(0, paper_figure, "k*", markersize=12, label="the paper")
panels[1].legend(frameon=False, loc="lower right")
panels[0].set_ylabel("accuracy in %, one dot per seed");

# %% [markdown]
# How much of the spread is the start's? Each set is scored by several classifiers, which differ among each other too. The
# table sets the standard deviation between starts beside that between classifiers of one start.

# %%
pd.DataFrame(
    {
        name.replace("\n", " "): {
            "starts": len(runs),
            "standard": spread(runs.standard),
            "lowest": runs.standard.min(),
            "highest": runs.standard.max(),
            "between classifiers of one start ±": runs["between classifiers"].mean(),
            "as the paper scored": spread(runs.paper),
            "the paper's figure": paper_figure if name.startswith("PyTorch") else "",
        }
        for name, runs in starts.items()
    }
).T.map(lambda value: round(value, 1) if isinstance(value, float) else value)

# %% [markdown]
# In the records kept here the paper is right about its own method: its starts differ from each other by more than the
# classifiers that score one of them, and the best start is well ahead of the worst. A figure from a single run of it, or
# from the best of a few, says little; how many runs stand behind the paper's 30.22 % is not stated. Our setting varies
# less, though it starts from the same kind of scatter; it may help that it does not hang on one random network but meets
# a new one in each iteration.

# %% [markdown]
# ## 2. Depth
#
# *"Adding or removing layers significantly impacts evaluation."* The paper's Table 1, with our runs beside it. `sparse` is
# MinkowskiEngine's network with all second derivatives. The right picture is the paper's explanation: deeper networks give
# small gradients, and points get stuck.

# %%
colours = {"torch": "tab:green", "minkowski": "tab:red", "sparse": "tab:blue"}
by_depth = one_row_per_run(
    pcdd.obtain(pcdd.experiment("table1", scale, seeds, changed, beside=False), runs_folder, data_folder, device)
)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for shift, (backend, colour) in zip((-0.06, 0, 0.06), colours.items()):
    runs = by_depth[by_depth.backend == backend].groupby("layers")
    if len(runs) == 0:
        continue
    for panel, column in ((left, "paper"), (right, "gradient")):
        mean, deviation = runs[column].mean(), runs[column].std(ddof=0).fillna(0)
        panel.errorbar(mean.index + shift, mean, deviation, marker="o", capsize=3, color=colour, label=f"{backend}, here")
    stated = runs["the paper's figure"].first().dropna()
    if len(stated):
        left.plot(stated.index, stated, "*:", color=colour, markersize=10, label=f"{backend}, the paper")
left.axhline(10, color="grey", linewidth=0.8, linestyle="--", label="guessing")
left.set(ylabel="accuracy in %, scored as in the paper", ylim=(0, None))
left.legend(frameon=False, fontsize=8, ncols=2)
right.set(ylabel="mean absolute gradient per cell", yscale="log")
for panel in (left, right):
    panel.set(xlabel="layers", xticks=sorted(set(by_depth.layers)))

# %%
kinds = by_depth.groupby(["backend", "layers"], sort=False)
depth_table = kinds[["standard", "paper"]].agg(spread).rename(columns={"paper": "as the paper scored"})
depth_table["the paper's figure"] = kinds["the paper's figure"].first().map(lambda value: value if value > 0 else "")
depth_table["gradient"] = kinds.gradient.mean().map("{:.3g}".format)
depth_table["displacement"] = kinds.displacement.mean().map("{:.3g}".format)
depth_table["health"] = kinds.health.agg(lambda told: ", ".join(sorted(set(told))))
depth_table

# %% [markdown]
# In the records kept here PyTorch's row has the paper's shape: three layers do best, two and four fall behind.
# MinkowskiEngine's has not: all depths are near guessing, two layers as well. Gradients do fall with each layer, in all three
# backends, but points are not stuck: two layers move them most and do not score best. So small gradients alone
# are not the explanation. Where our scores are lower than the paper's, the small scale may be one reason: an eighth of
# the paper's iterations and batch, a quarter of its width, five times its step size. README says what else has been tried.

# %% [markdown]
# ## 3. Step size
#
# *"A lot of hyper-parameters tuning \[is\] necessary."* The step size turns gradients into cells, so what is right depends on
# how large gradients are, and those differ by orders of magnitude between the paper's two distances. Here steps go from a
# tenth to a hundred times the usual one.

# %%
steps = one_row_per_run(
    pcdd.obtain(pcdd.experiment("step-size", scale, seeds_per_step, changed, beside=False), runs_folder, data_folder, device)
)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for name, runs in steps.groupby("name"):
    _, backend, layers, *distance = name.split("-")
    label = f"{backend}, {layers} layers, {' '.join(distance)}"
    for panel, column in ((left, "standard"), (right, "displacement")):
        found = runs.groupby("step size")[column]
        panel.errorbar(found.mean().index, found.mean(), found.std(ddof=0).fillna(0), marker="o", capsize=3, label=label)
left.axhline(10, color="grey", linewidth=0.8, linestyle="--", label="guessing")
left.set(ylabel="accuracy in %, standard protocol", ylim=(0, None))
right.axhline(1, color="grey", linewidth=0.8, linestyle=":", label="a cell in every iteration")
right.set(ylabel="mean displacement\nin cells per iteration", yscale="log")
for panel in (left, right):
    panel.set(xlabel="step size in cells per unit of gradient", xscale="log")
left.legend(frameon=False, fontsize=8)
right.legend(frameon=False, fontsize=8);

# %%
kinds = steps.groupby(["name", "step size"])
step_table = kinds[["standard", "paper"]].agg(spread).rename(columns={"paper": "as the paper scored"})
step_table["displacement"] = kinds.displacement.mean().map("{:.3g}".format)
step_table["health"] = kinds.health.agg(lambda told: ", ".join(sorted(set(told))))
step_table

# %%
means = kinds[["standard", "paper", "displacement"]].mean().reset_index().dropna(subset=["standard"])
best_steps = means.loc[means.groupby("name").standard.idxmax()].set_index("name")
best_steps.rename(columns={"paper": "as the paper scored", "displacement": "displacement there"}).map("{:.3g}".format)

# %% [markdown]
# How to read it. The right picture: the optimiser moves a point by step size times gradient, so points move more with larger
# steps, though not ten times more with ten times the step, as gradients change where the points arrive. Far below the
# dotted line points hardly leave their cell in a whole run; above it they leap over cells, which section 3.1.3 warns
# of: *"it is important that the coordinates update do not overshoot the points over their target locations"*. The left
# picture: had layerwise cosine failed only because its gradients are small, its lines would reach, at larger steps,
# what sum of squares reaches at smaller ones.
#
# In the records kept here they do not. Sum of squares does best at the usual step, far worse with a tenth or ten times
# of it, which is the paper's point. Layerwise cosine stays near guessing with every step, also where its points
# move further than those of sum of squares at its best. So small gradients, the paper's explanation, are not all of its
# trouble. That the distance itself can work, our own setting shows: it matches by a layerwise cosine too
# (of weights only), with steps measured in cells and a lift that feels the neighbouring cells.

# %% [markdown]
# ## 4. Three coordinates instead of one brightness
#
# *"There are 3 features per point that gets optimized which is more difficult than just 1 feature being updated in a single
# channel."* Zhao et al. (2021), whose method the paper takes over, report 91.7 % on MNIST for one grey image per class
# (standard protocol). Below, from this notebook's records: as many clouds, moved from random scatter.

# %%
best = by_depth.groupby("name").standard.mean().idxmax()
shown = {best: best, "gaussian": "ours", "random-1": "real, at random", "herding-1": "real, nearest their class's mean"}
compared = pd.concat([by_depth[by_depth.name == best], again[again.name != best]])
pd.DataFrame(
    {
        text: {
            "standard": spread(compared[compared.name == name].standard),
            "as the paper scored": spread(compared[compared.name == name].paper),
        }
        for name, text in shown.items()
    }
).T

# %% [markdown]
# In the records kept here the paper's setting is far below Zhao et al.'s images, and below a real digit drawn at random. But
# that is not the price of coordinates: with a lift that lets points feel the cells around them, as many points from
# the same scatter come most of the way (the small scale scores with smaller classifiers, and fewer epochs, than
# Zhao et al.; README has our figure with classifiers of full size).
