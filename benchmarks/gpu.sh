#!/usr/bin/env bash
# Every check that needs a GPU, in one call below nine minutes. Installs nothing.
# Usage: benchmarks/gpu.sh [--dry-run]    (the dry run needs no GPU; results go to $OUT or results/)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${OUT:-benchmarks/results}
mkdir -p "$out"
: >"$out/gpu.log"
export PYTHONPATH="$PWD/shared${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=()

step() { # step SECONDS NAME COMMAND...: a step that fails or hangs does not keep the others from running
    local limit=$1 name=$2 start=$SECONDS
    shift 2
    echo "== $name"
    timeout "$limit" "$@" 2>&1 | tee -a "$out/gpu.log"
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
    echo "== $name: $((SECONDS - start)) s"
}

if [ "${1:-}" = "--dry-run" ]; then
    step 120 tests python3 -m pytest tests/gpu -m gpu --collect-only -q
    step 300 gate_cost python3 -m benchmarks.gate_cost --dims 2 --out "$out"
else
    export GRADPROM_TEST_DEVICE=cuda
    # Another release of PyTorch brings other warnings of third parties: here they are only shown.
    step 240 tests python3 -m pytest tests/gpu -m gpu -W default --durations=10
    for amp in off fp16 bf16; do
        step 90 "gate_cost_$amp" python3 -m benchmarks.gate_cost --device cuda --amp "$amp" --out "$out"
    done
fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all passed in $SECONDS s"
