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
# A run is made of pieces: data set, initial clouds, lift, network, objective, optimiser, schedule. Each piece is a small frozen
# class that holds its own settings. You add a piece by writing a subclass with a name, here in a cell or in a module of
# your own. Nothing in the package changes.
#
# Each section below adds one piece in about ten lines and uses it at once.

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

# %% [markdown]
# ## The loop
#
# `distill` takes training clouds and initial clouds, and yields one step per iteration. Pieces that you leave out have
# defaults.

# %%
real = pcdd.load_data("digits")
start = pcdd.scatter(real.train, clouds_per_class=1, points=100, seed=seed)
schedule = pcdd.Schedule(iterations=iterations)


def run(real, start, **pieces):
    """Return the last step of a short run."""
    *_, last = pcdd.distill(real.train, start, schedule=schedule, seed=seed, **pieces)
    return last


def draw(*steps, names):
    """Draw the first three classes of the clouds of each step."""
    _, axes = plt.subplots(len(steps), 3, figsize=(6, 2.1 * len(steps)), squeeze=False)
    for row, step, name in zip(axes, steps, names):
        for cloud, place in zip(range(3), row):
            points = step.clouds[cloud]
            place.plot(points[:, 2], points[:, 1], ".", markersize=3)
            place.set(xlim=(0, step.clouds.grid[2]), ylim=(step.clouds.grid[1], 0), aspect="equal")
            place.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    plt.show()


usual = run(real, start)

# %% [markdown]
# ## An objective
#
# An objective defines `loss`. It gets the network and two batches, real and synthetic. `batch.inputs` are the lifted
# clouds. `network.features(inputs)` is what the linear head sees. This objective compares means and standard deviations of features:
#
# $$L = \sum_k (\mu_k - \mu_k^*)^2 + \lambda\, (\sigma_k - \sigma_k^*)^2$$
#
# A single cloud per class has no deviation, so the second term needs several clouds. `strength` is a setting, $\lambda$
# in the formula.


# %%
class MeanAndSpread(pcdd.Objective, name="mean_and_spread"):
    strength: float = 1.0

    def loss(self, network, real, synthetic):
        target = network.features(real.inputs).detach()  # real clouds are constant
        own = network.features(synthetic.inputs)
        loss = (own.mean(0) - target.mean(0)).square().sum()
        if len(own) > 1:
            loss = loss + self.strength * (own.std(0) - target.std(0)).square().sum()
        return loss


moved = run(real, start, objective=MeanAndSpread(strength=0.5))
draw(usual, moved, names=["gradients", "means"])

# %% [markdown]
# The name now works everywhere: in settings, on the command line, in sweeps and in records. On the command line, put
# the class in a module and name it: `pcdd distill --import my_module --preset gaussian objective.name=mean_and_spread`.

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
print(f"record of objective {record['config']['objective']['name']}: {record['scores']['standard']['mean']:.1f} %")

# %% [markdown]
# ## A lift
#
# A lift converts clouds to inputs of a network, differentiably in the coordinates. `progress` runs from 0 to 1 over the
# run. This lift draws every point as a disc with a soft edge. `gives` says what it makes: a grid of cells.


# %%
class Discs(pcdd.Lift, name="discs"):
    radius_start: float = 3.0
    radius_end: float = 0.8

    def __call__(self, clouds, progress=1.0, real=False):
        radius = self.radius_start + (self.radius_end - self.radius_start) * progress
        points, present = pcdd.lifts.padded_coordinates(clouds)
        rows, columns = (torch.arange(cells) + 0.5 for cells in clouds.grid[1:])
        square = (rows[:, None] - points[..., 1, None, None]) ** 2 + (columns - points[..., 2, None, None]) ** 2
        inside = torch.sigmoid(4 * (radius - (square + 1e-6).sqrt())) * present[..., None, None]
        return (1 - (1 - 0.99 * inside).prod(1))[:, None, None]  # (clouds, 1, depth, height, width)


small = pcdd.DistributionMatching(real_batch=8)
discs = run(real, start, lift=Discs(), objective=small)
draw(usual, discs, names=["Gaussians", "discs"])

# %% [markdown]
# ## A network
#
# A network piece defines `build`, which returns a module with `features` and a head. torch initialises the layers from a
# generator that depends on the seed of the run only. Your own random numbers are not disturbed.


