// The plain C interface: what every kernel file includes for its exported names.
//
// A kernel file is compiled once per instruction set with SF_ISA defined as avx512, avx2, neon or plain. Its exported
// functions carry that as a suffix: SF_EXPORT(selective_scan_forward_f32) names sf_selective_scan_forward_f32__avx2.
// Python picks the suffix once (native/__init__.py), so no kernel holds dispatch code.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define SF_ABI_VERSION 2

#define SF_JOIN2(name, isa) sf_##name##__##isa
#define SF_JOIN(name, isa) SF_JOIN2(name, isa)
#define SF_EXPORT(name) extern "C" __attribute__((visibility("default"))) int SF_JOIN(name, SF_ISA)

enum { SF_OK = 0, SF_NO_MEMORY = 1, SF_BAD_ARGUMENT = 2 };
