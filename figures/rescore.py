"""Score kept sets again with the current evaluation settings of their presets.

    python figures/rescore.py --data DIR mnist-1 mnist-1-split

For each preset the script reads its records in figures/records/*.jsonl and their clouds, trains
and tests the classifiers, and replaces scores, evaluation settings, evaluation seconds and
`scored_by` in the record. The record of seed 0 is also copied to pcdd_core/released. A record with
the current settings stays unchanged.
"""

import argparse
from dataclasses import replace

import pcdd_core as pcdd
from pcdd_core.experiments import machine, scores
from pcdd_core.experiments.config import from_dict, to_dict
from pcdd_core.experiments.presets import label
from pcdd_core.experiments.records import COMMITTED, as_json, read_records, write_records
from pcdd_core.files import atomic_write_text
from pcdd_core.geometry.storage import RELEASED
from pcdd_core.sealed import sealed


def rescored(record: dict, data: str | None) -> dict | None:
    """Return the record with new scores.

    Returns None if its settings are current or if it has no clouds.
    """
    kept = record.get("clouds_file")
    old, evaluation = from_dict(record["config"]), pcdd.preset(record["name"]).config.evaluation
    if kept is None or old.evaluation == evaluation:
        return None
    config = replace(old, evaluation=evaluation)
    clouds = pcdd.load_clouds(kept)
    _, scored = scores.score(clouds, record["name"], config, data)
    seconds = record["seconds"] | scored["seconds"]
    about = {"seconds": seconds, "scored_by": machine.describe(machine.choose_device(None))}
    wanted = ("scores", "scored_on", "occupied_cells")
    new = {name: scored[name] for name in wanted} | {"config": to_dict(config)} | about
    return record | new | {"row": label(record["name"], config)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="presets of kept records")
    parser.add_argument("--data", help="folder that contains MNIST/raw (default: PCDD_DATA)")
    options = parser.parse_args()
    for path in sorted(COMMITTED.glob("*.jsonl")):
        records = read_records(path)
        for number, record in enumerate(records):
            # take the run with the preset's own distillation, not one with changed settings
            name, wanted = record["name"], record["name"] in options.names
            if not wanted or record["kind"] != "distilled":
                continue
            evaluation = to_dict(pcdd.preset(name).config)["evaluation"]
            config = from_dict(record["config"] | {"evaluation": evaluation})
            if label(name, config) != name or (new := rescored(record, options.data)) is None:
                continue
            records[number] = new
            write_records(records, path)
            beside = RELEASED / f"{name}.json"
            if new["config"]["seed"] == 0 and beside.exists():
                atomic_write_text(beside, as_json(sealed(new)))
            scores = {key: round(score["mean"], 2) for key, score in new["scores"].items()}
            print(f"{name}, seed {new['config']['seed']}: {scores}", flush=True)


if __name__ == "__main__":
    main()
