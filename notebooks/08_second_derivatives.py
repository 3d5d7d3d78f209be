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
# # Second derivatives: what MinkowskiEngine leaves out
#
# Gradient matching differentiates a network twice. MinkowskiEngine's layers can be differentiated
# once (NVIDIA/MinkowskiEngine#242). The second derivative raises no error: it returns a gradient in
# which terms are missing.
#
# Do the missing terms explain the paper's tables? This notebook shows what is lost in the smallest
# example, measures how much is lost in the paper's networks, and compares runs with and without the
# missing terms. The backend `sparse` has them: the same network in plain PyTorch, with the same
# weights, output and first derivatives.

# %% tags=["parameters"]
scale = "paper"  # "paper": the paper's own; "small": a smoke run whose scores mean nothing
run_missing = False  # True: also run what has no record, about 20 minutes each on one core
seeds = 5  # runs of each kind that the paper's two tables have
seeds_beyond = 3  # runs of what they do not have: layerwise cosine with 3 and 4 layers
dataset = "mnist"  # the records kept in the repository are of it; "digits" needs no files
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty: PCDD_DATA, else a download
settings = {}  # any setting changed in every run, for instance {"schedule.iterations": 100}
runs_folder = ""  # for finished and new runs; empty: PCDD_RUNS, else runs/ of the checkout
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one

# %%
import json
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import pcdd_core as pcdd

# %matplotlib inline
pcdd.check_parameters()
runs_folder = runs_folder or pcdd.runs_folder()

# %% [markdown]
# ## 1. Why twice
#
# Let $g_l(x)$ be the gradient of the network's loss $\ell$ on the synthetic clouds, by the weights
# $\theta_l$ of layer $l$, and $\hat g_l$ the one on real clouds:
#
# $$g_l(x) = \frac{\partial \ell(\theta, x)}{\partial \theta_l}, \qquad
# \mathcal{L}(x) = \sum_l D\big(g_l(x), \hat g_l\big), \qquad
# \frac{\partial \mathcal{L}}{\partial x} = \sum_l
# \Big(\frac{\partial g_l}{\partial x}\Big)^{\!\top} \frac{\partial D}{\partial g_l} .$$
#
# $\partial g_l / \partial x$ is a second derivative of $\ell$. PyTorch's layers return $g_l$ with a
# graph, so autograd knows how it depends on $x$. MinkowskiEngine computes $g_l$ in C++ and returns
# numbers only. For autograd such a $g_l$ is a constant: its term of the sum is 0.

# %% [markdown]
# ## 2. The smallest example
#
# One point at $x = 2$, a convolution $w x$, a head $a\,(w x)$, the loss $\ell = (a w x)^2 / 2$. The
# run reduces the squared gradients with respect to $w$ and $a$. Each of them gives a force on the
# point: $\partial (\partial \ell/\partial w)^2/\partial x$ and
# $\partial (\partial \ell/\partial a)^2/\partial x$.
#
# The convolution exists twice: in plain PyTorch, and as a layer whose backward function returns the
# right numbers without a graph.
#
# > **Predict, then run.** Which of the two forces does the forgetful layer lose?
#
# <details><summary>Answer</summary>
#
# The one through the convolution's own weight $w$. The head's gradient is
# $\partial \ell/\partial a = a\,(w x)^2$. It depends on $x$ through the convolution's *output*, and
# the output is differentiated once only. So the point still moves, and the fault is easy to miss.
#
# </details>


# %%
class ForgetfulLayer(torch.autograd.Function):
    """weight * x, with gradients that are right and have no graph."""

    @staticmethod
    def forward(context, x, weight):
        context.save_for_backward(x, weight)
        return weight * x

    @staticmethod
    def backward(context, upstream):
        x, weight = (saved.detach() for saved in context.saved_tensors)
        return (upstream.detach() * weight), (upstream.detach() * x)


# %% [markdown]
# The table compares it with a plain layer. The *force* is the derivative of the squared gradient
# with respect to the point.