# %%
class Strided(nn.Module):
    def __init__(self, channels, width, classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 5, stride=2), nn.ReLU(), nn.Conv2d(width, width, 5, stride=2), nn.ReLU(), nn.Flatten()
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
        network(torch.zeros(1, channels, *grid))  # sets the size of the head
        return network


strided = run(real, start, network=StridedNetwork(width=8))
draw(usual, strided, names=["usual", "strided"])

# %% [markdown]
# ## Data: arrays
#
# A data set defines `load`, which returns three splits of clouds. Images become clouds with `from_occupancy`, from a
# boolean array (clouds, depth, height, width).


# %%
class SmallDigits(pcdd.DataSet, name="small_digits"):
    threshold_of_16: float = 6.0

    def load(self, folder=None):
        digits = load_digits()
        occupied = torch.from_numpy(digits.images > self.threshold_of_16)[:, None]
        clouds = pcdd.from_occupancy(occupied, torch.from_numpy(digits.target), "0123456789")
        number = torch.arange(len(clouds))
        train, test = (clouds.select(number[(number % 3 == 0) == last]) for last in (False, True))
        return pcdd.Splits.held_out(train, test, self.validation_fraction)


own = pcdd.load_data(SmallDigits(threshold_of_16=8.0))
scattered = pcdd.scatter(own.train, points=16, seed=seed)
eights = run(own, scattered, network=pcdd.GridNetwork(layers=2), objective=small)
draw(eights, names=["8 x 8 cells"])

# %% [markdown]
# ## Data: a torch data set
#
# Any torch data set of (points, label) becomes clouds: `into_grid` fits each cloud into the grid, and `clouds_from_list`
# puts them together. The clouds may have different numbers of points.


# %%
class Rings(pcdd.DataSet, name="rings"):
    points: int = 60

    def load(self, folder=None):
        draws = np.random.default_rng(0)
        angle, label = draws.uniform(0, 2 * np.pi, (300, self.points)), np.arange(300) % 2
        radius = 1 + 0.4 * label[:, None] * np.cos(3 * angle)  # circles, and shapes with three leaves
        flat = np.stack([0 * angle, radius * np.sin(angle), radius * np.cos(angle)], -1)
        dataset = TensorDataset(torch.from_numpy(flat), torch.from_numpy(label))
        grid, names = (1, 16, 16), ("circle", "leaf")
        clouds = pcdd.clouds_from_list(
            [pcdd.into_grid(points, grid) for points, _ in dataset], [int(kind) for _, kind in dataset], grid, names
        )
        return pcdd.Splits.held_out(clouds.select(torch.arange(200)), clouds.select(torch.arange(200, 300)))


rings = pcdd.load_data("rings")
pair = pcdd.scatter(rings.train, clouds_per_class=2, points=40, seed=seed)
leaves = run(rings, pair, network=pcdd.GridNetwork(layers=2), objective=small)
draw(leaves, names=["rings"])

# %% [markdown]
# ## Data: a folder
#
# A folder with one folder per class needs no class of your own. Files are meshes or lists of points
# (`.off .ply .xyz .txt .npy .npz`). Folders `train` and `test`, if there are any, are the splits.

# %%
root = Path(tempfile.mkdtemp())
draws = np.random.default_rng(1)
for kind, stretch in (("ball", 1.0), ("egg", 2.0)):
    (root / kind).mkdir()
    for number in range(12):
        direction = draws.normal(size=(200, 3))
        surface = direction / np.linalg.norm(direction, axis=1, keepdims=True) * [1, 1, stretch]
        np.savetxt(root / kind / f"{number}.xyz", surface)
shapes = pcdd.load_data(pcdd.Folder(points=64, cells=12, folder=str(root)))
counts = {name: int((shapes.train.labels == label).sum()) for label, name in enumerate(shapes.train.class_names)}
print(f"training shapes: {counts}")

# %% [markdown]
# The same from the command line: `pcdd distill --preset shapes-1 data.name=folder data.folder=...`
#
# > **Try it.** Change `Discs` so that the radius shrinks geometrically, as the bandwidth of the Gaussian lift does.
# > Which settings does `pcdd distill --import my_module --help` list for it?
