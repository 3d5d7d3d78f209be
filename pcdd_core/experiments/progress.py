"""Progress bars of runs on the terminal and in notebooks."""

import sys

from tqdm import tqdm

from ..text import printable


class Progress:
    """Progress bars with the remaining time, one per stage.

    Bars go to standard error. In a notebook they go to standard output, because notebooks mark
    standard error as an alarm. Without a terminal a line is printed every 10 seconds at most.
    quiet: show no bars; `write` still prints
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.bar: tqdm | None = None
        self.stage: str | None = None
        # programs other than kernels import this module too
        kernel = sys.modules.get("ipykernel.kernelapp")
        self.stream = (
            sys.stdout if kernel is not None and kernel.IPKernelApp.initialized() else sys.stderr
        )

    def __call__(self, fraction: float, stage: str, note: str = "") -> None:
        """Show that `fraction` (0 to 1) of `stage` is done."""
        if self.quiet:
            return
        if self.bar is None or stage != self.stage:
            self.close()
            layout = "{desc}: {percentage:3.0f}% |{bar:20}| {elapsed}, {remaining} left {postfix}"
            interval = 0.5 if self.stream.isatty() else 10
            self.bar = tqdm(
                total=1.0, desc=stage, bar_format=layout, mininterval=interval, file=self.stream
            )
            self.stage = stage
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(fraction - self.bar.n)

    def close(self) -> None:
        """Close the current bar."""
        if self.bar is not None:
            self.bar.close()
        self.bar = self.stage = None

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(printable(text), file=self.stream)
