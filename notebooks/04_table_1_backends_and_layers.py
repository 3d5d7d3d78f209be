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
# The paper distils MNIST into one cloud of 250 points per class. Table 1 compares distillation
# networks: MinkowskiEngine's sparse layers or PyTorch's dense layers, with 2, 3 or 4 layers.
#
# This notebook rebuilds the table from records of finished runs, then examines its causes.
# By default it reads records and runs nothing.

# %% tags=["parameters"]
scale = "paper"  # "paper": the paper's own; "small": a smoke run whose scores mean nothing
run_missing = False  # True: also run what has no record, about 20 minutes each on one core
seeds = 5  # runs per row of the table
dataset = "mnist"  # the records kept in the repository are of it; "digits" needs no files
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty: PCDD_DATA, else a download
settings = {}  # any setting changed in every run, for instance {"optimiser.step_size": 0.2}
runs_folder = ""  # for finished and new runs; empty: PCDD_RUNS, else runs/ of the checkout
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one

# %%
import json
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
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
# All runs move the points of the synthetic clouds $S$ to reduce the **matching loss**
#
# $$\mathcal{L}(S) = \sum_{c} D\big(\nabla_\theta \ell(\theta, T_c),\;
# \nabla_\theta \ell(\theta, S_c)\big), \qquad
# D(g, h) = \sum_{\text{parameters}} \lVert g - h \rVert^2 .$$
#
# $T_c$ are 256 real clouds of class $c$, $S_c$ is its synthetic cloud, $\ell$ the cross-entropy.
# The network $\theta$ is random, stays untrained, and is the same for the whole run.
#
# - **MinkowskiEngine**: convolution, ReLU, max pooling on occupied cells, then a linear head. No
#   norm. Its convolutions have no second derivatives, so some terms of
#   $\partial\mathcal{L}/\partial S$ are lost.
# - **PyTorch**: convolution, ReLU, max pooling on the dense grid, then a linear head. No norm.
# - **sparse**: ours. MinkowskiEngine's network with all second derivatives.
#
# Scale and networks are the paper's. One thing differs: real gradients come from a pool of batches
# per class (32 for PyTorch, 8 for the other two), which saves most of the time. The experiment
# `pool` compares them with fresh ones.
#
# PyTorch needs the larger pool because of its **origin shift**: it subtracts the smallest occupied
# cell of the whole batch before its first convolution. One cloud near the edge of the grid shifts
# the other 255, so the gradient depends on the extremes of the batch. A small pool estimates the
# mean gradient badly, and the points then move towards a wrong target.


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


plans, records = records_of("table1")

# %% [markdown]
# Each run is scored on its clouds **before iteration 1,250**, by 5 ConvNets of width 128 that train
# for 1,001 epochs on the projected clouds. The paper's code scores at six iterations; the paper
# does not say which one its Table 1 shows.
#
# - `standard` protocol, the field's: training images are augmented, test images are not.
# - `paper` protocol: test images are augmented too. **Compare the paper's figures with this one.**
#
# The paper's protocol augments test images and uses one fixed network for the whole run. So its
# figures are not comparable with MNIST figures in the literature.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
backends = {"minkowski": "MinkowskiEngine", "torch": "PyTorch", "sparse": "sparse"}
protocols = ("standard", "paper")
comparable = scale == "paper" and dataset == "mnist"  # else the paper's figures do not apply
results = []  # sentences computed below, shown together at the end


def say(sentence):
    results.append(sentence)
    print(sentence)


def key_of(config):
    return backends[config["network"]["name"]], config["network"]["layers"]


def score_of(record, protocol):
    return record["scores"].get(protocol, {}).get("mean", float("nan"))


def moved_of(record):
    """Mean displacement of a coordinate per iteration, over the first 1,250 iterations."""
    curves = record.get("curves", {"iteration": [], "mean_absolute_displacement": []})
    moved = zip(curves["iteration"], curves["mean_absolute_displacement"])
    return pd.Series([value for iteration, value in moved if iteration < 1250], dtype=float).mean()


