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
# The paper's section 4.5 lists what limits its method:
#
# 1. another random start may end quite differently,
# 2. layers added or removed change the result much, so much tuning is needed,
# 3. three coordinates per point are harder to optimise than one brightness per pixel.
#
# This notebook measures each limit. By default it reads records and runs nothing.

# %% tags=["parameters"]
scale = "paper"  # "paper": the paper's own; "small": a smoke run whose scores mean nothing
run_missing = False  # True: also run what has no record, about 20 minutes each on one core
initialisations = 10  # random starts
seeds = 5  # runs of each network of the paper's Table 1
seeds_per_step = 3  # runs with each step size
dataset = "mnist"  # the records kept in the repository are of it; "digits" needs no files
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty: PCDD_DATA, else a download
settings = {}  # any setting changed in every run, for instance {"schedule.iterations": 100}
runs_folder = ""  # for finished and new runs; empty: PCDD_RUNS, else runs/ of the checkout
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import pcdd_core as pcdd

# %matplotlib inline
pcdd.check_parameters()
runs_folder = runs_folder or pcdd.runs_folder()

# %% [markdown]
# Every run is one row: accuracies in percent of the test images, gradients per cell, displacements
# in cells per iteration. The `paper` protocol augments the test images, as the paper's code does;
# `standard` leaves them as they are.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
columns = ["name", "backend", "layers", "step size", "seed", "standard", "paper"]
columns += ["between classifiers", "classifiers", "gradient", "displacement", "iterations"]
columns += ["momentum", "health"]


def runs_of(name, count, **options):
    """The runs of an experiment that have a record, a row per run."""
    changed = {"data.name": dataset, **settings}
    plans = pcdd.experiment(name, scale, count, changed, **options)
    if run_missing:
        records = pcdd.obtain(plans, runs_folder, data_folder or None, device or None)
    else:
        records = pcdd.finished(plans, runs_folder)
    options = f"--seeds {count} --runs {Path(runs_folder).resolve()}"
    options += "" if scale == "paper" else f" --scale {scale}"
    options += "" if dataset == "mnist" else f" data.name={dataset}"
    missing = f"; `pcdd sweep {name} {options}` makes them" if len(records) < len(plans) else ""
    print(f"{name}: {len(records)} of {len(plans)} records{missing}")
    rows = []
    for record in records:
        network, scores = record["config"].get("network", {}), record["scores"]
        optimiser, standard = record["config"].get("optimiser", {}), scores.get("standard", {})
        row = {protocol: score["mean"] for protocol, score in scores.items()}
        row |= {"name": record["name"].removesuffix("-small"), "seed": record["config"]["seed"]}
        row |= {"backend": network.get("name"), "layers": network.get("layers")}
        row |= {"step size": optimiser.get("step_size"), "momentum": optimiser.get("momentum")}
        row |= {"between classifiers": standard.get("standard_deviation")}
        row |= {"classifiers": standard.get("networks"), "iterations": record.get("iterations")}
        row |= {"gradient": record.get("mean_absolute_gradient")}
        row |= {"displacement": record.get("mean_absolute_displacement")}
        row |= {"health": record.get("health", {}).get("state", "")}
        rows.append(row)
    numbers = [name for name in columns if name not in ("name", "backend", "health")]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(numbers, float))


def in_words(values, digits=1):
    """Mean ± standard deviation over runs (number of runs)."""
    values = values.dropna()
    if len(values) == 0:
        return "no score"
    spread = f" ± {values.std(ddof=0):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread} ({len(values)})"


comparable = scale == "paper" and dataset == "mnist"  # else the paper's figures do not apply
results = []  # sentences computed below, shown together at the end


def say(sentence):
    results.append(sentence)
    print(sentence)


def stated(name):
    """The paper's figure, or None."""
    return pcdd.PRESETS[name].paper_accuracy if comparable and name in pcdd.PRESETS else None


