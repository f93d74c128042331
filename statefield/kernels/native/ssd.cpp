// Mamba-2's scan forward: a task is some heads of one sequence, which walks its chunks in order, so that states never
// leave the caches. Products run on tiles in registers; the triangle above the diagonal is never computed.
#include "ssd_chunk.h"

namespace SF_ISA {
namespace {

template <typename T>
struct forward_task {
    const sf_ssd &s;
    const task_place place;
    matrix<T> B, C, B_by_state, scores, weights, dtx, y;
    head_steps<T> steps;
    matrix<T> *H;  // one a head: [n, p]

    static size_t bytes(const sf_ssd &s, int64_t task) {
        arena counting(nullptr);
        forward_task(s, task, counting);
        return counting.used;
    }
    forward_task(const sf_ssd &scan, int64_t task, arena &a) : s(scan), place(scan, task), steps(a, scan.chunk) {
        const int64_t Q = s.chunk;
        B = a.take_matrix<T>(Q, s.states);
        C = a.take_matrix<T>(Q, s.states);
        B_by_state = a.take_matrix<T>(s.states, Q);
        scores = a.take_matrix<T>(Q, Q);
        weights = a.take_matrix<T>(Q, Q);
        dtx = a.take_matrix<T>(Q, s.channels);
        y = a.take_matrix<T>(Q, s.channels);
        H = a.take<matrix<T>>(place.last - place.first);
        for (int64_t head = place.first; head < place.last; ++head) {
            const matrix<T> state = a.take_matrix<T>(s.states, s.channels);
            if (a.data) H[head - place.first] = state;
        }
    }

    void run() {
        const int64_t N = s.states, P = s.channels;
        for (int64_t head = place.first; head < place.last; ++head) {
            const T *given = s.initial ? (const T *)s.initial + (place.batch * s.heads + head) * P * N : nullptr;
            state_from(given, N, P, H[head - place.first]);
        }
        for (int64_t begin = 0; begin < s.length; begin += s.chunk) {
            const int64_t count = s.length - begin < s.chunk ? s.length - begin : s.chunk;
            const T *B_rows = row_of<T>(s.B, place.batch, begin, place.group);
            copy_rows(B_rows, s.B.row_stride, count, N, B);
            transpose(B_rows, s.B.row_stride, count, N, B_by_state);
            copy_rows(row_of<T>(s.C, place.batch, begin, place.group), s.C.row_stride, count, N, C);
            score(C, B_by_state, count, N, scores);
            for (int64_t head = place.first; head < place.last; ++head) advance(head, begin, count);
        }
        for (int64_t head = place.first; head < place.last; ++head)
            state_to(H[head - place.first], N, P, (T *)s.last + (place.batch * s.heads + head) * P * N);
    }

    void advance(int64_t head, int64_t begin, int64_t count) {
        const matrix<T> state = H[head - place.first];
        if (s.kept) keep(state, head, begin / s.chunk);
        steps.read(s, place.batch, begin, count, head, false);
        scale_inputs(row_of<T>(s.x, place.batch, begin, head), s.x.row_stride, steps.dt, count, s.channels, dtx);
        weigh(count);
        read_out(C, state, steps.from_start, weights, dtx, count, s.states, s.channels, y);
        write(head, begin, count);
        for (int64_t l = 0; l < count; ++l) scale_row(dtx.row(l), steps.until_last[l]);
        const vec<T> whole = splat(steps.whole);
        for_tiles<T>(s.states, s.channels, [&](auto sums, int64_t i0, int64_t j0) {
            sums.add(transposed(B), i0, dtx, j0, 0, count);
            for (int i = 0; i < sums.rows; ++i)
                for (int v = 0; v < 2; ++v) {
                    const T *before = state.row(i0 + i) + j0 + v * lanes<T>::count;
                    sums.sum[i][v] += whole * load(before);
                }
            sums.store_to(state, i0, j0);
        });
    }

    void keep(matrix<T> state, int64_t head, int64_t chunk) const {
        const int64_t chunks = (s.length + s.chunk - 1) / s.chunk, P = s.channels;
        T *to = (T *)s.kept + ((place.batch * chunks + chunk) * s.heads + head) * s.states * P;
        for (int64_t n = 0; n < s.states; ++n) memcpy(to + n * P, state.row(n), (size_t)P * sizeof(T));
    }

    // weights[l, s] = scores[l, s] 2^(cum_l - cum_s), zeros behind the diagonal.
    void weigh(int64_t count) const {
        constexpr int W = lanes<T>::count;
        for (int64_t l = 0; l < count; ++l) {
            const T *from = scores.row(l);
            T *to = weights.row(l);
            int64_t c = 0;
            for (; c + W <= l + 1; c += W) store(to + c, load(from + c) * steps.decay(l, c));
            if (c <= l) {
                store(to + c, up_to<T>(l - c, load(from + c) * steps.decay(l, c)));
                c += W;
            }
            for (; c < end_of_zeros<T>(l, count); c += W) store(to + c, vec<T>{});
        }
    }

    void scale_row(T *row, T by) const {
        const vec<T> factor = splat(by);
        for (int64_t c = 0; c < s.channels; c += lanes<T>::count) store(row + c, factor * load(row + c));
    }

    // out = (y + D x) SiLU(z)
    void write(int64_t head, int64_t begin, int64_t count) const {
        constexpr int W = lanes<T>::count;
        const int64_t P = s.channels;
        const T *D = s.D ? (const T *)s.D + head * P : nullptr;
        const T *x = row_of<T>(s.x, place.batch, begin, head), *z = row_of<T>(s.z, place.batch, begin, head);
        T *out = (T *)s.out + ((place.batch * s.length + begin) * s.heads + head) * P;
        for (int64_t l = 0; l < count; ++l, x += s.x.row_stride, z += s.z.row_stride, out += s.heads * P) {
            const T *sums = y.row(l);
            for (int64_t c = 0; c < P; c += W) {
                const int64_t left = P - c;
                vec<T> value = load(sums + c);
                if (left >= W) {
                    if (D) value += load(D + c) * load(x + c);
                    if (s.z.data) value *= silu(load(z + c));
                    store(out + c, value);
                } else {
                    if (D) value += load_part(D + c, left) * load_part(x + c, left);
                    if (s.z.data) value *= silu(load_part(z + c, left));
                    store_part(out + c, value, left);
                }
            }
        }
    }
    static SF_INLINE vec<T> silu(vec<T> z) { return z * sigmoid(z); }
};

template <typename T>
int forward(const sf_ssd &s) {
    int failed = 0;
#pragma omp parallel for num_threads(s.threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < s.batch * s.groups * s.slots; ++task) {
        const flush_denormals guard;
        aligned_buffer memory(forward_task<T>::bytes(s, task));
        if (!memory.data) {
            __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
            continue;
        }
        arena pieces(memory.data);
        forward_task<T>(s, task, pieces).run();
    }
    return failed ? SF_NO_MEMORY : SF_OK;
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(ssd_forward_f32)(const sf_ssd *s) { return SF_ISA::forward<float>(*s); }
SF_EXPORT(ssd_forward_f64)(const sf_ssd *s) { return SF_ISA::forward<double>(*s); }
