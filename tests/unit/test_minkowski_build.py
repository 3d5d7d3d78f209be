"""The build of MinkowskiEngine, without building it.

The tests check what it fetches, verifies and keeps, and its messages where it cannot build.
Torch, pip, compilers and the source archive are stand-ins.
"""

import argparse
import functools
import hashlib
import http.client
import http.server
import importlib.util
import io
import json
import os
import platform
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "minkowski"
GIBIBYTE = 2**30


def load_script():
    """Load minkowski/build.py as a module."""
    specification = importlib.util.spec_from_file_location("minkowski_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


script = load_script()
CPU = script.Target(cuda=False, architectures="", version="0.5.4+torch2.7.1.cpu.0a")
CUDA = script.Target(
    cuda=True, architectures="8.0;9.0", version="0.5.4+torch2.7.1.sm8090.0a", toolkit="/opt/cu da"
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def program(path: Path, *lines: str) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def source_archive(path: Path, setup: str) -> Path:
    """Write a source archive that contains only setup.py."""
    entry = tarfile.TarInfo("MinkowskiEngine-0.5.4/setup.py")
    entry.size = len(setup.encode())
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(entry, io.BytesIO(setup.encode()))
    return path


def names(folder: Path) -> list[str]:
    """Return the names in a folder; an empty list if there is no folder."""
    return sorted(path.name for path in folder.glob("*"))


def refusal(function, *arguments) -> str:
    """Return the message of CannotBuild, which the call must raise."""
    with pytest.raises(script.CannotBuild) as problem:
        function(*arguments)
    return str(problem.value)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Allow only lookups of this machine's name, and remove settings from the environment."""

    def lookup(host, *rest, **options):
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, f"{host}: these tests have no network")
        return real_lookup(host, *rest, **options)

    real_lookup = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("CXX", "PIP_INDEX_URL", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)


# --- the patch


def test_minkowski_patch_that_does_not_apply_is_refused(tmp_path):
    assert "MinkowskiEngine-0.5.4.patch does not apply" in refusal(script.apply_patch, tmp_path)


def test_minkowski_version_is_stamped_and_nothing_else_changed(tmp_path):
    file = tmp_path / "MinkowskiEngine" / "__init__.py"
    file.parent.mkdir()
    file.write_text('import os\n__version__ = "0.5.4"\nversion = "0.5.4"\n')
    script.stamp_version(tmp_path, CPU.version)
    assert file.read_text() == f'import os\n__version__ = "{CPU.version}"\nversion = "0.5.4"\n'


# --- the package index


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve files, or only the first part of each."""

    part = 1.0

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: int(self.part * len(content))])

    def log_message(self, *words):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Start a package index on this machine and set PIP_INDEX_URL.

    It lists an archive with the hash that the script expects. Attributes: address, page (a file),
    archive (a file), content (of the archive), cache (a folder that does not exist yet).
    """
    folder = tmp_path / "index"
    page, archive = (
        folder / "simple" / "minkowskiengine" / "index.html",
        folder / "files" / script.ARCHIVE,
    )
    content = b"a source archive" * 100
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../files/{script.ARCHIVE}#sha256=0">0.5.4</a>')
    archive.parent.mkdir()
    archive.write_bytes(content)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/simple"
    monkeypatch.setenv("PIP_INDEX_URL", address)
    monkeypatch.setattr(script, "SHA256", sha256(content))
    yield SimpleNamespace(
        address=address, page=page, archive=archive, content=content, cache=tmp_path / "ca che"
    )
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("link", ["{host}/files/{name}?x=1#sha256=0", "/files/{percent}"])
def test_minkowski_archive_is_fetched_from_the_index_of_the_environment(index, link):
    percent = script.ARCHIVE.replace("-", "%2D")
    host = index.address.removesuffix("/simple")
    href = link.format(name=script.ARCHIVE, percent=percent, host=host)
    index.page.write_text(
        f"""<!DOCTYPE html><html>
        <head><link href="https://example.org/{script.ARCHIVE}"></head><body><a name="top"></a>
        <a href="../MinkowskiEngine-0.5.3.tar.gz#sha256=4567">MinkowskiEngine-0.5.3.tar.gz</a><br>
        <a data-requires-python="&gt;=3" href="{href}">the archive</a></body></html>"""
    )
    assert script.fetch(index.cache, None) == index.cache / script.ARCHIVE
    assert (index.cache / script.ARCHIVE).read_bytes() == index.content
    assert names(index.cache) == [script.ARCHIVE]


def test_minkowski_archive_is_fetched_from_the_index_of_pips_configuration(index, monkeypatch):
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setattr(
        script,
        "pip",
        lambda *words, check=True: {"global.index-url": index.address + "/"}[words[-1]],
    )
    assert script.fetch(index.cache, None).read_bytes() == index.content


def test_minkowski_archive_in_the_cache_is_not_fetched_again(index):
    script.fetch(index.cache, None)
    shutil.rmtree(index.page.parent)
    assert script.fetch(index.cache, None).read_bytes() == index.content


def test_minkowski_archive_that_was_given_is_used_or_named_where_missing(index, tmp_path):
    given = tmp_path / "given.tar.gz"
    shutil.rmtree(index.page.parent)
    message = refusal(script.fetch, index.cache, given)
    assert str(given) in message and script.ARCHIVE in message
    given.write_bytes(index.content)
    assert script.fetch(index.cache, given) == given


@pytest.mark.parametrize("place", ["given", "cache", "index"])
def test_anything_but_the_pinned_minkowski_archive_is_refused(index, tmp_path, place):
    file = {
        "given": tmp_path / "given.tar.gz",
        "cache": index.cache / script.ARCHIVE,
        "index": index.archive,
    }[place]
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"something else")
    message = refusal(script.fetch, index.cache, file if place == "given" else None)
    assert (index.address if place == "index" else str(file)) in message
    assert sha256(b"something else") in message and sha256(index.content) in message
    assert names(index.cache) == ([script.ARCHIVE] if place == "cache" else [])


