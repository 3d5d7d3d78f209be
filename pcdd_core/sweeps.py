"""Many runs, on this machine or on a cluster.

`obtain` reads the records of cells that have been run and runs the others here, one after another; `sweep` runs them on
Ray, many at a time. A finished cell is never run again.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import records, runs
from .clouds import released, resampled
from .coresets import BASELINES
from .errors import EngineMissing, FolderInUse, InputError, RunFailed, extra_missing
from .experiments import Cell
from .randomness import generator


def default_places(runs_folder: Path | str = "runs") -> list[Path]:
    """Where finished runs are looked for: the records that the repository keeps, and the runs here."""
    return [records.COMMITTED, Path(runs_folder)]


def run_cell(
    cell: Cell,
    folder: Path | str,
    data: str | None = None,
    device: str | None = None,
    progress: runs.Progress | None = None,
    checkpoint_every: int = 25,
) -> None:
    """Run one cell in `folder`, from where an earlier try left off. Errors as of `runs.run`."""
    folder = Path(folder)
    if cell.baseline:

        def choose(real):
            kind, _, detail = cell.baseline.partition(":")
            if kind == "released":
                return released(detail)
            chosen = BASELINES[kind](real, cell.config.clouds.clouds_per_class, cell.config.seed)
            if not detail:
                return chosen
            return resampled(
                chosen, [int(detail)] * len(chosen), generator(cell.config.seed, "fewer points")
            )

        clouds, record = runs.score(
            choose, cell.name, cell.config, data=data, device=device, progress=progress
        )
        runs.keep_score(clouds, record, folder)
    else:
        started = folder.is_dir() and any(folder.iterdir())
        runs.run(
            cell.config,
            cell.name,
            folder,
            data,
            device,
            resume=started,
            progress=progress,
            checkpoint_every=checkpoint_every,
        )


def obtain(
    cells: Sequence[Cell],
    runs_folder: Path | str = "runs",
    data: str | None = None,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """The records of the cells, in their order: read where they exist, else made here, one run after another.

    A run that diverged, in distillation or scoring, has a record that says so. Cells that need MinkowskiEngine where it is not installed
    are left out, and that is said.
    """
    found = records.find_records(default_places(runs_folder))
    missing = [cell for cell in cells if cell.identity not in found]
    left_out: dict[str, int] = {}
    for number, cell in enumerate(missing):
        folder = Path(runs_folder) / cell.folder
        try:
            print(f"run {number + 1} of {len(missing)}: {cell.label}, seed {cell.config.seed}")
            run_cell(cell, folder, data or None, device or None)
        except EngineMissing as error:
            left_out[str(error)] = left_out.get(str(error), 0) + 1
            continue
        except RunFailed as error:
            print(f"failed at {error}")
            if cell.baseline:  # which leaves no record
                continue
        found[cell.identity] = folder
    for reason, count in left_out.items():
        print(f"{count} runs left out: {reason}")
    return [records.read_record(found[cell.identity]) for cell in cells if cell.identity in found]


def finished(cells: Sequence[Cell], runs_folder: Path | str = "runs") -> list[dict[str, Any]]:
    """The records of those cells that have been run, in their order. Nothing is run."""
    found = records.find_records(default_places(runs_folder))
    return [records.read_record(found[cell.identity]) for cell in cells if cell.identity in found]


@dataclass(frozen=True)
class State:
    """Where a cell of a sweep is.

    status: found (finished before), waiting, running, finished, failed
    stage, fraction: what a running cell does and how far it is (0 to 1)
    attempts: how often it has been started; note: why it was started again, or failed, or on which node it runs
    """

    cell: Cell
    folder: Path
    status: str = "waiting"
    stage: str = ""
    fraction: float = 0.0
    attempts: int = 0
    note: str = ""


@dataclass
class Sweep:
    """Cells on Ray. Iterate over it: each round yields the states of all cells, about once a second, until all have ended.

    Leaving the loop early (break, Ctrl-C) stops the runs; their records are whole, and the same sweep goes on from there.

    runs_folder: where run folders go; on a cluster, a file system that all nodes share. address: of a Ray cluster, else
    one is started on this machine. cpus_per_run, gpus_per_run: what one run takes, fractions allowed; None for GPUs: a
    quarter where there are any. retries: how often a run that was killed, or ended by anything but its own settings,
    is started again.
    """

    cells: Sequence[Cell]
    runs_folder: Path | str = "runs"
    data: str | None = None
    address: str | None = None
    cpus_per_run: float = 1
    gpus_per_run: float | None = None
    retries: int = 3
    checkpoint_every: int = 25
    states: list[State] = field(init=False)

    def __post_init__(self) -> None:
        found = records.find_records(default_places(self.runs_folder))
        folder = Path(self.runs_folder).resolve()
        self.states = [
            State(cell, found[cell.identity], "found")
            if cell.identity in found
            else State(cell, folder / cell.folder)
            for cell in self.cells
        ]

    def __iter__(self) -> Iterator[list[State]]:
        if not any(state.status == "waiting" for state in self.states):
            yield self.states
            return
        ray = _ray(self.address)
        running: dict[Any, int] = {}
        try:
            teller = _teller(ray)
            gpus = self.gpus_per_run
            if gpus is None:
                gpus = 0.25 if ray.cluster_resources().get("GPU") else 0
            # A fresh process per run (max_calls), for an honest peak memory; retries are ours, to be counted and reported.
            options = {
                "num_cpus": self.cpus_per_run,
                "num_gpus": gpus,
                "max_retries": 0,
                "max_calls": 1,
            }
            work = ray.remote(**options)(_work)
            data = self.data or os.environ.get("PCDD_DATA")
            place = {
                "data": data,
                "device": "cuda" if gpus else "cpu",
                "checkpoint_every": self.checkpoint_every,
            }
            place["threads"] = max(1, int(self.cpus_per_run))

            def start(number: int) -> None:
                state = self.states[number]
                self.states[number] = replace(state, status="waiting", attempts=state.attempts + 1)
                attempt = (number, state.attempts + 1)
                running[work.remote(state.cell, str(state.folder), attempt, teller, place)] = number

            for number, state in enumerate(self.states):
                if state.status == "waiting":
                    start(number)
            while running:
                ended, _ = ray.wait(list(running), timeout=1)
                self._hear(ray, teller, running.values())
                for reference in ended:
                    number = running.pop(reference)
                    if self._end(ray, number, reference):
                        start(number)
                yield self.states
        finally:
            _stop(ray, running, ours=self.address is None)

    def _hear(self, ray, teller, numbers: Iterable[int]) -> None:
        """Take over what the runs have told of their progress."""
        told = ray.get(teller.all.remote())
        for number in numbers:
            state = self.states[number]
            if (number, state.attempts) in told:
                stage, fraction, node = told[number, state.attempts]
                self.states[number] = replace(
                    state, status="running", stage=stage, fraction=fraction, note=node
                )

    def _end(self, ray, number: int, reference) -> bool:
        """Take note of how a try ended; True if there shall be another."""
        state = self.states[number]
        try:
            failure, again = ray.get(reference), False
        except ray.exceptions.TaskCancelledError:
            failure, again = "cancelled", False
        except ray.exceptions.RayTaskError as error:
            failure, again = str(error.cause or error).strip().splitlines()[-1], True
        except ray.exceptions.RayError as error:  # the process or its node is gone
            failure, again = f"{type(error).__name__}: the process or its node was lost", True
        if failure is None and not (state.folder / "record.json").is_file():
            failure = f"{state.folder}: no record is here, though the run has ended; all nodes must share this folder"
        again = again and state.attempts <= self.retries
        status = "waiting" if again else "failed" if failure else "finished"
        note = f"started again after: {failure}" if again else failure or ""
        self.states[number] = replace(
            state, status=status, note=note, stage="", fraction=float(failure is None)
        )
        return again


def _work(
    cell: Cell, folder: str, attempt: tuple[int, int], teller, place: dict[str, Any]
) -> str | None:
    """What a Ray worker does: returns None, or why this run cannot be made. Anything it raises is worth another try."""
    import ray
    import torch

    torch.set_num_threads(place["threads"])
    node = ray.get_runtime_context().get_node_id()[:8]
    progress = _Telling(
        lambda stage, fraction: teller.tell.remote(attempt, stage, fraction, f"node {node}")
    )
    patience = (
        time.monotonic() + 60
    )  # a worker whose node was lost may live a little longer than the node
    while True:
        try:
            run_cell(
                cell, folder, place["data"], place["device"], progress, place["checkpoint_every"]
            )
            return None
        except FolderInUse as error:
            if time.monotonic() > patience:
                return str(error)
            time.sleep(1)
        except InputError as error:
            return str(error)
        except RunFailed as error:
            return f"failed at {error}"


class _Telling(runs.Progress):
    """Progress that is told to the sweep, twice a second at most."""

    def __init__(self, tell):
        super().__init__(quiet=True)
        self.tell, self.last = tell, 0.0
        tell("starting", 0.0)

    def __call__(self, fraction: float, stage: str, note: str = "") -> None:
        if time.monotonic() - self.last > 0.5 or fraction >= 1:
            self.tell(stage, fraction)
            self.last = time.monotonic()


class _Teller:
    """Holds the latest word of every try, (number of the cell, attempt), on the sweep's own node."""

    def __init__(self):
        self.latest: dict[tuple[int, int], tuple[str, float, str]] = {}

    def tell(self, attempt: tuple[int, int], stage: str, fraction: float, node: str) -> None:
        self.latest[attempt] = (stage, fraction, node)

    def all(self) -> dict[tuple[int, int], tuple[str, float, str]]:
        return self.latest


