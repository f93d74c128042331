// The forward of mLSTM: a task is a head (or a slot of its value channels), walked chunk by chunk with its state in the
// cache. README.md of statefield/kernels/mlstm has the maths.
#include "mlstm_chunk.h"

namespace SF_ISA {
namespace mlstm {
namespace {

template <typename T>
struct forward_scratch {
    gates<T> gate;
    normalizer<T> norm;
    weight_row<T> weights;
    T *sums, *n;
    matrix<T> q, k, v, k_by_channel, scores, out, C;

    forward_scratch(pieces &memory, const sf_mlstm &s, int64_t values)
        : gate(memory, s.length), norm(memory, s.chunk), weights(memory, s.chunk) {
        sums = memory.take<T>(s.chunk);
        n = memory.take<T>(s.channels);
        q = memory.take_matrix<T>(s.chunk, s.channels);
        k = memory.take_matrix<T>(s.chunk, s.channels);
        v = memory.take_matrix<T>(s.chunk, values);
        k_by_channel = memory.take_matrix<T>(s.channels, s.chunk);
        scores = memory.take_matrix<T>(s.chunk, s.chunk);
        out = memory.take_matrix<T>(s.chunk, values);
        C = memory.take_matrix<T>(s.channels, values);  // a row a channel of k
    }
};

// The value channels [first, last) of one head.
struct forward_task {
    int64_t batch, head, slot, first, last;
    forward_task(const sf_mlstm &s, int64_t task) {
        slot = task % s.slots;
        head = task / s.slots % s.heads;
        batch = task / s.slots / s.heads;
        first = s.channels * slot / s.slots;
        last = s.channels * (slot + 1) / s.slots;
    }
    int64_t values() const { return last - first; }
    int64_t sequence(const sf_mlstm &s) const { return batch * s.heads + head; }
};

template <typename T>
void start(const sf_mlstm &s, const forward_task &task, forward_scratch<T> &x) {
    const int64_t at = task.sequence(s), size = s.channels;
    x.gate.read((const T *)s.i + at * s.length, (const T *)s.f + at * s.length, s.length,
                s.m ? (const T *)s.m + at : nullptr);
    memset(x.n, 0, (size_t)padded_columns<T>(size) * sizeof(T));
    clear(x.C, size, task.values());
    if (s.C == nullptr) return;
    memcpy(x.n, (const T *)s.n + at * size, (size_t)size * sizeof(T));
    const T *C = (const T *)s.C + (at * size + task.first) * size;  // a row a channel of v
    turn(x.C.data, x.C.ld, C, size, task.values(), size);
}

template <typename T>
void keep_state(const sf_mlstm &s, const forward_task &task, const forward_scratch<T> &x, T *C, T *n) {
    const int64_t size = s.channels;
    turn(C + task.first * size, size, x.C.data, x.C.ld, size, task.values());
    if (task.slot == 0) memcpy(n, x.n, (size_t)size * sizeof(T));
}

// scores become weights of v; x.sums become n_t . q_t.
template <typename T>
void weigh(forward_scratch<T> &x, int64_t begin, int64_t count, int64_t channels) {
    constexpr int W = lanes<T>::count;
    vec<T> sum{};
    x.weights.walk(
        x.gate.decay + begin, x.gate.take + begin, count,
        [&](int64_t t, int64_t s, vec<T> weight) __attribute__((always_inline)) {
            const vec<T> weighed = weight * load(x.scores.row(t) + s);
            store(x.scores.row(t) + s, weighed);
            sum += weighed;
        },
        [&](int64_t t, int64_t end) __attribute__((always_inline)) {
            for (const int64_t zeros = end_of_zeros(t, count); end < zeros; end += W)
                store(x.scores.row(t) + end, vec<T>{});
            x.sums[t] = sum_lanes<T>(sum) + x.weights.from_start[t] * dot(x.q.row(t), x.n, channels);
            sum = vec<T>{};
        });
}

template <typename T>
void read_out(const sf_mlstm &s, const forward_task &task, forward_scratch<T> &x, int64_t begin, int64_t count) {
    const int64_t values = task.values();
    T *h = (T *)s.h + (task.sequence(s) * s.length + begin) * s.channels + task.first;
    const int64_t depth = begin == 0 && s.C == nullptr ? 0 : s.channels;  // there is nothing to read yet
    const bool in_place = values % TILE_COLUMNS<T> == 0;
    const matrix<T> out = in_place ? matrix<T>{h, s.channels} : x.out;
    for_tiles<T>(count, values, [&](auto sums, int64_t i0, int64_t j0) {
        sums.add(plain(x.q), i0, x.C, j0, 0, depth);
        sums.scale_rows(x.weights.from_start + i0);
        sums.add(plain(x.scores), i0, x.v, j0, 0, i0 + sums.rows);
        sums.scale_rows(x.norm.by + i0);
        sums.store_to(out, i0, j0);
    });
    if (in_place) return;
    for (int64_t t = 0; t < count; ++t) memcpy(h + t * s.channels, out.row(t), (size_t)values * sizeof(T));
}

template <typename T>
void advance(forward_scratch<T> &x, int64_t count, int64_t channels, int64_t values) {
    constexpr int W = lanes<T>::count;
    const T whole = x.weights.from_start[count - 1];
    scale_row(x.n, whole, channels);
    for (int64_t t = 0; t < count; ++t) {
        const vec<T> by = splat(x.weights.row[t]);
        for (int64_t c = 0; c < channels; c += W) {
            const vec<T> taken = by * load(x.k.row(t) + c);
            store(x.k.row(t) + c, taken);
            store(x.n + c, load(x.n + c) + taken);
        }
    }
    for_tiles<T>(channels, values, [&](auto sums, int64_t i0, int64_t j0) {
        begin_with(sums, x.C, i0, j0, whole);
        sums.add(transposed(x.k), i0, x.v, j0, 0, count);
        sums.store_to(x.C, i0, j0);
    });
}

template <typename T>
void walk(const sf_mlstm &s, const forward_task &task, forward_scratch<T> &x) {
    const int64_t size = s.channels, values = task.values(), at = task.sequence(s);
    const int64_t chunks = (s.length + s.chunk - 1) / s.chunk;
    const T root = (T)(1 / sqrt((double)size));
    start(s, task, x);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t begin = chunk * s.chunk, count = s.length - begin < s.chunk ? s.length - begin : s.chunk;
        const int64_t step = at * s.length + begin, state = at * chunks + chunk;
        if (s.states_C)
            keep_state(s, task, x, (T *)s.states_C + state * size * size, (T *)s.states_n + state * size);
        copy_rows(row_of<T>(s.q, task.batch, task.head, begin), s.q.row_stride, count, size, x.q);
        copy_rows(row_of<T>(s.k, task.batch, task.head, begin), s.k.row_stride, count, size, x.k);
        copy_rows(row_of<T>(s.v, task.batch, task.head, begin) + task.first, s.v.row_stride, count, values, x.v);
        for (int64_t t = 0; t < count; ++t) scale_row(x.k.row(t), root, size);
        turn_into(x.k_by_channel, x.k.data, x.k.ld, count, size);
        dots_at_and_below(x.q, x.k_by_channel, count, size, x.scores);
        weigh(x, begin, count, size);
        x.norm.set(x.gate.m + begin, x.sums, count, s.eps, s.rowwise, x.gate.largest);
        read_out(s, task, x, begin, count);
        advance(x, count, size, values);
        if (s.states_C && task.slot == 0) {
            memcpy((T *)s.sums + step, x.sums, (size_t)count * sizeof(T));
            memcpy((T *)s.stabilizers + step, x.gate.m + begin, (size_t)count * sizeof(T));
        }
    }
    keep_state(s, task, x, (T *)s.last_C + at * size * size, (T *)s.last_n + at * size);
    if (task.slot == 0) ((T *)s.last_m)[at] = x.gate.m[s.length - 1];
}

template <typename T>
int forward(const sf_mlstm &s) {
    const int64_t tasks = s.batch * s.heads * s.slots, values = (s.channels + s.slots - 1) / s.slots;
    pieces counted(nullptr);
    forward_scratch<T>(counted, s, values);
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
            forward_scratch<T> scratch(handed, s, values);
            walk(s, forward_task(s, task), scratch);
        }
    }
    return status;
}

}  // namespace
}  // namespace mlstm
}  // namespace SF_ISA

SF_EXPORT(mlstm_forward_f32)(const sf_mlstm *s) { return SF_ISA::mlstm::forward<float>(*s); }
SF_EXPORT(mlstm_forward_f64)(const sf_mlstm *s) { return SF_ISA::mlstm::forward<double>(*s); }
