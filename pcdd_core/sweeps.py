"""Many runs: the experiments behind each table, and how to have them all run, on this machine or on a cluster.

A cell is one run: a preset, some settings, a seed. `obtain` reads the records of cells that have been run and runs the
others here, one after another; `sweep` runs them on Ray, many at a time. A finished cell is never run again.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import records, runs
from .config import Config, override, to_dict
from .coresets import BASELINES
from .errors import DistillationFailed, EngineMissing, FolderInUse, InputError, nearest_names
from .presets import BACKENDS, LAYERS, PRESETS, label, preset

STEP_SIZES = (0.1, 1, 10, 100)  # times the preset's

# --- which runs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One run: the preset it began as, its settings, or the baseline whose real clouds are scored instead."""

    preset: str
    config: Config
    baseline: str | None = None

    @property
    def name(self) -> str:
        """What its record is called."""
        return f"{self.baseline}-1" if self.baseline else self.preset

    @property
    def label(self) -> str:
        """The name with the settings that differ from the preset's."""
        return self.name if self.baseline else label(self.preset, self.config)

    @property
    def identity(self) -> str:
        """See `records.identity`."""
        config = to_dict(self.config)
        used = {key: config[key] for key in ("data", "evaluation", "seed")} if self.baseline else config
        return records.identity({"name": self.name, "config": used})

    @property
    def folder(self) -> str:
        """What its run folder is called."""
        return runs.folder_name(self.name, self.config)


Variants = list[tuple[str, dict[str, Any]]]  # presets, each with settings changed


def _table1() -> Variants:
    return [(f"paper-{backend}-{layers}-sum-of-squares", {}) for backend in BACKENDS for layers in LAYERS]


def _table2() -> Variants:
    """The paper took the depth at which each backend did best; `sparse` as MinkowskiEngine."""
    networks = ("minkowski-2", "torch-3", "sparse-2")
    return [
        (f"paper-{network}-{distance}", {})
        for network in networks
        for distance in ("layerwise-cosine", "sum-of-squares")
    ]


def _ablation() -> Variants:
    return [
        (f"paper-{backend}-{layers}-{kind}", {})
        for backend in BACKENDS
        for layers in (2, 3)
        for kind in ("sum-of-squares", "average-pooling")
    ]


def _step_sizes(scale: str) -> Variants:
    """Both distances over four orders of magnitude: what is too little for one is too much for the other."""
    variants = []
    for name in ("torch-3-sum-of-squares", "torch-3-layerwise-cosine", "minkowski-2-layerwise-cosine"):
        usual = preset(f"paper-{name}{SCALES[scale]}").config.optimiser.step_size
        variants += [(f"paper-{name}", {"optimiser.step_size": usual * factor}) for factor in STEP_SIZES]
    return variants


# What is changed, one at a time, in the preset `ingredients-base`.
INGREDIENTS: tuple[dict[str, Any], ...] = (
    {},
    # objectives
    {"objective.name": "distribution_matching"},
    {"objective.name": "feature_regression"},
    {"objective.distance": "sum_of_squares"},
    {"objective.distance": "layerwise_cosine"},
    {"objective.distance": "mean_squared_error"},
    {"objective.distance": "global_cosine"},
    {"objective.augmentation": False},
    {"objective.real_batch": 64},
    # lift
    {"lift.bandwidth_end": 0.5},
    {"lift.bandwidth_end": 0.12},
    {"lift.bandwidth_start": 0.25},
    {"lift.saturation": 3.0},
    {"lift.hard_from": 0.5},
    # networks: random ones, or met while they are trained
    {"schedule.iterations_per_network": 10},
    {"schedule.iterations_per_network": 10, "schedule.training_steps": 1, "schedule.training_data": "synthetic"},
    {"schedule.iterations_per_network": 10, "schedule.training_steps": 1, "schedule.training_data": "real"},
    {"network.width": 16},
    {"network.layers": 2},
    {"network.padding": 3},
    # steps
    {"optimiser.step_size": 0.1},
    {"optimiser.final_step_fraction": 1.0},
    {"schedule.iterations": 1200},
    # points: their number, and the same number in several clouds
    {"clouds.points_per_cloud": 10},
    {"clouds.points_per_cloud": 50},
    {"clouds.points_per_cloud": 100},
    {"clouds.points_per_cloud": 500},
    {"clouds.clouds_per_class": 2, "clouds.points_per_cloud": 125},
    {"clouds.clouds_per_class": 4, "clouds.points_per_cloud": 62},
)
SCALES = {"small": "-small", "paper": ""}  # what is added to a preset's name
EXPERIMENTS = {
    "table1": "Table 1: backends and layers, sum of squares",
    "table2": "Table 2: the two distances",
    "ablation": "section 4.4: max against average pooling",
    "step-size": "section 4.5: step sizes of a tenth to a hundred times the usual, both distances",
    "ingredients": "our setting with one ingredient changed at a time, on the validation split",
    "initialisation": "section 4.5: the best of the paper's networks from many scatters (try --seeds 20)",
}
BESIDE = (("gaussian", None), ("gaussian", "random"), ("gaussian", "herding"))  # in the paper's tables: ours, real clouds
BESIDE_INGREDIENTS = tuple(("ingredients-base", baseline) for baseline in BASELINES if baseline != "whole")
DETERMINISTIC = ("herding", "k_center", "class_mean")
BESIDE_SEEDS = 5  # at most: an experiment with many seeds needs no more of them


