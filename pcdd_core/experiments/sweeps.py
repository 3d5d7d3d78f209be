"""Make many runs, on this machine or on a cluster.

`obtain` reads the records of finished runs and makes the missing runs here, one after another.
`Sweep` makes them on Ray, many at a time. Neither repeats a finished run.
"""

import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import EngineMissing, FolderInUse, InputError, RunFailed, extra_missing
from . import records, runs, scores
from .progress import Progress
from .tables import PlannedRun


def default_places(runs_folder: Path | str | None = None) -> list[Path]:
    """Return the folders to search for finished runs: the committed records and `runs_folder`."""
    return [records.COMMITTED, Path(runs_folder or records.runs_folder())]


def make_planned(
    plan: PlannedRun,
    folder: Path | str,
    data: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    checkpoint_every: int = 25,
) -> None:
    """Make one run in `folder`. It resumes an earlier attempt if there is one.

    Raises the errors of `runs.run`.
    """
    folder = Path(folder)
    if plan.baseline:
        clouds, record = scores.score(
            plan.baseline, plan.name, plan.config, data=data, device=device, progress=progress
        )
        scores.keep_score(clouds, record, folder)
    else:
        started = folder.is_dir() and any(folder.iterdir())
        runs.run(
            plan.config,
            plan.name,
            folder,
            data,
            device,
            resume=started,
            progress=progress,
            checkpoint_every=checkpoint_every,
        )


