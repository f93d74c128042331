// Bidirectional WKV, what forward and backward share: the pieces that time is cut into, and the sums that go through
// them.
//
// A task is a block of neighbouring channels of one sequence, a column of it one vector of channels. Time is walked in
// segments (these have nothing to do with the chunks of the official kernel). Within a segment all weights are relative
// to 2^M, M the largest exponent that occurs in it: one exponential a token, and none for the sums that pass. Between
// segments a sum carries an exponent of its own. Segments are so short that no decay within one leaves float32.
#pragma once
#include "selective_scan_block.h"
#include "wkv.h"

namespace SF_ISA {

constexpr int64_t kWkvSegment = 32;
constexpr int64_t kWkvColumns = 256 / SF_VECTOR_BYTES;  // four cache lines of a row (two took 10 % longer)
constexpr double kWkvSpan = 20;                         // |w| times the steps of a segment: exp(20) either way
constexpr double kWkvNothing = -1e30;                   // the exponent of an empty sum

// Running sums over tokens: of weight * value (n) and of weight (d). The true sums are n 2^scale and d 2^scale.
template <typename T>
struct wkv_sums {
    vec<T> n, d, scale;
    static wkv_sums none() { return {vec<T>{}, vec<T>{}, splat((T)kWkvNothing)}; }
    SF_INLINE void rescale(vec<T> by) {
        n *= by;
        d *= by;
    }
    // n <- n * by + e * v, d <- d * by + e
    SF_INLINE void step(vec<T> by, vec<T> e, vec<T> v) {
        n = n * by + e * v;
        d = d * by + e;
    }
};

// The sums at one token, relative to the exponent of its segment.
template <typename T>
struct wkv_pair {
    vec<T> n, d;
};

template <typename T>
struct binary;
template <>
struct binary<float> {
    static constexpr int mantissa = 23, bias = 127;
};
template <>
struct binary<double> {
    static constexpr int mantissa = 52, bias = 1023;
};

// What brings sums of magnitude `size`, relative to 2^scale, back to about 1: a power of two, and `scale` moved by it.
template <typename T>
SF_INLINE vec<T> renormalise(vec<T> size, vec<T> &scale) {
    using I = typename lanes<T>::ints;
    const I exponent = ((I)size >> binary<T>::mantissa) - binary<T>::bias;
    const vec<T> moved = scale + __builtin_convertvector(exponent, vec<T>);
    scale = size > vec<T>{} ? moved : splat((T)kWkvNothing);
    return (vec<T>)((binary<T>::bias - exponent) << binary<T>::mantissa);
}

// The constants of one column.
template <typename T>
struct wkv_constants {
    vec<T> decay, growth, second, own;  // exp(-w), exp(w), 1 - exp(w), exp(u)
    // exp(-w span) over decay^span: the rounding of `decay` adds up from step to step, to 2e-5 over 4096 tokens. Sums are
    // multiplied by this where they enter a segment.
    vec<T> drift;
};

template <typename T>
struct wkv_block {
    using V = vec<T>;
    static constexpr int W = lanes<T>::count;

    const sf_wkv &problem;
    int64_t batch, first, columns, left;  // channels from `first` on; the last column holds `left` of them
    int64_t span, segments;               // tokens of a segment, and how many
    rows<T> k, v, grad;
    wkv_constants<T> *constants;  // [column]
    V *values;                    // [column][span]: the segment at hand
    V *weights;                   // [segment][column][span]: exp(k), relative to 2^exponent
    V *exponent;                  // [segment][column]: the largest key or, if larger, the exponent of `right`
    wkv_sums<T> *right;           // [segment][column]: over all tokens behind the segment, as its last token sees them

