"""The parts of `gpu_day.py`. Each does its work, and writes a record with one line of result.

    python benchmarks/gpu_parts.py PART --root DIR --device cuda

A part that was stopped and is started again continues: finished rows and runs are kept, and runs
resume from their checkpoints. Records of runs go to figures/records/gpu.jsonl.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from limits import best_seconds

import pcdd_core as pcdd
from pcdd_core.experiments import machine, records
from pcdd_core.files import atomic_write_text
from pcdd_core.nn.classifiers import ConvNet, Ensemble
from pcdd_core.scoring.evaluate import SADM, STANDARD, Protocol, Soft, evaluate
from pcdd_core.seeds import generator

CHECKOUT = Path(__file__).resolve().parents[1]
PREPARED = CHECKOUT / "build" / "gpu"  # from benchmarks/gpu_prepare.py
GIGABYTE = 10**9
TABLE1_MINUTES = 8.0  # below the limit of a part, so that the sweep ends by itself
UNROLLED = 4800  # iterations; the preset has 1,200
PAPER = ("iteration-paper-torch-3", "iteration-paper-minkowski-2", "iteration-paper-pool")
# Settings of the runs of a dry run
TINY = (
    "data.name=digits", "network.width=2", "network.layers=2", "objective.real_batch=4",
    "clouds.points_per_cloud=20", "schedule.iterations=2", "evaluation.networks=1",
    "evaluation.epochs=1", "evaluation.classifier.width=2", 'evaluation.protocols=["standard"]',
)  # fmt: skip
SMALL = {"network.width": 4, "objective.real_batch": 4, "clouds.points_per_cloud": 20}


@dataclass(frozen=True)
class Part:
    """A part that runs.

    name: names its record
    root: folder of benchmarks/records, benchmarks/results, figures/records and runs/gpu
    device: cuda or cpu
    small: tiny sizes, of a dry run
    data: folder of the real data; None: PCDD_DATA
    before: seconds of earlier calls
    """

    name: str
    root: Path
    device: torch.device
    small: bool
    data: str | None
    before: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def record(self) -> Path:
        """Path of the record."""
        return self.root / "benchmarks" / "records" / "gpu" / f"{self.name}.json"

    @property
    def runs(self) -> Path:
        """Folder of the run folders."""
        return self.root / "runs" / "gpu" / "runs"

    def write(self, result: str, finished: bool = True, **fields) -> None:
        """Write the record: a line of result, seconds of all calls so far, and `fields`."""
        record = {
            "command": f"python benchmarks/gpu_day.py --only {self.name}",
            "result": result,
            "finished": finished,
            "machine": machine.describe(self.device) | {"cores": os.cpu_count()},
            "seconds": self.seconds(),
            **fields,
        }
        atomic_write_text(self.record, json.dumps(record, indent=1))
        print(result)

    def seconds(self) -> float:
        """Return the seconds of earlier calls and of this one."""
        return self.before + time.monotonic() - self.begun

    def pcdd(self, *words: str) -> list | dict:
        """Run `pcdd words...` and return what `--json` prints."""
        data = ["--data", self.data] if self.data else []
        command = [sys.executable, "-m", "pcdd_core", *words, *data, "--json"]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(result.stdout)


def tests(part: Part) -> None:
    """Run the tests with the marker gpu. A dry run compares two ways of the CPU."""
    counts = _pytest(part, "gpu")
    failed = counts["failed"]
    part.write(
        f"{counts['passed']} tests passed, {len(failed)} failed, {counts['skipped']} skipped",
        finished=not failed and counts["passed"] > 0,
        **counts,
    )
    if failed:
        sys.exit(f"{len(failed)} tests failed: {', '.join(failed)}")


def _pytest(part: Part, marker: str) -> dict:
    """Run gpu tests. Returns the counts `passed` and `skipped`, and the names `failed`."""
    report = part.root / "runs" / "gpu" / f"{part.name}.xml"
    command = [
        sys.executable, "-m", "pytest", "-q", "-m", marker, f"--junitxml={report}",
        str(CHECKOUT / "tests" / "unit" / "test_gpu.py"),
    ]  # fmt: skip
    subprocess.run(command, env=os.environ | {"PCDD_TEST_DEVICE": part.device.type})
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        case.get("name", "")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def _bench(part: Part, names: Iterable[str], *options: str) -> dict[str, dict]:
    """Run the benchmarks that have no row yet. Returns the rows by name."""
    path = part.root / "benchmarks" / "results" / f"{part.device.type}.json"
    script = str(Path(__file__).with_name("bench.py"))
    words = ["--device", str(part.device), "--output", str(path), *options]
    words += ["--small", "--rounds", "1", "--epochs", "1"] if part.small else []
    words += ["--data", part.data] if part.data else []

    def rows() -> dict[str, dict]:
        return {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}

    missing = [name for name in names if name not in rows()]
    if missing:
        subprocess.run([sys.executable, script, *words, "--only", *missing], check=True)
    return {name: row for name, row in rows().items() if name in names}


def _ratio(row: dict) -> str:
    """Describe a row: its ratio, share of the floor's rate, and peak memory."""
    floor = f", {row['floor_fraction']:.0%} of the floor's rate" if row["floor_fraction"] else ""
    return f"{row['ratio']:.1f} times{floor}, {row['peak_bytes'] / GIGABYTE:.1f} GB"


