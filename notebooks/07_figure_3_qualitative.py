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
# # Figure 3: what the distilled digits look like
#
# The paper's Figure 3 shows its distilled clouds as images: those through PyTorch's layers above,
# those through MinkowskiEngine's below. Three features stand out:
#
# 1. **blobs** of points in the upper left corner,
# 2. digits **displaced** to the upper left,
# 3. more **noise** in MinkowskiEngine's digits.
#
# This notebook shows the same sets from our records, measures the three features, and derives the
# first two from what the network computes. By default it reads records and runs nothing.

# %% tags=["parameters"]
scale = "paper"  # "paper": the paper's own; "small": a smoke run whose scores mean nothing
run_missing = False  # True: also run what has no record, about 20 minutes each on one core
seeds = 5  # runs behind each score; the pictures are those of seed 0
dataset = "mnist"  # the records kept in the repository are of it; "digits" needs no files
data_folder = ""  # for mnist: the folder that holds MNIST/raw; empty: PCDD_DATA, else a download
settings = {}  # any setting changed in every run, for instance {"schedule.iterations": 100}
runs_folder = ""  # for finished and new runs; empty: PCDD_RUNS, else runs/ of the checkout
device = ""  # "cpu", "cuda", ...; empty means the GPU if there is one

# %%
import os
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
# ## 1. The records
#
# The rows of the figure, from top to bottom:
#
# - **PyTorch, 3 layers** and **MinkowskiEngine, 2 layers**: the best depths in the paper's Table 1.
# - **sparse, 2 layers**: MinkowskiEngine's network with all second derivatives.
# - **ours**: another lift, which gives a point gradients towards the cells around it.
# - **real**: a real cloud per class, drawn at random.
#
# The experiment `why` adds a control: MinkowskiEngine's network without the origin shift of
# section 3.

# %%
rows = {
    "paper-torch-3-sum-of-squares": "PyTorch, 3 layers",
    "paper-minkowski-2-sum-of-squares": "MinkowskiEngine, 2 layers",
    "paper-sparse-2-sum-of-squares": "sparse, 2 layers",
    "gaussian": "ours",
    "random-1": "real",
}
NO_SHIFT = "MinkowskiEngine, no shift"
changed = {"data.name": dataset, **settings}


def control(config):
    """MinkowskiEngine's network without norm and shift, else as in the paper."""
    network, schedule = config.network, config.schedule
    fixed = network.norm == "none" and schedule.iterations_per_network == 0
    return network.name == "minkowski" and fixed and not network.origin_shift


chosen = {"table1": [], "why": []}
for plan in pcdd.experiment("table1", scale, seeds, changed):
    if plan.name.removesuffix("-small") in rows:
        chosen["table1"].append(plan)
chosen["why"] = [c for c in pcdd.experiment("why", scale, seeds, changed) if control(c.config)]

records = []
options = f"--seeds {seeds} --runs {Path(runs_folder).resolve()}"
options += "" if scale == "paper" else f" --scale {scale}"
options += "" if dataset == "mnist" else f" data.name={dataset}"
for name, plans in chosen.items():
    if run_missing:
        found = pcdd.obtain(plans, runs_folder, data_folder or None, device or None)
    else:
        found = pcdd.finished(plans, runs_folder)
    missing = f"; `pcdd sweep {name} {options}` makes them" if len(found) < len(plans) else ""
    print(f"{name}: {len(found)} of {len(plans)} records{missing}")
    records += found

# %% jupyter={"source_hidden": true} tags=["hide-input"]
results = []  # sentences computed below, shown together at the end


def say(sentence):
    results.append(sentence)
    print(sentence)


def label(record):
    text = rows[record["name"].removesuffix("-small")]
    without = text.startswith("Minkowski") and not record["config"]["network"]["origin_shift"]
    return NO_SHIFT if without else text


sets = {text: {} for text in [*rows.values(), NO_SHIFT]}  # seed -> clouds, as far as they are kept
for record in records:
    if record["clouds_file"]:
        clouds = pcdd.load_clouds(record["clouds_file"])
        sets[label(record)][record["config"]["seed"]] = clouds
sets = {text: by_seed for text, by_seed in sets.items() if by_seed}
nothing = "" if sets else "no record with clouds is here, so there is nothing to show"
everything = dict(sets)  # and the scatter that runs begin with
if sets:
    template = next(iter(next(iter(sets.values())).values()))
    start = chosen["table1"][0].config.start(template)
    everything["even scatter"] = {0: start}
print(nothing or f"sets: {'; '.join(f'{text} ({len(kept)})' for text, kept in sets.items())}")

