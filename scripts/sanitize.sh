#!/usr/bin/env bash
# scripts/sanitize.sh [address,undefined] [thread]: builds scdd._csr with sanitizers, beside the ordinary build, and
# runs under each the tests that reach C++. Both by default. PYTHON is an interpreter that has the tests' requirements and
# those of the build (setuptools, pybind11, ninja); PYTEST_OPTIONS go to pytest.
# Where the compiler has no sanitizer runtime a line says so, and that is an error only where $CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-.venv/bin/python}
[ $# -gt 0 ] || set -- address,undefined thread

tests=(tests/data/test_{csr,codecs,stored,packed,tokens,schedule,side_by_side,cell_statistics,moments,pca,loader}.py)
# Where several threads are at work; the rest would take the thread sanitizer half an hour and show it one thread.
threaded=(tests/data/test_{stored,packed,tokens,side_by_side,loader}.py)
# A forked child of a process with threads is more than the thread sanitizer follows, and numba, which scanpy calls,
# runs OpenMP that it cannot see into. The ordinary run has these tests.
declare -A left_out=([thread]="fork or scanpy")

# The runtime has to be the first library of the process, and Python was not linked with it.
runtime() { # compiler, sanitizers
  local library path
  case $2 in
    *address*) library=asan ;;
    *) library=tsan ;;
  esac
  path=$("$1" -print-file-name="lib$library.so")
  [ "${path#/}" != "$path" ] && [ -e "$path" ] || return 1
  echo "$path:$("$1" -print-file-name=libstdc++.so)"
}

status=0
for sanitizers in "$@"; do
  preload=""
  for compiler in "${CXX:-c++}" g++; do
    if command -v "$compiler" >/dev/null && preload=$(runtime "$compiler" "$sanitizers"); then break; fi
  done
  if [ -z "$preload" ]; then
    echo "skipped -fsanitize=$sanitizers: no runtime for it; on Debian: apt-get install g++" >&2
    [ -z "${CI:-}" ] || status=1
    continue
  fi
  folder=$root/build/sanitize/${sanitizers//,/-}
  mkdir -p "$folder"
  find "$folder" -name '*.py' -delete # modules that have been renamed since must not linger
  echo "building with -fsanitize=$sanitizers ..."
  if ! CXX=$compiler SCDD_SANITIZE=$sanitizers CXXFLAGS="-O1 -g1 -fno-sanitize-recover=all" \
    "$python" setup.py -q build --build-lib "$folder" >"$folder/build.log" 2>&1; then
    tail -n 40 "$folder/build.log" >&2
    exit 1
  fi
  report=log_path=$folder/report
  # PYTHONSAFEPATH: without it the folder that we are in comes first, and with it the ordinary build. Processes that the
  # tests spawn look for `tests` in it all the same.
  under=(env "LD_PRELOAD=$preload" "PYTHONPATH=$folder:$root" PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
    "ASAN_OPTIONS=$report:suppressions=$root/scripts/asan-suppressions.txt:detect_leaks=0:allocator_may_return_null=1"
    "UBSAN_OPTIONS=$report:print_stacktrace=1:halt_on_error=1"
    "TSAN_OPTIONS=$report:suppressions=$root/scripts/tsan-suppressions.txt:exitcode=66:allocator_may_return_null=1")
  # Addresses drawn at random from more bits than the thread sanitizer expects stop it on newer kernels.
  if [ "$sanitizers" = thread ] && setarch "$(uname -m)" -R true 2>/dev/null; then
    under=(setarch "$(uname -m)" -R "${under[@]}")
  fi
  rm -f "$folder"/report.*
  "${under[@]}" "$python" -c "import sys, scdd._csr as c; sys.exit(not c.__file__.startswith('$folder'))" || {
    echo "$python does not start with $preload, or does not find $folder" >&2
    exit 1
  }
  skip=${left_out[$sanitizers]-}
  chosen=("${tests[@]}")
  [ "$sanitizers" != thread ] || chosen=("${threaded[@]}")
  # shellcheck disable=SC2086  # the options are several
  "${under[@]}" "$python" -m pytest -q -p no:cacheprovider ${skip:+-k "not ($skip)"} ${PYTEST_OPTIONS:-} "${chosen[@]}" ||
    status=1
  # pytest keeps what a process says until the test ends, which a report's process never sees.
  for found in "$folder"/report.*; do
    [ -e "$found" ] || continue
    head -n 60 "$found" >&2
    echo "-fsanitize=$sanitizers found something: $found" >&2
    status=1
  done
done
exit $status