def iteration(part: Part) -> None:
    """Compare iterations of gradient matching with the published way."""
    names = ["iteration-convnet3", "iteration-convnet3-float32", "iteration-small"]
    rows = _bench(part, names[:1] if part.small else names)
    text = "; ".join(f"{name}: {_ratio(row)}" for name, row in rows.items())
    part.write(text, rows=list(rows.values()))


def evaluation(part: Part) -> None:
    """Train 20 classifiers as one: the ratio, equality with one by one, and a whole evaluation."""
    row = _bench(part, ["evaluation-ensemble"], "--epochs", "100")["evaluation-ensemble"]
    together = as_one(part.device, networks=2 if part.small else 20, width=4 if part.small else 128)
    data = pcdd.Digits() if part.small else pcdd.Mnist()
    protocol = replace(STANDARD, networks=2, epochs=2) if part.small else STANDARD
    score, seconds = _scored(part, pcdd.released("mnist-1"), data.load(part.data).test, protocol)
    text = (
        f"{_ratio(row)}; as one {together['ratio']:.1f} times one by one, largest difference "
        f"{together['difference']:.1e}; set mnist-1: {score.mean:.2f} ± "
        f"{score.standard_deviation:.2f} % in {seconds:.0f} s"
    )
    part.write(
        text,
        finished=together["difference"] < 1e-3,
        row=row,
        as_one=together,
        accuracies=score.accuracies,
        evaluation_seconds=seconds,
    )


def as_one(device: torch.device, networks: int, width: int) -> dict:
    """Compare a training step of classifiers as one with one by one.

    Returns seconds of both, their ratio, and the largest difference of logits and gradients,
    relative to the largest value. The difference is measured without TF32.
    """
    images = torch.rand(networks, 10, 1, 28, 28, generator=generator(0, "images")).to(device)
    labels = torch.arange(10, device=device).repeat(networks)
    made = [
        [
            ConvNet(width=width).new((1, 28, 28), 10, generator(0, number))
            for number in range(networks)
        ]
        for _ in range(2)
    ]
    ways = [
        Ensemble(own, one_by_one=one_by_one).to(device)
        for own, one_by_one in zip(made, (False, True))
    ]

    def step(ensemble: Ensemble) -> tuple[torch.Tensor, ...]:
        logits = ensemble(images)
        loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
        return logits, *torch.autograd.grad(loss, list(ensemble.parameters()))

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        pairs = zip(*map(step, ways))
        difference = max(float((one - two).abs().max() / two.abs().max()) for one, two in pairs)
    together, one_by_one = (best_seconds(partial(step, way), device) for way in ways)
    return {
        "as_one_s": together,
        "one_by_one_s": one_by_one,
        "ratio": one_by_one / together,
        "difference": difference,
    }


def _scored(
    part: Part, clouds: pcdd.PointClouds, test: pcdd.PointClouds, protocol: Protocol, **options
) -> tuple:
    """Return the score of a set, and the seconds of its evaluation."""
    begun = time.monotonic()
    scores = evaluate(clouds, test, protocol=protocol, device=part.device, **options)
    return scores[protocol.label], time.monotonic() - begun


