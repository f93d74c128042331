"""Build the native library without installing anything: by CMake where there is one, else by the C++ compiler alone.

    python benchmarks/build_native.py build/libstatefield_native.so

For machines without a network, where scikit-build-core may be missing: benchmarks/gpu.sh uses it. Instruction sets and
flags are read from CMakeLists.txt, so there is one list of them. The compiler is CXX, or the first of g++ and clang++.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "statefield" / "kernels" / "native"
LIBRARY = "libstatefield_native.so"


@dataclass(frozen=True)
class Flags:
    """What CMakeLists.txt gives the compiler: for every file, and for each instruction set of a processor."""

    common: tuple[str, ...]
    by_isa: dict[str, tuple[str, ...]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", type=Path, help="the file to write")
    parser.add_argument("--without-cmake", action="store_true", help="by the compiler alone, even where there is CMake")
    options = parser.parse_args(arguments)
    target = options.library.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if shutil.which("cmake") and not options.without_cmake:
            build_by_cmake(target)
        else:
            build_by_compiler(target)
    except subprocess.CalledProcessError as failed:
        print(f"{' '.join(map(str, failed.cmd))}\n{failed.stdout or ''}{failed.stderr or ''}", file=sys.stderr)
        return 1
    except FileNotFoundError as missing:
        print(missing, file=sys.stderr)
        return 1
    print(f"built {target}")
    return 0


def build_by_cmake(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _run("cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release")
        _run("cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1))
        found = Path(folder) / LIBRARY
        if not found.is_file():
            raise FileNotFoundError("CMake found no C++ compiler with vector extensions: install g++ or clang++.")
        shutil.copy(found, target)


def build_by_compiler(target: Path) -> None:
    """One object for each file and instruction set, side by side, then linked as CMake links them."""
    compiler = _compiler()
    flags = read_flags((ROOT / "CMakeLists.txt").read_text(encoding="utf-8"), platform.machine())
    kernels = sorted(file for file in SOURCES.glob("*.cpp") if file.name != "cpu.cpp")
    with tempfile.TemporaryDirectory() as folder:
        always = (*flags.common, *_openmp(compiler, folder))
        built = tuple(f"-DSF_BUILT_{isa}=1" for isa in flags.by_isa)
        jobs = [(SOURCES / "cpu.cpp", "cpu.o", built)] + [
            (file, f"{file.stem}.{isa}.o", (f"-DSF_ISA={isa}", f"-DSF_ISA_{isa}=1", *own))
            for isa, own in flags.by_isa.items()
            for file in kernels
        ]
        objects = [str(Path(folder) / name) for _, name, _ in jobs]

        def compile_one(place: int) -> None:
            file, _, own = jobs[place]
            _run(compiler, *always, *own, "-c", file, "-o", objects[place])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, range(len(jobs))))
        linked = Path(folder) / LIBRARY
        _run(compiler, *always, "-shared", "-o", linked, *objects)
        shutil.copy(linked, target)


def read_flags(cmake: str, machine: str) -> Flags:
    """The flags of CMakeLists.txt for a processor as `platform.machine()` names it."""
    branches = re.split(r"^(?:if|elseif|else)\((.*)\)$", cmake.partition("# Each kernel file")[2], flags=re.M)
    chosen = next(
        text
        for condition, text in zip(branches[1::2], branches[2::2], strict=True)
        if "MATCHES" not in condition or re.search(condition.split('"')[1], machine)
    )
    names = re.search(r"set\(isas (.*?)\)", chosen)[1].split()
    by_isa = {}
    for name in names:
        found = re.search(rf"set\(flags_{name} (.*?)\)", chosen)[1]
        by_isa[name] = tuple(found.replace('""', "").split())
    options = re.search(r"target_compile_options\(\$\{target\} PRIVATE (.*?)\)", cmake, flags=re.S)[1].split()
    standard = re.search(r"CXX_STANDARD (\d+)", cmake)[1]
    # What CMake makes of the target's properties: the language standard, position independence, hidden symbols.
    properties = (f"-std=c++{standard}", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-DNDEBUG")
    return Flags((*properties, *options), by_isa)


def _compiler() -> str:
    named = os.environ.get("CXX")
    found = next((path for name in ([named] if named else ["g++", "clang++"]) if (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError(f"no C++ compiler ({named or 'g++ or clang++'}): install one, or name it in CXX.")
    return found


def _openmp(compiler: str, folder: str) -> tuple[str, ...]:
    """-fopenmp where the compiler has it; without it kernels run on one thread."""
    probe = Path(folder) / "probe.cpp"
    probe.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
    command = [compiler, "-fopenmp", str(probe), "-o", str(probe.with_suffix(""))]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    return ("-fopenmp",) if done.returncode == 0 else ()


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
