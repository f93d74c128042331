// The causal depthwise convolution with SiLU, forward and backward. A vector lane is a channel.
//
// Steps are counted in the order in which the taps look back: with `reverse` step 0 is the last row. Rows are walked in
// tiles that stay in the first-level cache while one vector of channels after the other goes down them.
#include "selective_scan_block.h"

// The C side of `_Problem` in causal_conv1d/native.py, field by field.
struct sf_conv {
    int64_t batch, length, channels, taps, silu, reverse, threads;
    struct sf_strided x, grad;       // [B, L, D], the last axis dense
    const void *weight, *bias;       // [K, D]; [D] or null
    void *y;                         // [B, L, D]
    void *grad_x;                    // [B, L, D]
    void *grad_weight, *grad_bias;   // [B, K, D], [B, D]: a partial sum for each batch entry
};

namespace SF_ISA {
namespace {

constexpr int64_t kConvRows = 32;                        // of a tile
constexpr int64_t kConvColumns = 256 / SF_VECTOR_BYTES;  // vectors of a tile's row

template <typename T, bool Whole>
SF_INLINE vec<T> take(const T *from, int64_t left) {
    if constexpr (Whole)
        return load(from);
    else
        return load_part(from, left);
}
template <typename T, bool Whole>
SF_INLINE void give(T *to, vec<T> x, int64_t left) {
    if constexpr (Whole)
        store(to, x);
    else
        store_part(to, x, left);
}

// One vector of channels. `Fixed` is the number of taps where it is known when compiling, else 0: the taps are then
// read from memory at each step.
template <typename T, int Fixed, bool Whole>
struct conv_column {
    using V = vec<T>;
    const sf_conv &p;
    const int64_t K, channel, left;  // `left` lanes are channels, where not all are

    conv_column(const sf_conv &p, int64_t channel, int64_t left)
        : p(p), K(Fixed ? Fixed : p.taps), channel(channel), left(left) {}

    SF_INLINE int64_t row(int64_t step) const { return p.reverse ? p.length - 1 - step : step; }
    SF_INLINE V weight(int64_t back) const {  // of the value `back` steps ago
        return take<T, Whole>((const T *)p.weight + (K - 1 - back) * p.channels + channel, left);
    }
    SF_INLINE V bias() const { return p.bias ? take<T, Whole>((const T *)p.bias + channel, left) : V{}; }

    template <bool Silu>
    void forward(int64_t batch, int64_t begin, int64_t end) const {
        const T *x = (const T *)p.x.data + batch * p.x.batch_stride + channel;
        T *y = (T *)p.y + batch * p.length * p.channels + channel;
        const int64_t back = p.reverse ? p.x.row_stride : -p.x.row_stride;
        V w[Fixed ? Fixed : 1];
        for (int64_t j = 0; j < Fixed; ++j) w[j] = weight(j);
        const V b = bias();
        for (int64_t step = begin; step < end; ++step) {
            const T *at = x + row(step) * p.x.row_stride;
            V a = b;
            if (step >= K - 1) {
#pragma GCC unroll 4
                for (int64_t j = 0; j < K; ++j) {
                    const V tap = Fixed ? w[Fixed ? j : 0] : weight(j);
                    a += tap * take<T, Whole>(at + j * back, left);
                }
            } else {
                for (int64_t j = 0; j <= step; ++j) a += weight(j) * take<T, Whole>(at + j * back, left);
            }
            give<T, Whole>(y + row(step) * p.channels, Silu ? a * sigmoid(a) : a, left);
        }
    }

    // `state` keeps what goes from tile to tile: the last K inputs, the last K gradients of a, the sums for the
    // weights, the sum for the bias. At step t the gradient of the input K - 1 steps ago is complete.
    template <bool Silu>
    void backward(int64_t batch, int64_t begin, int64_t end, V *state) const {
        const T *x = (const T *)p.x.data + batch * p.x.batch_stride + channel;
        const T *g = (const T *)p.grad.data + batch * p.grad.batch_stride + channel;
        T *grad_x = (T *)p.grad_x + batch * p.length * p.channels + channel;
        V kept[Fixed ? 4 * Fixed : 1];
        V *xs = Fixed ? kept : state, *gs = xs + K, *sums = gs + K, *w = Fixed ? sums + K : state + 3 * K + 1;
        if (Fixed)
            for (int64_t j = 0; j < 3 * Fixed; ++j) kept[j] = state[j];
        for (int64_t j = 0; j < K; ++j) w[j] = weight(j);
        const V b = bias();
        V sum = state[3 * K];
        for (int64_t step = begin; step < end; ++step) {
            const bool inside = step < p.length;
#pragma GCC unroll 4
            for (int64_t j = K - 1; j > 0; --j) {
                xs[j] = xs[j - 1];
                gs[j] = gs[j - 1];
            }
            V of_a{};
            if (inside) {
                xs[0] = take<T, Whole>(x + row(step) * p.x.row_stride, left);
                of_a = take<T, Whole>(g + row(step) * p.grad.row_stride, left);
                if (Silu) {
                    V a = b;
#pragma GCC unroll 4
                    for (int64_t j = 0; j < K; ++j) a += w[j] * xs[j];
                    const V s = sigmoid(a);
                    of_a *= s + a * s * (splat((T)1) - s);
                }
#pragma GCC unroll 4
                for (int64_t j = 0; j < K; ++j) sums[j] += of_a * xs[j];
                sum += of_a;
            }
            gs[0] = of_a;
            if (step < K - 1) continue;
            V of_x{};
#pragma GCC unroll 4
            for (int64_t j = 0; j < K; ++j) of_x += w[j] * gs[K - 1 - j];
            give<T, Whole>(grad_x + row(step - (K - 1)) * p.channels, of_x, left);
        }
        if (Fixed)
            for (int64_t j = 0; j < 3 * Fixed; ++j) state[j] = kept[j];
        state[3 * K] = sum;
    }

