"""What is seen of a sweep while it runs: a live table in a terminal, a line per event elsewhere. On standard error."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .sweeps import State

STATUSES = ("found", "finished", "running", "waiting", "failed")


class SweepView:
    """Use as a context, and `show` the states whenever they have changed."""

    def __init__(self, quiet: bool = False):
        self.quiet, self.begun, self.said = quiet, time.monotonic(), {}
        self.console = Console(stderr=True)
        self.live = (
            Live(console=self.console, auto_refresh=False)
            if self.console.is_terminal and not quiet
            else None
        )

    def __enter__(self) -> "SweepView":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.live.stop()

    @property
    def minutes(self) -> float:
        """Since the view was made."""
        return (time.monotonic() - self.begun) / 60

    def show(self, states: Sequence[State]) -> None:
        """Draw the table, or say what has changed."""
        if self.live:
            self.live.update(self._table(states), refresh=True)
        elif not self.quiet:
            for number, state in enumerate(states):
                now = (state.status, state.attempts)
                news = state.status in ("running", "finished", "failed") or state.attempts > 1
                if news and self.said.get(number) != now:
                    self._say(state)
                self.said[number] = now

    def _say(self, state: State) -> None:
        note = f" ({state.note})" if state.note else ""
        text = f"{self.minutes:6.1f} min  {state.status:8}  {state.cell.label}, seed {state.cell.config.seed}{note}"
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self, states: Sequence[State]) -> Table:
        """What runs, what failed and what was started again; of the rest, how many there are."""
        counts = {status: sum(state.status == status for state in states) for status in STATUSES}
        said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        title = f"{len(states)} cells after {self.minutes:.1f} minutes: {said}"
        table = Table(title=title, title_justify="left", box=None)
        for column in ("status", "at", "try", "seed"):
            table.add_column(column, no_wrap=True)
        table.add_column("cell", overflow="fold")
        table.add_column("note", overflow="fold")
        everywhere = set.intersection(
            *(set(state.cell.label.split()) for state in states)
        )  # settings of every cell
        for state in states:
            if state.status in ("running", "failed") or state.attempts > 1:
                at = f"{state.stage} {state.fraction:.0%}" if state.status == "running" else ""
                settings = [word for word in state.cell.label.split()[1:] if word not in everywhere]
                cell = " ".join([state.cell.name, *settings])
                table.add_row(
                    state.status,
                    at,
                    str(state.attempts),
                    str(state.cell.config.seed),
                    cell,
                    state.note,
                )
        return table