def experiment(
    name: str,
    scale: str = "small",
    seeds: int = 5,
    settings: Mapping[str, Any] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    beside: bool = True,
) -> list[Cell]:
    """The cells of a table (a key of EXPERIMENTS), or of any preset, with seeds 0 to `seeds` - 1.

    scale: "small" (for two CPU cores) or "paper"; a preset named in full has its own. settings: changed in every cell,
    by dotted name. vary: for each of these settings, every value, in all combinations. beside: add our own setting and
    the baselines, scored in the same way, to a table. Raises InputError.
    """
    if scale not in SCALES:
        raise InputError(f"scale {scale!r}: expected one of {', '.join(SCALES)}")
    if seeds < 1:
        raise InputError(f"seeds = {seeds}: expected 1 or more")
    if name in PRESETS:
        variants, suffix, beside = [(name, {})], "", False
    elif name in EXPERIMENTS:
        makers = {"table1": _table1, "table2": _table2, "ablation": _ablation, "step-size": lambda: _step_sizes(scale)}
        makers["ingredients"] = lambda: [("ingredients-base", changed) for changed in INGREDIENTS]
        makers["initialisation"] = lambda: [("paper-torch-3-sum-of-squares", {})]
        variants, suffix = makers[name](), SCALES[scale]
    else:
        raise InputError(f"no experiment or preset is called {name!r}; {nearest_names(name, [*EXPERIMENTS, *PRESETS])}")
    for setting, values in (vary or {}).items():
        variants = [(base, {**changed, setting: value}) for base, changed in variants for value in values]
    kinds = [(f"{base}{suffix}", changed, None) for base, changed in variants]
    rows = BESIDE_INGREDIENTS if name == "ingredients" else BESIDE
    aside = [(f"{base}{suffix}", baseline) for base, baseline in rows] if beside else []
    kinds += [(base, {}, baseline) for base, baseline in aside]
    cells: dict[str, Cell] = {}
    for seed in range(seeds):
        for base, changed, baseline in kinds:
            if (base, baseline) in aside and seed >= (1 if baseline in DETERMINISTIC else BESIDE_SEEDS):
                continue  # nothing in them is random but the classifiers
            config = override(preset(base).config, {**(settings or {}), **changed, "seed": seed})
            cell = Cell(base, config, baseline)
            cells.setdefault(cell.identity, cell)
    return list(cells.values())


# --- running them ---------------------------------------------------------------------------------------------------


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
            return BASELINES[cell.baseline](real, 1, cell.config.seed)

        clouds, record = runs.score(choose, cell.name, cell.config, data=data, device=device, progress=progress)
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
    cells: Sequence[Cell], runs_folder: Path | str = "runs", data: str | None = None, device: str | None = None
) -> list[dict[str, Any]]:
    """The records of the cells, in their order: read where they exist, else made here, one run after another.

    A run whose distillation diverged has a record that says so. Cells that need MinkowskiEngine where it is not installed
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
        except DistillationFailed as error:
            print(f"failed at {error}")
        found[cell.identity] = folder
    for reason, count in left_out.items():
        print(f"{count} runs left out: {reason}")
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
            State(cell, found[cell.identity], "found") if cell.identity in found else State(cell, folder / cell.folder)
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
            options = {"num_cpus": self.cpus_per_run, "num_gpus": gpus, "max_retries": 0, "max_calls": 1}
            work = ray.remote(**options)(_work)
            data = self.data or os.environ.get("PCDD_DATA")
            place = {"data": data, "device": "cuda" if gpus else "cpu", "checkpoint_every": self.checkpoint_every}
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
                self.states[number] = replace(state, status="running", stage=stage, fraction=fraction, note=node)

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
        self.states[number] = replace(state, status=status, note=note, stage="", fraction=float(failure is None))
        return again


def _work(cell: Cell, folder: str, attempt: tuple[int, int], teller, place: dict[str, Any]) -> str | None:
    """What a Ray worker does: returns None, or why this run cannot be made. Anything it raises is worth another try."""
    import ray
    import torch

    torch.set_num_threads(place["threads"])
    node = ray.get_runtime_context().get_node_id()[:8]
    progress = _Telling(lambda stage, fraction: teller.tell.remote(attempt, stage, fraction, f"node {node}"))
    patience = time.monotonic() + 60  # a worker whose node was lost may live a little longer than the node
    while True:
        try:
            run_cell(cell, folder, place["data"], place["device"], progress, place["checkpoint_every"])
            return None
        except FolderInUse as error:
            if time.monotonic() > patience:
                return str(error)
            time.sleep(1)
        except InputError as error:
            return str(error)
        except DistillationFailed as error:
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
        raise InputError("sweeps need Ray: pip install ray (or run cells one by one with --cell)") from None
    if address is not None:
        host, _, port = address.rpartition(":")
        try:  # Ray itself would wait minutes for a cluster that is not there
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(f"address {address}: no Ray cluster answers there ({error}); expected HOST:PORT") from None
    # "local": never a cluster that happens to be around
    only_ours = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **only_ours)
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
