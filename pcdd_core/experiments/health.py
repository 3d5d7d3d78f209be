"""Detect runs that stop moving or diverge.

The paper's two signs of health (section 4.3) are the mean absolute gradient and the mean absolute
displacement of the coordinates. A run has stopped if the displacement stays small. It has diverged
if most coordinates lie on the border of the grid.
"""

from dataclasses import dataclass

import torch

from ..engine.distill import Step
from ..geometry.grid import boundary_check, within_box

WINDOW = 50  # iterations
STUCK_BELOW = 1e-3  # cells per iteration; at this speed a point needs 1,000 iterations per cell
PILED_UP = 0.9  # share of coordinates on the border of the grid


@dataclass(frozen=True)
class Finding:
    """A problem of a run.

    state:     "stopped moving" or "diverged"
    iteration: at which it began
    reason:    measured numbers and the likely cause
    """

    state: str
    iteration: int
    reason: str

    def __str__(self) -> str:
        return f"{self.state} at iteration {self.iteration}: {self.reason}"


@dataclass
class Health:
    """Monitor the steps of one run.

    finding: None for a healthy run, else the problem
    still:   number of consecutive iterations with a mean displacement below `STUCK_BELOW`
    """

    finding: Finding | None = None
    still: int = 0

    def watch(self, step: Step) -> None:
        """Update the finding with one step."""
        self.still = self.still + 1 if step.mean_absolute_displacement < STUCK_BELOW else 0
        border = _share_on_border(step)
        if border > PILED_UP:
            self.finding = Finding(
                "diverged",
                step.iteration,
                f"{border:.0%} of the coordinates are on the border of the grid; likely cause: the "
                "step size is too large for these gradients (lower optimiser.step_size)",
            )
        elif self.still >= WINDOW:
            self.finding = Finding(
                "stopped moving",
                step.iteration - self.still + 1,
                f"the mean displacement is {step.mean_absolute_displacement:.1e} cells per "
                f"iteration, the mean gradient {step.mean_absolute_gradient:.1e}; likely cause: "
                "the gradients of this distance are too small for the step size, so points stay "
                "in their cells (raise optimiser.step_size, or use optimiser.name=adam)",
            )
        else:
            self.finding = None


def _share_on_border(step: Step) -> float:
    """Return the share of the coordinates that lie on the border of the grid.

    A point lies there if a lift's bounds stopped it, see `Lift.bounded`. Axes of one cell do not
    count.
    """
    clouds = step.clouds
    free = [axis for axis, cells in enumerate(clouds.grid) if cells > 1]
    position = clouds.coordinates[:, free]
    bounds = [
        bounded(torch.full_like(clouds.coordinates[:1], far), clouds.grid)[:, free]
        for bounded in (within_box, boundary_check)
        for far in (-torch.inf, torch.inf)
    ]
    return torch.stack([position == bound for bound in bounds]).any(0).float().mean().item()
