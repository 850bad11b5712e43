#!/usr/bin/env bash
# All checks and figures that need a GPU, in at most 9 minutes: figures first, each step with a
# time limit and a log under $OUT (default: gpu_out). The environment must be active.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-gpu_out} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$OUT"

step() {  # step SECONDS NAME COMMAND...
    local limit=$1 name=$2 begin=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
    printf '%-12s status %3d  %4d s\n' "$name" $? $((SECONDS - begin)) | tee -a "$OUT/steps.txt"
}
parts="python benchmarks/edit_parts.py --device cuda --max-length 1024"

: >"$OUT/steps.txt"
step 15 machine bash -c 'nvidia-smi; python -c "import torch; print(torch.__version__)"'
step 70 qwen $parts --plain --shape qwen2.5-0.5b --rounds 9
step 80 llama8b $parts --plain --shape llama3-8b --rounds 5
step 80 distill $parts --plain --shape qwen2.5-0.5b --rounds 5 --policy distill
step 45 olmo $parts --plain --shape olmo-1b --rounds 9
step 30 small python benchmarks/edit_parts.py --plain --device cuda --shape qwen2.5-0.5b --batch-size 1
step 70 training $parts --training --shape qwen2.5-0.5b --rounds 5
step 145 tests python -m pytest -m gpu -q -n 0 -p no:cacheprovider tests/test_gpu.py tests/head/test_kernels.py

for name in machine qwen llama8b distill olmo small training tests; do
    echo "== $name"
    tail -15 "$OUT/$name.log"
done
cat "$OUT/steps.txt"
echo "$SECONDS s"