    wkv_block(const sf_wkv &p, const blocking &cut, int64_t task)
        : problem(p), batch(task / cut.per_sequence), first(cut.first_vector(task % cut.per_sequence) * W),
          columns(cut.first_vector(task % cut.per_sequence + 1) - cut.first_vector(task % cut.per_sequence)),
          k(p.k, batch, first), v(p.v, batch, first), grad(p.grad, batch, first) {
        const int64_t channels = p.channels - first;
        left = channels >= columns * W ? W : channels - (columns - 1) * W;
        T fastest = 0;
        for (int64_t i = 0; i < (columns - 1) * W + left; ++i) {
            const T w = ((const T *)p.w)[first + i], size = w < 0 ? -w : w;
            if (size > fastest) fastest = size;
        }
        const double most = fastest > 0 ? kWkvSpan / (double)fastest : kWkvSegment;
        span = most >= kWkvSegment ? kWkvSegment : most > 1 ? (int64_t)most : 1;
        segments = (p.tokens + span - 1) / span;
    }
    size_t bytes() const {
        return (size_t)columns * (sizeof(*constants) + (size_t)span * sizeof(V) +
                                  (size_t)segments * ((size_t)(span + 1) * sizeof(V) + sizeof(*right)));
    }
    // Lays the tables out in `memory`; returns what is behind them.
    void *place(void *memory) {
        constants = (wkv_constants<T> *)memory;
        values = (V *)(constants + columns);
        weights = values + columns * span;
        exponent = weights + segments * columns * span;
        right = (wkv_sums<T> *)(exponent + segments * columns);
        for (int64_t c = 0; c < columns; ++c) {
            const int64_t lanes_left = c == columns - 1 ? left : W;
            const V w = load_part((const T *)problem.w + first + c * W, lanes_left);
            const V u = load_part((const T *)problem.u + first + c * W, lanes_left);
            for (int i = 0; i < W; ++i) {  // libm: 1 - exp(w) loses its digits where w is small
                constants[c].decay[i] = (T)::exp(-(double)w[i]);
                constants[c].growth[i] = (T)::exp((double)w[i]);
                constants[c].second[i] = (T)-::expm1((double)w[i]);
                constants[c].own[i] = (T)::exp((double)u[i]);
                const double decay = (double)constants[c].decay[i], rounded = decay > 0 ? ::log(decay) : -(double)w[i];
                constants[c].drift[i] = (T)::exp(-(double)span * ((double)w[i] + rounded));
            }
        }
        return right + segments * columns;
    }

    int64_t begin(int64_t segment) const { return segment * span; }
    int64_t length(int64_t segment) const {
        const int64_t rest = problem.tokens - begin(segment);
        return rest < span ? rest : span;
    }
    // The first token at or behind t that begins a chunk of the official kernel.
    int64_t next_chunk(int64_t t) const { return (t + problem.chunk - 1) / problem.chunk * problem.chunk; }

    // The rows of a segment as a tile [column][span], times `by`.
    void pack(V *tile, const rows<T> &from, int64_t segment, V by) const {
        const int64_t count = length(segment), whole = left == W ? columns : columns - 1;
        for (int64_t i = 0; i < count; ++i) {
            const T *row = from.at(begin(segment) + i);
            __builtin_prefetch(row + 8 * from.stride);
            for (int64_t c = 0; c < whole; ++c) tile[c * span + i] = load(row + c * W) * by;
            if (whole < columns) tile[whole * span + i] = load_part(row + whole * W, left) * by;
        }
    }
    void unpack(void *to, const V *tile, int64_t segment) const {
        const int64_t count = length(segment), whole = left == W ? columns : columns - 1;
        T *row = (T *)to + (batch * problem.tokens + begin(segment)) * problem.channels + first;
        for (int64_t i = 0; i < count; ++i, row += problem.channels) {
            for (int64_t c = 0; c < whole; ++c) store(row + c * W, tile[c * span + i]);
            if (whole < columns) store_part(row + whole * W, tile[whole * span + i], left);
        }
    }

    // From the token behind to this one: R_{t-1} from R_t, where R_t is the sum over all tokens behind t.
    template <bool Kernel>
    static SF_INLINE void step_left(wkv_sums<T> &sums, const wkv_constants<T> &constant, V e, V v) {
        sums.step(constant.decay, Kernel ? e * constant.decay : e, v);
    }

    // Fills `weights`, `exponent` and `right`, from the last segment to the first.
    template <bool Kernel>
    void look_right() const {
        for (int64_t c = 0; c < columns; ++c) right[(segments - 1) * columns + c] = wkv_sums<T>::none();
        for (int64_t segment = segments - 1; segment >= 0; --segment) {
            V *const keys = weights + segment * columns * span;
            pack(keys, k, segment, splat((T)LOG2E));
            if (segment > 0) pack(values, v, segment, splat((T)1));
            const int64_t count = length(segment);
            for (int64_t c = 0; c < columns; ++c) {
                V *weight = keys + c * span;
                const V *value = values + c * span;
                V top = weight[0];
                for (int64_t i = 1; i < count; ++i) top = at_least(weight[i], top);
                wkv_sums<T> sums = right[segment * columns + c];
                const wkv_constants<T> constant = constants[c];
                const V M = exponent[segment * columns + c] = at_least(top, sums.scale);
                for (int64_t i = 0; i < count; ++i) weight[i] = exp2_nonpositive(weight[i] - M);
                if (segment == 0) continue;
                sums.rescale(exp2_nonpositive(sums.scale - M) * constant.drift);
                for (int64_t i = count - 1; i >= 0; --i) step_left<Kernel>(sums, constant, weight[i], value[i]);
                sums.scale = M;
                sums.rescale(renormalise<T>(sums.d, sums.scale));
                right[(segment - 1) * columns + c] = sums;
            }
        }
    }
};

// The sums over the tokens before t. Mode "paper" has only `chunk`, which then never ends.
template <typename T>
struct wkv_left {
    using V = vec<T>;
    wkv_sums<T> earlier;  // over the tokens before this chunk, each exp(k_j - w (t - j))
    wkv_sums<T> chunk;    // over the tokens of this chunk before t, each exp(k_j - w (t - 1 - j)); scale: `earlier`'s
    wkv_sums<T> second;   // over the tokens of this chunk but its first up to t, each exp(k_j + w (t - j))

