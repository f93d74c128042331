#!/bin/sh
# The kernels on the machine at hand: are they right on its GPU, and how near are they to its limits?
#
#   sh benchmarks/gpu.sh                 builds, checks every case in four dtypes, measures, and prints one table
#   sh benchmarks/gpu.sh --out FILE      also writes the numbers to FILE; without it to $OUT/kernels_gpu.json where OUT is set
#   sh benchmarks/gpu.sh --quick         fewer repetitions
#   sh benchmarks/gpu.sh --op ssd        only this operator
#   sh benchmarks/gpu.sh --dry-run       tiny sizes on the CPU through Triton's interpreter: does the script itself work?
#
# Needs a python3 (or PYTHON=...) with torch and triton, and a C++ compiler; no network, and nothing is installed: the
# source tree is used as it is, with a native library built into a temporary folder (STATEFIELD_NATIVE_LIBRARY names one
# that is there already). Ends with 0 when every operator is right, 1 when one is wrong or failed, 2 when nothing could run.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
dry=no; out=no
for argument in "$@"; do
    case $argument in
        --dry-run) dry=yes; export TRITON_INTERPRET=1 ;;
        --out | --out=*) out=yes ;;
    esac
done
if ! "$python" -c 'import torch, triton' 2>/dev/null; then
    echo "$python has no torch or no triton: pip install torch triton, or name another with PYTHON=..." >&2
    exit 2
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export XDG_CACHE_HOME="$work/cache"  # what an earlier run found right is checked again
if [ "$dry" = no ] && [ -z "${STATEFIELD_NATIVE_LIBRARY:-}" ]; then
    if "$python" "$root/benchmarks/build_native.py" "$work/libstatefield_native.so"; then
        export STATEFIELD_NATIVE_LIBRARY="$work/libstatefield_native.so"
    else
        echo "the native library could not be built (see above): the GPU kernels are checked without it" >&2
    fi
fi
if [ "$out" = no ] && [ -n "${OUT:-}" ]; then
    set -- "$@" --out "$OUT/kernels_gpu.json"
fi
status=0
"$python" "$root/benchmarks/gpu_kernels.py" "$@" || status=$?
# The tests that need a GPU beside the operators' cases, where there is a pytest to run them.
if [ "$dry" = no ] && [ "$status" != 2 ] && "$python" -c 'import pytest' 2>/dev/null; then
    "$python" -m pytest -q -c /dev/null --rootdir "$root" -p no:cacheprovider "$root/tests/kernels/test_gpu_use.py" || status=1
fi
exit "$status"