# %%
def forces(layer):
    """Return the force on a point at 2, through each of the two weights."""
    x, w, a = (torch.tensor(value, requires_grad=True) for value in (2.0, 0.5, 3.0))
    loss = (a * layer(x, w)) ** 2 / 2
    gradients = torch.autograd.grad(loss, [w, a], create_graph=True)
    found = {}
    for name, gradient in zip(("convolution", "head"), gradients):
        has_graph, force = gradient.grad_fn is not None, 0.0
        if has_graph:
            force = torch.autograd.grad(gradient**2, x, retain_graph=True)[0].item()
        found[name] = {"gradient": gradient.item(), "has a graph": has_graph, "force": force}
    return pd.DataFrame(found).T


layers = {"plain PyTorch": lambda x, w: w * x, "forgetful layer": ForgetfulLayer.apply}
pd.concat({name: forces(layer) for name, layer in layers.items()})

# %% [markdown]
# ## 3. The runs
#
# MinkowskiEngine and `sparse`, the paper's two distances, 2 to 4 layers.

# %%
backends, depths = ("minkowski", "sparse"), (2, 3, 4)
distances = {"sum-of-squares": "sum of squares", "layerwise-cosine": "layerwise cosine"}
ending = "" if scale == "paper" else f"-{scale}"
plans = [
    plan
    for distance in distances
    for layers in depths
    for backend in backends
    for plan in pcdd.experiment(
        f"paper-{backend}-{layers}-{distance}{ending}",
        seeds=seeds if layers == 2 or distance == "sum-of-squares" else seeds_beyond,
        settings={"data.name": dataset, **settings},
    )
]
if run_missing:
    records = pcdd.obtain(plans, runs_folder, data_folder or None, device or None)
else:
    records = pcdd.finished(plans, runs_folder)
print(f"{len(records)} of {len(plans)} runs have a record")
if len(records) < len(plans):
    options = f"--seeds {seeds} --runs {Path(runs_folder).resolve()}"
    options += "" if scale == "paper" else f" --scale {scale}"
    options += "" if dataset == "mnist" else f" data.name={dataset}"
    print(f"`pcdd sweep table1 {options}`, then the same with table2, makes those of the tables")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
results = []  # sentences computed below, shown together at the end


def say(sentence):
    results.append(sentence)
    print(sentence)


def in_words(values, digits=1):
    """Mean ± standard deviation over seeds."""
    values = pd.Series(values, dtype=float).dropna()
    if values.empty:
        return "no score"
    spread = f" ± {values.std(ddof=0):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


columns = ["distance", "layers", "backend", "seed", "standard", "paper", "gradient"]
rows, measured = [], []
for record in records:
    network, objective = record["config"]["network"], record["config"]["objective"]
    kind = {"distance": objective["distance"].replace("_", " "), "layers": network["layers"]}
    kind["seed"] = record["config"]["seed"]
    logged = record.get("mean_absolute_gradient_as_logged", record.get("mean_absolute_gradient"))
    scores = {protocol: score["mean"] for protocol, score in record["scores"].items()}
    about = {"backend": network["name"], "gradient": logged, "clouds": record["clouds_file"]}
    rows.append(kind | about | scores)
    found = record.get("second_derivatives", {})
    if "missed" in found:
        about = {"source": f"these runs, {objective['real_batch']} real clouds"}
        about |= {"by layer": found["layers"], "missed": found["missed"]}
        measured.append(kind | about | {"cosine": found["cosine"]})
runs = pd.DataFrame(rows, columns=[*columns, "clouds"])
print(f"{len(measured)} of them on MinkowskiEngine, each with a measurement of what it misses")

