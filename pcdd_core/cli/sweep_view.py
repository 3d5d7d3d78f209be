"""Show the progress of a sweep on standard error: a live table in a terminal, else event lines."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..experiments.sweeps import State
from ..text import printable

STATUSES = ("found", "finished", "running", "waiting", "failed")


class SweepView:
    """Context manager. Call `show` when the states have changed.

    quiet: print nothing
    """

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
        """Minutes since the view was created."""
        return (time.monotonic() - self.begun) / 60

    def show(self, states: Sequence[State]) -> None:
        """Redraw the table, or print a line for each change."""
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
        text = (
            f"{self.minutes:6.1f} min  {state.status:8}  "
            f"{state.plan.label}, seed {state.plan.config.seed}{note}"
        )
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _table(self, states: Sequence[State]) -> Table:
        """Build a table of running, failed and restarted runs, with the counts of all others."""
        counts = {status: sum(state.status == status for state in states) for status in STATUSES}
        summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        title = f"{len(states)} runs after {self.minutes:.1f} minutes: {summary}"
        table = Table(title=title, title_justify="left", box=None)
        for column in ("status", "at", "try", "seed"):
            table.add_column(column, no_wrap=True)
        table.add_column("run", overflow="fold")
        table.add_column("note", overflow="fold")
        # settings that all runs share are left out
        common = set.intersection(*(set(state.plan.label.split()) for state in states))
        for state in states:
            if state.status in ("running", "failed") or state.attempts > 1:
                at = f"{state.stage} {state.fraction:.0%}" if state.status == "running" else ""
                settings = [word for word in state.plan.label.split()[1:] if word not in common]
                plan = " ".join([state.plan.name, *settings])
                table.add_row(
                    state.status,
                    at,
                    str(state.attempts),
                    str(state.plan.config.seed),
                    Text(printable(plan)),
                    Text(printable(state.note)),
                )
        return table
