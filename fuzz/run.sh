#!/usr/bin/env bash
# fuzz/run.sh [SECONDS [TARGET...]]: builds every fuzz/fuzz_*.cpp with the address and undefined-behaviour sanitizers and
# gives each SECONDS (60) of damaged input, beginning with fuzz/corpus/TARGET. With clang libFuzzer looks for new paths;
# otherwise standalone.cpp mutates blindly. A target names its other sources in a line `// sources: csrc/a.cpp csrc/b*.cpp`.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || :
folder=build/fuzz
mkdir -p "$folder"

warn=(-std=c++17 -O1 -g -fno-omit-frame-pointer -Wall -Wextra -Icsrc)
sanitize="address,undefined"

compiles() { printf '%s\n' "$1" | "${@:2}" -x c++ - -o "$folder/probe" >/dev/null 2>&1; }

fuzzer=""
for name in clang++ clang++-{20,19,18,17,16,15,14}; do
  if compiles 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' \
    "$name" "-fsanitize=fuzzer,$sanitize"; then
    fuzzer=$name
    break
  fi
done
compiler=${fuzzer:-${CXX:-g++}}
if [ -z "$fuzzer" ] && ! compiles 'int main() {}' "$compiler" "-fsanitize=$sanitize"; then
  echo "skipped fuzzing: $compiler has no sanitizers; on Debian: apt-get install g++, or clang" >&2
  [ -z "${CI:-}" ] # an error only there
  exit
fi
[ -n "$fuzzer" ] || echo "no clang with libFuzzer: mutating blindly ($compiler)"

libraries=()
for entry in LIBDEFLATE:libdeflate.h:-ldeflate ZLIB:zlib.h:-lz ZSTD:zstd.h:-lzstd LZ4:lz4.h:-llz4 BLOSC:blosc.h:-lblosc; do
  IFS=: read -r name header flag <<<"$entry"
  if printf '#include <stddef.h>\n#include <%s>\nint main() {}\n' "$header" |
    "$compiler" -x c++ - -o "$folder/probe" "$flag" >/dev/null 2>&1; then
    warn+=("-DSCDD_HAVE_$name")
    libraries+=("$flag")
  fi
done

targets=("$@")
if [ ${#targets[@]} = 0 ]; then
  for source in fuzz/fuzz_*.cpp; do
    name=${source#fuzz/fuzz_}
    targets+=("${name%.cpp}")
  done
fi
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
for target in "${targets[@]}"; do
  # shellcheck disable=SC2046  # the line lists several, and may hold patterns
  sources=("fuzz/fuzz_$target.cpp" $(sed -n 's|^// sources: *||p' "fuzz/fuzz_$target.cpp"))
  binary=$PWD/$folder/$target
  seeds=$PWD/fuzz/corpus/$target
  found=$PWD/$folder/$target-corpus
  mkdir -p "$found"
  if [ -n "$fuzzer" ]; then
    "$compiler" "${warn[@]}" "-fsanitize=fuzzer,$sanitize" -fno-sanitize-recover=all "${sources[@]}" -o "$binary" \
      "${libraries[@]}" -pthread
    command=("$binary" "-max_total_time=$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1
      "$found" "$seeds")
  else
    "$compiler" "${warn[@]}" "-fsanitize=$sanitize" -fno-sanitize-recover=all "${sources[@]}" fuzz/standalone.cpp \
      -o "$binary" "${libraries[@]}" -pthread
    command=("$binary" "$seconds" "$seeds")
  fi
  if ! (cd "$folder" && "${command[@]}") >"$folder/$target.log" 2>&1; then
    tail -n 40 "$folder/$target.log"
    echo "fuzzing $target failed; the input lies in $folder, the log in $folder/$target.log" >&2
    exit 1
  fi
  runs=$(sed -nE 's/^stat::number_of_executed_units: *([0-9]+)$/\1/p; s/^([0-9]+) runs$/\1/p' "$folder/$target.log")
  echo "$target: $runs inputs in $seconds s, no failure ($compiler)"
done
