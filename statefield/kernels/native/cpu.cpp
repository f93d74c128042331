// Compiled once, for the oldest CPU: which of the built instruction sets this CPU runs.
#include "abi.h"

#define SF_PUBLIC extern "C" __attribute__((visibility("default")))

namespace {

bool runs_avx512() {
#if defined(SF_BUILT_avx512)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

bool runs_avx2() {
#if defined(SF_BUILT_avx2)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

}  // namespace

SF_PUBLIC int sf_abi_version() { return SF_ABI_VERSION; }

// Best first, separated by blanks.
SF_PUBLIC const char *sf_isas_supported() {
#if defined(SF_BUILT_neon)
    return "neon plain";
#else
    if (runs_avx512()) return runs_avx2() ? "avx512 avx2 plain" : "avx512 plain";
    return runs_avx2() ? "avx2 plain" : "plain";
#endif
}

SF_PUBLIC const char *sf_isa() {
#if defined(SF_BUILT_neon)
    return "neon";
#else
    return runs_avx512() ? "avx512" : runs_avx2() ? "avx2" : "plain";
#endif
}
