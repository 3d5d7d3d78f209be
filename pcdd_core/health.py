"""Is the run moving, and is it going anywhere? The paper's two signs (section 4.3), watched."""

from dataclasses import dataclass

from .distillation import Step

WINDOW = 50  # iterations
STUCK_BELOW = 1e-3  # cells per iteration: a thousand iterations to cross one cell
PILED_UP = 0.9  # share of coordinates on the border of the grid


@dataclass
class Health:
    """Follows the steps of one run. `finding` is None while all is well, else what is wrong, since when, and why."""

    finding: str | None = None
    still: int = 0

    def watch(self, step: Step) -> None:
        """Take one step into account."""
        self.still = self.still + 1 if step.mean_absolute_displacement < STUCK_BELOW else 0
        border = _share_on_border(step)
        if border > PILED_UP:
            self.finding = (
                f"diverged at iteration {step.iteration}: {border:.0%} of the coordinates are on the border of the grid; "
                "likely cause: the step size is too large for these gradients (lower optimiser.step_size)"
            )
        elif self.still >= WINDOW:
            self.finding = (
                f"stopped moving at iteration {step.iteration - self.still + 1}: the mean displacement is "
                f"{step.mean_absolute_displacement:.1e} cells per iteration, the mean gradient "
                f"{step.mean_absolute_gradient:.1e}; likely cause: the gradients of this distance are too small for the "
                "step size, so points stay in their cells (raise optimiser.step_size, or take optimiser.name=adam)"
            )
        else:
            self.finding = None


def _share_on_border(step: Step) -> float:
    """Share of the coordinates, along axes of more than one cell, that the boundary check holds at an end."""
    clouds = step.clouds
    free = [axis for axis, cells in enumerate(clouds.grid) if cells > 1]
    upper = clouds.coordinates.new_tensor(clouds.grid)[free] - 1
    position = clouds.coordinates[:, free]
    return ((position <= 0) | (position >= upper)).float().mean().item()