def _ray(address: str | None):
    """Ray, connected. Raises InputError if it is not installed or there is no cluster at the address."""
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
    except ImportError:
        raise extra_missing("ray", "sweeps", "(or run cells one by one with --cell)") from None
    if address is not None:
        host, _, port = address.rpartition(":")
        try:  # Ray itself would wait minutes for a cluster that is not there
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(
                f"address {address}: no Ray cluster answers there ({error}); expected HOST:PORT"
            ) from None
    # "local": never a cluster that happens to be around
    only_ours = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(
            address=address or "local", log_to_driver=False, logging_level="ERROR", **only_ours
        )
    except ConnectionError as error:
        raise InputError(
            f"address {address}: Ray does not connect ({error}). If the cluster asks for a token, as those of `ray start` "
            "do from Ray 2.59 on, set RAY_AUTH_MODE=token here and on every node, with the same token (ray get-auth-token)"
        ) from None
    return ray


def _teller(ray):
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Teller).remote()


def _stop(ray, running: Iterable[Any], ours: bool) -> None:
    """End what still runs, as Ctrl-C would, and give it a moment."""
    running = list(running)
    for reference in running:
        ray.cancel(reference)
    if running and not ours:
        ray.wait(running, num_returns=len(running), timeout=10)
    ray.shutdown()