of_paper = [record for record in records if record["name"].startswith("paper-")]
rows = []
for record in of_paper:
    row = dict(zip(("backend", "layers"), key_of(record["config"])))
    row |= {protocol: score_of(record, protocol) for protocol in protocols}
    row |= {"seed": record["config"]["seed"], "moved": moved_of(record)}
    rows.append(row)
runs = pd.DataFrame(rows, columns=["backend", "layers", "seed", *protocols, "moved"])
runs = runs.astype({name: float for name in (*protocols, "moved")})
starts, stated = {}, {}  # of each row of the table: the settings of seed 0, the paper's figure
for plan in plans:
    if plan.preset.startswith("paper-") and plan.config.seed == 0:
        key = key_of(pcdd.to_dict(plan.config))
        starts[key] = plan.config
        stated[key] = pcdd.PRESETS[plan.preset].paper_accuracy if comparable else None
stated = dict(sorted(stated.items()))


def rows_of(frame, row):
    return frame[(frame.backend == row[0]) & (frame.layers == row[1])]


# %%
def in_words(scores):
    """Mean ± standard deviation over seeds (number of seeds)."""
    if scores.empty or scores.isna().all():
        return "no record" if scores.empty else "no score"
    scores = scores.dropna()
    spread = f" ± {scores.std(ddof=0):.1f}" if len(scores) > 1 else ""
    return f"{scores.mean():.1f}{spread} ({len(scores)})"


def verdict(scores, figure):
    """Where our mean lies, seen from the paper's figure."""
    scores = scores.dropna()
    if figure is None or scores.empty:
        return ""
    if len(scores) == 1:
        return "one seed: a first look"
    difference, allowed = scores.mean() - figure, 2 * scores.std(ddof=0)
    where = "within" if abs(difference) <= allowed else "above" if difference > 0 else "below"
    return f"{where} two standard deviations"


# %% [markdown]
# ## 2. The table
#
# Accuracy in percent: mean ± standard deviation over seeds (number of seeds). Guessing gives 10.
# The verdict compares the column `paper` with the paper's figure: *below* means that ours is lower
# by more than two standard deviations over seeds. The paper states no deviation.

# %%
lines = {}
for row, figure in stated.items():
    found = rows_of(runs, row)
    lines[row] = {protocol: in_words(found[protocol]) for protocol in protocols}
    lines[row]["the paper's figure"] = "" if figure is None else f"{figure:g}"
    lines[row]["verdict"] = verdict(found["paper"], figure)
table = pd.DataFrame(lines).T.rename_axis(["backend", "layers"])
table

# %%
counts = table["verdict"][table["verdict"] != ""].value_counts(sort=False)
of = sum(figure is not None for figure in stated.values())
for words, count in counts.items():
    say(f"{count} of the paper's {of} rows: {words}.")
for backend in backends.values():
    depths = runs[runs.backend == backend].groupby("layers")["paper"].mean().dropna()
    if len(depths) == 3:
        figures = {n: value for (name, n), value in stated.items() if value and name == backend}
        theirs = f"; the paper's is {max(figures, key=figures.get)}" if figures else ""
        say(f"{backend}: the best depth is {depths.idxmax()}, {depths.max():.1f} %{theirs}.")

# %% [markdown]
# **The same as a picture.** Filled marks: ours, with the standard deviation over seeds. Open marks:
# the paper's figures, in the panel of their protocol. Dashed line: guessing.

