"""Builds `scdd._csr` from csrc/: ninja compiles in parallel and again only what has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SANITIZE = os.environ.get("SCDD_SANITIZE", "")  # address, undefined or thread


def compiler() -> str:
    """Find the C++ compiler, or say in one line how to get one."""
    for name in filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"]):
        if shutil.which(name.split()[0]):
            return name
    raise SystemExit(
        "scdd needs a C++17 compiler: `apt install g++`, `conda install cxx-compiler`, or set CXX"
    )


def flags() -> tuple[list[str], list[str]]:
    """Return the flags for compiling and for linking."""
    import pybind11

    if SANITIZE not in ("", "address", "undefined", "thread"):
        raise SystemExit(f"SCDD_SANITIZE={SANITIZE!r} must be address, undefined or thread")
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise SystemExit(
            f"scdd needs {include / 'Python.h'}: `apt install python3-dev` or your system's equivalent"
        )
    both = ["-pthread"] + ([f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-g"] if SANITIZE else [])
    compile_flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *both]
    compile_flags += [f"-I{ROOT / 'csrc'}", f"-isystem{pybind11.get_include()}", f"-isystem{include}"]
    link_flags = ["-shared", *both] + (["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])
    return compile_flags + os.environ.get("CXXFLAGS", "").split(), link_flags + os.environ.get(
        "LDFLAGS", ""
    ).split()


class NinjaBuild(build_ext):
    """`build_ext` that leaves the work to ninja."""

    def build_extension(self, ext: Extension) -> None:
        """Write build.ninja and run it; a folder for each Python and sanitizer keeps objects apart."""
        import ninja
        from ninja.ninja_syntax import Writer, escape_path

        folder = ROOT / "build" / "-".join(filter(None, ["csrc", sys.implementation.cache_tag, SANITIZE]))
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        compile_flags, link_flags = (" ".join(map(quote, part)) for part in flags())
        with (folder / "build.ninja").open("w") as file:
            writer = Writer(file, width=10**6)
            command = f"{compiler()} {compile_flags} -MD -MF $out.d -c $in -o $out"
            writer.rule("compile", command, depfile="$out.d", deps="gcc")
            writer.rule("link", f"{compiler()} {link_flags} $in -o $out")
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
