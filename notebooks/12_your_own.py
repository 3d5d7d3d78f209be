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
# # Your own objective, lift, network and data
#
# A run consists of pieces: data set, initial clouds, lift, network, objective, optimiser, schedule.
# Each piece is a small frozen class that holds its own settings. To add a piece, write a subclass
# with a name, in a cell or in your own module. The package does not change.
#
# Each section below adds one piece and uses it at once.

# %% tags=["parameters"]
iterations = 40  # updates of the coordinates in each section
seed = 0

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import pcdd_core as pcdd

# %matplotlib inline
pcdd.check_parameters()

# %% [markdown]
# ## The loop
#
# `distill` takes training clouds and initial clouds, and yields one step per iteration. Omitted
# pieces have defaults.

# %%
real = pcdd.load_data("digits")
start = pcdd.scatter(real.train, clouds_per_class=1, points=100, seed=seed)
schedule = pcdd.Schedule(iterations=iterations)


def distil(real, start, **pieces):
    """Return the last step of a short run."""
    *_, last_step = pcdd.distill(real.train, start, schedule=schedule, seed=seed, **pieces)
    return last_step


def draw(*steps, names):
    """Draw the first three classes of the clouds of each step."""
    _, axes = plt.subplots(len(steps), 3, figsize=(6, 2.1 * len(steps)), squeeze=False)
    for row, step, name in zip(axes, steps, names):
        _, height, width = step.clouds.grid
        for cloud, panel in zip(range(3), row):
            points = step.clouds[cloud]
            panel.plot(points[:, 2], points[:, 1], ".", markersize=3)
            panel.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
        row[0].set_ylabel(name)
    plt.show()


default_step = distil(real, start)

# %% [markdown]
# ## An objective
#
# An objective defines `loss`. The arguments of `loss` are the network and two batches, real and
# synthetic. `batch.inputs` are the lifted clouds. `network.features(inputs)` is the input of the
# linear head. This objective compares means and standard deviations of features:
#
# $$L = \sum_k (\mu_k - \mu_k^*)^2 + \lambda\, (\sigma_k - \sigma_k^*)^2$$
#
# $\mu$ and $\sigma$ belong to the synthetic clouds, $\mu^*$ and $\sigma^*$ to the real ones. The
# setting `strength` is $\lambda$ in the formula.
#
# > **Predict, then run.** The initial set has one cloud per class. How does the result depend on
# > `strength`?
#
# <details><summary>Answer</summary>
#
# It does not. The standard deviation of a single cloud is undefined, so the class omits the second
# term. To use it, pass `clouds_per_class=2` or more to `scatter`.
#
# </details>


# %%
class MeanAndSpread(pcdd.Objective, name="mean_and_spread"):
    strength: float = 1.0

    def loss(self, network, real, synthetic):
        target = network.features(real.inputs).detach()  # real clouds are constant
        features = network.features(synthetic.inputs)
        loss = (features.mean(0) - target.mean(0)).square().sum()
        if len(features) > 1:
            loss = loss + self.strength * (features.std(0) - target.std(0)).square().sum()
        return loss


step = distil(real, start, objective=MeanAndSpread(strength=0.5))
draw(default_step, step, names=["gradients", "means"])

# %% [markdown]
# The name now works everywhere: in settings, on the command line, in sweeps and in records. For the
# command line, put the class in a module and import it:
#
# ```
# pcdd distill --import my_module --preset gaussian objective.name=mean_and_spread
# ```

# %%
settings = {
    "data.name": "digits",
    "objective.name": "mean_and_spread",
    "objective.strength": 0.5,
    "schedule.iterations": 5,
    "evaluation.networks": 1,
    "evaluation.epochs": 20,
    "evaluation.classifier.width": 8,
    "evaluation.protocols": ["standard"],
}
config = pcdd.override(pcdd.preset("gaussian").config, settings)
folder = pcdd.run(config, "gaussian", Path(tempfile.mkdtemp()) / "mine", device="cpu")
record = pcdd.read_record(folder)
accuracy = record["scores"]["standard"]["mean"]
print(f"record of objective {record['config']['objective']['name']}: {accuracy:.1f} %")

# %% [markdown]
# ## A lift
#
# A lift converts clouds to inputs of a network. The conversion is differentiable in the
# coordinates. `progress` increases from 0 to 1 over the run. This lift converts every point to a
# disc with a soft edge. Its output is a grid of cells.
#
# > **Predict, then run.** A point lies exactly in the centre of a cell. What happens without the
# > term `1e-6`?
#
# <details><summary>Answer</summary>
#
# The distance is 0. There the slope of the square root is infinite, and the slope of the square is
# 0. Their product is not a number, and the run stops with an error.
#
# </details>


# %%
class Discs(pcdd.Lift, name="discs"):
    radius_start: float = 3.0
    radius_end: float = 0.8

    def __call__(self, clouds, progress=1.0, real=False):
        radius = self.radius_start + (self.radius_end - self.radius_start) * progress
        points, present = pcdd.lifts.padded_coordinates(clouds)
        rows, columns = (torch.arange(cells) + 0.5 for cells in clouds.grid[1:])
        height, width = points[..., 1, None, None], points[..., 2, None, None]
        distance = ((rows[:, None] - height) ** 2 + (columns - width) ** 2 + 1e-6).sqrt()
        inside = torch.sigmoid(4 * (radius - distance)) * present[..., None, None]
        return (1 - (1 - 0.99 * inside).prod(1))[:, None, None]  # (clouds, 1, depth, height, width)


