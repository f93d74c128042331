// The backward of mLSTM: a task is a head, walked chunk by chunk from its end, with the gradient of its state in the
// cache. README.md of statefield/kernels/mlstm has the maths.
#include "mlstm_chunk.h"

namespace SF_ISA {
namespace mlstm {
namespace {

template <typename T>
struct backward_scratch {
    gates<T> gate;
    normalizer<T> norm;
    weight_row<T> weights;
    T *grad_sums, *suffix, *read, *kept_in, *grad_n, *n;
    double *grad_forget;  // of log sigmoid(f), [S]
    T *grad_stabilizer;   // what eps passes to m, [S]
    matrix<T> q, k, v, grad, k_by_channel, v_by_channel, scores, weighed, moved, out_q, out_k, out_v, C, grad_C, grad_C_by_v;

    backward_scratch(pieces &memory, const sf_mlstm &s)
        : gate(memory, s.length), norm(memory, s.chunk), weights(memory, s.chunk) {
        T **const of_chunk[] = {&grad_sums, &suffix, &read, &kept_in};
        for (T **piece : of_chunk) *piece = memory.take<T>(s.chunk);
        grad_n = memory.take<T>(s.channels);
        n = memory.take<T>(s.channels);
        grad_forget = memory.take<double>(s.length);
        grad_stabilizer = memory.take<T>(s.length);
        matrix<T> *const rows[] = {&q, &k, &v, &grad, &out_q, &out_k, &out_v};
        for (matrix<T> *m : rows) *m = memory.take_matrix<T>(s.chunk, s.channels);
        matrix<T> *const columns[] = {&k_by_channel, &v_by_channel};
        for (matrix<T> *m : columns) *m = memory.take_matrix<T>(s.channels, s.chunk);
        matrix<T> *const pairs[] = {&scores, &weighed, &moved};
        for (matrix<T> *m : pairs) *m = memory.take_matrix<T>(s.chunk, s.chunk);
        matrix<T> *const states[] = {&C, &grad_C, &grad_C_by_v};
        for (matrix<T> *m : states) *m = memory.take_matrix<T>(s.channels, s.channels);
    }
};

struct place {
    int64_t batch, head, at, begin, count, chunk, chunks;
    place(const sf_mlstm &s, int64_t sequence, int64_t which) {
        batch = sequence / s.heads, head = sequence % s.heads, at = sequence;
        chunks = (s.length + s.chunk - 1) / s.chunk;
        chunk = which, begin = which * s.chunk;
        count = s.length - begin < s.chunk ? s.length - begin : s.chunk;
    }
    // Whether the state before the chunk, and the gradient of the one behind it, are more than zeros.
    bool has_past(const sf_mlstm &s) const { return chunk > 0 || s.C != nullptr; }
    bool has_future(const sf_mlstm &s) const { return chunk < chunks - 1 || s.grad_last_C != nullptr; }
};

// The rows of a chunk; grad becomes the gradient of the readout C_t q_t.
template <typename T>
void load_chunk(const sf_mlstm &s, const place &p, backward_scratch<T> &x) {
    const int64_t size = s.channels, step = p.at * s.length + p.begin;
    const T root = (T)(1 / sqrt((double)size));
    copy_rows(row_of<T>(s.q, p.batch, p.head, p.begin), s.q.row_stride, p.count, size, x.q);
    copy_rows(row_of<T>(s.k, p.batch, p.head, p.begin), s.k.row_stride, p.count, size, x.k);
    copy_rows(row_of<T>(s.v, p.batch, p.head, p.begin), s.v.row_stride, p.count, size, x.v);
    copy_rows(row_of<T>(s.grad_h, p.batch, p.head, p.begin), s.grad_h.row_stride, p.count, size, x.grad);
    memcpy(x.grad_sums, (const T *)s.sums + step, (size_t)p.count * sizeof(T));
    x.norm.set(x.gate.m + p.begin, x.grad_sums, p.count, s.eps, s.rowwise, x.gate.largest);
    for (int64_t t = 0; t < p.count; ++t) {
        scale_row(x.grad.row(t), x.norm.by[t], size);
        scale_row(x.k.row(t), root, size);
    }
    turn_into(x.k_by_channel, x.k.data, x.k.ld, p.count, size);
    turn_into(x.v_by_channel, x.v.data, x.v.ld, p.count, size);
    const int64_t state = p.at * p.chunks + p.chunk;
    copy_rows((const T *)s.states_C + state * size * size, size, size, size, x.C);  // a row a channel of v
    memset(x.n, 0, (size_t)padded_columns<T>(size) * sizeof(T));
    memcpy(x.n, (const T *)s.states_n + state * size, (size_t)size * sizeof(T));
}

// out_q becomes the gradient of q through the state before the chunk, but for its weight and n; `read` q's share of it.
template <typename T>
void read_state(const sf_mlstm &s, const place &p, backward_scratch<T> &x) {
    const int64_t count = p.count, size = s.channels, depth = p.has_past(s) ? size : 0;
    for_tiles<T>(count, size, [&](auto sums, int64_t i0, int64_t j0) {
        sums.add(plain(x.grad), i0, x.C, j0, 0, depth);
        sums.store_to(x.out_q, i0, j0);
    });
    for (int64_t t = 0; t < count; ++t) x.read[t] = dot(x.q.row(t), x.out_q.row(t), size);
}

// scores become weights of v, `weighed` the gradient of q k^T, `moved` that of every weight's logarithm. A row's gradient
// of its divisor is -<dL/dh_t, h_t>. It is summed from what it will nearly cancel, the gradients of the row's weights.
template <typename T>
void weigh(backward_scratch<T> &x, int64_t begin, int64_t count) {
    constexpr int W = lanes<T>::count;
    vec<T> sum{};
    x.weights.walk(
        x.gate.decay + begin, x.gate.take + begin, count,
        [&](int64_t t, int64_t s, vec<T> weight) __attribute__((always_inline)) {
            const vec<T> score = weight * load(x.scores.row(t) + s), grad = load(x.weighed.row(t) + s);
            const vec<T> moved = score * grad;
            store(x.scores.row(t) + s, score);
            store(x.weighed.row(t) + s, weight * grad);
            store(x.moved.row(t) + s, moved);
            sum += moved;
        },
        [&](int64_t t, int64_t end) __attribute__((always_inline)) {
            const T along = sum_lanes<T>(sum) + x.weights.from_start[t] * x.read[t];
            sum = vec<T>{};
            x.grad_sums[t] = -along * x.norm.sum_slope[t];
            x.grad_stabilizer[begin + t] = -along * x.norm.eps_share[t];
            const vec<T> more = splat(x.grad_sums[t]);
            for (int64_t s = 0; s < end; s += W) {
                store(x.weighed.row(t) + s, load(x.weighed.row(t) + s) + more * load(x.weights.row + s));
                store(x.moved.row(t) + s, load(x.moved.row(t) + s) + more * load(x.scores.row(t) + s));
            }
            for (const int64_t zeros = end_of_zeros(t, count); end < zeros; end += W) {
                store(x.scores.row(t) + end, vec<T>{});
                store(x.weighed.row(t) + end, vec<T>{});
            }
        });
}

// Gradients of the gates, but for what m passes on. dL/dlog f'_j is the sum over all pairs s < j <= t of the gradient of
// the logarithm of the weight of s in t. It is added up pair by pair, chunk by chunk: as a difference of running sums, as
// autograd has it, what is left where the memory forgets fast would be rounding.
template <typename T>
void gate_gradients(const sf_mlstm &s, const place &p, backward_scratch<T> &x) {
    constexpr int W = lanes<T>::count;
    T *grad_i = (T *)s.grad_i + p.at * s.length + p.begin;
    double through = 0;  // from before the chunk to behind it
    for (int64_t c = 0; c < s.channels; ++c) through += dot(x.C.row(c), x.grad_C_by_v.row(c), s.channels);
    through = x.weights.from_start[p.count - 1] * (through + dot(x.n, x.grad_n, s.channels));
    memset(x.suffix, 0, (size_t)padded_columns<T>(p.count) * sizeof(T));
    const typename lanes<T>::ints lane = lane_numbers<T>();
    double from_before = 0;
    for (int64_t t = p.count - 1; t >= 0; --t) {
        from_before += x.read[t];
        vec<T> sum{};
        int64_t at = 0;
        for (; at + W <= t; at += W) {
            const vec<T> later = load(x.suffix + at) + load(x.moved.row(t) + at);
            store(x.suffix + at, later);
            sum += later;
        }
        const vec<T> later = load(x.suffix + at) + load(x.moved.row(t) + at);
        store(x.suffix + at, later);
        sum += lane < (lane_number<T>)(t - at) ? later : vec<T>{};
        x.grad_forget[p.begin + t] = (double)sum_lanes<T>(sum) + from_before + through;
    }
    double to_behind = 0;
    for (int64_t t = 0; t < p.count; ++t) {
        x.grad_forget[p.begin + t] += to_behind;
        to_behind += x.kept_in[t];
        grad_i[t] = x.suffix[t] + x.kept_in[t];
    }
}

// What goes through the states: out_q and out_k begin with it, and `read`, `kept_in` tell what it moves.
template <typename T>
void through_states(const sf_mlstm &s, const place &p, backward_scratch<T> &x) {
    constexpr int W = lanes<T>::count;
    const int64_t count = p.count, size = s.channels, depth = p.has_future(s) ? size : 0;
    turn_into(x.grad_C_by_v, x.grad_C.data, x.grad_C.ld, size, size);
    for_tiles<T>(count, size, [&](auto sums, int64_t i0, int64_t j0) {
        sums.add(plain(x.v), i0, x.grad_C_by_v, j0, 0, depth);
        sums.store_to(x.out_k, i0, j0);
    });
    for (int64_t t = 0; t < count; ++t) {
        const vec<T> sum = splat(x.grad_sums[t]);
        const vec<T> before = splat(x.weights.from_start[t]), behind = splat(x.weights.row[t]);
        vec<T> read{}, kept_in{};
        for (int64_t c = 0; c < size; c += W) {
            const vec<T> of_q = before * (load(x.out_q.row(t) + c) + sum * load(x.n + c));
            const vec<T> of_k = behind * (load(x.out_k.row(t) + c) + load(x.grad_n + c));
            store(x.out_q.row(t) + c, of_q);
            store(x.out_k.row(t) + c, of_k);
            read += of_q * load(x.q.row(t) + c);
            kept_in += of_k * load(x.k.row(t) + c);
        }
        x.read[t] = sum_lanes<T>(read);
        x.kept_in[t] = sum_lanes<T>(kept_in);
    }
}

template <typename T>
void store_rows(T *to, matrix<T> from, int64_t count, int64_t size) {
    for (int64_t t = 0; t < count; ++t) memcpy(to + t * size, from.row(t), (size_t)size * sizeof(T));
}

template <typename T>
void row_gradients(const sf_mlstm &s, const place &p, backward_scratch<T> &x) {
    const int64_t size = s.channels, first = (p.at * s.length + p.begin) * size;
    const int64_t depth = p.has_future(s) ? size : 0;
    const T root = (T)(1 / sqrt((double)size));
    for_tiles<T>(p.count, size, [&](auto sums, int64_t i0, int64_t j0) {
        sums.add(plain(x.k), i0, x.grad_C, j0, 0, depth);
        sums.scale_rows(x.weights.row + i0);
        sums.add(transposed(x.scores), i0, x.grad, j0, i0, p.count);
        sums.store_to(x.out_v, i0, j0);
    });
    for_tiles<T>(p.count, size, [&](auto sums, int64_t i0, int64_t j0) {
        begin_with(sums, x.out_q, i0, j0, (T)1);
        sums.add(plain(x.weighed), i0, x.k, j0, 0, i0 + sums.rows);
        sums.store_to(x.out_q, i0, j0);
    });
    for_tiles<T>(p.count, size, [&](auto sums, int64_t i0, int64_t j0) {
        begin_with(sums, x.out_k, i0, j0, (T)1);
        sums.add(transposed(x.weighed), i0, x.q, j0, i0, p.count);
        sums.store_to(x.out_k, i0, j0);
    });
    for (int64_t t = 0; t < p.count; ++t) scale_row(x.out_k.row(t), root, size);
    store_rows((T *)s.grad_q + first, x.out_q, p.count, size);
    store_rows((T *)s.grad_k + first, x.out_k, p.count, size);
    store_rows((T *)s.grad_v + first, x.out_v, p.count, size);
}

// The gradient of the state before the chunk, from that behind it.
template <typename T>
void retreat(backward_scratch<T> &x, int64_t count, int64_t size) {
    constexpr int W = lanes<T>::count;
    const T whole = x.weights.from_start[count - 1];
    scale_row(x.grad_n, whole, size);
    for (int64_t t = 0; t < count; ++t) {
        const vec<T> by = splat(x.weights.from_start[t]), sum = splat(x.grad_sums[t]);
        for (int64_t c = 0; c < size; c += W) {
            const vec<T> read = by * load(x.q.row(t) + c);
            store(x.q.row(t) + c, read);
            store(x.grad_n + c, load(x.grad_n + c) + sum * read);
        }
    }
    for_tiles<T>(size, size, [&](auto sums, int64_t i0, int64_t j0) {
        begin_with(sums, x.grad_C, i0, j0, whole);
        sums.add(transposed(x.q), i0, x.grad, j0, 0, count);
        sums.store_to(x.grad_C, i0, j0);
    });
}

// The gradient of the last state; returns what it passes to the last m: C and n are held divided by exp(m).
template <typename T>
double start(const sf_mlstm &s, int64_t at, backward_scratch<T> &x) {
    const int64_t size = s.channels;
    x.gate.read((const T *)s.i + at * s.length, (const T *)s.f + at * s.length, s.length,
                s.m ? (const T *)s.m + at : nullptr);
    clear(x.grad_C, size, size);
    memset(x.grad_n, 0, (size_t)padded_columns<T>(size) * sizeof(T));
    double grad_m = s.grad_last_m ? ((const T *)s.grad_last_m)[at] : 0;
    if (s.grad_last_C) {
        const T *grad = (const T *)s.grad_last_C + at * size * size, *C = (const T *)s.last_C + at * size * size;
        turn_into(x.grad_C, grad, size, size, size);
        for (int64_t c = 0; c < size * size; ++c) grad_m -= (double)grad[c] * C[c];
    }
    if (s.grad_last_n) {
        const T *grad = (const T *)s.grad_last_n + at * size, *n = (const T *)s.last_n + at * size;
        memcpy(x.grad_n, grad, (size_t)size * sizeof(T));
        for (int64_t c = 0; c < size; ++c) grad_m -= (double)grad[c] * n[c];
    }
    return grad_m;
}

// From the last step to the first: m passes its gradient to i where it took that, else to log f and the m before.
template <typename T>
double stabilizer_gradients(const sf_mlstm &s, int64_t at, backward_scratch<T> &x, double grad_m) {
    const int64_t first = at * s.length;
    const T *f = (const T *)s.f + first;
    T *grad_i = (T *)s.grad_i + first, *grad_f = (T *)s.grad_f + first;
    double of_all = 0;
    if (!s.rowwise)
        for (int64_t t = 0; t < s.length; ++t) of_all += x.grad_stabilizer[t];
    for (int64_t t = s.length - 1; t >= 0; --t) {
        if (s.rowwise) grad_m += x.grad_stabilizer[t];
        else if (t == x.gate.where_largest) grad_m += of_all;
        const double passed = grad_m * x.gate.decays[t];
        grad_i[t] = (T)((double)grad_i[t] + grad_m - passed);
        x.grad_forget[t] += passed;
        grad_m = passed;
    }
    constexpr int W = lanes<T>::count;
    for (int64_t t = 0; t < s.length; t += W) {  // d log sigmoid(f) = sigmoid(-f)
        const int64_t count = s.length - t < W ? s.length - t : W;
        vec<T> grad{};
        for (int64_t lane = 0; lane < count; ++lane) grad[lane] = (T)x.grad_forget[t + lane];
        store_part(grad_f + t, grad * sigmoid(-load_part(f + t, count)), count);
    }
    return grad_m;
}

template <typename T>
void walk_back(const sf_mlstm &s, int64_t at, backward_scratch<T> &x) {
    const int64_t size = s.channels, chunks = (s.length + s.chunk - 1) / s.chunk;
    double grad_m = start(s, at, x);
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
        const place p(s, at, chunk);
        load_chunk(s, p, x);
        dots_at_and_below(x.q, x.k_by_channel, p.count, size, x.scores);
        dots_at_and_below(x.grad, x.v_by_channel, p.count, size, x.weighed);
        read_state(s, p, x);
        weigh(x, p.begin, p.count);
        through_states(s, p, x);
        gate_gradients(s, p, x);
        row_gradients(s, p, x);
        if (p.has_past(s)) retreat(x, p.count, size);
    }
    grad_m = stabilizer_gradients(s, at, x, grad_m);
    if (s.grad_C == nullptr) return;
    T *grad_C = (T *)s.grad_C + at * size * size, *grad_n = (T *)s.grad_n + at * size;
    turn(grad_C, size, x.grad_C.data, x.grad_C.ld, size, size);
    memcpy(grad_n, x.grad_n, (size_t)size * sizeof(T));
    const T *C = (const T *)s.C + at * size * size, *n = (const T *)s.n + at * size;
    for (int64_t c = 0; c < size * size; ++c) grad_m += (double)grad_C[c] * C[c];
    for (int64_t c = 0; c < size; ++c) grad_m += (double)grad_n[c] * n[c];
    ((T *)s.grad_m)[at] = (T)grad_m;
}

template <typename T>
int backward(const sf_mlstm &s) {
    const int64_t tasks = s.batch * s.heads;
    pieces counted(nullptr);
    backward_scratch<T>(counted, s);
    int status = SF_OK;
#pragma omp parallel num_threads(s.threads < tasks ? s.threads : tasks)
    {
        const aligned_buffer memory(counted.used);
        if (memory.data == nullptr) {
#pragma omp atomic write
            status = SF_NO_MEMORY;
        }
        const flush_denormals flush;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; ++task) {
            if (memory.data == nullptr) continue;
            pieces handed(memory.data);
            backward_scratch<T> scratch(handed, s);
            walk_back(s, task, scratch);
        }
    }
    return status;
}

}  // namespace
}  // namespace mlstm
}  // namespace SF_ISA

SF_EXPORT(mlstm_backward_f32)(const sf_mlstm *s) { return SF_ISA::mlstm::backward<float>(*s); }
SF_EXPORT(mlstm_backward_f64)(const sf_mlstm *s) { return SF_ISA::mlstm::backward<double>(*s); }