def table1(part: Part) -> None:
    """Make the runs of Table 1 with fresh real gradients, one seed, by `pcdd sweep`."""
    words = ["table1", "--seeds", "1", "--runs", str(part.runs), "objective.real_gradients=fresh"]
    if part.small:
        tiny = [setting for setting in TINY if not setting.startswith("network.layers")]
        words += ["--scale", "small", "--gpus-per-run", "0", *tiny]
    else:
        words += ["--minutes", str(TABLE1_MINUTES), "--gpus-per-run", "0.16", "--retries", "1"]
    states = part.pcdd("sweep", *words, "--quiet")
    ended = [state for state in states if state["status"] in ("finished", "found")]
    failed = [state for state in states if state["status"] == "failed"]
    unexpected = [state for state in failed if not state["name"].startswith("paper-minkowski")]
    kept = _keep(part, (state["folder"] for state in ended if state["status"] == "finished"))
    minutes, left = part.seconds() / 60, len(states) - len(ended) - len(failed)
    text = f"{len(ended)} of {len(states)} runs in {minutes:.1f} minutes"
    without = "; without MinkowskiEngine's runs" if failed and not unexpected else ""
    part.write(text + without, finished=not left and not unexpected, states=states, kept=kept)
    if unexpected:
        sys.exit("; ".join(f"{state['name']}: {state['note']}" for state in unexpected))


def _keep(part: Part, folders: Iterable[str]) -> list[str]:
    """Copy the records of runs to figures/records/gpu.jsonl. Returns the names of their rows."""
    found = [records.read_record(Path(folder)) for folder in folders]
    records.keep(found, part.root / "figures", "gpu", with_clouds=True)
    return [records.row_of(record) for record in found]


def graphs(part: Part) -> None:
    """Compare an iteration with CUDA graphs to the engine's, and time both."""
    import cuda_graphs
    from bench import ITERATIONS, matching_config

    data = pcdd.Digits() if part.small else pcdd.Mnist(max_points=250)
    real, rows = data.load(part.data).train, {}
    for name in ("iteration-small", "iteration-convnet3"):
        changes = ITERATIONS[name] | (SMALL if part.small else {})
        # a new network in every iteration, as in the preset
        config = matching_config(**changes, **{"schedule.iterations_per_network": 1})
        exact = pcdd.override(config, {"objective.real_precision": "float32"})
        rows[name] = {
            "difference": cuda_graphs.difference(exact, real, part.device),
            **cuda_graphs.measure(config, real, part.device, rounds=2 if part.small else 20),
        }
    equal = all(row["difference"] < 1e-3 for row in rows.values())
    text = "; ".join(
        f"{name}: {row['ratio']:.1f} times the engine, difference {row['difference']:.1e}"
        for name, row in rows.items()
    )
    part.write(text, finished=equal, rows=rows)
    if not equal:
        sys.exit(f"the graph computes something else: {text}")


def minkowski_build(part: Part) -> None:
    """Build MinkowskiEngine with its CUDA kernels, without a network, and test it.

    A dry run unpacks and patches the source only, if it has the archive.
    """
    script = minkowski_script()
    work = part.root / "runs" / "gpu" / "minkowski"
    cache = Path.home() / ".cache" / "pcdd" / "minkowski"
    archive = next(
        (path for folder in (PREPARED, cache) if (path := folder / script.ARCHIVE).exists()), None
    )
    if part.small:
        if archive is None or importlib.util.find_spec("patch_ng") is None:
            part.write("not tried: no source archive or no patch-ng here", tried=False)
            return
        source = script.kept_tree(archive, work / "tree", "0.5.4+dry.run")
        part.write(f"unpacked and patched {source.name}", tried=True)
        return
    if archive is None:
        sys.exit(
            f"no {script.ARCHIVE} in {PREPARED}; run `make gpu-prepare` on a machine with a "
            "network and copy the folder"
        )
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(PREPARED)}
    command = [
        sys.executable, script.__file__, "--cuda", "yes", "--sdist", str(archive),
        "--tree", str(work / "tree"), "--cache", str(work / "cache"),
    ]  # fmt: skip
    subprocess.run(command, env=os.environ | offline, check=True)
    counts = _pytest(part, "gpu and minkowski")
    version = script.installed_version()
    text = f"{version} built in {part.seconds():.0f} s; {counts['passed']} tests passed"
    finished = not counts["failed"] and counts["passed"] > 0
    part.write(text, finished=finished, version=version, **counts)
    if not finished:
        sys.exit(f"{text}; failed: {', '.join(counts['failed']) or 'none ran'}")


