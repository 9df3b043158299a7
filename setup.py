"""Builds `scdd._csr` from csrc/: ninja compiles in parallel and again only what has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SANITIZE = os.environ.get(
    "SCDD_SANITIZE", ""
)  # address, undefined or thread, or some of them with commas between
WITHOUT = os.environ.get("SCDD_WITHOUT", "")  # codec libraries to build without, with commas between

# The codec libraries: name for pkg-config, header, a call that proves that it links, flag of the linker.
# Whatever is missing is done without: a slower library, or h5py and zarr themselves, take its place.
LIBRARIES = {
    "libdeflate": ("libdeflate", "libdeflate.h", "libdeflate_alloc_decompressor()", "-ldeflate"),
    "zlib": ("zlib", "zlib.h", "zlibVersion()", "-lz"),
    "zstd": ("libzstd", "zstd.h", "ZSTD_versionString()", "-lzstd"),
    "lz4": ("liblz4", "lz4.h", "LZ4_versionString()", "-llz4"),
    "blosc": ("blosc", "blosc.h", "blosc_get_version_string()", "-lblosc"),
}


def compiler() -> str:
    """Find the C++ compiler, or say in one line how to get one."""
    for name in filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"]):
        if shutil.which(name.split()[0]):
            return name
    raise SystemExit(
        "scdd needs a C++17 compiler: `apt install g++`, `conda install cxx-compiler`, or set CXX"
    )


def listed(variable: str, value: str, known: set[str]) -> list[str]:
    """Split a list with commas between, and refuse names that are not known."""
    names = [name.strip() for name in value.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"{variable} names {unknown[0]!r}, and knows {', '.join(sorted(known))}")
    return names


def links(header: str, call: str, extra: list[str]) -> bool:
    """Whether a small program with this header and library compiles and links."""
    program = f"#include <cstddef>\n#include <{header}>\nint main() {{ return {call} == nullptr; }}\n"
    with tempfile.TemporaryDirectory() as folder:
        command = [*compiler().split(), *os.environ.get("CXXFLAGS", "").split(), "-x", "c++", "-", *extra]
        command += [*os.environ.get("LDFLAGS", "").split(), "-o", str(Path(folder) / "program")]
        return (
            subprocess.run(command, input=program, text=True, capture_output=True, check=False).returncode
            == 0
        )


def pkg_config(name: str) -> list[str]:
    """Return the flags that pkg-config knows for a library, or none."""
    tool = os.environ.get("PKG_CONFIG") or shutil.which("pkg-config")
    if not tool:
        return []
    found = subprocess.run([tool, "--cflags", "--libs", name], text=True, capture_output=True, check=False)
    return found.stdout.split() if found.returncode == 0 else []


def codec_flags() -> tuple[list[str], list[str]]:
    """Return the flags for compiling and linking the codec libraries there are; say in a line which."""
    compile_flags, link_flags, found = [], [], []
    without = listed("SCDD_WITHOUT", WITHOUT, set(LIBRARIES))
    for name, (package, header, call, library) in LIBRARIES.items():
        tries = [] if name in without else [known for known in (pkg_config(package), [library]) if known]
        if (extra := next((known for known in tries if links(header, call, known)), None)) is None:
            continue
        found.append(name)
        compile_flags.append(f"-DSCDD_HAVE_{name.upper()}")
        compile_flags += [flag for flag in extra if flag.startswith(("-I", "-D", "-isystem"))]
        link_flags += [flag for flag in extra if not flag.startswith(("-I", "-D", "-isystem"))]
    missing = [name for name in LIBRARIES if name not in found]
    print(f"scdd: codecs from {', '.join(found) or 'no library'}; without {', '.join(missing) or 'none'}")
    return compile_flags, link_flags


def flags() -> tuple[list[str], list[str]]:
    """Return the flags for compiling and for linking."""
    import pybind11

    sanitizers = listed("SCDD_SANITIZE", SANITIZE, {"address", "undefined", "thread"})
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise SystemExit(
            f"scdd needs {include / 'Python.h'}: `apt install python3-dev` or your system's equivalent"
        )
    both = ["-pthread"]
    if sanitizers:
        both += [f"-fsanitize={','.join(sanitizers)}", "-fno-omit-frame-pointer", "-g"]
    codecs, libraries = codec_flags()
    compile_flags = [
        "-std=c++17",
        "-O3",
        "-fPIC",
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        *both,
        *codecs,
    ]
    compile_flags += [f"-I{ROOT / 'csrc'}", f"-isystem{pybind11.get_include()}", f"-isystem{include}"]
    link_flags = ["-shared", *both] + (["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])
    compile_flags += os.environ.get("CXXFLAGS", "").split()
    return compile_flags, link_flags + os.environ.get("LDFLAGS", "").split() + libraries


class NinjaBuild(build_ext):
    """`build_ext` that leaves the work to ninja."""

    def build_extension(self, ext: Extension) -> None:
        """Write build.ninja and run it; a folder for each Python, sanitizer and choice of codecs."""
        import ninja
        from ninja.ninja_syntax import Writer, escape_path

        parts = ["csrc", sys.implementation.cache_tag, SANITIZE, WITHOUT and f"without,{WITHOUT}"]
        folder = ROOT / "build" / "-".join(part.replace(",", "-") for part in parts if part)
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        compile_flags, link_flags = (" ".join(map(quote, part)) for part in flags())
        with (folder / "build.ninja").open("w") as file:
            writer = Writer(file, width=10**6)
            command = f"{compiler()} {compile_flags} -MD -MF $out.d -c $in -o $out"
            writer.rule("compile", command, depfile="$out.d", deps="gcc")
            writer.rule(
                "link", f"{compiler()} $in {link_flags} -o $out"
            )  # libraries after those who call them
            objects = [f"{Path(source).stem}.o" for source in ext.sources]
            for source, output in zip(ext.sources, objects, strict=True):
                writer.build(output, "compile", escape_path(str(ROOT / source)))
            writer.build(escape_path(str(target)), "link", objects)
        target.parent.mkdir(parents=True, exist_ok=True)
        if subprocess.run([str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(folder)], check=False).returncode:
            raise SystemExit("scdd: csrc/ did not compile; the compiler's own message stands above")


def quote(flag: str) -> str:
    """Write a flag as ninja passes it to the shell, also when a path holds a blank."""
    return f'"{flag}"'.replace("$", "$$") if " " in flag else flag.replace("$", "$$")


sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp"))
setup(ext_modules=[Extension("scdd._csr", sources)], cmdclass={"build_ext": NinjaBuild})
