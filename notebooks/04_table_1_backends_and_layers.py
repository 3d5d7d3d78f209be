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
# # Table 1: backends and layers
#
# The paper's Table 1 asks how good the distilled clouds are when the distillation network is built of MinkowskiEngine's
# sparse layers or of PyTorch's dense ones, with 2, 3 or 4 layers. This notebook makes the table again, in the paper's own
# layout, several times over: each cell with several random seeds, where the paper states one number.
#
# With the parameters below nothing is computed: the records of finished runs, kept in the repository, are read. Change a
# parameter, and whatever has not been run yet is run.

# %% tags=["parameters"]
scale = "small"  # "small": two CPU cores are enough; "paper": the paper's own scale, for a GPU
seeds = 5  # runs per cell of the table
dataset = "mnist"  # the records kept in the repository are of it; "digits" needs no files and runs in minutes
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty means PCDD_DATA, else a download
settings = {}  # any setting changed in every cell of the table, for instance {"optimiser.step_size": 0.2}
runs_folder = "runs"  # finished runs are looked for here, and new ones kept
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

import pcdd_core as pcdd

# %matplotlib inline

# %% [markdown]
# ## 1. The runs
#
# Three backends by three depths. Two are the paper's:
#
# - **MinkowskiEngine**: convolution, instance norm, ReLU and pooling on occupied cells only. Its layers have no second
#   derivatives, which gradient matching needs; the terms that would come through them are missing, silently.
# - **PyTorch**: the cells are put on a dense grid; convolution, ReLU and pooling run over all of it.
#
# The third, **sparse**, is ours: MinkowskiEngine's network once more, with all second derivatives. If MinkowskiEngine's row
# were what it is because of the missing terms, this row would differ.
#
# Beside the table: our own setting (`gaussian`) and real clouds, one per class, drawn at random or nearest to their class's
# mean (herding's first pick). All are scored by the same classifiers, trained in the same way.

# %%
cells = pcdd.experiment("table1", scale, seeds, {"data.name": dataset, **settings})
records = pcdd.obtain(cells, runs_folder, data_folder or None, device or None)
print(f"{len(records)} of {len(cells)} runs, scored on: {records[0]['scored_on']}")

# %% [markdown]
# What "small" means: one of the paper's runs takes 2,500 iterations with 256 real clouds per class. At small scale it is an
# eighth of the iterations and of the batch, a quarter of the network's width, and five times the step size, so that points
# get somewhere all the same; the classifiers are smaller and trained more briefly too. **Expect lower scores than the
# paper's**, and compare what is larger than what, not the numbers themselves.

# %%
run = cells[0].config
pd.DataFrame(
    {
        "these runs": {
            "iterations": run.schedule.iterations,
            "real clouds per class and iteration": run.objective.real_batch,
            "width of the distillation network": run.network.width,
            "step size": run.optimiser.step_size,
            "width of the classifiers": run.evaluation.width,
            "epochs of the classifiers": run.evaluation.epochs,
        },
        "the paper's": {
            "iterations": 2500,
            "real clouds per class and iteration": 256,
            "width of the distillation network": 128,
            "step size": 0.1,
            "width of the classifiers": 128,
            "epochs of the classifiers": 1000,
        },
    }
).map("{:g}".format)

# %% [markdown]
# ## 2. The table
#
# Of every run one row; of every cell of the table the mean and the standard deviation over its seeds (their number in
# brackets), then what the paper states. Accuracy in percent; guessing gives 10.

# %%
backends = {"minkowski": "MinkowskiEngine", "torch": "PyTorch", "sparse": "sparse"}


def row(record):
    network = record["config"]["network"]
    return {
        "backend": backends[network["backend"]],
        "layers": network["layers"],
        "seed": record["config"]["seed"],
        "stated": pcdd.PRESETS[record["name"]].paper_accuracy if dataset == "mnist" else None,
        "mean gradient": record.get("mean_absolute_gradient"),
        "mean displacement": record.get("mean_absolute_displacement"),
        **{protocol: score["mean"] for protocol, score in record["scores"].items()},
    }


of_paper = [record for record in records if record["name"].startswith("paper-")]
beside = [record for record in records if not record["name"].startswith("paper-")]
runs = pd.DataFrame(map(row, of_paper)).astype({"stated": float})
protocols = [name for name in ("standard", "paper") if name in runs]


def in_words(scores, stated=float("nan")):
    scores = scores.dropna()
    if scores.empty:
        return "failed"
    spread = f" ± {scores.std(ddof=0):.1f}" if len(scores) > 1 else ""
    ours = f"{scores.mean():.1f}{spread} ({len(scores)})"
    return ours + (f"; paper {stated:g}" if stated == stated else "")


def table(protocol):
    cells = runs.groupby(["backend", "layers"])
    words = pd.Series({cell: in_words(group[protocol], group["stated"].iloc[0]) for cell, group in cells})
    words.index.names = ["backend", "layers"]
    return words.unstack().reindex([name for name in backends.values() if name in set(runs.backend)])


