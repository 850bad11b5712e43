#!/usr/bin/env bash
# Figures and tests that need a GPU, in at most 9 minutes. No data and no models are needed: the
# weights are random. In an environment with a torch that sees the GPU:
#     pip install -e '.[recipes]' pytest hypothesis && .ci/gpu.sh
# Figures come first. Each step has a time limit and a log in $OUT (default: gpu_out); the file
# steps.txt there says how long each took, and status 124 or 137 that it was stopped.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-gpu_out} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
mkdir -p "$OUT"
: >"$OUT/steps.txt"
failed=0

step() {  # step SECONDS NAME COMMAND...
    local limit=$1 name=$2 begin=$SECONDS status
    shift 2
    timeout --kill-after=3 "$limit" "$@" >"$OUT/$name.log" 2>&1
    status=$?
    [ $status = 0 ] || failed=1
    printf '%-12s status %3d  %4d s\n' "$name" $status $((SECONDS - begin)) | tee -a "$OUT/steps.txt"
}
facts="import torch, transformers; print(torch.__version__, transformers.__version__)
print(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory >> 20, 'MiB')"
parts="python benchmarks/edit_parts.py --device cuda"
long="$parts --max-length 1024"

step 30 machine python -c "$facts"
if [ $failed = 1 ]; then
    cat "$OUT/machine.log"
    echo "torch sees no GPU, or a package is missing: see the top of this file"
    exit 1
fi
step 65 qwen $long --plain --shape qwen2.5-0.5b --rounds 9
step 75 llama8b $long --plain --shape llama3-8b --rounds 5
step 75 distill $long --plain --shape qwen2.5-0.5b --rounds 5 --policy distill
step 45 olmo $long --plain --shape olmo-1b --rounds 9
step 30 small $parts --plain --shape qwen2.5-0.5b --batch-size 1
step 65 training $long --training --shape qwen2.5-0.5b --rounds 5
step 125 tests python -m pytest -m gpu -q -p no:cacheprovider tests/test_gpu.py tests/head/test_kernels.py

for name in machine qwen llama8b distill olmo small training tests; do
    echo "== $name"
    tail -15 "$OUT/$name.log"
done
cat "$OUT/steps.txt"
echo "$SECONDS s"
exit $failed