# %%
colours = {"MinkowskiEngine": "#c0504d", "PyTorch": "#20508a", "sparse": "#4f9153"}
marks = {"MinkowskiEngine": "o", "PyTorch": "s", "sparse": "^"}
shifts = {"MinkowskiEngine": -0.12, "PyTorch": 0.0, "sparse": 0.12}
figure, panels = plt.subplots(1, 2, figsize=(9.4, 3.4), sharey=True, layout="constrained")
for panel, protocol in zip(panels, protocols):
    for backend, colour in colours.items():
        style = {"color": colour, "marker": marks[backend]}
        scores = runs[runs.backend == backend].groupby("layers")[protocol]
        mean, spread = scores.mean(), scores.std(ddof=0)
        style["label"] = backend if len(mean) else f"{backend}: no record"
        panel.errorbar(mean.index + shifts[backend], mean, spread, lw=1, capsize=3, **style)
        figures = {n: value for (name, n), value in stated.items() if value and name == backend}
        if protocol == "paper" and figures:
            style |= {"label": f"{backend}, the paper's", "ls": ":", "mfc": "white", "ms": 8}
            panel.plot([n + shifts[backend] for n in figures], figures.values(), **style)
    panel.axhline(10, color="grey", ls="--", lw=0.8)
    panel.set(title=f"{protocol} protocol", xlabel="layers of the network", xlim=(1.7, 4.3))
    panel.set_xticks((2, 3, 4))