# %% [markdown]
# ## 1. Initialisation
#
# *"Initialization seems to have a huge impact on performance as running the same experiment
# multiple times may lead to significantly different results."*
#
# The paper's two best networks, run again and again. A seed decides where the points start, which
# random network they meet, and which real clouds make up the batches. Beside them our own setting,
# which redraws its network in every iteration, and real clouds drawn at random.
#
# > **Predict, then run.** A score is the mean of $n = 5$ classifiers of one set. The classifiers of
# > a set differ by $\sigma_c$ (standard deviation). If the start did not matter, by how much would
# > the scores of 10 runs differ?
#
# <details><summary>Answer</summary>
#
# By $\sigma_c / \sqrt{n}$, because of
#
# $$\sigma_{\text{score}}^2 = \sigma_{\text{start}}^2 + \frac{\sigma_c^2}{n} .$$
#
# The rest is the start's. The table computes both.
#
# </details>

# %%
again, table1 = runs_of("initialisation", initialisations), runs_of("table1", seeds)
names = {
    "paper-torch-3-sum-of-squares": "PyTorch, 3 layers",
    "paper-minkowski-2-sum-of-squares": "MinkowskiEngine, 2 layers",
    "gaussian": "ours",
    "random-1": "real, at random",
}
starts = {}
for name, text in names.items():
    source = again if name.startswith("paper") else table1
    starts[text] = source[source.name == name]

# %%
figure, panels = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained", sharey=True)
for panel, protocol in zip(panels, ("standard", "paper")):
    for place, (text, name) in enumerate(zip(starts, names)):
        scores = starts[text][protocol].dropna().sort_values()
        if len(scores):
            aside = np.linspace(-0.2, 0.2, len(scores)) if len(scores) > 1 else [0]
            panel.scatter(place + np.array(aside), scores, s=16)
            panel.hlines(scores.mean(), place - 0.35, place + 0.35, color="black", lw=1)
        if protocol == "paper" and stated(name):
            panel.plot(place, stated(name), "k*", ms=11, label="" if place else "the paper")
    panel.axhline(10, color="grey", lw=0.8, ls="--", label="guessing")
    panel.set(title=f"{protocol} protocol", ylim=(0, 100))
    panel.set_xticks(range(len(starts)), [text.replace(", ", ",\n") for text in starts])
panels[1].legend(frameon=False, loc="upper left")
panels[0].set_ylabel("accuracy in %, one dot per seed")
plt.show()

# %% [markdown]
# Standard deviations under the `standard` protocol: between starts, and $\sigma_c / \sqrt{n}$, what
# classifiers alone would make.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
lines = {}
for text, name in zip(starts, names):
    own = starts[text].dropna(subset=["standard"])
    paper = starts[text].paper.dropna()
    if own.empty:
        continue
    alone = (own["between classifiers"] / own.classifiers**0.5).mean()
    lines[text] = {
        "starts": len(own),
        "standard": f"{own.standard.mean():.1f}",
        "lowest": f"{own.standard.min():.1f}",
        "highest": f"{own.standard.max():.1f}",
        "± between starts": f"{own.standard.std(ddof=0):.1f}" if len(own) > 1 else "one start",
        "± by classifiers alone": f"{alone:.1f}",
        "paper": in_words(paper),
        "the paper's figure": stated(name) or "",
    }
    if len(own) > 1:
        say(
            f"Starts, {text}: {own.standard.min():.1f} to {own.standard.max():.1f} % over "
            f"{len(own)} starts, ± {own.standard.std(ddof=0):.1f}; classifiers alone ± {alone:.1f}."
        )
    if len(paper) > 1 and stated(name):
        where = "above" if stated(name) > paper.max() else "below"
        where = "within" if paper.min() <= stated(name) <= paper.max() else where
        say(f"The paper's {stated(name)} for {text}: {where} the range of {len(paper)} starts.")
pd.DataFrame(lines).T if lines else print("no record")

# %% [markdown]
# If the start matters, a figure of a single run says little. The paper does not state how many
# distillations are behind its figures.