# %% [markdown]
# ## 2. The figure
#
# A pixel is black if at least one point lies in it. Classifiers learn from these images. Look for
# the three features: corner, displacement, noise.

# %%
shown = {text: by_seed[min(by_seed)] for text, by_seed in sets.items() if text != NO_SHIFT}
if shown:
    names = next(iter(shown.values())).class_names
    size = (1.1 * len(names) + 2, 1.15 * len(shown) + 0.2)
    figure, panels = plt.subplots(
        len(shown), len(names), figsize=size, layout="constrained", squeeze=False
    )
    for row, (text, clouds) in zip(panels, shown.items()):
        for panel, image in zip(row, pcdd.project(clouds)[:, 0]):
            panel.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(text, rotation=0, ha="right", va="center", labelpad=8)
    for panel, name in zip(panels[0], names):
        panel.set_title(name)
    plt.show()
else:
    print(nothing or "only the control has clouds")

# %% [markdown]
# **The paper's words** (section 4.2): PyTorch's digits have the better overall quality and capture
# the geometry of the class; MinkowskiEngine's suffer from more noise; key features of some digits,
# the 8 for example, are missed in both.

# %% [markdown]
# ## 3. The displacement: the origin shift
#
# The paper's code turns sparse batches into dense maps. A map starts at the smallest occupied cell
# of the **whole batch**:
#
# $$x \;\mapsto\; x - \min_{\text{batch}} x \qquad\text{(rows and columns)}.$$
#
# PyTorch's network does so before its first convolution, MinkowskiEngine's after its last pooling,
# where cells are $s = 2^L$ wide ($L$ layers). There the shift is a multiple of $s$:
#
# $$s\,\Big\lfloor \frac{\min_{\text{batch}} x}{s} \Big\rfloor .$$
#
# > **Predict, then run.** A batch of real digits starts a few cells from the border. A scattered
# > cloud starts at 0. Where do the distilled digits lie? Does the shift move every digit of
# > MinkowskiEngine's ($L = 2$)?
#
# <details><summary>Answer</summary>
#
# To the upper left. The network sees the real digits moved to the origin and the synthetic ones
# unmoved. So synthetic points imitate a digit that lies higher and further to the left.
#
# MinkowskiEngine's network with 2 layers ignores shifts of less than 4 cells. Only those classes
# move whose batches begin at row or column 4 or later. The table shows which.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def training_clouds():
    """The real clouds, or None if MNIST is not on this machine: nothing is downloaded here."""
    folder = Path(data_folder or os.environ.get("PCDD_DATA") or "~/.cache/pcdd").expanduser()
    if dataset == "mnist" and not (folder / "MNIST" / "raw").is_dir():
        return None
    return chosen["table1"][0].config.data.load(folder).train


config = chosen["table1"][0].config  # real batches are the same for all networks
real, first = training_clouds(), None
if real is None:
    print("MNIST is not here, so the first rows and columns of its batches are not shown")
else:
    draws, begins = torch.Generator().manual_seed(0), []
    for digit in range(len(real.class_names)):
        members = (real.labels == digit).nonzero().flatten()
        for _ in range(8):
            order = torch.randperm(len(members), generator=draws)
            batch = real.select(members[order[: config.objective.real_batch]])
            begins.append(batch.coordinates.amin(0)[1:])
    first = torch.stack(begins).view(-1, 8, 2).numpy()  # class, batch, row and column
    table = pd.DataFrame(index=pd.Index(real.class_names, name="class"))
    for text, stride in (("PyTorch", 1), ("MinkowskiEngine, 2 layers", 4)):
        seen = first // stride * stride
        for axis, name in enumerate(("rows", "columns")):
            table[f"{text}: {name}"] = seen[:, :, axis].mean(1)
    moved = (table.iloc[:, 2:] > 0).any(axis=1).sum()
    say(
        f"Origin shift: real batches begin at rows and columns {first.mean(1).min():.1f} to "
        f"{first.mean(1).max():.1f} (class means); MinkowskiEngine's network with 2 layers moves "
        f"{moved} of {len(table)} classes in at least one of 8 batches."
    )
table.round(1).T if real is not None else None

# %% [markdown]
# **Measure it.** The centre of mass of a distilled digit minus that of its class, in cells.
# Occupied cells within 8 cells of (0, 0) do not count, because of the blob. A negative number means
# up or left. *Even scatter* is where all runs begin.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
AWAY = 8


def centre(images):
    """Row and column of the centre of mass outside the corner: (images, 2)."""
    row, column = torch.meshgrid(*map(torch.arange, images.shape[1:]), indexing="ij")
    weights = images * (torch.hypot(row.float(), column.float()) >= AWAY)
    moments = [(weights * place).sum((1, 2)) for place in (row, column)]
    return (torch.stack(moments, 1) / weights.sum((1, 2))[:, None]).numpy()


