#!/usr/bin/env bash
# Everything that needs a GPU, in under nine minutes on a machine without network: install, prove the kernels on the
# device, measure. Rows are appended to bench/results/<gpu>-<date>.jsonl (or $OUT, where that is set), also when the
# time runs out.
#
#   bench/gpu.sh            # all
#   bench/gpu.sh tune       # instead of measuring, time the candidate tiles of every operator
#
# PYTHON chooses the interpreter, SECONDS_TO_TEST and SECONDS_TO_MEASURE the limits of the two parts.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
results=${OUT:-bench/results}
cores=$(nproc)
mkdir -p "$results"

say() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

say "install"
$python -m pip install -q --no-build-isolation --no-deps -e . || exit 1
gpu=$($python -P -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') || {
  echo "bench/gpu.sh needs a CUDA device" >&2
  exit 1
}
rows="$results/$gpu-$(date -u +%F).jsonl"

say "kernel tests on $gpu"
# the tests of kernels need neither anndata nor the loader, so no conftest above theirs is read
parallel=$($python -P -c 'import importlib.util as u; print("-n 8" if u.find_spec("xdist") else "")')
timeout "${SECONDS_TO_TEST:-170}" $python -P -m pytest tests/kernels --confcutdir=tests/kernels -q -k "cuda" $parallel \
  -p no:cacheprovider >"$results/$gpu-tests.txt" 2>&1
tests=$?
tail -25 "$results/$gpu-tests.txt"

# compiling takes a processor, not the GPU: a process for each module, into the caches of Triton and Inductor
warm() {
  say "compile what bench/$1 will time, $cores at once"
  $python -c 'import sys; sys.path.insert(0, "bench"); import registry; print(*registry.MODULES, sep="\n")' |
    timeout 120 xargs -P "$cores" -I{} sh -c \
      "$python bench/$1 --warm --module {} >/dev/null 2>'$results/warm-{}.txt' || true"
  find "$results" -name 'warm-*.txt' -size 0 -delete
}

if [ "${1:-}" = tune ]; then
  warm tune.py
  say "tune"
  limit=${SECONDS_TO_MEASURE:-$((530 - SECONDS))}
  timeout "$limit" $python bench/tune.py --deadline "$((limit - 30))" --out "$results/$gpu-tiles.jsonl"
  exit $?
fi

warm run.py
say "measure"
# what matters most first: attention and a whole step of training, then the other operators as far as time goes
end=$((SECONDS + ${SECONDS_TO_MEASURE:-$((530 - SECONDS))}))
measured=0
measure() {
  local share=$1 left=$((end - SECONDS))
  shift
  [ "$left" -gt 10 ] || { echo "no time left for $*"; return; }
  [ "$share" -lt "$left" ] || share=$left
  timeout "$share" $python "$@" --out "$rows" >/dev/null || measured=1
}
measure 60 bench/run.py --module segment_attention --deadline 40 --seconds 0.6
for model in white_box dit; do
  measure 60 bench/training_step.py --model "$model" --seconds 3
done
others=$($python -c 'import sys; sys.path.insert(0, "bench"); import registry; print(*registry.MODULES[1:])')
measure 530 bench/run.py $(printf -- '--module %s ' $others) --deadline "$((end - SECONDS - 20))" --seconds 0.6
say "done: $rows"
$python bench/table.py "$rows"
exit $((tests || measured))