# %% [markdown]
# ## 2. Depth
#
# *"Adding or removing layers significantly impacts evaluation."*
#
# The paper's explanation (section 4.2) is that gradients are small and points stop. The gradient at
# a point passes through all layers $h_l$,
#
# $$\frac{\partial h_L}{\partial x} = \frac{\partial h_L}{\partial h_{L-1}} \cdots
# \frac{\partial h_2}{\partial h_1}\,\frac{\partial h_1}{\partial x},$$
#
# and no norm restores its size. If the explanation is right, then gradients decrease with depth.
# Where points do not move, the score is that of random scatter.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
of_depth = table1[table1.name.str.startswith("paper-")]
colours = {"torch": "tab:green", "minkowski": "tab:red", "sparse": "tab:blue"}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for shift, (backend, colour) in zip((-0.06, 0, 0.06), colours.items()):
    runs = of_depth[of_depth.backend == backend].groupby("layers")
    for panel, column in ((left, "paper"), (right, "gradient")):
        if len(runs):
            mean, deviation = runs[column].mean(), runs[column].std(ddof=0).fillna(0)
            style = {"marker": "o", "capsize": 3, "color": colour, "label": f"{backend}, here"}
            panel.errorbar(mean.index + shift, mean, deviation, **style)
    figures = {layers: stated(f"paper-{backend}-{layers}-sum-of-squares") for layers in (2, 3, 4)}
    if all(figures.values()):
        style = {"color": colour, "ms": 9, "label": f"{backend}, the paper"}
        left.plot(figures.keys(), figures.values(), "*:", **style)
left.axhline(10, color="grey", lw=0.8, ls="--", label="guessing")
left.set(ylabel="accuracy in %, paper protocol", ylim=(0, None))
left.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
right.set(ylabel="mean absolute gradient per cell")
if right.containers:
    right.set_yscale("log")
for panel in (left, right):
    panel.set(xlabel="layers", xticks=(2, 3, 4))
plt.show()

# %%
lines = {}
for (backend, layers), runs in of_depth.groupby(["backend", "layers"], sort=False):
    name = f"paper-{backend}-{layers:.0f}-sum-of-squares"
    lines[backend, f"{layers:.0f}"] = {
        "standard": in_words(runs.standard),
        "paper": in_words(runs.paper),
        "the paper's figure": stated(name) or "",
        "gradient": f"{runs.gradient.mean():.3g}",
        "cells per iteration": f"{runs.displacement.mean():.3g}",
        "health": ", ".join(sorted(set(runs.health))),
    }
if lines:
    depth_table = pd.DataFrame(lines).T.rename_axis(["backend", "layers"])
depth_table if lines else print("no record")

# %%
for backend in colours:
    mean = of_depth[of_depth.backend == backend].groupby("layers")[["gradient", "paper"]].mean()
    mean = mean.dropna()
    if len(mean) > 1:
        first, last = mean.index[0], mean.index[-1]
        factor = mean.gradient[last] / mean.gradient[first]
        say(
            f"Depth, {backend}: gradients change by a factor of {factor:.2g} from {first:.0f} to "
            f"{last:.0f} layers, scores from {mean.paper[first]:.1f} to {mean.paper[last]:.1f} %."
        )

# %% [markdown]
# ## 3. Step size
#
# *"A lot of hyper-parameters tuning \[is\] necessary."*
#
# The optimiser (step size $\eta$, momentum $m$) turns gradients into cells. A point whose gradient
# keeps its direction travels in $T$ iterations about
#
# $$\text{way} = \frac{\eta}{1 - m}\; T\; \overline{\lvert g \rvert} .$$
#
# > **Predict, then run.** The paper has $\eta = 0.1$, $m = 0.5$, $T = 1250$. On MinkowskiEngine its
# > $\overline{\lvert g \rvert}$ is 0.033 under sum of squares and $4 \cdot 10^{-4}$ under layerwise
# > cosine. How far does a coordinate travel at most?
#
# <details><summary>Answer</summary>
#
# 8.25 cells and 0.1 cells on average. Under the cosine most points stay in their cell, so the image
# stays as it was. A larger step size can repair this, unless the direction is wrong as well.
#
# </details>
#
# The same from our records of Table 2, over the whole run:

# %%
table2 = runs_of("table2", seeds, beside=False)
usual = table2.drop_duplicates(["name", "seed"]).dropna(subset=["gradient"])
usual = usual.assign(
    way=usual["step size"] / (1 - usual.momentum) * usual.iterations * usual.gradient,
    travelled=usual.displacement * usual.iterations,
)
ways = usual.groupby("name")[["step size", "gradient", "way", "travelled"]].mean()
for name, row in ways.iterrows():
    say(f"Way, {name}: at most {row.way:.2g} cells by the formula, {row.travelled:.2g} measured.")