# %% [markdown]
# Under the `standard` protocol, the field's: training images are augmented (cropped, scaled or rotated at random), test
# images are left as they are.

# %%
table("standard") if "standard" in protocols else "not scored under this protocol"

# %% [markdown]
# Under the `paper` protocol test images are augmented too: a digit may be turned by up to 45 degrees before it is
# recognised. **The paper's figures were made this way, so this is the table to hold against them.** They are not comparable
# with MNIST figures elsewhere in the literature.

# %%
table("paper") if "paper" in protocols else "not scored under this protocol"

# %% [markdown]
# ## 3. The picture
#
# Filled marks are our runs, with the standard deviation over seeds; open marks are the paper's figures, for which it states
# neither a deviation nor how many distillations stand behind them. They appear in the right panel only, whose protocol is
# theirs. The dashed line is chance.

# %%
colours = {"MinkowskiEngine": "#c0504d", "PyTorch": "#20508a", "sparse": "#4f9153"}
marks = {"MinkowskiEngine": "o", "PyTorch": "s", "sparse": "^"}
shifts = {"MinkowskiEngine": -0.12, "PyTorch": 0.0, "sparse": 0.12}
figure, panels = plt.subplots(
    1, len(protocols), figsize=(1 + 4.2 * len(protocols), 3.6), sharey=True, layout="constrained", squeeze=False
)
for panel, protocol in zip(panels.flat, protocols):
    for backend, group in runs.groupby("backend"):
        scores = group.groupby("layers")[protocol]
        mean, style = scores.mean(), {"color": colours[backend], "marker": marks[backend]}
        panel.errorbar(
            mean.index + shifts[backend], mean, scores.std(ddof=0), label=backend, capsize=3, lw=1, markersize=6, **style
        )
        stated = group.groupby("layers")["stated"].first().dropna()
        if protocol == "paper" and len(stated):
            name = f"{backend}, the paper's"
            panel.plot(stated.index + shifts[backend], stated, ls=":", lw=1, mfc="white", markersize=8, label=name, **style)
    panel.axhline(10, color="grey", ls="--", lw=0.8)
    panel.set(title=f"{protocol} protocol", xlabel="layers of the distillation network", xticks=sorted(set(runs.layers)))
panels[0, 0].set(ylabel="accuracy in %", ylim=(0, None))
panels[0, -1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1));

# %% [markdown]
# ## 4. Beside it: another lift, and real clouds
#
# How much room is there? The same number of clouds, scored by the same classifiers: the best cell of the table above, our
# `gaussian` setting from the same random scatter, and real clouds. The paper has no such rows; its own best figure, 33.9, is
# the dotted line (to be read with the `paper` bars).

# %%
kinds = {"gaussian": "gaussian, from scatter", "random": "real clouds, drawn at random", "herding": "real clouds, herding"}
best = runs.groupby(["backend", "layers"])[protocols[0]].mean().idxmax()
rows = {f"best of the table: {best[0]}, {best[1]} layers": runs[(runs.backend == best[0]) & (runs.layers == best[1])]}
for kind, name in kinds.items():
    scores = [{p: s["mean"] for p, s in record["scores"].items()} for record in beside if record["name"].startswith(kind)]
    rows[name] = pd.DataFrame(scores)
pd.DataFrame({name: {protocol: in_words(runs_[protocol]) for protocol in protocols} for name, runs_ in rows.items()}).T

# %%
figure, axes = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
for number, protocol in enumerate(protocols):
    means = [runs_[protocol].mean() for runs_ in rows.values()]
    spread = [runs_[protocol].std(ddof=0) for runs_ in rows.values()]
    places = [place + 0.36 * number for place in range(len(rows))]
    shade = ("#20508a", "#9db8d8")[number]
    axes.barh(places, means, 0.36, xerr=spread, color=shade, label=f"{protocol} protocol", error_kw={"lw": 1})
axes.axvline(33.9, color="#c0504d", ls=":", label="the paper's best, 33.9")
axes.axvline(10, color="grey", ls="--", lw=0.8, label="chance")
axes.set(yticks=[place + 0.18 for place in range(len(rows))], yticklabels=rows, xlim=(0, 100), xlabel="accuracy in %")
axes.invert_yaxis()
axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1));

# %% [markdown]
# ## 5. The clouds behind the numbers
#
# The sets of seed 0, one cloud per class: the best and the worst of the table's cells; MinkowskiEngine with two layers, the
# best cell of the paper's table (`sparse`, where MinkowskiEngine is not installed); and `gaussian`.

