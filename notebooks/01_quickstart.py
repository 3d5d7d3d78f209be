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
# # Quickstart: from random scatter to digits
#
# Thousands of point clouds are distilled into a few. Nobody draws a point and no real cloud is copied. Points start at
# random places. Each iteration moves every point by a fraction of a cell, until a network sees the same features in
# the few clouds as in the many.
#
# This notebook shows the motion, then what moves the points, then what the result is worth: classifiers that have seen
# only the few clouds are tested on real data. The same classifiers are trained on real clouds of the same size.

# %% tags=["parameters"]
preset = "demo"  # see `pcdd presets`; every setting comes from there
dataset = "digits"  # "digits": embedded in scikit-learn, needs no files; "mnist": the paper's
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty means PCDD_DATA, else a download
settings = {}  # any setting changed, for instance {"schedule.iterations": 100}
seeds = 3  # distillations with different random numbers; scores are means over them
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one
output = "runs/quickstart"  # the run folder; an earlier quickstart in it is replaced

# %%
import json
import time

import matplotlib.pyplot as plt
import pandas as pd
import torch

import pcdd_core as pcdd

# %matplotlib inline
started = time.monotonic()

# %% [markdown]
# ## 1. Points on the move
#
# The next cell distils the data with seed 0. Then press play, or drag the slider through time. Without a browser
# (papermill, nbconvert) a picture replaces the player: time runs downwards.

# %%
base = pcdd.override(pcdd.preset(preset).config, {"data.name": dataset, **settings})
place = {"data": data_folder or None, "device": device or None}


def distilled_with(seed):
    """Distil and score with this seed. Returns the run folder: `output` for seed 0."""
    folder = output if seed == 0 else f"{output}/seed-{seed}"
    return pcdd.run(pcdd.override(base, {"seed": seed}), preset, folder=folder, overwrite=True, **place)


folder = distilled_with(0)
recording = pcdd.read_recording(folder)
pcdd.save_player(recording, folder / "migration.html")
pcdd.show(recording)

# %% [markdown]
# ## 2. Where they went: real data as clouds
#
# An image becomes a set of occupied cells, those brighter than a threshold $t$:
#
# $$P = \{(0, y, x) : I_{yx} > t\}$$
#
# Each cell is one point with the coordinates depth, height and width. Depth is 0 for images. The axis exists so that
# the same code works for shapes in three dimensions. The picture shows one real cloud per class, drawn at random.

# %%
real = pcdd.load_data(base.data, data_folder or None)
print(f"{len(real.train)} clouds to learn from, {len(real.validation)} to choose settings by, {len(real.test)} to test on")
pcdd.figures.gallery(pcdd.Random().choose(real.train, seed=0))

# %% [markdown]
# ## 3. What moves them
#
# Let $\varphi$ be the features of a new random network, $R$ the real and $S$ the synthetic clouds of a class. The loss is
# the squared maximum mean discrepancy with a kernel $k$ (a mean of Gaussians):
#
# $$L = \underbrace{\overline{k(\varphi(s), \varphi(s'))}}_{\text{synthetic clouds repel each other}}
#   - 2 \underbrace{\overline{k(\varphi(s), \varphi(r))}}_{\text{real clouds attract them}} + \overline{k(\varphi(r), \varphi(r'))}$$
#
# The bars are means over $s, s' \in S$ and $r, r' \in R$. The gradient $\partial L / \partial p$ is the force on the point $p$. The network sees
# each point as a Gaussian spot, wide at first and narrow at the end, so a point feels where it should go before it gets there.
#
# This is a simpler relative of the paper's loss, which compares gradients of a network in place of its features.

# %%
steps = pd.read_json(folder / "steps.jsonl", lines=True)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
left.plot(steps.iteration, steps.matching_loss.apply(sum))
left.set(xlabel="iteration", ylabel="loss, all classes")
right.plot(steps.iteration, steps.mean_absolute_displacement)
right.set(xlabel="iteration", ylabel="mean displacement in cells");

# %% [markdown]
# ## 4. What the clouds are worth
#
# One number measures a set: the accuracy on the test images of classifiers that are trained on this set only. Every set
# here trains the same classifiers in the same way. The settings were chosen on the validation split, not on the test images.
#
# What is a fair opponent? A set costs points, and it costs bytes. The bytes of a cloud are those of its bitmap or of the
# list of its occupied cells, whichever is smaller (`packed_bytes`; on 28 × 28 cells 98 bytes, or 10 bits per cell). Real
# clouds get both budgets:
#
# - **equal points**: as many real clouds, each thinned at random to as many points,
# - **equal bytes**: whole real clouds, as many as fit, rounded up.
#
# Each budget is filled with real clouds drawn at random, those chosen by herding (their mean is close to the class mean), and
# the class mean itself: the cells that a class occupies most often. There is only one class mean, whole or thinned.

