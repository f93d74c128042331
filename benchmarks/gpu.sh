#!/bin/sh
# The GPU kernels on the machine at hand: are they right, and how near are they to its limits?
#
#   sh benchmarks/gpu.sh                 checks every case in four dtypes, then measures and prints one table;
#                                        numbers go to benchmarks/results/kernels_gpu.json
#   sh benchmarks/gpu.sh --quick         fewer repetitions
#   sh benchmarks/gpu.sh --dry-run       tiny sizes on the CPU through Triton's interpreter: does the script itself work?
#
# Needs a python3 (or PYTHON=...) with torch and triton, and a C compiler, with which triton builds its launcher.
# statefield need not be installed: the source tree is used as it is.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
for argument in "$@"; do
    [ "$argument" = --dry-run ] && export TRITON_INTERPRET=1
done
if ! "$python" -c 'import torch, triton' 2>/dev/null; then
    echo "$python has no torch or no triton: pip install torch triton, or name another with PYTHON=..." >&2
    exit 1
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$root/benchmarks/gpu_kernels.py" "$@"