def obtain(
    plans: Sequence[PlannedRun],
    runs_folder: Path | str | None = None,
    data: str | None = None,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Return the records of planned runs, in their order. Missing runs are made here, one by one.

    runs_folder: default: `records.runs_folder`
    A run that diverged in distillation or scoring has a record with this fact; a baseline that
    diverged has no record and is left out. Runs that need MinkowskiEngine are left out if it is not
    installed, with a message.
    """
    found = records.find_records(default_places(runs_folder))
    missing = [plan for plan in plans if plan.identity not in found]
    left_out: dict[str, int] = {}
    for number, plan in enumerate(missing):
        folder = Path(runs_folder or records.runs_folder()) / plan.folder
        try:
            print(f"run {number + 1} of {len(missing)}: {plan.label}, seed {plan.config.seed}")
            make_planned(plan, folder, data or None, device or None)
        except EngineMissing as error:
            left_out[str(error)] = left_out.get(str(error), 0) + 1
            continue
        except RunFailed as error:
            print(f"failed at {error}")
            if plan.baseline:  # a failed baseline has no record
                continue
        found[plan.identity] = records.read_record(folder)
    for reason, count in left_out.items():
        print(f"{count} runs left out: {reason}")
    return [found[plan.identity] for plan in plans if plan.identity in found]


def finished(
    plans: Sequence[PlannedRun], runs_folder: Path | str | None = None
) -> list[dict[str, Any]]:
    """Return the records of planned runs that are finished, in their order. Makes no run.

    runs_folder: default: `records.runs_folder`
    """
    found = records.find_records(default_places(runs_folder))
    return [found[plan.identity] for plan in plans if plan.identity in found]


@dataclass(frozen=True)
class State:
    """State of one run of a sweep.

    folder: run folder, or the file of the record if status is found
    status: found (finished before the sweep), waiting, running, finished, failed
    stage, fraction: current stage of a running run and the finished part of that stage, 0 to 1
    attempts: how often it was started
    note: node of a running run, or reason of a restart or failure
    """

    plan: PlannedRun
    folder: Path
    status: str = "waiting"
    stage: str = ""
    fraction: float = 0.0
    attempts: int = 0
    note: str = ""


@dataclass
class Sweep:
    """Runs on Ray. Iterate over the sweep to make them.

    About once a second the iteration yields the states of all runs, until all have ended. Leaving
    the loop early (break, Ctrl-C) stops the runs. Their files stay complete, and the same sweep
    continues from there. Raises InputError if Ray is not installed or no cluster answers.

    runs_folder: folder of the run folders (default: `records.runs_folder`); on a cluster it must
        be on a shared file system
    data: folder of the real data (default: PCDD_DATA)
    address: HOST:PORT of a Ray cluster; None: start one on this machine
    cpus_per_run, gpus_per_run: resources of one run, fractions allowed; None for GPUs: 0.25 if the
        cluster has a GPU, else 0
    retries: how often to restart a run that was killed or that failed unexpectedly; wrong settings
        and divergence cause no restart
    checkpoint_every: iterations between checkpoints
    """

    plans: Sequence[PlannedRun]
    runs_folder: Path | str | None = None
    data: str | None = None
    address: str | None = None
    cpus_per_run: float = 1
    gpus_per_run: float | None = None
    retries: int = 3
    checkpoint_every: int = 25
    states: list[State] = field(init=False)

    def __post_init__(self) -> None:
        found = records.find_records(default_places(self.runs_folder))
        folder = Path(self.runs_folder or records.runs_folder()).resolve()
        self.states = [
            State(plan, Path(found[plan.identity]["place"]), "found")
            if plan.identity in found
            else State(plan, folder / plan.folder)
            for plan in self.plans
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
            # max_calls=1: a new process for each run, so that peak memory is that of one run.
            # max_retries=0: this class restarts runs itself, to count and report the restarts.
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
                running[work.remote(state.plan, str(state.folder), attempt, teller, place)] = number

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
        """Copy the progress reports of the runs into their states."""
        reports = ray.get(teller.all.remote())
        for number in numbers:
            state = self.states[number]
            if (number, state.attempts) in reports:
                stage, fraction, node = reports[number, state.attempts]
                self.states[number] = replace(
                    state, status="running", stage=stage, fraction=fraction, note=node
                )

    def _end(self, ray, number: int, reference) -> bool:
        """Record the end of an attempt. Returns True if the run must be started again."""
        state = self.states[number]
        try:
            failure, again = ray.get(reference), False
        except ray.exceptions.TaskCancelledError:
            failure, again = "cancelled", False
        except ray.exceptions.RayTaskError as error:
            failure, again = str(error.cause or error).strip().splitlines()[-1], True
        except ray.exceptions.RayError as error:  # the process or its node was lost
            failure, again = f"{type(error).__name__}: the process or its node was lost", True
        if failure is None and not (state.folder / "record.json").is_file():
            failure = (
                f"{state.folder}: the run has ended, but there is no record; "
                "all nodes must share this folder"
            )
        again = again and state.attempts <= self.retries
        status = "waiting" if again else "failed" if failure else "finished"
        note = f"started again after: {failure}" if again else failure or ""
        self.states[number] = replace(
            state, status=status, note=note, stage="", fraction=float(failure is None)
        )
        return again


def _work(
    plan: PlannedRun, folder: str, attempt: tuple[int, int], teller, place: dict[str, Any]
) -> str | None:
    """Make one run in a Ray worker. Returns None, or the reason why this run cannot be made.

    An exception means that another attempt can succeed.
    """
    import ray
    import torch

    torch.set_num_threads(place["threads"])
    node = ray.get_runtime_context().get_node_id()[:8]
    progress = _Telling(
        lambda stage, fraction: teller.tell.remote(attempt, stage, fraction, f"node {node}")
    )
    # a worker of a lost node can outlive the node for a short time and hold the folder
    deadline = time.monotonic() + 60
    while True:
        try:
            make_planned(
                plan, folder, place["data"], place["device"], progress, place["checkpoint_every"]
            )
            return None
        except FolderInUse as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(1)
        except InputError as error:
            return str(error)
        except RunFailed as error:
            return f"failed at {error}"


class _Telling(Progress):
    """Report progress to the sweep, at most twice a second."""

    def __init__(self, tell):
        super().__init__(quiet=True)
        self.tell, self.last = tell, 0.0
        tell("starting", 0.0)

    def __call__(self, fraction: float, stage: str, note: str = "") -> None:
        if time.monotonic() - self.last > 0.5 or fraction >= 1:
            self.tell(stage, fraction)
            self.last = time.monotonic()


class _Teller:
    """Actor on the node of the sweep: keeps the latest report of each attempt.

    Keys are (number of the run, attempt), values are (stage, fraction, node).
    """

    def __init__(self):
        self.latest: dict[tuple[int, int], tuple[str, float, str]] = {}

    def tell(self, attempt: tuple[int, int], stage: str, fraction: float, node: str) -> None:
        self.latest[attempt] = (stage, fraction, node)

    def all(self) -> dict[tuple[int, int], tuple[str, float, str]]:
        return self.latest


def _ray(address: str | None):
    """Connect to Ray. Raises InputError if it is not installed or no cluster is at the address."""
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
    except ImportError:
        raise extra_missing("ray", "sweeps", "(or make runs one by one with --run)") from None
    if address is not None:
        host, _, port = address.rpartition(":")
        try:  # Ray itself waits minutes for a missing cluster
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(
                f"address {address}: no Ray cluster answers there ({error}); expected HOST:PORT"
            ) from None
    try:
        ray.init(
            # "local" avoids a connection to another cluster that runs on this machine
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise InputError(
            f"address {address}: Ray does not connect ({error}). Clusters that `ray start` of Ray "
            "2.59 or later has started require a token: set RAY_AUTH_MODE=token here and on every "
            "node, with the same token (ray get-auth-token)"
        ) from None
    return ray


def _teller(ray):
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Teller).remote()


def _stop(ray, running: Iterable[Any], ours: bool) -> None:
    """Interrupt the remaining runs as Ctrl-C does, then disconnect.

    ours: this sweep started the cluster; runs on another cluster get 10 seconds to end
    """
    running = list(running)
    for reference in running:
        ray.cancel(reference)
    if running and not ours:
        ray.wait(running, num_returns=len(running), timeout=10)
    ray.shutdown()