# %%
distilled = pcdd.load_clouds(folder / "clouds.npz")
classes = len(distilled.class_names)
clouds_per_class = len(distilled) // classes
mean_clouds = pcdd.ClassMean().choose(real.train, seed=0)
whole_per_class = -(-int(pcdd.packed_bytes(distilled).sum()) // int(pcdd.packed_bytes(mean_clouds).sum()))


def opponents(seed):
    """Return the real sets of this seed by name."""
    thin = lambda clouds: pcdd.resampled(clouds, distilled.sizes.tolist(), torch.Generator().manual_seed(seed))
    choose = lambda kind, count: kind(count).choose(real.train, seed)
    return {
        "random": thin(choose(pcdd.Random, clouds_per_class)),
        "herding": thin(choose(pcdd.Herding, clouds_per_class)),
        "class_mean": thin(mean_clouds.select(distilled.labels)),
        "random_whole": choose(pcdd.Random, whole_per_class),
        "herding_whole": choose(pcdd.Herding, whole_per_class),
        "class_mean_whole": mean_clouds,
    }


pcdd.figures.gallery(opponents(0)["random"], columns=2 * clouds_per_class, most=4 * clouds_per_class)

# %% [markdown]
# The picture shows real clouds thinned at random, of two classes to a row. Below are the distilled clouds of the same
# classes, with the same number of points.

# %%
pcdd.figures.gallery(distilled, columns=2 * clouds_per_class, most=4 * clouds_per_class)

# %% [markdown]
# Chance plays a part in a distillation, in a draw of real clouds, and in a classifier. So everything is repeated with
# other seeds. `±` is the standard deviation over seeds.

# %%
test, where = getattr(real, base.evaluation.split), device or ("cuda" if torch.cuda.is_available() else "cpu")
accuracy, size = {}, {}
for seed in range(seeds):
    own = folder if seed == 0 else distilled_with(seed)
    accuracy.setdefault("distilled", []).append(pcdd.read_record(own)["scores"]["standard"]["mean"])
    size["distilled"] = distilled
    for name, clouds in opponents(seed).items():
        score = pcdd.override(base, {"seed": seed}).evaluate(clouds, test, where)["standard"]
        accuracy.setdefault(name, []).append(score.mean)
        size.setdefault(name, clouds)  # sizes of seed 0
accuracy = pd.DataFrame(accuracy)
table = pd.DataFrame(
    {
        "clouds": {name: len(clouds) for name, clouds in size.items()},
        "points": {name: len(clouds.coordinates) for name, clouds in size.items()},
        "bytes": {name: int(pcdd.packed_bytes(clouds).sum()) for name, clouds in size.items()},
        "accuracy, %": {name: f"{accuracy[name].mean():.1f} ± {accuracy[name].std(ddof=0):.1f}" for name in accuracy},
        "distilled is higher in": {
            name: f"{(accuracy['distilled'] > accuracy[name]).sum()} of {seeds} seeds" for name in accuracy if name != "distilled"
        },
    }
).fillna("")
table

# %% [markdown]
# In words, from the numbers above. A difference counts only if it has the same sign in every seed.

# %%
WORDS = {
    "random": "real clouds at random",
    "herding": "real clouds by herding",
    "class_mean": "the class mean",
}


def compared(name):
    """Return "above", "below" or "undecided against": the distilled set against the set `name` over all seeds."""
    gains = accuracy["distilled"] - accuracy[name]
    return "above" if (gains > 0).all() else "below" if (gains < 0).all() else "undecided against"


def sentence(budget, suffix):
    """Say how the distilled set compares with the real sets of one budget."""
    parts = [
        f"{compared(name + suffix)} {words} ({accuracy['distilled'].mean() - accuracy[name + suffix].mean():+.1f})"
        for name, words in WORDS.items()
    ]
    return f"{budget}: the distilled set is {', '.join(parts)}."


equal_points = sentence(f"Equal points ({len(distilled.coordinates)})", "")
equal_bytes = sentence(f"Whole real clouds, {whole_per_class} per class (class mean: 1)", "_whole")
print(equal_points, equal_bytes, sep="\n")

# %% [markdown]
# ## 5. What is kept
#
# The folder holds the distilled set, its record, and a page that plays the motion in any browser.

# %%
summary = {name: round(accuracy[name].mean(), 2) for name in accuracy}
summary |= {f"{name}_sd": round(accuracy[name].std(ddof=0), 2) for name in accuracy}
summary |= {"points": int(table.points["distilled"]), "bytes": int(table.bytes["distilled"])}
summary |= {f"{name}_bytes": int(table.bytes[name]) for name in table.index if name != "distilled"}
summary |= {"seeds": seeds, "scored_on": pcdd.read_record(folder)["scored_on"], "seconds": round(time.monotonic() - started, 1)}
(folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
print(f"{len(distilled)} clouds of {distilled.sizes[0]} points from scatter teach {table['accuracy, %']['distilled']} % ({summary['scored_on']}, {seeds} seeds).")
print(equal_points)
print(equal_bytes)
print(f"Play the motion: {(folder / 'migration.html').resolve()}")
print(f"Numbers: {folder / 'summary.json'}, {summary['seconds']:.0f} s in all. Next: notebooks/03_point_migration.ipynb (make lab).")

# %% [markdown]
# **The paper's budget, one cloud per class**, is one line in the parameters cell:
#
# `settings = {"clouds.clouds_per_class": 1, "clouds.points_per_cloud": 164, "lift.saturation": 3.0, "schedule.iterations": 240}`
#
# A digit of this data set has about 164 occupied cells, so this set has the points and the bytes of one real cloud per
# class. Compare its table with the one above: the same points, in one cloud and in four.