    static wkv_left none() { return {wkv_sums<T>::none(), wkv_sums<T>::none(), wkv_sums<T>::none()}; }
    template <bool Kernel>
    SF_INLINE V top(V M) const {
        M = at_least(M, earlier.scale);
        return Kernel ? at_least(M, second.scale) : M;
    }
    template <bool Kernel>
    SF_INLINE void enter(V M, V drift) {  // a segment whose weights are relative to 2^M
        const V by = exp2_nonpositive(earlier.scale - M) * drift;
        chunk.rescale(by);
        if (!Kernel) return;
        earlier.rescale(by);
        second.rescale(exp2_nonpositive(second.scale - M));
    }
    template <bool Kernel>
    SF_INLINE void leave(V M) {
        earlier.scale = second.scale = M;
        const V by = renormalise<T>(Kernel ? earlier.d + chunk.d : chunk.d, earlier.scale);
        chunk.rescale(by);
        if (!Kernel) return;
        earlier.rescale(by);
        second.rescale(renormalise<T>(second.d, second.scale));
    }
    // The token t begins a chunk: the chunk before it is now among the earlier ones, one step further away.
    SF_INLINE void begin_chunk(V decay) {
        earlier.n += decay * chunk.n;
        earlier.d += decay * chunk.d;
        chunk.n = chunk.d = second.n = second.d = V{};
    }
    // From t to t + 1.
    template <bool Kernel>
    SF_INLINE void step(V decay, V e, V v) {
        chunk.step(decay, e, v);
        if (Kernel) earlier.rescale(decay);
    }
};

// One column of one segment: fills `weight` [span] with exp(k) and `behind` [span] with what follows each token, both
// relative to 2^M, where M is not less than the block's exponent there; then takes `left` from the segment's first token
// to its last, and at each calls visit(i, numerator, denominator, left).
template <typename T, bool Kernel, typename Visit>
SF_INLINE void wkv_walk(const wkv_block<T> &b, const wkv_constants<T> &constant, int64_t segment, int64_t column,
                        vec<T> M, wkv_left<T> &left, vec<T> *weight, wkv_pair<T> *behind, Visit visit) {
    using V = vec<T>;
    const int64_t count = b.length(segment), place = segment * b.columns + column;
    const V *kept = b.weights + place * b.span, *value = b.values + column * b.span;
    const V by = exp2_nonpositive(b.exponent[place] - M);
    wkv_sums<T> right = b.right[place];
    right.rescale(exp2_nonpositive(right.scale - M) * constant.drift);
    for (int64_t i = count - 1; i >= 0; --i) {
        const V e = kept[i] * by;
        weight[i] = e;
        behind[i] = {right.n, right.d};
        wkv_block<T>::template step_left<Kernel>(right, constant, e, value[i]);
    }
    int64_t chunk_at = Kernel ? b.next_chunk(b.begin(segment)) - b.begin(segment) : -1;
    for (int64_t i = 0; i < count; ++i) {
        const V e = weight[i], v = value[i], own = constant.own * e;
        if (Kernel) {
            if (i == chunk_at) {
                left.begin_chunk(constant.decay);
                chunk_at += b.problem.chunk;
            } else {
                left.second.step(constant.growth, e, v);
            }
        }
        V n = behind[i].n + left.chunk.n + own * v;
        V d = behind[i].d + left.chunk.d + own;
        if (Kernel) {
            n += left.earlier.n + constant.second * left.second.n;
            d += left.earlier.d + constant.second * left.second.d;
        }
        visit(i, n, d, left);
        left.template step<Kernel>(constant.decay, e, v);
    }
}

}  // namespace SF_ISA