panels[0].set(ylabel="accuracy in %", ylim=(0, None))
panels[1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## 3. Along the run
#
# The paper's code scores its clouds before iterations 0, 250, 625, 1,250, 1,875 and 2,499. Does the
# table depend on this choice? The curves show the `paper` protocol, mean and standard deviation
# over seeds. **Smaller classifiers** made these scores (5 of width 32, 300 epochs), so compare the
# shape of the curves, not their height, with the table.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
points = []
for record in of_paper:
    for iteration, scores in record.get("scores_at", {}).items():
        score = scores.get("paper", {}).get("mean")
        points.append((*key_of(record["config"]), int(iteration), score))
curve = pd.DataFrame(points, columns=["backend", "layers", "iteration", "score"]).dropna()
shades = {2: "#20508a", 3: "#e08a1e", 4: "#4f9153"}


def along_the_run(frame, column, label):
    """A panel per backend, a curve per depth: mean and standard deviation over seeds."""
    shown = [backend for backend in backends.values() if backend in set(frame.backend)]
    layout = {"figsize": (0.9 + 3.2 * len(shown), 3), "sharey": True, "squeeze": False}
    panels = plt.subplots(1, len(shown), layout="constrained", **layout)[1].flat
    for panel, backend in zip(panels, shown):
        for layers, group in frame[frame.backend == backend].groupby("layers"):
            by_iteration = group.groupby("iteration")[column]
            mean, spread = by_iteration.mean(), by_iteration.std(ddof=0)
            panel.plot(mean, marker="o", ms=3, color=shades[layers], label=f"{layers} layers")
            band = {"color": shades[layers], "alpha": 0.15}
            panel.fill_between(mean.index, mean - spread, mean + spread, **band)
        panel.set(title=backend, xlabel="iteration")
        panel.legend(fontsize=8, frameon=False)
    panels[0].set_ylabel(label)
    return panels


if curve.empty:
    print("no record here has scores along the run (smoke runs make none)")
else:
    for panel in along_the_run(curve, "score", "accuracy in %, small classifiers"):
        panel.axvline(1250, color="grey", lw=0.8)
        panel.axhline(10, color="grey", ls="--", lw=0.8)
    plt.show()

# %%
if not curve.empty:
    means = curve.groupby(["backend", "layers", "iteration"])["score"].mean().unstack()
    display(means.round(1))
    if 1250 in means:
        lost = (means.max(axis=1) - means[1250]).dropna()
        (backend, layers), most = lost.idxmax(), lost.max()
        say(
            f"Iteration 1250 is the best of these in {sum(lost == 0)} of {len(lost)} rows; its "
            f"largest loss to the best is {most:.1f} points ({backend}, {layers} layers)."
        )

# %% [markdown]
# ## 4. The origin shift
#
# > **Predict, then run.** The paper's code converts a sparse batch to a dense map. The map starts
# > at the smallest occupied cell of the **whole batch**:
# >
# > $$x \;\mapsto\; x - \min_{\text{batch}} x \quad\text{(rows and columns).}$$
# >
# > MNIST's digits do not touch the border, so a batch of real digits starts a few rows and columns
# > inside the grid. A scattered cloud starts at 0. Where on the grid will the distilled digits lie?
#
# <details><summary>Answer</summary>
#
# Towards the upper left. The network sees the real digits moved to the origin, and compares them
# with synthetic clouds that it does not move: one point in row 0 and one in column 0 are enough.
# Points that imitate the *moved* digit lie higher and further to the left than the digit itself.
# The classifiers learn from that position and are tested on unmoved digits.
#
# PyTorch's network shifts by single cells. MinkowskiEngine's shifts after its last pooling, in
# steps of $2^L$ cells with $L$ layers, so some classes are not shifted at all. Notebook 07
# measures it.
#
# </details>
#
# The picture applies the formula to a digit and to a scattered cloud, each as a batch of its own.

# %%
digit = pcdd.released("mnist-1")[0]  # a distilled 0 that comes with the package
digit = digit[((digit[:, 1:] > 2) & (digit[:, 1:] < 26)).all(1)]  # without its surplus points
draws = torch.Generator().manual_seed(0)
scatter = 28 * torch.rand(250, 3, generator=draws)
figure, panels = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
for name, cloud, pair in (("a digit", digit, panels[:2]), ("scatter", scatter, panels[2:])):
    occupied = cloud.floor()
    views = {"as it is": occupied, "as the network sees it": occupied - occupied.amin(0)}
    for panel, (words, shown) in zip(pair, views.items()):
        panel.scatter(shown[:, 2] + 0.5, shown[:, 1] + 0.5, s=3, color="#20508a")
        panel.set(xlim=(0, 28), ylim=(28, 0), aspect="equal", xticks=[], yticks=[])
        panel.set_title(f"{name}, {words}", fontsize=9)
plt.show()

# %% [markdown]
# ## 5. The clouds
#
# The set of seed 0 from the best depth of each backend, before iteration 1,250.

# %%
kept = {
    key_of(record["config"]): record
    for record in of_paper
    if record["config"]["seed"] == 0 and record["clouds_file"] and record["scores"]
}
for backend in backends.values():
    sets = {row: record for row, record in kept.items() if row[0] == backend}
    if not sets:
        print(f"{backend}: no set of seed 0")
        continue
    best = max(sets, key=lambda row: score_of(sets[row], "paper"))
    print(f"{backend}, {best[1]} layers: {score_of(sets[best], 'paper'):.1f} % (paper protocol)")
    display(pcdd.figures.gallery(pcdd.load_clouds(sets[best]["clouds_file"])))

# %% [markdown]
# Where are the points? The table gives their share in the corner at (0, 0), a sixteenth of the
# grid; in the middle, a quarter of the grid; and their mean row and column. Compare with even
# scatter, and with real digits if there is a record of them. A point's features are its
# coordinates, so a point at (0, 0) has features of 0. Without a norm, it has almost no effect on
# the network.

# %%
sets = {f"{backend}, {layers} layers": record for (backend, layers), record in sorted(kept.items())}
others = pcdd.experiment("ingredients", seeds=1) if dataset == "mnist" else []
for record in [*records, *pcdd.finished(others, runs_folder)]:
    if record["name"].startswith("herding") and record["clouds_file"]:
        sets["real digits (herding)"] = record
grid, where = (1, 28, 28), {}
for name, record in sets.items():
    clouds = pcdd.load_clouds(record["clouds_file"])
    grid, (row, column) = clouds.grid, clouds.coordinates.T[1:]
    corner = (row < grid[1] / 4) & (column < grid[2] / 4)
    middle = ((row / grid[1] - 0.5).abs() < 0.25) & ((column / grid[2] - 0.5).abs() < 0.25)
    shares = [part.float().mean().item() for part in (corner, middle)]
    where[name] = [*shares, row.mean().item(), column.mean().item()]
where["even scatter"] = [1 / 16, 1 / 4, grid[1] / 2, grid[2] / 2]
names = ["in the corner at (0, 0)", "in the middle", "mean row", "mean column"]
formats = dict(zip(names, ["{:.0%}", "{:.0%}", "{:.1f}", "{:.1f}"]))
where = pd.DataFrame(where, index=names).T
if kept:
    corner = ", ".join(f"{share:.0%} ({name})" for name, share in where[names[0]].items())
    say(f"Points of seed 0 in the corner at (0, 0): {corner}.")
where.style.format(formats)

# %% [markdown]
# ## 6. Which depth moves its points?
#
# > **Predict, then run.** The step size is 0.1 at every depth, and there is no norm. Which depth
# > moves its points furthest, and what happens to a network that is too deep?
#
# <details><summary>Answer</summary>
#
# Expect two layers. The gradient at a point passes through every layer, and no norm restores its
# size. Each pooling by the maximum also passes the gradient to one cell in four (in a flat grid).
# So the gradient decreases with depth while the step size stays the same, and a deep network does
# not change the scatter. Check this in the table: if points do not leave their cells, then the
# score is that of scatter.
#
# </details>
#
# Mean displacement of a coordinate per iteration:

# %%
moved = []
for record in of_paper:
    found = record.get("curves", {"iteration": [], "mean_absolute_displacement": []})
    for iteration, cells_moved in zip(found["iteration"], found["mean_absolute_displacement"]):
        moved.append((*key_of(record["config"]), iteration, cells_moved))
curves = pd.DataFrame(moved, columns=["backend", "layers", "iteration", "moved"])
if curves.empty:
    print("no record here has curves")
else:
    for panel in along_the_run(curves, "moved", "cells per iteration"):
        panel.set_yscale("log" if curves["moved"].gt(0).any() else "linear")
    plt.show()

# %% [markdown]
# *Cells per iteration*: mean over the first 1,250 iterations. The last two columns are about the
# set of seed 0: the straight distance of its points from their start, and how many of them ended in
# another cell.

# %%
lines = {}
for row in stated:
    moved = rows_of(runs, row)["moved"].dropna()
    lines[row] = {"seeds": len(moved), "cells per iteration": moved.mean()}
    if row in kept:
        end = pcdd.load_clouds(kept[row]["clouds_file"])
        start = starts[row].start(end).coordinates
        start = start.minimum(start.new_tensor(end.grid) - 1)  # as iteration 0 begins
        way = (end.coordinates - start).norm(dim=1)
        left = (end.coordinates.floor() != start.floor()).any(1)
        lines[row]["median distance in cells"] = way.median().item()
        lines[row]["in another cell"] = left.float().mean().item()
columns = ["seeds", "cells per iteration", "median distance in cells", "in another cell"]
moves = pd.DataFrame(lines).T.reindex(columns=columns).rename_axis(["backend", "layers"])
formats = dict(zip(columns, ["{:.0f}", "{:.2g}", "{:.2f}", "{:.0%}"]))
display(moves.style.format(formats, na_rep=""))
for backend in backends.values():
    moved = moves["cells per iteration"][backend].dropna()
    if len(moved) > 1 and moved.min() > 0:
        times = f"{moved.max() / moved.min():.3g} times as far as {moved.idxmin()}"
        say(f"{backend}: {moved.idxmax()} layers move points furthest per iteration, {times}.")

# %% [markdown]
# ## 7. Are the missing second derivatives to blame?
#
# A `sparse` run has the same scatter and weights as the MinkowskiEngine run of its seed. It differs
# in the second derivatives only. So compare them seed by seed: mean difference ± its standard
# error, in points of percent (number of pairs). A positive number means that the missing terms cost
# accuracy.

# %%
lines = {}
for layers in (2, 3, 4):
    ours = rows_of(runs, ("sparse", layers)).set_index("seed")
    theirs = rows_of(runs, ("MinkowskiEngine", layers)).set_index("seed")
    for protocol in protocols:
        gain = (ours[protocol] - theirs[protocol]).dropna()
        error = f" ± {gain.sem():.1f}" if len(gain) > 1 else ""
        words = f"{gain.mean():+.1f}{error} ({len(gain)})" if len(gain) else "no pair of records"
        lines.setdefault(f"{layers} layers", {})[protocol] = words
compared = pd.DataFrame(lines).T.rename_axis("sparse - MinkowskiEngine")
display(compared)
pairs = [f"{name} {words}" for name, words in compared["paper"].items() if "no pair" not in words]
if pairs:
    say(f"All second derivatives, gain in points: {'; '.join(pairs)}.")

# %% [markdown]
# ## 8. Why
#
# Four properties of a run could explain the table. The experiment `why` switches each of them on
# and off in MinkowskiEngine's network of 2 layers, in all 16 combinations:
#
# - **instance norm**: it sets the mean over all cells to 0, so a point at (0, 0) does not fade out.
#   The newest state of the paper's code has it; the state that made the tables does not.
# - **origin shift**: section 4. Without it the network sees real digits where they are.
# - **second derivatives**: section 7.
# - **redrawn network**: a new random network every 25 iterations, each with one real batch per
#   class. Points may fit the peculiarities of one fixed network.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
why_cells, why = records_of("why")
rows = []
for record in why:
    network, schedule = record["config"]["network"], record["config"]["schedule"]
    row = {
        "norm": network["norm"],
        "origin shift": "yes" if network["origin_shift"] else "no",
        "second derivatives": "all" if network["name"] == "sparse" else "some lost",
        "network": "redrawn" if schedule["iterations_per_network"] else "fixed",
        "seed": record["config"]["seed"],
    }
    rows.append(row | {protocol: score_of(record, protocol) for protocol in protocols})
as_in_paper = {
    "norm": "none",
    "origin shift": "yes",
    "second derivatives": "some lost",
    "network": "fixed",
}
why_runs = pd.DataFrame(rows, columns=[*as_in_paper, "seed", *protocols])
lines = {}
for key, group in why_runs.groupby(list(as_in_paper)):
    lines[key] = {protocol: in_words(group[protocol]) for protocol in protocols}
if lines:
    display(pd.DataFrame(lines).T.rename_axis(list(as_in_paper)))

# %% [markdown]
# One sentence per cause, under the `paper` protocol. Pairs of runs differ in this cause only and
# share their seed: first those that are else as in the paper, then all pairs.

# %%
other = {
    "norm": "instance",
    "origin shift": "no",
    "second derivatives": "all",
    "network": "redrawn",
}
for cause in as_in_paper:
    before, after = as_in_paper[cause], other[cause]
    rest = {name: value for name, value in as_in_paper.items() if name != cause}
    pairs = why_runs.pivot_table(index=[*rest, "seed"], columns=cause, values="paper")
    pairs = pairs.reindex(columns=[before, after]).dropna().reset_index()
    own = pairs[(pairs[list(rest)] == list(rest.values())).all(axis=1)]
    title = f"{cause}, {before} -> {after}"
    if pairs.empty:
        print(f"{title}: no pair of records")
        continue
    gain = (pairs[after] - pairs[before]).mean()
    words = f"{own[before].mean():.1f} -> {own[after].mean():.1f} % ({len(own)} pairs)"
    words = words if len(own) else "no pair"
    say(f"{title}: else as in the paper {words}; all {len(pairs)} pairs {gain:+.1f} points.")

# %% [markdown]
# ## 9. How much room is there?
#
# The same number of clouds, scored by the same classifiers: our `gaussian` setting from the same
# scatter, and real clouds, one per class. The paper has no such rows.

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