known = [real] if real is not None else list(sets.get("real", {}).values())
images, digits = [pcdd.project(clouds)[:, 0] for clouds in known], [c.labels for c in known]
displacement = {}  # set -> (seeds, classes, row and column)
if known:
    images, digits = torch.cat(images), torch.cat(digits)
    classes = [images[digits == digit].mean(0) for digit in digits.unique()]
    class_centres = centre(torch.stack(classes))
    for text, by_seed in everything.items():
        centres = [centre(pcdd.project(clouds)[:, 0]) for clouds in by_seed.values()]
        displacement[text] = np.stack(centres) - class_centres
    source = "all training clouds" if real is not None else "the real clouds on record"
    print(f"class means: of {source}")
table = pd.DataFrame(
    {text: np.nanmean(values, (0, 1)) for text, values in displacement.items()},
    index=["rows", "columns"],
).T
table["seeds"] = [len(everything[text]) for text in table.index]
table.round(2)

# %%
for text, (row, column, count) in table.iterrows():
    say(f"Displacement, {text}: {row:+.1f} rows, {column:+.1f} columns (seeds: {count:.0f}).")
if not displacement:
    print(nothing or "no real cloud is here to compare with")

# %% [markdown]
# **Does the origin shift predict it, class by class?** Predicted: first cell of the distilled cloud
# minus first cell of the real batches, in multiples of the stride. Each class gives two marks. On
# the dotted line the prediction is exact.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
strides = {"PyTorch, 3 layers": 1, "MinkowskiEngine, 2 layers": 4, "sparse, 2 layers": 4}
compared = [text for text in strides if text in displacement] if first is not None else []
if compared:
    figure, panels = plt.subplots(
        1, len(compared), figsize=(3.4 * len(compared), 3.3), layout="constrained", squeeze=False
    )
    for panel, text in zip(panels[0], compared):
        stride, predicted = strides[text], []
        for clouds in sets[text].values():
            own = np.stack([clouds[c].amin(0)[1:].numpy() for c in range(len(clouds))])
            predicted.append(own // stride * stride - (first // stride * stride).mean(1))
        x, y = np.stack(predicted), displacement[text]
        for axis, (name, mark) in enumerate((("rows", "o"), ("columns", "s"))):
            panel.plot(x[..., axis].ravel(), y[..., axis].ravel(), mark, ms=4, label=name)
        panel.axline((0, 0), slope=1, color="grey", ls=":")
        panel.set(title=text, xlabel="predicted, cells")
        there = np.isfinite(y)
        if x[there].std() > 0 and y[there].std() > 0:
            correlation = np.corrcoef(x[there], y[there])[0, 1]
            say(f"Predicted and measured displacement, {text}: correlation {correlation:.2f}.")
    panels[0, 0].set_ylabel("measured, cells")
    panels[0, -1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()
else:
    print(nothing or "needs the data set and a set of the paper's networks")

# %% [markdown]
# ## 4. The blobs: points with features of zero
#
# The coordinates of a point are its features, $f_p = x_p$. Its cell is the floor of $x_p$ and has
# no derivative. So the matching loss $\mathcal{L}$ moves a point through its features only:
#
# $$x_p \;\leftarrow\; x_p - \eta\,\frac{\partial \mathcal{L}}{\partial f_p}, \qquad
# \text{and the network sees } W_k^{\top} f_p \text{ in every neighbouring cell } k .$$
#
# > **Predict, then run.** A cloud has more points than its digit needs. The network has no norm.
# > Where do the points go that the digit does not need?
#
# <details><summary>Answer</summary>
#
# To (0, 0). There $f_p = 0$, so $W_k^{\top} f_p = 0$ whatever the weights are: for the network the
# point is an empty cell. The loss cannot delete a point that disturbs, but it can let the point
# fade out on its way to the corner.
#
# </details>

# %%
if sets:
    figure, panels = plt.subplots(
        1, len(sets), figsize=(2.3 * len(sets) + 0.8, 2.7), layout="constrained", squeeze=False
    )
    for panel, (text, by_seed) in zip(panels[0], sets.items()):
        points = np.concatenate([clouds.coordinates.numpy() for clouds in by_seed.values()])
        count = sum(map(len, by_seed.values()))
        edges = [np.arange(cells + 1) for cells in next(iter(by_seed.values())).grid[1:]]
        density = np.histogram2d(points[:, 1], points[:, 2], edges)[0] / count
        drawn = panel.imshow(np.log10(density + 0.1), cmap="magma_r", vmin=-1, vmax=1)
        panel.set(title=text, xticks=[], yticks=[])
        panel.title.set_fontsize(9)
    bar = figure.colorbar(drawn, ax=panels, label="points per cell and cloud")
    bar.set_ticks(np.log10(np.array([0, 0.3, 1, 3]) + 0.1), labels=["0", "0.3", "1", "3"])
    plt.show()
else:
    print(nothing)

# %% [markdown]
# The share of points within 4 cells of (0, 0), and how many cells a cloud occupies.

# %%
NEAR = 4


def per_set(measure):
    """Mean over seeds of what `measure` says of a set of clouds."""
    return {
        text: np.mean([measure(clouds) for clouds in by_seed.values()])
        for text, by_seed in everything.items()
    }


corner = per_set(
    lambda clouds: 100 * (clouds.coordinates[:, 1:].norm(dim=1) < NEAR).float().mean().item()
)
counted = {
    "seeds": {text: len(by_seed) for text, by_seed in everything.items()},
    "points per cloud": per_set(lambda clouds: len(clouds.coordinates) / len(clouds)),
    "occupied cells per cloud": per_set(lambda c: pcdd.project(c).sum().item() / len(c)),
    f"points within {NEAR} cells of (0, 0), %": corner,
}
pd.DataFrame(counted).round(1)

# %%
for text in strides:
    if text in corner:
        say(
            f"Corner, {text}: {corner[text]:.0f} % of the points within {NEAR} cells of (0, 0), "
            f"{corner['even scatter']:.1f} % in even scatter."
        )

# %% [markdown]
# ## 5. The noise: cells on their own
#
# A stroke is connected. So count the occupied cells without an occupied neighbour (of 8). Cells
# within 8 cells of (0, 0) do not count.


# %%
def isolated(clouds):
    """Percent of the occupied cells outside the corner."""
    images = pcdd.project(clouds)
    around = torch.nn.functional.avg_pool2d(images, 3, 1, 1) * 9 - images
    row, column = torch.meshgrid(*map(torch.arange, images.shape[2:]), indexing="ij")
    occupied = (images > 0) & (torch.hypot(row.float(), column.float()) >= AWAY)
    return 100 * ((around < 0.5) & occupied).sum().item() / max(occupied.sum().item(), 1)


alone = per_set(isolated)
alone.pop("even scatter", None)  # so dense that few of its cells are alone
torch_row, minkowski_row = list(strides)[:2]
if {torch_row, minkowski_row} <= set(alone):
    is_noisier = "is" if alone[minkowski_row] > alone[torch_row] else "is not"
    say(
        f"Noise: {alone[minkowski_row]:.0f} % of MinkowskiEngine's cells are isolated, "
        f"{alone[torch_row]:.0f} % of PyTorch's: MinkowskiEngine {is_noisier} noisier."
    )
pd.DataFrame({"isolated cells, %": alone}).round(1)

# %% [markdown]
# ## 6. What the pictures are worth
#
# Accuracy in percent: mean ± standard deviation over seeds. The `paper` protocol augments the test
# images, as the paper's code does; `standard` leaves them as they are. Compare the paper's figures
# with `paper`.


# %%
def in_words(row, protocol):
    mean, deviation = row.get(protocol), row.get(f"{protocol} sd")
    if mean is None:
        return "no score"
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


comparable = scale == "paper" and dataset == "mnist"  # else the paper's figures do not apply
lines, scored = {}, {}
for text in [*rows.values(), NO_SHIFT]:
    own = [record for record in records if label(record) == text]
    if own:
        (row,) = pcdd.table(own)
        scored[text] = row.get("paper")
        lines[text] = {"seeds": row["seeds"]}
        lines[text] |= {protocol: in_words(row, protocol) for protocol in ("standard", "paper")}
        lines[text]["the paper's figure"] = comparable and row["paper's figure"] or ""
pd.DataFrame(lines).T if lines else print("no record")

# %%
figures = [pcdd.PRESETS[name].paper_accuracy for name in list(rows)[:2]]
ours = [scored.get(text) for text in (torch_row, minkowski_row)]
if comparable and None not in ours:
    same = (ours[0] < ours[1]) == (figures[0] < figures[1])
    say(
        f"Scores: PyTorch {ours[0]:.1f} %, MinkowskiEngine {ours[1]:.1f} %; the paper's "
        f"{figures[0]} and {figures[1]}. The order is {'the same' if same else 'the opposite'} "
        f"(seeds: {lines[torch_row]['seeds']} and {lines[minkowski_row]['seeds']})."
    )

# %% [markdown]
# ## Results
#
# All sentences that the cells above computed:

# %%
print("\n".join(f"- {sentence}" for sentence in results) or "no record yet: nothing to say")