# %% [markdown]
# ## 4. How much is missing
#
# Measured at the scatter that a run starts from. `sparse`, with the same weights, returns the true
# gradient $v$ of all coordinates; MinkowskiEngine returns $u$.
#
# $$\text{missing} = \frac{\lVert v - u \rVert}{\lVert v \rVert}, \qquad
# \text{cosine} = \frac{u \cdot v}{\lVert u \rVert \lVert v \rVert} .$$
#
# Each run on MinkowskiEngine measures this once. `figures/missed_gradient.py` measures it for all
# depths in minutes, on fewer real clouds, and again at the clouds by which a run is scored; its
# record is in the repository.
#
# > **Predict, then run.** Suppose that the head has the longest gradient. Which distance loses
# > more, sum of squares or layerwise cosine?
# >
# > $$\frac{\partial}{\partial g}\lVert g - \hat g\rVert^2 = 2\,(g - \hat g), \qquad
# > \frac{\partial}{\partial g}\big(1 - \cos(g, \hat g)\big)
# > = -\frac{1}{\lVert g\rVert}\Big(\frac{\hat g}{\lVert\hat g\rVert}
# > - \cos(g, \hat g)\,\frac{g}{\lVert g\rVert}\Big) .$$
#
# <details><summary>Answer</summary>
#
# The cosine. Sum of squares weights a layer by the size of its gradient, so the head rules, and the
# head keeps its graph. A cosine is taken per row of weights and does not grow with the row's
# gradient: the many rows of the convolutions count, and their terms are lost.
#
# </details>

# %% jupyter={"source_hidden": true} tags=["hide-input"]
AT_END = "the same, at the scored clouds"
kept = Path(str(files("pcdd_core"))).parent / "figures" / "missed-gradient.json"
if kept.is_file():
    record = json.loads(kept.read_text())
    for row in record["rows"]:
        batch = record["configs"][row["name"]]["objective"]["real_batch"]
        source = f"missed_gradient.py, {batch} real clouds"
        about = {"source": source if row["moment"] == "start" else AT_END, "seed": row["seed"]}
        about |= {"distance": distances[row["distance"]], "by layer": row["layers"]}
        about["layers"] = int(row["name"].split("-")[2])
        measured.append(about | {key: row[key] for key in ("missed", "cosine")})
else:
    print(f"{kept} is not here; it comes with a checkout of the repository")
columns = ["source", "distance", "layers", "seed", "missed", "cosine", "by layer"]
measured = pd.DataFrame(measured, columns=columns)
lines = {}
for (source, distance, layers), group in measured.groupby(["source", "distance", "layers"]):
    lines[distance, layers, source] = {
        "missing, %": in_words(100 * group["missed"]),
        "cosine to the true gradient": in_words(group["cosine"], 4),
        "seeds": len(group),
    }
pd.DataFrame(lines).T.sort_index() if lines else print("nothing was measured")

# %%
from_file = measured[measured.source.str.startswith("missed_gradient.py")]
at_end = measured[measured.source == AT_END]
best = from_file if len(from_file) else measured  # all depths, or what there is
for when, frame in (("at the start", best), ("at the scored clouds", at_end)):
    for distance in distances.values():
        missed = 100 * frame[frame.distance == distance].missed
        if len(missed):
            say(
                f"Missing under {distance}, {when}: {missed.min():.1f} to {missed.max():.1f} % of "
                f"the gradient ({len(missed)} measurements)."
            )

# %% [markdown]
# **Layer by layer.** Blue: the size of what comes through a layer, as a share of the whole true
# gradient (lengths of vectors, so shares need not add up to 1). Red: what MinkowskiEngine drops of
# it.

