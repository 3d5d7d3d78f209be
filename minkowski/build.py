"""Build and install MinkowskiEngine 0.5.4 for the PyTorch of this environment (`make minkowski`).

The last release (2021) no longer builds, and there are no wheels. This script fetches the source
archive from pip's package index, checks its hash, applies MinkowskiEngine-0.5.4.patch (which
explains each change) and compiles a wheel. It stores the wheel in ~/.cache/pcdd/minkowski for this
Python, PyTorch and CUDA, installs it, and tests the result. A second call takes seconds.
"""

import argparse
import base64
import contextlib
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
# Added to Python's own flags. Their -g makes the compiler write debugging symbols, which takes far
# longer.
FLAGS = ["-g0", "-DNDEBUG"]
GIBIBYTES_PER_JOB = {"cpu": 1.5, "cuda": 6.0}  # memory of one compiler job, estimated high


class CannotBuild(Exception):
    """The build is not possible. The message says why, and what to do."""


@dataclass(frozen=True)
class Target:
    """Target of the build.

    cuda: compile CUDA kernels
    architectures: GPU architectures in the format of TORCH_CUDA_ARCH_LIST
    version: version of the wheel, which names everything that the wheel depends on
    toolkit: folder of the CUDA toolkit
    """

    cuda: bool
    architectures: str
    version: str
    toolkit: str | None = None

    @property
    def folder(self) -> str:
        """Name of the folder of the wheel in the cache."""
        return f"{sysconfig.get_config_var('SOABI')}-{self.version}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cuda", choices=("auto", "yes", "no"), default="auto", help="auto: if there is a GPU"
    )
    parser.add_argument(
        "--jobs", type=int, help="files to compile at once (default: as cores and memory allow)"
    )
    parser.add_argument("--sdist", type=Path, help=f"path of {ARCHIVE}, if you have it")
    parser.add_argument(
        "--tree",
        type=Path,
        help="keep source and compiled files in this folder; a build that was stopped then "
        "continues there",
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pcdd" / "minkowski"
    parser.add_argument(
        "--cache", type=Path, default=cache, help="folder for archive and wheels (%(default)s)"
    )
    options = parser.parse_args()
    try:
        install(options)
    except (CannotBuild, OSError) as problem:
        sys.exit(
            f"minkowski: {problem}\n"
            "(pcdd works without MinkowskiEngine; `make test MINKOWSKI=no` leaves its tests out)"
        )


def install(options: argparse.Namespace) -> None:
    """Install MinkowskiEngine for the target, with as few steps as possible.

    Raises CannotBuild.
    """
    if platform.system() != "Linux":
        raise CannotBuild(
            f"MinkowskiEngine builds on Linux only, this is {platform.system()}; use "
            "network.name=sparse, which computes the same and needs no installation "
            "(on Windows, WSL is a Linux)"
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
        wheel = build(target, archive, wheels, jobs, options.tree)
    pip("install", "-q", "--no-deps", "--force-reinstall", str(wheel))
    say(f"installed MinkowskiEngine {target.version}")
    if not self_test():
        raise CannotBuild(
            f"it is installed, but its self-test failed (see above); remove {wheels} and try again"
        )


def self_test() -> bool:
    """Return whether the installed MinkowskiEngine computes correctly. Errors are printed."""
    return subprocess.run([sys.executable, HERE / "self_test.py"]).returncode == 0


def choose_target(cuda: str) -> Target:
    """Choose CPU only or CUDA, for the installed PyTorch and the GPUs of this machine.

    cuda: auto, yes or no. Raises CannotBuild if PyTorch or the CUDA toolkit does not fit.
    """
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
            "no GPU is visible, so its architecture is unknown; set TORCH_CUDA_ARCH_LIST, for "
            "instance 9.0 (H100)"
        )
    built_for = re.sub(r"[^0-9a-zA-Z]+", "", architectures)
    return Target(
        True, architectures, normal(f"0.5.4+torch{label}.sm{built_for}.{digest}"), toolkit
    )


def normal(version: str) -> str:
    """Normalise a version like pip: no capitals, no leading zeros (PEP 440)."""
    public, local = version.split("+")
    return f"{public}+" + ".".join(
        str(int(part)) if part.isdigit() else part for part in local.lower().split(".")
    )


def find_toolkit(torch_cuda: str | None) -> str:
    """Return the folder of the CUDA toolkit.

    torch_cuda: CUDA version that PyTorch was built with. The toolkit must have the same major
    version. Raises CannotBuild if there is no such toolkit.
    """
    if torch_cuda is None:
        raise CannotBuild(
            "this PyTorch is built without CUDA; install one with CUDA, or use CUDA=no"
        )
    from torch.utils.cpp_extension import CUDA_HOME

    compiler = Path(CUDA_HOME or "/usr/local/cuda") / "bin" / "nvcc"
    needed = torch_cuda.split(".")[0]
    otherwise = "or use CUDA=no for a build without CUDA"
    if not compiler.exists():
        raise CannotBuild(
            f"no CUDA compiler ({compiler} does not exist); install the CUDA toolkit {needed}.x or "
            f"set CUDA_HOME to it, {otherwise}"
        )
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.", text)
    if not release or release[1] != needed:
        toolkit_version = release[1] if release else "unknown"
        raise CannotBuild(
            f"{compiler} is from CUDA {toolkit_version}, but PyTorch was built with CUDA "
            f"{torch_cuda}; install the toolkit {needed}.x, set CUDA_HOME to it, {otherwise}"
        )
    home = compiler.parent.parent
    if not any(
        (home / include / "cuda_runtime.h").exists()
        for include in ("include", "targets/x86_64-linux/include")
    ):
        raise CannotBuild(
            f"{home} has no include/cuda_runtime.h; set CUDA_HOME to the folder of the whole "
            f"toolkit, {otherwise}"
        )
    return str(home)


def check_compiler() -> None:
    """Compile a probe with the requirements of the build: C++17, OpenMP, Python's headers.

    Raises CannotBuild if that fails.
    """
    compiler = os.environ.get("CXX", "c++")
    advice = (
        "Debian, Ubuntu: apt install build-essential python3-dev; "
        "Fedora: dnf install gcc-c++ python3-devel"
    )
    if shutil.which(compiler) is None:
        raise CannotBuild(
            f"no C++ compiler ({compiler} does not exist); install one, or set CXX ({advice})"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(
            "#include <Python.h>\n#include <omp.h>\n#include <optional>\n"
            "int main() { return !omp_get_num_procs(); }\n"
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
            f"{compiler} cannot compile C++17 with OpenMP and Python's headers ({advice}):\n"
            f"{result.stderr}"
        )


def choose_jobs(target: Target) -> int:
    """Return the number of compiler jobs that cores and free memory allow.

    Raises CannotBuild if the memory is too small for one job.
    """
    needed = GIBIBYTES_PER_JOB["cuda" if target.cuda else "cpu"]
    available = free_memory() / 2**30
    if available < needed:
        raise CannotBuild(
            f"too little memory: one compiler job needs up to {needed} GiB, but {available:.1f} "
            "GiB are free; close other programs, or try JOBS=1"
        )
    return max(1, min(len(os.sched_getaffinity(0)), int(available / needed)))


def free_memory() -> float:
    """Return the available memory in bytes, also within the limit of a container."""
    available = (
        float(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024
    )
    for folder, limit, used, cached in memory_groups():
        if (folder / limit).exists() and (folder / limit).read_text().strip() != "max":
            statistics = (
                (folder / "memory.stat").read_text() if (folder / "memory.stat").exists() else ""
            )
            # the kernel frees cached files on demand
            files = re.search(rf"^{cached} (\d+)", statistics, re.MULTILINE)
            taken = float((folder / used).read_text()) - (float(files[1]) if files else 0)
            available = min(available, float((folder / limit).read_text()) - taken)
    return available


def memory_groups() -> Iterator[tuple[Path, str, str, str]]:
    """Yield the control groups (versions 1 and 2) that limit the memory of this process.

    Each is (folder, file with the limit, file with the use, key of cached files in memory.stat).
    """
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
    """Return the path of the source archive, from the cache or from pip's package index.

    given: an archive to use instead. Raises CannotBuild if the archive cannot be fetched or has the
    wrong hash.
    """
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
        # urllib takes a user in the address for a part of the host, so a header is needed
        headers = {"Authorization": f"Basic {secret}"} if user else {}
        say(f"fetching {ARCHIVE} from {urllib.parse.urlsplit(page).hostname}")
        try:
            with urllib.request.urlopen(
                urllib.request.Request(page, headers=headers), timeout=60
            ) as answer:
                links, base = Links(answer.read().decode()), answer.url
            if ARCHIVE not in links.found:
                raise CannotBuild(
                    f"{page} does not list {ARCHIVE}; get it elsewhere and use SDIST=FILE"
                )
            with urllib.request.urlopen(
                urllib.parse.urljoin(base, links.found[ARCHIVE]), timeout=60
            ) as answer:
                content = answer.read()
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise CannotBuild(
                f"{page}: {problem}; without a network, fetch {ARCHIVE} elsewhere and use "
                "SDIST=FILE"
            ) from None
        check_hash(content, page)
        cache.mkdir(parents=True, exist_ok=True)
        partial = archive.with_suffix(f".{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(archive)
    check_hash(archive.read_bytes(), str(archive))
    return archive


class Links(html.parser.HTMLParser):
    """Links on a page of a package index: `found` maps file names to addresses."""

    def __init__(self, page: str):
        super().__init__()
        self.found: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        """Store the file name and the address of a link."""
        address = dict(attributes).get("href")
        if tag == "a" and address:
            self.found[
                urllib.parse.unquote(urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1])
            ] = address


def check_hash(content: bytes, source: str) -> None:
    """Raise CannotBuild if the content is not the pinned archive. source: its path or address."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise CannotBuild(
            f"{source}: this is not {ARCHIVE}: its sha256 is {digest}, expected {SHA256}; "
            "remove it and try again"
        )


def build(target: Target, archive: Path, wheels: Path, jobs: int, tree: Path | None = None) -> Path:
    """Unpack, patch and compile. Returns the path of the wheel in the cache.

    The wheel is moved to the cache when it is complete. Raises CannotBuild if the build fails.
    tree: folder to compile in and to keep; None: a temporary one
    """
    wheels.mkdir(parents=True, exist_ok=True)
    log = wheels / "build.log"
    kind = (
        f"CUDA {target.architectures}, about half an hour"
        if target.cuda
        else "CPU only, about 4 minutes on 2 cores"
    )
    say(f"building for this PyTorch and Python ({kind}), {jobs} files at once; log: {log}")
    with contextlib.ExitStack() as temporary:
        if tree is None:
            folder = tempfile.TemporaryDirectory(prefix="minkowski-build-")
            source = unpacked(archive, Path(temporary.enter_context(folder)), target.version)
        else:
            source = kept_tree(archive, tree.resolve(), target.version)
        # CFLAGS of the environment replace those of Python in setuptools, so both are passed
        own = sysconfig.get_config_var("CFLAGS") or ""
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
            # From CUDA 13 on, Thrust is one folder deeper. nvcc searches there, but the C++
            # compiler does not.
            folders = [f"{target.toolkit}/include/cccl", os.environ.get("CPLUS_INCLUDE_PATH")]
            environment["CPLUS_INCLUDE_PATH"] = os.pathsep.join(filter(None, folders))
        # ninja is beside the Python executable
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
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
                            f"compiled {step[1]} of {step[2]} files, "
                            f"{time.monotonic() - begun:.0f} s"
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
                f"the build failed: {first}\n{last}Whole log: {log}. Out of memory? Try JOBS=1."
            )
        partial = wheels / f".{os.getpid()}"
        shutil.copyfile(made[0], partial)
        return partial.replace(wheels / made[0].name)


def unpacked(archive: Path, folder: Path, version: str) -> Path:
    """Unpack and patch the source below `folder`. Returns its path.

    version: version of the wheel. Raises CannotBuild if the patch does not apply.
    """
    with tarfile.open(archive) as packed:
        # Python up to 3.10.11 and 3.11.3 has no filters; the hash guarantees the content
        packed.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    source = folder / ARCHIVE.removesuffix(".tar.gz")
    apply_patch(source)
    stamp_version(source, version)
    return source


def kept_tree(archive: Path, tree: Path, version: str) -> Path:
    """Return the patched source in the folder `tree`, which keeps what a stopped build compiled.

    A tree of another version, or one that was not completely unpacked, is made anew.
    """
    complete = tree / "version"
    if complete.exists() and complete.read_text() == version:
        say(f"continuing the build in {tree}")
        return tree / ARCHIVE.removesuffix(".tar.gz")
    if tree.exists():
        complete.unlink(missing_ok=True)
        shutil.rmtree(tree / ARCHIVE.removesuffix(".tar.gz"), ignore_errors=True)
    tree.mkdir(parents=True, exist_ok=True)
    source = unpacked(archive, tree, version)
    complete.write_text(version)
    return source


def apply_patch(source: Path) -> None:
    """Apply the project's patch. Raises CannotBuild if a part of it does not apply."""
    program = (
        "import sys, patch_ng; "
        "sys.exit(not patch_ng.fromfile(sys.argv[1]).apply(strip=1, root=sys.argv[2]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(PATCH), str(source)], capture_output=True, text=True
    )
    if result.returncode:
        raise CannotBuild(f"{PATCH} does not apply:\n{result.stdout}{result.stderr}")


def stamp_version(source: Path, version: str) -> None:
    """Write the version into the source, so that pip and `installed_version` report it."""
    file = source / "MinkowskiEngine" / "__init__.py"
    text = file.read_text()
    file.write_text(text.replace('__version__ = "0.5.4"', f'__version__ = "{version}"'))


def installed_version() -> str | None:
    """Return the version of the installed MinkowskiEngine, or None."""
    try:
        return importlib.metadata.version("MinkowskiEngine")
    except importlib.metadata.PackageNotFoundError:
        return None


def pip(*words: str, check: bool = True) -> str:
    """Run pip of this environment. Returns its output, or "" if it fails and `check` is false.

    Raises CannotBuild if pip fails and `check` is true.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    result = subprocess.run(command, capture_output=True, text=True)
    if check and result.returncode:
        raise CannotBuild(f"`pip {' '.join(words)}` failed:\n{result.stderr}")
    return result.stdout.strip() if result.returncode == 0 else ""


def say(text: str) -> None:
    """Print progress, without buffering even into a pipe."""
    print(f"minkowski: {text}", flush=True)


if __name__ == "__main__":
    main()