    void finish(int64_t batch, const V *state) const {
        for (int64_t j = 0; j < K; ++j)
            give<T, Whole>((T *)p.grad_weight + (batch * K + K - 1 - j) * p.channels + channel, state[2 * K + j], left);
        give<T, Whole>((T *)p.grad_bias + batch * p.channels + channel, state[3 * K], left);
    }
};

template <typename T, int Fixed>
struct conv {
    static constexpr int W = lanes<T>::count;
    using V = vec<T>;

    template <typename Run>
    static SF_INLINE void each_column(const sf_conv &p, int64_t first, int64_t last, Run run) {
        for (int64_t c = first; c < last; ++c) {
            const int64_t left = p.channels - c * W;
            if (left >= W)
                run(c, conv_column<T, Fixed, true>(p, c * W, W));
            else
                run(c, conv_column<T, Fixed, false>(p, c * W, left));
        }
    }

    static int forward(const sf_conv &p) {
        const int64_t columns = (p.channels + W - 1) / W, tiles = (p.length + kConvRows - 1) / kConvRows;
#pragma omp parallel for num_threads(p.threads) schedule(static)
        for (int64_t task = 0; task < p.batch * tiles; ++task) {
            const int64_t batch = task / tiles, begin = task % tiles * kConvRows;
            const int64_t end = begin + kConvRows < p.length ? begin + kConvRows : p.length;
            for (int64_t first = 0; first < columns; first += kConvColumns) {
                const int64_t last = first + kConvColumns < columns ? first + kConvColumns : columns;
                each_column(p, first, last, [&](int64_t, const auto &column) {
                    if (p.silu)
                        column.template forward<true>(batch, begin, end);
                    else
                        column.template forward<false>(batch, begin, end);
                });
            }
        }
        return SF_OK;
    }

    static int backward(const sf_conv &p) {
        const blocking cut(p.batch, (p.channels + W - 1) / W, kConvColumns, p.threads);
        const int64_t steps = p.length + p.taps - 1, held = 4 * p.taps + 1;  // vectors of a column's state
        int failed = 0;
#pragma omp parallel for num_threads(p.threads) schedule(dynamic, 1)
        for (int64_t task = 0; task < cut.tasks; ++task) {
            const flush_denormals guard;
            const int64_t batch = task / cut.per_sequence, part = task % cut.per_sequence;
            const int64_t first = cut.first_vector(part), last = cut.first_vector(part + 1);
            const size_t bytes = (size_t)((last - first) * held) * sizeof(V);
            aligned_buffer memory(bytes);
            if (!memory.data) {
                __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
                continue;
            }
            memset(memory.data, 0, bytes);
            V *state = (V *)memory.data;
            for (int64_t begin = 0; begin < steps; begin += kConvRows) {
                const int64_t end = begin + kConvRows < steps ? begin + kConvRows : steps;
                each_column(p, first, last, [&](int64_t c, const auto &column) {
                    if (p.silu)
                        column.template backward<true>(batch, begin, end, state + (c - first) * held);
                    else
                        column.template backward<false>(batch, begin, end, state + (c - first) * held);
                });
            }
            each_column(p, first, last,
                        [&](int64_t c, const auto &column) { column.finish(batch, state + (c - first) * held); });
        }
        return failed ? SF_NO_MEMORY : SF_OK;
    }
};

template <typename T>
int forward(const sf_conv &p) {
    switch (p.taps) {
        case 3: return conv<T, 3>::forward(p);
        case 4: return conv<T, 4>::forward(p);
        default: return conv<T, 0>::forward(p);
    }
}
template <typename T>
int backward(const sf_conv &p) {
    switch (p.taps) {
        case 3: return conv<T, 3>::backward(p);
        case 4: return conv<T, 4>::backward(p);
        default: return conv<T, 0>::backward(p);
    }
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(causal_conv1d_forward_f32)(const sf_conv *p) { return SF_ISA::forward<float>(*p); }
SF_EXPORT(causal_conv1d_forward_f64)(const sf_conv *p) { return SF_ISA::forward<double>(*p); }
SF_EXPORT(causal_conv1d_backward_f32)(const sf_conv *p) { return SF_ISA::backward<float>(*p); }
SF_EXPORT(causal_conv1d_backward_f64)(const sf_conv *p) { return SF_ISA::backward<double>(*p); }
