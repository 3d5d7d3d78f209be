"""Builds and installs MinkowskiEngine 0.5.4 for the PyTorch of this environment: `make minkowski`.

Its last release (2021) no longer builds, and there are no wheels. This fetches the source archive from pip's package
index, checks its hash, applies MinkowskiEngine-0.5.4.patch (which explains each change), compiles a wheel, keeps it in
~/.cache/pcdd/minkowski for this Python, PyTorch and CUDA, installs it, and tests the result. A second call takes seconds.
"""

import argparse
import base64
import hashlib
import html.parser
import http.client
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
ARCHIVE = "MinkowskiEngine-0.5.4.tar.gz"
SHA256 = "b1879c00d0b0b1d30ba622cce239886a7e3c78ee9da1064cdfe2f64c2ab15f94"
PATCH = HERE / "MinkowskiEngine-0.5.4.patch"
BUILD_TOOLS = ["setuptools>=70.1", "wheel", "ninja", "patch-ng>=1.18"]
# Added to Python's own flags. Its -g would have the compiler write debugging symbols, which takes far longer.
FLAGS = ["-g0", "-DNDEBUG"]
GIBIBYTES_PER_JOB = {"cpu": 1.5, "cuda": 6.0}  # of compiler memory: estimates on the safe side


class CannotBuild(Exception):
    """Something is missing; the message says what, and what to do."""


@dataclass(frozen=True)
class Target:
    """What the wheel is for.

    cuda: compile CUDA kernels; architectures: what they are compiled for, as TORCH_CUDA_ARCH_LIST; version: of the wheel,
    naming all that it depends on; toolkit: the CUDA toolkit's folder.
    """

    cuda: bool
    architectures: str
    version: str
    toolkit: str | None = None

    @property
    def folder(self) -> str:
        """Name of the wheel's folder in the cache."""
        return f"{sysconfig.get_config_var('SOABI')}-{self.version}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cuda", choices=("auto", "yes", "no"), default="auto", help="auto: if a GPU is there"
    )
    parser.add_argument(
        "--jobs", type=int, help="files compiled at once (default: what cores and memory allow)"
    )
    parser.add_argument("--sdist", type=Path, help=f"{ARCHIVE}, if it has been fetched already")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pcdd" / "minkowski"
    parser.add_argument(
        "--cache", type=Path, default=cache, help="where archive and wheels are kept (%(default)s)"
    )
    options = parser.parse_args()
    try:
        install(options)
    except (CannotBuild, OSError) as problem:
        sys.exit(
            f"minkowski: {problem}\n(pcdd works without MinkowskiEngine; `make test MINKOWSKI=no` leaves its tests out)"
        )


def install(options: argparse.Namespace) -> None:
    """Make the wanted MinkowskiEngine importable, doing as little as needed. Raises CannotBuild."""
    if platform.system() != "Linux":
        raise CannotBuild(
            f"MinkowskiEngine builds on Linux only, this is {platform.system()}; use network.backend=sparse, which computes "
            "the same and needs no installation (on Windows, WSL is a Linux)"
        )
    if options.jobs is not None and options.jobs < 1:
        raise CannotBuild(f"JOBS is {options.jobs}; expected 1 or more files compiled at once")
    target = choose_target(options.cuda)
    if installed_version() == target.version and self_test():
        say(f"MinkowskiEngine {target.version} is installed")
        return
    wheels = options.cache / target.folder
    wheel = next(wheels.glob("*.whl"), None)
    if wheel:
        say(f"wheel from the cache: {wheel}")
    else:
        check_compiler()
        jobs = options.jobs or choose_jobs(target)
        archive = fetch(options.cache, options.sdist)
        pip("install", "-q", *BUILD_TOOLS)
        wheel = build(target, archive, wheels, jobs)
    pip("install", "-q", "--no-deps", "--force-reinstall", str(wheel))
    say(f"installed MinkowskiEngine {target.version}")
    if not self_test():
        raise CannotBuild(
            f"it is installed, but its self-test failed (above); remove {wheels} and try again"
        )


def self_test() -> bool:
    """Whether what is installed computes; what is wrong is printed."""
    return subprocess.run([sys.executable, HERE / "self_test.py"]).returncode == 0