# %%
figure, panels = plt.subplots(2, 3, figsize=(11, 5), layout="constrained", sharey=True)
for row, distance in zip(panels, distances.values()):
    for panel, layers in zip(row, depths):
        found = best[(best.distance == distance) & (best.layers == layers)]["by layer"]
        panel.set(title=f"{distance}, {layers} layers", ylim=(0, 1.05))
        if found.empty:
            continue
        names = sorted(found.iloc[0], key=lambda name: (name == "head", name))  # as points pass
        share = np.array([[seed[name]["share"] for name in names] for seed in found])
        dropped = share * [[seed[name]["missed"] for name in names] for seed in found]
        place = np.arange(len(names))
        style = {"yerr": share.std(0), "color": "#7fa6d6", "label": "of the true gradient"}
        panel.bar(place - 0.2, share.mean(0), 0.4, **style)
        style = {"yerr": dropped.std(0), "color": "tab:red", "label": "dropped"}
        panel.bar(place + 0.2, dropped.mean(0), 0.4, **style)
        panel.set_xticks(place, [name.replace("convolution", "conv") for name in names])
    row[0].set_ylabel("size, as a share of\nthe whole true gradient")
if len(best):
    panels[0, 0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## 5. Measure it here
#
# One function measures it, in seconds: here on scikit-learn's digits, which need no files.

# %%
try:
    on_the_spot = {}
    for distance, text in distances.items():
        smaller = {"data.name": "digits", "objective.real_batch": 16}
        config = pcdd.override(pcdd.preset(f"paper-minkowski-2-{distance}-small").config, smaller)
        train = config.data.load().train
        found = pcdd.missed_gradient(config.method, train, config.start(train))
        on_the_spot[text] = {
            "missing, %": round(100 * found["missed"], 1),
            "cosine to the true gradient": round(found["cosine"], 4),
            "gradients without a graph": ", ".join(found["gradients_without_graph"]),
        }
    spot = pd.DataFrame(on_the_spot).T
except pcdd.InputError as error:  # MinkowskiEngine is not installed: the message says how to get it
    print(error)
    spot = None
spot

# %% [markdown]
# ## 6. Does it change the result?
#
# A `sparse` run starts from the same scatter and the same weights as the MinkowskiEngine run of its
# seed. So compare the two seed by seed. The difference is accuracy with all terms minus accuracy
# without, mean ± standard error over pairs, in points of percent. A positive number means that the
# missing terms cost accuracy.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
comparable = scale == "paper" and dataset == "mnist"  # else the paper's figures do not apply
protocols = ("standard", "paper")
lines, pairs = {}, []
for distance, short in zip(distances.values(), distances):
    for layers in depths:
        group = runs[(runs.distance == distance) & (runs.layers == layers)].set_index("seed")
        without, full = (group[group.backend == backend] for backend in backends)
        stated = pcdd.PRESETS[f"paper-minkowski-{layers}-{short}"].paper_accuracy
        line = {"the paper's figure": comparable and stated or ""}
        for protocol in protocols:
            one, other = (frame[protocol].astype(float) for frame in (without, full))
            gain = (other - one).dropna()
            error = f" ± {gain.sem():.1f}" if len(gain) > 1 else ""
            line[f"minkowski, {protocol}"] = in_words(one)
            line[f"sparse, {protocol}"] = in_words(other)
            words = f"{gain.mean():+.1f}{error} ({len(gain)})" if len(gain) else "no pair"
            line[f"difference, {protocol}"] = words
            if len(gain) and protocol == "paper":
                say(f"All terms, {distance}, {layers} layers: {words} points (pairs).")
                pairs += [(distance, one[seed], other[seed]) for seed in gain.index]
        lines[distance, layers] = line
pd.DataFrame(lines).T

# %% [markdown]
# **The same pairs as a picture.** One mark per seed. On the dotted line the missing terms make no
# difference. Compare the distance from the line with the spread along it, which is the seed's.

# %%
figure, panel = plt.subplots(figsize=(4.2, 3.6), layout="constrained")
for distance, colour in zip(distances.values(), ("tab:blue", "tab:orange")):
    marks = [(one, other) for kind, one, other in pairs if kind == distance]
    if marks:
        panel.plot(*zip(*marks), "o", color=colour, label=distance)
panel.axline((10, 10), slope=1, color="grey", ls=":")
panel.set(xlabel="minkowski, accuracy in %", ylabel="sparse, accuracy in %")
panel.set_title("paper protocol" if pairs else "no pair of records")
if pairs:
    panel.legend(frameon=False)
plt.show()

# %%
gains = [other - one for kind, one, other in pairs if kind == "sum of squares"]
gains = pd.Series(gains, dtype=float)
scores = runs[(runs.distance == "sum of squares") & (runs.backend == "minkowski")]
spread = scores.groupby("layers")["paper"].agg(lambda values: values.astype(float).std(ddof=0))
spread = spread[scores.groupby("layers").size() > 1].max()
if len(gains) and pd.notna(spread):
    size = "smaller" if gains.abs().mean() < spread else "not smaller"
    say(
        f"Sum of squares: the missing terms change a score by {gains.abs().mean():.1f} points on "
        f"average, {size} than the standard deviation over seeds ({spread:.1f}, the largest one)."
    )
else:
    print("needs pairs of records, and two seeds of a depth")

# %% [markdown]
# ## 7. Does it change the gradient?
#
# Table 2 of the paper gives the mean absolute gradient of the coordinates, averaged over iterations
# 0, 100, ..., 1,200: 0.033 for sum of squares, 4e-4 for layerwise cosine. The last column divides
# one by the other. Compare `minkowski` with `sparse`, which has the terms of section 4.

# %%
gradients = runs.astype({"gradient": float}).pivot_table(
    index=["layers", "backend"], columns="distance", values="gradient"
)
gradients = gradients.reindex(columns=list(distances.values()))
if comparable:
    gradients.loc[(2, "minkowski, the paper"), :] = [0.033, 4e-4]
gradients["ratio"] = gradients["sum of squares"] / gradients["layerwise cosine"]
table = gradients.sort_index()
for backend in backends:
    if (2, backend) in table.index and pd.notna(table.loc[(2, backend), "ratio"]):
        ratio = table.loc[(2, backend), "ratio"]
        say(f"Gradients, {backend}, 2 layers: sum of squares has {ratio:.0f} times the cosine's.")
table.map(lambda value: f"{value:.3g}" if pd.notna(value) else "no record")

# %% [markdown]
# ## 8. Do the points end elsewhere?
#
# Both runs of a pair start from the same scatter, so each point has a twin. The table gives, in
# cells, the mean distance of the points from their start, and of the twins from each other, for
# pairs whose clouds are kept.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
apart = {}
for (distance, layers), group in runs.dropna(subset=["clouds"]).groupby(["distance", "layers"]):
    for seed, pair in group.groupby("seed"):
        if set(pair.backend) == set(backends):
            ends = pair.set_index("backend").clouds.map(pcdd.load_clouds)
            config = next(
                plan.config
                for plan in plans
                if plan.config.network.layers == layers
                and plan.config.objective.distance.__name__.replace("_", " ") == distance
                and plan.config.seed == seed
            )
            start = config.start(ends["sparse"]).coordinates
            at = {backend: ends[backend].coordinates for backend in backends}
            ways = {f"moved, {name}": at[name] - start for name in backends}
            ways["twins apart"] = at["minkowski"] - at["sparse"]
            apart[distance, layers, seed] = {
                name: way.norm(dim=1).mean().item() for name, way in ways.items()
            }
table = pd.DataFrame(apart).T
if len(table):
    table.index.names = ["distance", "layers", "seed"]
    means = table.groupby(["distance", "layers"]).mean()
    for (distance, layers), row in means.iterrows():
        say(
            f"Points, {distance}, {layers} layers: they move {row.iloc[0]:.1f} cells, twins end "
            f"{row['twins apart']:.1f} cells apart."
        )
table.round(2) if len(table) else print("no pair of sets is here")

# %% [markdown]
# ## Results
#
# How to read them: the missing terms can explain the depths of Table 1 only if much is missing
# under sum of squares and the pairs of runs differ. They can explain the small gradients of the
# cosine in Table 2 only as far as `sparse` has larger ones.

# %%
print("\n".join(f"- {sentence}" for sentence in results) or "no record yet: nothing to say")