def minkowski_script():
    """Return minkowski/build.py as a module."""
    path = CHECKOUT / "minkowski" / "build.py"
    specification = importlib.util.spec_from_file_location("minkowski_build", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # its data classes look it up
    specification.loader.exec_module(module)
    return module


def unrolled(part: Part) -> None:
    """Distil one cloud per class by long unrolled training: preset mnist-1, more iterations."""
    settings = TINY if part.small else [f"schedule.iterations={UNROLLED}"]
    words = ["mnist-1", "--seeds", "1", "--run", "0", "--runs", str(part.runs), "--quiet"]
    (state,) = part.pcdd("sweep", *words, *settings)
    record = records.read_record(Path(state["folder"]))
    if not record["scores"]:
        sys.exit(f"the run failed: {record['health']['reason']}")
    scores = {name: mean(score["accuracies"]) for name, score in record["scores"].items()}
    text = ", ".join(f"{name} {value:.2f} %" for name, value in scores.items())
    seconds = record["seconds"]["distillation"]
    _keep(part, [state["folder"]])
    part.write(f"{text} after {seconds:.0f} s of distillation", run=records.row_of(record))


def pointnets(part: Part) -> None:
    """Train ten PointNets of protocol sadm: beside the plain layout, and on the set solids."""
    import evaluation_pointnet

    sizes = ((10, 32),) if part.small else evaluation_pointnet.SETS
    networks, rounds = (2, 1) if part.small else (SADM.networks, 7)
    rows = [evaluation_pointnet.measure(*size, networks, rounds, part.device) for size in sizes]
    preset = pcdd.preset("solids").config
    protocol = replace(SADM, networks=2, epochs=1) if part.small else SADM
    test = preset.data.load(None).test
    if part.small:
        test = test.select(torch.arange(20))
    score, seconds = _scored(part, pcdd.released("solids"), test, protocol, projection=Soft())
    ratios = ", ".join(f"{row['ratio']:.1f}" for row in rows)
    text = (
        f"an epoch {ratios} times the plain layout; set solids: {score.mean:.1f} ± "
        f"{score.standard_deviation:.1f} % in {seconds:.0f} s"
    )
    part.write(text, rows=rows, accuracies=score.accuracies, evaluation_seconds=seconds)


def bench(part: Part) -> None:
    """Run the other benchmarks of `make bench`, each once."""
    import bench as benchmarks

    names = [*PAPER, "start-up"] if part.small else list(benchmarks.BENCHMARKS)
    if not benchmarks.has_minkowski(part.device):
        names.remove("iteration-paper-minkowski-2")
    rows = {}
    for name in names:
        rows |= _bench(part, [name], "--epochs", "100")
        done = [f"{name}: {_ratio(row)}" for name, row in rows.items() if "ratio" in row]
        text = f"{len(rows)} of {len(names)} benchmarks; " + "; ".join(done)
        part.write(text, finished=len(rows) == len(names), rows=list(rows.values()))


WORK: dict[str, Callable[[Part], None]] = {
    "tests": tests,
    "iteration": iteration,
    "evaluation": evaluation,
    "table1": table1,
    "graphs": graphs,
    "minkowski": minkowski_build,
    "unrolled": unrolled,
    "pointnets": pointnets,
    "bench": bench,
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=WORK, metavar="PART", help=", ".join(WORK))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--data")
    options = parser.parse_args()
    device = machine.choose_device(options.device)
    part = Part(options.part, options.root, device, options.small, options.data)
    if part.record.exists():
        part = replace(part, before=json.loads(part.record.read_text())["seconds"])
    WORK[options.part](part)


if __name__ == "__main__":
    main()