def choose_target(cuda: str) -> Target:
    """CPU-only or CUDA, for the torch that is installed and the GPUs that are there."""
    try:
        import torch
    except ImportError:
        raise CannotBuild(
            "PyTorch is not installed in this environment; `make install` first"
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 6):
        raise CannotBuild(f"PyTorch is {torch.__version__}; 2.6 or later is supported")
    use_cuda = cuda == "yes" or (
        cuda == "auto" and torch.cuda.is_available() and torch.version.cuda is not None
    )
    digest = hashlib.sha256(
        PATCH.read_bytes() + SHA256.encode() + " ".join(FLAGS).encode()
    ).hexdigest()[:8]
    label = re.sub(r"[^0-9a-zA-Z]+", ".", torch.__version__)
    if not use_cuda:
        return Target(False, "", normal(f"0.5.4+torch{label}.cpu.{digest}"))

    toolkit = find_toolkit(torch.version.cuda)
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join(
        sorted(
            {
                "{}.{}".format(*torch.cuda.get_device_capability(card))
                for card in range(torch.cuda.device_count())
            }
        )
    )
    if not architectures:
        raise CannotBuild(
            "no GPU is visible to tell the architecture from; set TORCH_CUDA_ARCH_LIST, for instance 9.0 (H100)"
        )
    built_for = re.sub(r"[^0-9a-zA-Z]+", "", architectures)
    return Target(
        True, architectures, normal(f"0.5.4+torch{label}.sm{built_for}.{digest}"), toolkit
    )


def normal(version: str) -> str:
    """As pip will write it: no capitals, no leading zeros (PEP 440)."""
    public, local = version.split("+")
    return f"{public}+" + ".".join(
        str(int(part)) if part.isdigit() else part for part in local.lower().split(".")
    )


def find_toolkit(torch_cuda: str | None) -> str:
    """The CUDA toolkit's folder. Its major version must be that of the CUDA that torch was built with."""
    if torch_cuda is None:
        raise CannotBuild(
            "this PyTorch is built without CUDA; install one with CUDA, or take CUDA=no"
        )
    from torch.utils.cpp_extension import CUDA_HOME

    compiler = Path(CUDA_HOME or "/usr/local/cuda") / "bin" / "nvcc"
    needed = torch_cuda.split(".")[0]
    otherwise = "or take CUDA=no for a build without CUDA"
    if not compiler.exists():
        raise CannotBuild(
            f"no CUDA compiler ({compiler} is not there); install the CUDA toolkit {needed}.x or set CUDA_HOME to it, {otherwise}"
        )
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.", text)
    if not release or release[1] != needed:
        found = release[1] if release else "unknown"
        raise CannotBuild(
            f"{compiler} is of CUDA {found}, but PyTorch was built with CUDA {torch_cuda}; install the toolkit {needed}.x, set "
            f"CUDA_HOME to it, {otherwise}"
        )
    home = compiler.parent.parent
    if not any(
        (home / include / "cuda_runtime.h").exists()
        for include in ("include", "targets/x86_64-linux/include")
    ):
        raise CannotBuild(
            f"{home} has no include/cuda_runtime.h; set CUDA_HOME to the folder of the whole toolkit, {otherwise}"
        )
    return str(home)