def test_index_without_the_minkowski_archive_is_refused_by_address(index):
    index.page.write_text('<a href="../../files/MinkowskiEngine-0.5.3.tar.gz">0.5.3</a>')
    message = refusal(script.fetch, index.cache, None)
    assert index.address in message and script.ARCHIVE in message and "SDIST=" in message


def test_minkowski_build_without_a_network_says_how_to_go_on(tmp_path, monkeypatch):
    with socket.socket() as closed:  # no program listens on this port
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        message = refusal(script.fetch, tmp_path / "cache", None)
    assert "SDIST=" in message and script.ARCHIVE in message
    assert names(tmp_path / "cache") == []


def test_broken_connection_is_told_and_leaves_no_partial_minkowski_archive(index, monkeypatch):
    monkeypatch.setattr(Handler, "part", 0.5)
    assert "SDIST=" in refusal(script.fetch, index.cache, None)
    assert names(index.cache) == []


def test_minkowski_index_address_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "pypi.example.org/simple")
    assert "pypi.example.org" in refusal(script.fetch, tmp_path, None)


def test_minkowski_index_address_with_a_password_works_and_is_not_shown(index, monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", index.address.replace("http://", "http://user:secret@"))
    assert script.fetch(index.cache, None).read_bytes() == index.content
    assert "secret" not in capsys.readouterr().out


# --- what the machine has


@pytest.fixture
def system_files(tmp_path, monkeypatch):
    """Return write(path, text), which sets what the script reads from /proc and /sys.

    /proc/meminfo exists, with 16 GiB available.
    """

    def write(path: str, text: str) -> None:
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    monkeypatch.setattr(script, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    write("/proc/meminfo", f"MemTotal: {2**25} kB\nMemFree: 10 kB\nMemAvailable:   {2**24} kB\n")
    return write


V1, V2 = "/sys/fs/cgroup/memory/memory", "/sys/fs/cgroup/slurm/job_7/memory"


@pytest.mark.parametrize(
    ("written", "free"),
    [
        ({}, 16),
        ({f"{V2}.max": "max", f"{V2}.current": 3 * GIBIBYTE}, 16),
        ({f"{V2}.max": 64 * GIBIBYTE, f"{V2}.current": 3 * GIBIBYTE}, 16),
        ({f"{V2}.max": 8 * GIBIBYTE, f"{V2}.current": 3 * GIBIBYTE}, 5),
        ({f"{V1}.limit_in_bytes": 8 * GIBIBYTE, f"{V1}.usage_in_bytes": 3 * GIBIBYTE}, 5),
        (  # the kernel frees cached files on demand
            {
                f"{V2}.max": 8 * GIBIBYTE,
                f"{V2}.current": 7 * GIBIBYTE,
                f"{V2}.stat": f"anon {GIBIBYTE}\ninactive_file {6 * GIBIBYTE}",
            },
            7,
        ),
    ],
)
def test_memory_for_minkowski_is_what_system_and_container_leave(system_files, written, free):
    of_version_2 = any(path.startswith(V2) for path in written)
    system_files("/proc/self/cgroup", "0::/slurm/job_7\n" if of_version_2 else "4:memory:/\n")
    for path, text in written.items():
        system_files(path, f"{text}\n")
    assert script.free_memory() == free * GIBIBYTE


@pytest.mark.parametrize(
    ("target", "gibibytes", "cores", "jobs"),
    [(CPU, 4.4, 8, 2), (CUDA, 13, 8, 2), (CPU, 100, 3, 3)],
    ids=["memory", "memory for CUDA", "cores"],
)
def test_minkowski_jobs_are_as_many_as_memory_and_cores_allow(
    monkeypatch, target, gibibytes, cores, jobs
):
    monkeypatch.setattr(script, "free_memory", lambda: gibibytes * GIBIBYTE)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert script.choose_jobs(target) == jobs


def test_too_little_memory_for_minkowski_is_refused_with_numbers(monkeypatch):
    monkeypatch.setattr(script, "free_memory", lambda: 4.26 * GIBIBYTE)
    message = refusal(script.choose_jobs, CUDA)
    assert (
        f"{script.GIBIBYTES_PER_JOB['cuda']} GiB" in message
        and "4.3 GiB" in message
        and "JOBS=1" in message
    )


def test_minkowski_build_without_a_compiler_names_it(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = refusal(script.check_compiler)
    assert "no-such-compiler" in message and "apt install" in message


def test_minkowski_build_with_a_compiler_that_fails_repeats_what_it_said(tmp_path, monkeypatch):
    monkeypatch.setenv(
        "CXX", str(program(tmp_path / "c++", "echo 'omp.h: No such file' >&2", "exit 1"))
    )
    message = refusal(script.check_compiler)
    assert (
        str(tmp_path / "c++") in message
        and "omp.h: No such file" in message
        and "apt install" in message
    )


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """Return make(release), which sets CUDA_HOME to a toolkit; None: to an empty folder."""

    def make(release: str | None) -> Path:
        folder = tmp_path / "cuda home"
        if release:
            (folder / "include").mkdir(parents=True)
            (folder / "include" / "cuda_runtime.h").touch()
            program(
                folder / "bin" / "nvcc",
                "echo 'nvcc: NVIDIA (R) Cuda compiler driver'",
                f"echo '{release}'",
            )
        monkeypatch.setitem(
            sys.modules, "torch.utils.cpp_extension", SimpleNamespace(CUDA_HOME=str(folder))
        )
        return folder

    return make


def test_minkowski_with_cuda_needs_a_torch_with_cuda():
    message = refusal(script.find_toolkit, None)
    assert "without CUDA" in message and "CUDA=no" in message


def test_minkowski_with_cuda_needs_its_compiler(toolkit):
    nvcc = toolkit(None) / "bin" / "nvcc"
    message = refusal(script.find_toolkit, "12.8")
    assert all(part in message for part in (str(nvcc), "12.x", "CUDA_HOME", "CUDA=no"))


@pytest.mark.parametrize(
    ("release", "stated"),
    [
        ("Cuda compilation tools, release 13.0, V13.0.88", "CUDA 13"),
        ("nonsense", "CUDA unknown"),
    ],
)
def test_minkowski_with_cuda_needs_the_cuda_of_torch(toolkit, release, stated):
    nvcc = toolkit(release) / "bin" / "nvcc"
    message = refusal(script.find_toolkit, "12.8")
    assert str(nvcc) in message and stated in message and "12.8" in message and "CUDA=no" in message


def test_minkowski_takes_a_cuda_toolkit_of_the_same_major_version(toolkit):
    folder = toolkit("Cuda compilation tools, release 12.4, V12.4.131")
    assert script.find_toolkit("12.8") == str(folder)


def test_minkowski_with_cuda_needs_the_headers_of_cuda(toolkit):
    shutil.rmtree(toolkit("Cuda compilation tools, release 12.8, V12.8.93") / "include")
    assert "CUDA_HOME" in refusal(script.find_toolkit, "12.8")


# --- what the wheel is for


@pytest.fixture
def torch_of(monkeypatch):
    """Return install(version, *capabilities of GPUs), which sets the PyTorch of the script.

    Every toolkit fits it.
    """

    def install(version: str, *gpus: tuple[int, int]) -> None:
        cuda = SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_capability=lambda card: gpus[card],
        )
        torch = SimpleNamespace(
            __version__=version, version=SimpleNamespace(cuda="12.8"), cuda=cuda
        )
        monkeypatch.setitem(sys.modules, "torch", torch)

    monkeypatch.setattr(script, "find_toolkit", lambda cuda: f"/opt/cuda-{cuda}")
    return install


def test_minkowski_needs_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "make install" in refusal(script.choose_target, "auto")


def test_minkowski_refuses_torch_before_2_6(torch_of):
    torch_of("2.5.1+cu124")
    message = refusal(script.choose_target, "auto")
    assert "2.5.1" in message and "2.6" in message


def test_minkowski_takes_torch_2_10(torch_of):  # as text, 2.10 is before 2.6
    torch_of("2.10.0+cpu")
    assert script.choose_target("auto").version.startswith("0.5.4+torch2.10.0.cpu.cpu.")


@pytest.mark.parametrize(
    ("choice", "gpus", "architectures"),
    [
        ("auto", [], ""),
        ("no", [(9, 0)], ""),
        ("yes", [(9, 0), (8, 0), (9, 0)], "8.0;9.0"),
    ],
)
def test_minkowski_is_built_for_the_gpus_that_are_there(torch_of, choice, gpus, architectures):
    torch_of("2.7.1", *gpus)
    target = script.choose_target(choice)
    assert (target.cuda, target.architectures) == (bool(architectures), architectures)
    assert target.toolkit == ("/opt/cuda-12.8" if architectures else None)


def test_minkowski_architectures_of_the_environment_win(torch_of, monkeypatch):
    torch_of("2.7.1", (9, 0))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.6")
    assert script.choose_target("yes").architectures == "7.5 8.6"


def test_minkowski_with_cuda_needs_to_know_an_architecture(torch_of):
    torch_of("2.7.1")
    assert "TORCH_CUDA_ARCH_LIST" in refusal(script.choose_target, "yes")


def test_minkowski_wheels_of_different_make_have_different_names(torch_of, monkeypatch, tmp_path):
    targets = []
    for version, gpus in [
        ("2.7.1", []),
        ("2.7.0", []),
        ("2.7.1+cu128", []),
        ("2.7.1", [(9, 0)]),
        ("2.7.1", [(8, 0)]),
    ]:
        torch_of(version, *gpus)
        targets.append(script.choose_target("auto"))
    monkeypatch.setattr(script, "SHA256", "0" * 64)
    targets.append(script.choose_target("auto"))
    monkeypatch.setattr(script, "PATCH", tmp_path / "other.patch")
    script.PATCH.write_text("something else\n")
    targets.append(script.choose_target("auto"))
    assert (
        len({target.version for target in targets})
        == len({target.folder for target in targets})
        == len(targets)
        == 7
    )


def test_minkowski_wheels_of_different_pythons_lie_in_different_folders(monkeypatch):
    folders = {CPU.folder}
    monkeypatch.setattr(sysconfig, "get_config_var", {"SOABI": "cpython-399-x86_64-linux-gnu"}.get)
    folders.add(CPU.folder)
    assert len(folders) == 2 and all(folder.endswith(CPU.version) for folder in folders)


@pytest.mark.parametrize(
    ("version", "architectures"),
    [
        ("2.15.0.dev20261101+cu132", "8.0;9.0+PTX"),
        ("2.7.0a0+79aa17489c.nv25.04", "9.0"),
    ],
)
def test_minkowski_version_is_found_again_as_pip_writes_it(
    torch_of, monkeypatch, version, architectures
):
    torch_of(version)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
    wanted = script.choose_target("yes").version
    assert str(Version(wanted)) == wanted


# --- compiling

MADE = """
import json, os, sys
print("running bdist_wheel")
print("[3/13] c++ -c a.cpp")
os.mkdir("dist")
with open("dist/engine.whl", "w") as wheel:
    json.dump({"words": sys.argv[1:], "environment": dict(os.environ)}, wheel)
"""
FAILED = """
print("[1/13] c++ -c a.cpp")
print("a.cpp:3:5: error: the first of all")
print(*(f"noise {line}" for line in range(30)), sep="\\n")
print("ninja: error: the last of all")
raise SystemExit(1)
"""
NEVER_ENDING = """
import signal
print("[1/13] c++ -c a.cpp", flush=True)
signal.pause()
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return make(setup.py, target, jobs), which builds a wheel from an archive with that setup.py.

    It neither patches nor stamps. Attributes: wheels (the folder in the cache), temporary (the
    folder of the unpacked source).
    """

    def make(setup: str, target=CPU, jobs=1, tree=None) -> Path:
        return script.build(
            target, source_archive(tmp_path / "source.tar.gz", setup), make.wheels, jobs, tree
        )

    make.wheels, make.temporary = tmp_path / "ca che" / "wheels", tmp_path / "tempo rary"
    make.temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(make.temporary))
    for name in ("apply_patch", "stamp_version"):
        monkeypatch.setattr(script, name, lambda *arguments: None)
    return make


def test_minkowski_wheel_lands_in_the_cache(build, capsys):
    assert build(MADE) == build.wheels / "engine.whl"
    assert names(build.wheels) == ["build.log", "engine.whl"]
    assert "running bdist_wheel" in (build.wheels / "build.log").read_text()
    assert "compiled 3 of 13 files" in capsys.readouterr().out
    assert names(build.temporary) == []


@pytest.mark.parametrize(("target", "flag"), [(CPU, "--cpu_only"), (CUDA, "--force_cuda")])
def test_minkowski_build_is_told_its_target_and_jobs(build, target, flag):
    made = json.loads(build(MADE, target, jobs=3).read_text())
    assert made["words"] == ["bdist_wheel", flag]
    assert made["environment"]["MAX_JOBS"] == "3"
    assert {"-g0", "-DNDEBUG"} <= set(made["environment"]["CXXFLAGS"].split())
    assert made["environment"]["PATH"].startswith(str(Path(sys.executable).parent) + os.pathsep)
    if target.cuda:
        assert made["environment"]["CUDA_HOME"] == target.toolkit
        assert made["environment"]["TORCH_CUDA_ARCH_LIST"] == target.architectures


@pytest.mark.parametrize("name", ["CXXFLAGS", "CPLUS_INCLUDE_PATH"])
def test_minkowski_build_keeps_the_flags_of_the_environment(build, monkeypatch, name):
    monkeypatch.setenv(name, "/opt/mine")
    target = CUDA if name == "CPLUS_INCLUDE_PATH" else CPU
    assert "/opt/mine" in json.loads(build(MADE, target).read_text())["environment"][name]


def test_failure_of_the_minkowski_build_shows_first_and_last_errors_and_the_log(build):
    message = refusal(build, FAILED)
    assert message.splitlines()[0] == "the build failed: a.cpp:3:5: error: the first of all"
    assert (
        "ninja: error: the last of all" in message
        and "noise 29" in message
        and "noise 0\n" not in message
    )
    assert str(build.wheels / "build.log") in message and "JOBS=1" in message
    assert "noise 0\n" in (build.wheels / "build.log").read_text()
    assert names(build.wheels) == ["build.log"] and names(build.temporary) == []


@pytest.mark.parametrize(
    "setup", [MADE + "raise SystemExit(1)", "print('nothing to do')"], ids=["fails", "no wheel"]
)
def test_minkowski_wheel_of_a_failed_build_is_not_kept(build, setup):
    assert "the build failed" in refusal(build, setup)
    assert names(build.wheels) == ["build.log"]


def test_minkowski_is_unpacked_by_a_python_without_extraction_filters(build, monkeypatch):
    def extractall(archive, path=".", members=None, *, numeric_owner=False):
        extract(archive, path, members, numeric_owner=numeric_owner, filter="data")

    extract = tarfile.TarFile.extractall
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
    assert build(MADE).exists()


def test_interrupted_minkowski_build_ends_its_compilers_and_leaves_no_wheel_and_no_source(
    build, monkeypatch
):
    """Ctrl-C arrives at the first progress."""
    started = []

    class Process(subprocess.Popen):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            started.append(self)

    def say(text):
        if text.startswith("compiled"):
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(script, "say", say)
    with pytest.raises(KeyboardInterrupt):
        build(NEVER_ENDING)
    (compilers,) = started
    compilers.stdout.close()
    assert compilers.returncode == -signal.SIGTERM  # `build` has waited for the end
    assert names(build.wheels) == ["build.log"] and names(build.temporary) == []


def test_stopped_minkowski_build_continues_in_a_kept_tree(build, tmp_path, monkeypatch):
    """The first call stops after a file is compiled. The second call finds this file."""
    tree = tmp_path / "tree"
    compiled = "import pathlib; had = pathlib.Path('object').exists(); print(f'{had=}')\n"
    stopped = compiled + "pathlib.Path('object').touch(); raise SystemExit(1)"
    refusal(build, stopped, CPU, 1, tree)
    setup = tree / "MinkowskiEngine-0.5.4" / "setup.py"
    setup.write_text(compiled + MADE)
    build("unused: the tree is kept", tree=tree)
    assert "had=True" in (build.wheels / "build.log").read_text()


def test_kept_minkowski_tree_of_another_version_is_made_anew(build, tmp_path):
    tree = tmp_path / "tree"
    build(MADE, tree=tree)
    left = tree / "MinkowskiEngine-0.5.4" / "object"
    left.touch()
    build(MADE, CUDA, tree=tree)
    assert not left.exists() and (tree / "version").read_text() == CUDA.version


def test_minkowski_tree_that_was_not_completely_unpacked_is_made_anew(build, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    tree = tmp_path / "tree"
    with monkeypatch.context() as patch:
        patch.setattr(script, "apply_patch", stop)
        with pytest.raises(KeyboardInterrupt):
            build("half", tree=tree)
    build(MADE, tree=tree)
    assert (tree / "MinkowskiEngine-0.5.4" / "setup.py").read_text() == MADE


def test_interrupted_copy_of_the_minkowski_wheel_is_not_taken_for_one(build, monkeypatch):
    def copyfile(source, copy):
        Path(copy).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(KeyboardInterrupt):
        build(MADE)
    assert list(build.wheels.glob("*.whl")) == []


# --- the whole command


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Replace all slow parts of `install` by stand-ins.

    Attributes: options, installed (a version or None), passes (result of the self-test), done
    (steps in order), wheel (the file that a build makes).
    """
    wheel = tmp_path / CPU.folder / "engine.whl"
    options = argparse.Namespace(cuda="auto", jobs=None, sdist=None, tree=None, cache=tmp_path)
    machine = SimpleNamespace(options=options, installed=None, passes=True, done=[], wheel=wheel)

    def build(target, archive, wheels, jobs, tree):
        assert (target, archive, wheels, tree) == (CPU, "archive", wheel.parent, None)
        wheels.mkdir()
        wheel.touch()
        machine.done.append(f"build with {jobs} jobs")
        return wheel

    def pip(*words):
        machine.done.append("tools" if words[-1] != str(wheel) else "wheel")
        if words[-1] == str(wheel):
            assert wheel.exists() and "--no-deps" in words
            machine.installed = CPU.version

    def run(words):
        assert words == [sys.executable, FOLDER / "self_test.py"]
        machine.done.append("self-test")
        return SimpleNamespace(returncode=0 if machine.passes else 1)

    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(script, "choose_target", {"auto": CPU}.get)
    monkeypatch.setattr(script, "installed_version", lambda: machine.installed)
    monkeypatch.setattr(script, "check_compiler", lambda: machine.done.append("compiler"))
    monkeypatch.setattr(script, "choose_jobs", lambda target: 5)
    monkeypatch.setattr(script, "fetch", lambda cache, given: "archive")
    monkeypatch.setattr(script, "build", build)
    monkeypatch.setattr(script, "pip", pip)
    monkeypatch.setattr(subprocess, "run", run)
    return machine


def test_minkowski_builds_on_linux_only_and_says_what_else_there_is(machine, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    message = refusal(script.install, machine.options)
    assert "Darwin" in message and "network.name=sparse" in message and machine.done == []


def test_minkowski_that_is_installed_is_only_tested(machine):
    machine.installed = CPU.version
    script.install(machine.options)
    assert machine.done == ["self-test"]


def test_minkowski_wheel_in_the_cache_is_installed_without_compiling(machine):
    machine.wheel.parent.mkdir()
    machine.wheel.touch()
    machine.installed = "0.5.4"
    script.install(machine.options)
    assert machine.done == ["wheel", "self-test"]


def test_minkowski_is_built_installed_and_tested_otherwise(machine):
    machine.options.jobs = 3
    script.install(machine.options)
    assert machine.done == ["compiler", "tools", "build with 3 jobs", "wheel", "self-test"]


def test_minkowski_that_fails_its_self_test_is_made_anew_as_the_message_says(machine):
    machine.installed, machine.passes = CPU.version, False
    message = refusal(script.install, machine.options)
    assert f"self-test failed (see above); remove {machine.wheel.parent} and try again" in message
    shutil.rmtree(machine.wheel.parent, ignore_errors=True)
    machine.done.clear()
    refusal(script.install, machine.options)
    assert "wheel" in machine.done


def test_minkowski_self_test_says_that_there_is_no_engine(monkeypatch):
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    with pytest.raises(SystemExit, match="cannot be imported"):
        runpy.run_path(str(FOLDER / "self_test.py"))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Return run(*words), which runs the command without installing and returns its options.

    Attribute: problem (the message of a failure, or None).
    """

    def run(*words: str) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", ["build.py", *words])
        script.main()
        return run.options

    def install(options):
        run.options = options
        if run.problem:
            raise script.CannotBuild(run.problem)

    run.problem = None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(script, "install", install)
    return run


def test_minkowski_command_that_cannot_build_says_why_and_that_it_is_not_needed(command):
    command.problem = "the reason"
    with pytest.raises(
        SystemExit, match="the reason\n.*pcdd works without MinkowskiEngine.*MINKOWSKI=no"
    ):
        command()


def test_failure_of_pip_for_minkowski_is_repeated(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="some words", stderr="ERROR: no such thing")
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: failed)
    message = refusal(script.pip, "install", "thing")
    assert "pip install thing" in message and "ERROR: no such thing" in message
    assert script.pip("config", "get", "thing", check=False) == ""


@pytest.fixture
def make(monkeypatch):
    """Return make(*words), which returns the commands that make would run."""
    if shutil.which("make") is None:
        pytest.skip("make is not there")
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CUDA", "JOBS", "SDIST", "MINKOWSKI"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> list[list[str]]:
        result = subprocess.run(
            ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return [shlex.split(line) for line in result.stdout.replace("\\\n", "").splitlines()]

    return run


def test_make_minkowski_hands_on_its_variables(make, command, tmp_path):
    given = {"JOBS": "3", "CUDA": "no", "SDIST": "an archive.tar.gz"}
    for variables, options in [
        ({}, {"cuda": "auto", "jobs": None, "sdist": None}),
        (given, {"cuda": "no", "jobs": 3, "sdist": Path("an archive.tar.gz")}),
    ]:
        python, build, *words = make("minkowski", *map("=".join, variables.items()))[-1]
        assert (python, build) == (".venv/bin/python", "minkowski/build.py")
        cache = tmp_path / "pcdd" / "minkowski"
        assert vars(command(*words)) == options | {"cache": cache, "tree": None}


def test_make_test_builds_minkowski_first_unless_told_not_to(make):
    for choice in ("yes", "no"):
        *before, tests = make("test", f"MINKOWSKI={choice}")
        assert f"PCDD_TEST_MINKOWSKI={choice}" in tests and "pytest" in tests
        assert ([".venv/bin/python", "minkowski/build.py"] in before) == (choice == "yes")
