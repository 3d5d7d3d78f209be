"""Compare an iteration of gradient matching with one whose losses are a CUDA graph.

A graph records the operations of all classes once, and starts them again by one call. The functions
of the loss are the engine's. Lifts, draws and the optimiser stay outside the graph, because they
depend on sizes that only the CPU knows. Without a GPU the recorded function is called as it is, so
that the comparison with the engine can be tested. `python benchmarks/gpu_day.py` runs this module.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from statistics import median

import torch
from limits import seconds_of
from torch import Tensor

from pcdd_core.engine.losses import match_gradients, real_gradients
from pcdd_core.experiments.config import Config
from pcdd_core.geometry.clouds import PointClouds, members_per_class

WARM_UP = 3  # calls before the recording, as torch.cuda.graph asks for
COMPARED = 3  # iterations that are compared with the engine's


class Recorded:
    """Losses of all classes and their gradient, from lifted clouds in fixed memory.

    config: gradient matching without augmentation, one cloud per class
    network: its parameters may change in place between calls
    real: lifted real clouds, (classes, real batch, ...)
    synthetic: lifted synthetic clouds, (classes, 1, ...)
    """

    def __init__(self, config: Config, network: torch.nn.Module, real: Tensor, synthetic: Tensor):
        self.objective, self.network = config.objective, network
        self.real, self.synthetic = real.clone(), synthetic.detach().clone()
        self._own = [own.requires_grad_() for own in self.synthetic]  # share its memory
        labels = torch.arange(len(real), device=real.device)
        self._real_labels = labels[:, None].expand(real.shape[:2]).contiguous()
        self._labels = labels[:, None]
        self._graph = None
        if real.is_cuda:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self._compute()
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._results = self._compute()

    def _compute(self) -> tuple[Tensor, Tensor]:
        losses, gradients = [], []
        for label, own in enumerate(self._own):
            target = real_gradients(
                self.network, self.real[label], self._real_labels[label], self.objective.precision
            )
            loss = match_gradients(
                target, self.network, own, self._labels[label], self.objective.distance
            )
            losses.append(loss.detach())
            gradients += torch.autograd.grad(loss, own)
        return torch.stack(losses), torch.stack(gradients)

    def __call__(self, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses (classes,) and their gradient, shaped like `synthetic`.

        The tensors are overwritten by the next call.
        """
        with torch.no_grad():
            self.real.copy_(real)
            self.synthetic.copy_(synthetic)
        if self._graph is None:
            return self._compute()
        self._graph.replay()
        return self._results


def iterations(
    config: Config, real: PointClouds, device: torch.device
) -> Iterator[tuple[list[float], Tensor]]:
    """Yield losses of the classes and gradient of the points, as `config.distill` computes them."""
    method, members, synthetic = config.method, members_per_class(real), config.start(real)
    real, synthetic = real.to(device), synthetic.to(device)
    coordinates = torch.nn.Parameter(synthetic.coordinates.clone())
    optimiser = method.optimiser.make([{"params": [coordinates], "lr": method.optimiser.step_size}])
    per_network = method.schedule.iterations_per_network or method.schedule.iterations
    network, recorded = method.draw_network(real, 0), None
    for iteration in range(method.schedule.iterations):
        if iteration and iteration % per_network == 0:
            drawn = method.draw_network(real, iteration // per_network)
            network.load_state_dict(drawn.state_dict())
        coordinates.data = method.lift.bounded(coordinates.data, real.grid)
        batch = real.select(method.batch_at(real, members, iteration).to(device))
        target = method.lift_at(iteration, real=True)(batch).unflatten(0, (len(members), -1))
        lifted = method.lift_at(iteration)(synthetic.with_coordinates(coordinates))
        lifted = lifted.unflatten(0, (len(members), -1))
        recorded = recorded or Recorded(config, network, target, lifted)
        losses, gradient = recorded(target, lifted)
        (coordinates.grad,) = torch.autograd.grad(lifted, coordinates, gradient)
        fraction = method.optimiser.step_fraction(iteration / method.schedule.iterations)
        optimiser.param_groups[0]["lr"] = method.optimiser.step_size * fraction
        optimiser.step()
        yield losses.tolist(), coordinates.grad.clone()


def difference(config: Config, real: PointClouds, device: torch.device) -> float:
    """Return the largest relative difference from the engine, in losses and gradients.

    It is measured in the first iterations, in float32 without TF32.
    """
    differences = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        pairs = zip(config.distill(real, device), iterations(config, real, device))
        for step, (losses, gradient) in islice(pairs, COMPARED):
            for own, other in (
                (torch.tensor(losses), torch.tensor(step.matching_loss)),
                (gradient, step.gradient),
            ):
                differences.append(float((own - other).norm() / other.norm()))
    return max(differences)


def measure(config: Config, real: PointClouds, device: torch.device, rounds: int) -> dict:
    """Return seconds of an iteration both ways, and their ratio: the median over the rounds.

    The two take turns. The first round is a warm-up and is dropped.
    """
    engine, graphed = config.distill(real, device), iterations(config, real, device)
    pairs = [
        tuple(seconds_of(partial(next, way), device) for way in (engine, graphed))
        for _ in range(rounds + 1)
    ][1:]
    return {
        "eager_s": median(eager for eager, _ in pairs),
        "graph_s": median(graph for _, graph in pairs),
        "ratio": median(eager / graph for eager, graph in pairs),
        "pairs_s": pairs,
    }
