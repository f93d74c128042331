// The vector functions of simd.h on arrays: what the tests measure their accuracy with.
#include "simd.h"

namespace SF_ISA {
namespace {

template <vf (*Function)(vf)>
int map(float *out, const float *in, int64_t count) {
    constexpr int W = lanes<float>::count;
    int64_t i = 0;
    for (; i + W <= count; i += W) store(out + i, Function(load(in + i)));
    if (i < count) store_part(out + i, Function(load_part(in + i, count - i)), count - i);
    return SF_OK;
}

vf exp_of(vf x) { return exp(x); }
vf softplus_of(vf x) { return softplus(x); }
vf sigmoid_of(vf x) { return sigmoid(x); }

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(exp_f32)(float *out, const float *in, int64_t count) { return SF_ISA::map<SF_ISA::exp_of>(out, in, count); }
SF_EXPORT(softplus_f32)(float *out, const float *in, int64_t count) {
    return SF_ISA::map<SF_ISA::softplus_of>(out, in, count);
}
SF_EXPORT(sigmoid_f32)(float *out, const float *in, int64_t count) {
    return SF_ISA::map<SF_ISA::sigmoid_of>(out, in, count);
}