# %%
kept = [record for record in of_paper if record["config"]["seed"] == 0 and record["clouds_file"] and record["scores"]]
kept.sort(key=lambda record: record["scores"][protocols[0]]["mean"])
paper_best = "paper-minkowski-2" if "MinkowskiEngine" in set(runs.backend) else "paper-sparse-2"
titles = {kept[-1]["name"]: "best of the table", kept[0]["name"]: "worst of the table"}
for record in kept[::-1] + [record for record in beside if record["name"].startswith("gaussian") and record["clouds_file"]]:
    name = record["name"]
    title = [titles[name]] if name in titles else []
    title += ["the paper's best cell"] if name.startswith(paper_best) else ["ours"] if name.startswith("gaussian") else []
    if title:
        print(f"{' and '.join(title)}: {name}, {record['scores'][protocols[0]]['mean']:.1f} % ({protocols[0]} protocol)")
        display(pcdd.figures.gallery(pcdd.load_clouds(record["clouds_file"])))

# %% [markdown]
# Where the points ended, in numbers: the share of them in the corner by (0, 0), a sixteenth of the grid, and in the middle,
# a quarter of it. An even scatter, as all runs begin, is given for comparison. Beside it, how far a coordinate travelled in
# the whole run: the mean displacement in an iteration times the number of iterations (there and back counts twice).

# %%
lines = {"an even scatter": {"in the corner by (0, 0)": 1 / 16, "in the middle": 1 / 4}}
for record in sorted(kept, key=lambda record: record["name"]):
    clouds = pcdd.load_clouds(record["clouds_file"])
    height, width = (clouds.coordinates[:, axis] / clouds.grid[axis] for axis in (1, 2))
    middle = ((height - 0.5).abs() < 0.25) & ((width - 0.5).abs() < 0.25)
    network = record["config"]["network"]
    lines[f"{backends[network['backend']]}, {network['layers']} layers"] = {
        "in the corner by (0, 0)": ((height < 0.25) & (width < 0.25)).float().mean().item(),
        "in the middle": middle.float().mean().item(),
        "mean absolute gradient": record["mean_absolute_gradient"],
        "way of a coordinate in cells": record["mean_absolute_displacement"] * record["iterations"],
    }
formats = ["{:.0%}", "{:.0%}", "{:.4f}", "{:.1f}"]
where = pd.DataFrame(lines).T
where.style.format(dict(zip(where, formats)), na_rep="")

# %% [markdown]
# A coordinate is a feature too, so a point at (0, 0) has features of zero: the network hardly feels it. Points that the
# dense network has no use for gather there. In the MinkowskiEngine network they would not vanish, since instance norm
# takes the mean of all cells for its zero: in the records kept here, the points of its two-layer runs leave the middle and
# settle in a ring along the border.
#
# The deeper the network, the smaller the gradients, and one step size serves all depths. In the records kept here
# PyTorch's depths differ in just this: with two layers nearly all points are in the corner, with four they have not come
# far yet, and three lies between. The depth that is best may simply be the one that the step size suits.

# %% [markdown]
# ## 6. Is it the missing second derivatives?
#
# A `sparse` run starts from the same scatter and the same weights as the MinkowskiEngine run of its seed, and differs in
# nothing but the second derivatives. So the two can be compared seed by seed: the mean difference in accuracy, in points of
# percent, and its standard error.

# %%
differences = {}
if {"MinkowskiEngine", "sparse"} <= set(runs.backend):
    for protocol in protocols:
        by_seed = runs.pivot_table(index=["layers", "seed"], columns="backend", values=protocol)
        gain = (by_seed["sparse"] - by_seed["MinkowskiEngine"]).groupby("layers")
        differences[protocol] = [f"{mean:+.1f} ± {error:.1f}" for mean, error in zip(gain.mean(), gain.sem())]
    compared = pd.DataFrame(differences, index=pd.Index(sorted(set(runs.layers)), name="layers"))
else:
    compared = "MinkowskiEngine is not installed, so there is nothing to compare: make minkowski"
compared

# %% [markdown]
# ## What it shows
#
# In the records kept here, at small scale:
#
# - **PyTorch's row**: three layers do best, as in the paper. Two and four fall behind and are not told apart by five seeds,
#   where the paper has two layers well ahead of four.
# - **MinkowskiEngine's row is not reproduced.** The paper's 33.9 with two layers stands far above all it reports of that
#   backend; here all three depths are at or near chance, and the standard deviations are as large as the differences.
# - **The missing second derivatives do not explain it**: with all of them, the `sparse` row is at or near chance as well.
#   Under sum of squares nearly all of the gradient comes through the linear head, which keeps its graph (the README has
#   the figures, and two runs at the paper's iterations and width).
# - **The seed matters** (the paper says so in section 4.5): single runs differ by several points, and a table with one run
#   in each cell could show almost any order of the MinkowskiEngine depths.
# - **Room is there**: real clouds drawn at random score far above the whole table, and so do clouds distilled from the same
#   scatter when points are seen through another lift.
#
# Why the paper's 33.9 came about remains open. It was made with a batch of 256, 2,500 iterations and a width of 128 all at
# once: `scale = "paper"` on a GPU.
