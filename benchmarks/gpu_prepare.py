"""Collect what `make gpu` needs on a machine without a network.

    make gpu-prepare        (python benchmarks/gpu_prepare.py --help: another Python or platform)

Puts into build/gpu: the wheels of pcdd's requirements and of MinkowskiEngine's build tools, and
MinkowskiEngine's source archive. Copy the checkout with this folder to the machine with the GPU.
There `PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/build/gpu make install` installs without a network.
Options that this script does not know go to `pip download`, such as --python-version 3.12.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from gpu_parts import CHECKOUT, PREPARED, minkowski_script
from packaging.requirements import Requirement

BUILD = minkowski_script()
EXTRAS = ("notebooks", "sweeps", "dev")  # those of requirements.txt


def requirements(without: Sequence[str] = ()) -> list[str]:
    """Return the requirements of pcdd with its extras, and of MinkowskiEngine's build.

    without: names of packages to leave out
    """
    left_out, wanted = {name.lower() for name in without}, []
    for each in map(Requirement, [*(metadata.requires("pcdd") or []), *BUILD.BUILD_TOOLS]):
        chosen = each.marker is None or any(
            each.marker.evaluate({"extra": extra}) for extra in ("", *EXTRAS)
        )
        if chosen and each.name.lower() not in left_out:
            wanted.append(f"{each.name}{each.specifier}")
    return wanted


def prepare(wanted: Sequence[str], folder: Path, pip_options: Sequence[str]) -> None:
    """Download wheels and the source archive into `folder`. Exits with a line if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "-d", str(folder)]
    code = subprocess.run([*command, *pip_options, *wanted]).returncode
    if code:
        sys.exit(f"gpu-prepare: pip download failed with exit code {code}, see above")
    try:
        BUILD.fetch(folder, None)
    except BUILD.CannotBuild as problem:
        sys.exit(f"gpu-prepare: {problem}")
    wheels = list(folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in wheels) / 2**20
    print(f"gpu-prepare: {folder}: {len(wheels)} wheels, {size:.0f} MiB, and {BUILD.ARCHIVE}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=PREPARED)
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="NAME",
        help="packages that the machine with the GPU has, such as torch torchvision",
    )
    options, pip_options = parser.parse_known_args()
    pins = ["--constraint", str(CHECKOUT / "constraints.txt")] if not pip_options else []
    prepare(requirements(options.without), options.folder, [*pins, *pip_options])


if __name__ == "__main__":
    main()
