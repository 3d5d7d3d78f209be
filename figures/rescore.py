"""Score kept sets again with the current evaluation settings of their presets.

    python figures/rescore.py --data DIR mnist-1 mnist-1-split

For each preset the script reads figures/records/NAME*-seedN.json and the clouds beside it, trains
and tests the classifiers, and replaces scores, evaluation settings, evaluation seconds and
`scored_by` in the record. The record of seed 0 is also copied to pcdd_core/released. A record with
the current settings stays unchanged.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pcdd_core as pcdd
from pcdd_core.experiments import machine, runs
from pcdd_core.experiments.config import from_dict, to_dict
from pcdd_core.experiments.records import COMMITTED, as_json, label, read_record
from pcdd_core.files import atomic_write_text
from pcdd_core.geometry.storage import RELEASED


def rescored(path: Path, data: str | None) -> dict | None:
    """Return the record at `path` with new scores.

    Returns None if its settings are current or if there are no clouds beside it.
    """
    record = read_record(path)
    kept = record.pop("clouds_file")
    old, evaluation = from_dict(record["config"]), pcdd.preset(record["name"]).config.evaluation
    if kept is None or old.evaluation == evaluation:
        return None
    config = replace(old, evaluation=evaluation)
    clouds = pcdd.load_clouds(kept)
    _, scored = runs.score(clouds, record["name"], config, data)
    seconds = record["seconds"] | scored["seconds"]
    about = {"seconds": seconds, "scored_by": machine.describe(machine.choose_device(None))}
    wanted = ("scores", "scored_on", "occupied_cells")
    return record | {name: scored[name] for name in wanted} | {"config": to_dict(config)} | about


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="presets of kept records")
    parser.add_argument("--data", help="folder that contains MNIST/raw (default: PCDD_DATA)")
    options = parser.parse_args()
    for path in sorted(COMMITTED.glob("*.json")):
        record = json.loads(path.read_text())
        if record["name"] not in options.names or "network" not in record.get("config", {}):
            continue
        # a preset can have records with changed settings: take the one with its own distillation
        evaluation = to_dict(pcdd.preset(record["name"]).config)["evaluation"]
        config = from_dict(record["config"] | {"evaluation": evaluation})
        if label(record["name"], config) != record["name"]:
            continue
        if (new := rescored(path, options.data)) is None:
            continue
        atomic_write_text(path, as_json(new))
        if new["config"]["seed"] == 0 and (RELEASED / f"{record['name']}.json").exists():
            atomic_write_text(RELEASED / f"{record['name']}.json", as_json(new))
        scores = {name: round(score["mean"], 2) for name, score in new["scores"].items()}
        print(f"{path.name}: {scores}", flush=True)


if __name__ == "__main__":
    main()
