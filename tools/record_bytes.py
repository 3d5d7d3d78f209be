"""Add the bytes of the packed set to kept records that lack them and whose set is at hand.

    python tools/record_bytes.py

Reads figures/records/*.jsonl and figures/sets, and the records of the released sets. New runs
record their bytes themselves. Records without a kept set stay as they are.
"""

from pcdd_core.experiments.ranking import with_bytes
from pcdd_core.experiments.records import (
    COMMITTED,
    as_json,
    read_record,
    read_records,
    write_records,
)
from pcdd_core.files import atomic_write_text
from pcdd_core.geometry.storage import released_names, released_path
from pcdd_core.sealed import sealed


def main() -> None:
    """Run the command line."""
    for path in sorted(COMMITTED.glob("*.jsonl")):
        records = read_records(path)
        changed = [with_bytes(record) for record in records]
        added = sum("bytes" in record for record in changed)
        added -= sum("bytes" in record for record in records)
        if added:
            write_records(changed, path)
        print(f"{path.name}: {added} of {len(records)} records", flush=True)
    for name in released_names():
        path = released_path(name).with_suffix(".json")
        record = read_record(path)
        changed = with_bytes(record)
        if changed != record:
            stored = {
                key: part for key, part in changed.items() if key not in ("place", "clouds_file")
            }
            atomic_write_text(path, as_json(sealed(stored)))
            print(f"{path.name}: {changed['bytes']} bytes", flush=True)


if __name__ == "__main__":
    main()