def check_compiler() -> None:
    """Compile something that needs what the build needs: C++17, OpenMP, Python's headers."""
    compiler = os.environ.get("CXX", "c++")
    advice = "Debian, Ubuntu: apt install build-essential python3-dev; Fedora: dnf install gcc-c++ python3-devel"
    if shutil.which(compiler) is None:
        raise CannotBuild(
            f"no C++ compiler ({compiler} is not there); install one, or set CXX ({advice})"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(
            "#include <Python.h>\n#include <omp.h>\n#include <optional>\nint main() { return !omp_get_num_procs(); }\n"
        )
        headers = sysconfig.get_path("include")
        command = [
            compiler,
            "-std=c++17",
            "-fopenmp",
            f"-I{headers}",
            "-c",
            str(source),
            "-o",
            str(source) + ".o",
        ]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise CannotBuild(
            f"{compiler} cannot compile C++17 with OpenMP and Python's headers ({advice}):\n{result.stderr}"
        )


def choose_jobs(target: Target) -> int:
    """As many as cores and free memory allow."""
    needed = GIBIBYTES_PER_JOB["cuda" if target.cuda else "cpu"]
    available = free_memory() / 2**30
    if available < needed:
        raise CannotBuild(
            f"too little memory: one compiler job needs up to {needed} GiB, {available:.1f} GiB are free; close other programs, "
            "or insist with JOBS=1"
        )
    return max(1, min(len(os.sched_getaffinity(0)), int(available / needed)))


def free_memory() -> float:
    """Bytes that can still be had, in a container too."""
    available = (
        float(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024
    )
    for folder, limit, used, cached in memory_groups():
        if (folder / limit).exists() and (folder / limit).read_text().strip() != "max":
            statistics = (
                (folder / "memory.stat").read_text() if (folder / "memory.stat").exists() else ""
            )
            files = re.search(
                rf"^{cached} (\d+)", statistics, re.MULTILINE
            )  # cached files make way
            taken = float((folder / used).read_text()) - (float(files[1]) if files else 0)
            available = min(available, float((folder / limit).read_text()) - taken)
    return available


def memory_groups() -> Iterator[tuple[Path, str, str, str]]:
    """Folders of the control groups (versions 1 and 2) that limit this process; their names of limit, use, cached files."""
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else ["0::/"]:
        _, controllers, name = line.split(":", 2)
        for level in (PurePosixPath(name), *PurePosixPath(name).parents):
            if not controllers:
                yield (
                    Path(f"/sys/fs/cgroup{level}"),
                    "memory.max",
                    "memory.current",
                    "inactive_file",
                )
            elif "memory" in controllers.split(","):
                folder = Path(f"/sys/fs/cgroup/memory{level}")
                yield (
                    folder,
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                )


def fetch(cache: Path, given: Path | None) -> Path:
    """The source archive, from the cache or from pip's package index, with the right hash."""
    archive = given or cache / ARCHIVE
    if given and not given.is_file():
        raise CannotBuild(f"{given}: no such file; expected {ARCHIVE}")
    if not archive.exists():
        index = (
            os.environ.get("PIP_INDEX_URL")
            or pip("config", "get", "global.index-url", check=False)
            or "https://pypi.org/simple"
        )
        address = urllib.parse.urlsplit(f"{index.rstrip('/')}/minkowskiengine/")
        user, _, host = address.netloc.rpartition("@")
        page = address._replace(netloc=host).geturl()
        secret = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        headers = (
            {"Authorization": f"Basic {secret}"} if user else {}
        )  # urllib would take it for a part of the host
        say(f"fetching {ARCHIVE} from {urllib.parse.urlsplit(page).hostname}")
        try:
            with urllib.request.urlopen(
                urllib.request.Request(page, headers=headers), timeout=60
            ) as answer:
                links, base = Links(answer.read().decode()), answer.url
            if ARCHIVE not in links.found:
                raise CannotBuild(
                    f"{page} does not list {ARCHIVE}; get it elsewhere and name it: SDIST=file"
                )
            with urllib.request.urlopen(
                urllib.parse.urljoin(base, links.found[ARCHIVE]), timeout=60
            ) as answer:
                content = answer.read()
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise CannotBuild(
                f"{page}: {problem}; without a network, fetch {ARCHIVE} elsewhere and name it: SDIST=file"
            ) from None
        check_hash(content, page)
        cache.mkdir(parents=True, exist_ok=True)
        partial = archive.with_suffix(f".{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(archive)
    check_hash(archive.read_bytes(), str(archive))
    return archive


class Links(html.parser.HTMLParser):
    """File name to address, from a page of a package index."""

    def __init__(self, page: str):
        super().__init__()
        self.found: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        """Note the file that a link leads to."""
        address = dict(attributes).get("href")
        if tag == "a" and address:
            self.found[
                urllib.parse.unquote(urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1])
            ] = address


def check_hash(content: bytes, source: str) -> None:
    """Refuse anything but the pinned archive."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise CannotBuild(
            f"{source}: this is not {ARCHIVE}: its sha256 is {digest}, expected {SHA256}; remove it and try again"
        )


def build(target: Target, archive: Path, wheels: Path, jobs: int) -> Path:
    """Unpack, patch, compile; returns the wheel, moved to the cache once it is whole."""
    wheels.mkdir(parents=True, exist_ok=True)
    log = wheels / "build.log"
    kind = (
        f"CUDA {target.architectures}, half an hour or so"
        if target.cuda
        else "CPU only, 4 minutes or so on 2 cores"
    )
    say(
        f"building for PyTorch's version and this Python ({kind}), {jobs} files at once; log: {log}"
    )
    with tempfile.TemporaryDirectory(prefix="minkowski-build-") as folder:
        with tarfile.open(archive) as packed:
            # older Pythons (3.10.11, 3.11.3) have no filters; the archive is known by its hash
            packed.extractall(
                folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
            )
        source = Path(folder) / ARCHIVE.removesuffix(".tar.gz")
        apply_patch(source)
        stamp_version(source, target.version)
        own = (
            sysconfig.get_config_var("CFLAGS") or ""
        )  # setuptools takes those of the environment in their place
        flags = {
            name: " ".join([own, os.environ.get(name, ""), *FLAGS])
            for name in ("CFLAGS", "CXXFLAGS")
        }
        environment = {**os.environ, **flags, "LC_ALL": "C.UTF-8", "MAX_JOBS": str(jobs)}
        if target.cuda:
            environment |= {
                "CUDA_HOME": target.toolkit,
                "TORCH_CUDA_ARCH_LIST": target.architectures,
            }
            # from CUDA 13 on Thrust lies one folder deeper, where nvcc looks for it, but not the C++ compiler
            found = [f"{target.toolkit}/include/cccl", os.environ.get("CPLUS_INCLUDE_PATH")]
            environment["CPLUS_INCLUDE_PATH"] = os.pathsep.join(filter(None, found))
        environment["PATH"] = (
            f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # where ninja is
        )
        command = [
            sys.executable,
            "setup.py",
            "bdist_wheel",
            "--force_cuda" if target.cuda else "--cpu_only",
        ]
        begun = time.monotonic()
        with log.open("w") as file:
            process = subprocess.Popen(
                command,
                cwd=source,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                for line in process.stdout:
                    file.write(line)
                    if step := re.match(r"\[(\d+)/(\d+)\]", line):
                        say(
                            f"compiled {step[1]} of {step[2]} files, {time.monotonic() - begun:.0f} s"
                        )
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                raise
        made = list((source / "dist").glob("*.whl"))
        if process.wait() or not made:
            last = "".join(log.read_text().splitlines(keepends=True)[-15:])
            first = next(
                (
                    line
                    for line in log.read_text().splitlines()
                    if re.search(r"\berror\b|Killed", line)
                ),
                "",
            )
            raise CannotBuild(
                f"the build failed: {first}\n{last}All of it: {log}. Out of memory? Try JOBS=1."
            )
        partial = wheels / f".{os.getpid()}"
        shutil.copyfile(made[0], partial)
        return partial.replace(wheels / made[0].name)


def apply_patch(source: Path) -> None:
    """Apply the project's patch; all of it or nothing counts."""
    program = "import sys, patch_ng; sys.exit(not patch_ng.fromfile(sys.argv[1]).apply(strip=1, root=sys.argv[2]))"
    result = subprocess.run(
        [sys.executable, "-c", program, str(PATCH), str(source)], capture_output=True, text=True
    )
    if result.returncode:
        raise CannotBuild(f"{PATCH} does not apply:\n{result.stdout}{result.stderr}")


def stamp_version(source: Path, version: str) -> None:
    """Let the wheel's version say what it was built for, so that pip and `installed_version` can tell."""
    file = source / "MinkowskiEngine" / "__init__.py"
    text = file.read_text()
    file.write_text(text.replace('__version__ = "0.5.4"', f'__version__ = "{version}"'))


def installed_version() -> str | None:
    """What is installed, if anything."""
    try:
        return importlib.metadata.version("MinkowskiEngine")
    except importlib.metadata.PackageNotFoundError:
        return None


def pip(*words: str, check: bool = True) -> str:
    """Run this environment's pip; returns what it printed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    result = subprocess.run(command, capture_output=True, text=True)
    if check and result.returncode:
        raise CannotBuild(f"`pip {' '.join(words)}` failed:\n{result.stderr}")
    return result.stdout.strip() if result.returncode == 0 else ""


def say(text: str) -> None:
    """Progress, at once even into a pipe."""
    print(f"minkowski: {text}", flush=True)


if __name__ == "__main__":
    main()