objective = pcdd.DistributionMatching(real_batch=8)
step = distil(real, start, lift=Discs(), objective=objective)
draw(default_step, step, names=["Gaussians", "discs"])

# %% [markdown]
# ## A network
#
# A network piece defines `build`. `build` returns a module with a method `features` and a head.
# torch initialises the layers from a generator that depends on the seed of the run only. The global
# generator of torch keeps its state.


# %%
class Strided(nn.Module):
    def __init__(self, channels, width, classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 5, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.LazyLinear(classes)

    def features(self, grid):
        return self.body(grid[:, :, 0])  # without the depth axis

    def forward(self, grid):
        return self.head(self.features(grid))


class StridedNetwork(pcdd.Network, name="strided"):
    width: int = 16
    takes = ("grid",)

    def build(self, channels, grid, classes, generator):
        network = Strided(channels, self.width, classes)
        network(torch.zeros(1, channels, *grid))  # initialise the lazy head
        return network


step = distil(real, start, network=StridedNetwork(width=8))
draw(default_step, step, names=["default", "strided"])

# %% [markdown]
# ## Data: arrays
#
# A data set defines `load`. `load` returns three splits of clouds. `from_occupancy` converts images
# to clouds, from a boolean array (clouds, depth, height, width).


# %%
class SmallDigits(pcdd.DataSet, name="small_digits"):
    threshold_of_16: float = 6.0

    def load(self, folder=None):
        digits = load_digits()
        occupied = torch.from_numpy(digits.images > self.threshold_of_16)[:, None]
        clouds = pcdd.from_occupancy(occupied, torch.from_numpy(digits.target), "0123456789")
        index = torch.arange(len(clouds))
        is_test = index % 3 == 0
        train, test = clouds.select(index[~is_test]), clouds.select(index[is_test])
        return pcdd.Splits.held_out(train, test, self.validation_fraction)


small_digits = pcdd.load_data(SmallDigits(threshold_of_16=8.0))
start = pcdd.scatter(small_digits.train, points=16, seed=seed)
network = pcdd.GridNetwork(layers=2)
step = distil(small_digits, start, network=network, objective=objective)
draw(step, names=["8 x 8 cells"])

# %% [markdown]
# ## Data: a torch data set
#
# To convert any torch data set of (points, label), use two functions. `into_grid` shifts and scales
# each cloud to fit the grid. `clouds_from_list` collects the clouds. The clouds may have different
# numbers of points.


# %%
class Rings(pcdd.DataSet, name="rings"):
    points: int = 60

    def load(self, folder=None):
        generator = np.random.default_rng(0)
        angle, label = generator.uniform(0, 2 * np.pi, (300, self.points)), np.arange(300) % 2
        # circles, and shapes with three leaves
        radius = 1 + 0.4 * label[:, None] * np.cos(3 * angle)
        flat = np.stack([0 * angle, radius * np.sin(angle), radius * np.cos(angle)], -1)
        dataset = TensorDataset(torch.from_numpy(flat), torch.from_numpy(label))
        grid, names = (1, 16, 16), ("circle", "leaf")
        in_grid = [pcdd.into_grid(points, grid) for points, _ in dataset]
        labels = [int(label) for _, label in dataset]
        clouds = pcdd.clouds_from_list(in_grid, labels, grid, names)
        train = clouds.select(torch.arange(200))
        test = clouds.select(torch.arange(200, 300))
        return pcdd.Splits.held_out(train, test, self.validation_fraction)


rings = pcdd.load_data("rings")
start = pcdd.scatter(rings.train, clouds_per_class=2, points=40, seed=seed)
step = distil(rings, start, network=network, objective=objective)
draw(step, names=["rings"])

# %% [markdown]
# ## Data: a folder
#
# `pcdd.Folder` reads a folder with one folder per class. Files are meshes or lists of points
# (`.off .ply .xyz .txt .npy .npz`). Folders `train` and `test`, if present, are the splits.

# %%
root = Path(tempfile.mkdtemp())
generator = np.random.default_rng(1)
for class_name, stretch in (("ball", 1.0), ("egg", 2.0)):
    (root / class_name).mkdir()
    for number in range(12):
        direction = generator.normal(size=(200, 3))
        surface = direction / np.linalg.norm(direction, axis=1, keepdims=True) * [1, 1, stretch]
        np.savetxt(root / class_name / f"{number}.xyz", surface)
shapes = pcdd.load_data(pcdd.Folder(points=64, cells=12, folder=str(root)))
sizes = torch.bincount(shapes.train.labels).tolist()
counts = dict(zip(shapes.train.class_names, sizes))
print(f"training shapes: {counts}")

# %% [markdown]
# The command line reads a folder too:
# `pcdd distill --preset shapes-1 data.name=folder data.folder=...`

# %% [markdown]
# > **Exercise.** Change `Discs` so that the radius decreases geometrically, like the bandwidth of
# > the Gaussian lift. Which settings does `pcdd distill --import my_module --help` list for it?
#
# <details><summary>Answer</summary>
#
# ```python
# radius = self.radius_start * (self.radius_end / self.radius_start) ** progress
# ```
#
# The annotated attributes are the settings: `lift.radius_start` and `lift.radius_end`.
#
# </details>