ways.rename(columns={"way": "way by the formula", "travelled": "way measured"}).map("{:.3g}".format)

# %% [markdown]
# **Other step sizes**: a tenth to a hundred times the usual one, both distances.

# %%
steps = runs_of("step-size", seeds_per_step, beside=False)
changed_steps = steps["step size"].nunique() > 1
if changed_steps:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
    for name, runs in steps.groupby("name"):
        _, backend, layers, *distance = name.split("-")
        text = f"{backend}, {layers} layers, {' '.join(distance)}"
        for panel, column in ((left, "standard"), (right, "displacement")):
            found = runs.groupby("step size")[column]
            mean, deviation = found.mean(), found.std(ddof=0).fillna(0)
            panel.errorbar(mean.index, mean, deviation, marker="o", capsize=3, label=text)
    left.axhline(10, color="grey", lw=0.8, ls="--", label="guessing")
    left.set(ylabel="accuracy in %, standard protocol", ylim=(0, None))
    right.axhline(1, color="grey", lw=0.8, ls=":", label="a cell in every iteration")
    right.set(ylabel="cells per iteration", yscale="log")
    for panel in (left, right):
        panel.set(xlabel="step size in cells per unit of gradient", xscale="log")
        panel.legend(frameon=False, fontsize=8)
    plt.show()
else:
    print("no record of another step size, so there is no comparison")

# %%
if changed_steps:
    lines = {}
    for (name, size), runs in steps.groupby(["name", "step size"]):
        lines[name, f"{size:g}"] = {
            "standard": in_words(runs.standard),
            "paper": in_words(runs.paper),
            "cells per iteration": f"{runs.displacement.mean():.3g}",
            "health": ", ".join(sorted(set(runs.health))),
        }
    step_table = pd.DataFrame(lines).T.rename_axis(["name", "step size"])
    means = steps.groupby(["name", "step size"])[["standard", "displacement"]].mean().dropna()
    for name, group in means.groupby("name"):
        (_, size), best = group.standard.idxmax(), group.standard.max()
        moved = group.displacement[name, size]
        say(
            f"Step size, {name}: best {size:g}, {best:.1f} % (standard), "
            f"{moved:.2g} cells per iteration."
        )
step_table if changed_steps else None

# %% [markdown]
# ## 4. Three coordinates instead of one brightness
#
# *"There are 3 features per point that gets optimized which is more difficult than just 1 feature
# being updated in a single channel."*
#
# Zhao et al. (2021), whose method the paper takes over, report 91.7 % on MNIST for one grey image
# per class (standard protocol). If coordinates were the trouble, no cloud moved from scatter could
# come near that. The table compares clouds moved from scatter with real ones.

# %%
means = of_depth.groupby("name").standard.mean().dropna()
shown = {means.idxmax(): f"the best of Table 1: {means.idxmax()}"} if len(means) else {}
shown |= {"gaussian": "ours", "random-1": "real, at random", "herding-1": "real, by herding"}
lines, scores = {}, {}
for name, text in shown.items():
    own = table1[table1.name == name]
    if len(own):
        scores[name] = own.standard.mean()
        lines[text] = {"standard": in_words(own.standard), "paper": in_words(own.paper)}
pd.DataFrame(lines).T if lines else print("no record")

# %%
if len(means) and "gaussian" in scores:
    gap = scores["gaussian"] - means.max()
    say(
        f"Coordinates: our setting, from the same kind of scatter, has {gap:+.1f} points against "
        f"the best of Table 1 ({means.max():.1f} %)."
    )
if comparable and len(scores) > 1:
    best = max(scores, key=scores.get)
    say(f"Best of this table: {shown[best]}, {scores[best]:.1f} %; Zhao et al. 91.7 %.")

# %% [markdown]
# ## Results
#
# All sentences that the cells above computed:

# %%
print("\n".join(f"- {sentence}" for sentence in results) or "no record yet: nothing to say")
