// Mamba-2's scan backward: a task is some heads of one sequence, which walks its chunks from the last to the first and
// carries the gradients of their states. README.md of ssd/ has the formulas; the names here are its names.
#include "ssd_chunk.h"

namespace SF_ISA {
namespace {

template <typename T>
struct backward_task {
    static constexpr int W = lanes<T>::count;
    const sf_ssd &s;
    const task_place place;
    const int64_t N, P;
    // Of a chunk and group: rows over steps, and (by_state) over states.
    matrix<T> B, C, B_by_state, C_by_state, scores, grad_scores, grad_B_by_state, grad_C_by_state, grad_rows;
    // Of a chunk and head: rows over steps, and (by_channel) over channels.
    matrix<T> dtx, dy, dtx_by_channel, dy_by_channel, products, weights, grad_dtx, y, H;
    head_steps<T> steps;
    T *row_sum, *column_sum, *entering, *leaving;  // parts of d cum: within the chunk, from the state before, to after
    matrix<T> *grad_H;                             // one a head: [n, p]
    double *grad_A, *grad_bias;                    // one a head
    T *grad_D;                                     // [head, p], padded

    static size_t bytes(const sf_ssd &s, int64_t task) {
        arena counting(nullptr);
        backward_task(s, task, counting);
        return counting.used;
    }
    backward_task(const sf_ssd &scan, int64_t task, arena &a)
        : s(scan), place(scan, task), N(scan.states), P(scan.channels), steps(a, scan.chunk) {
        const int64_t Q = s.chunk, heads = place.last - place.first;
        matrix<T> *const by_step_and_state[] = {&B, &C, &grad_rows};
        for (matrix<T> *m : by_step_and_state) *m = a.take_matrix<T>(Q, N);
        matrix<T> *const by_state[] = {&B_by_state, &C_by_state, &grad_B_by_state, &grad_C_by_state};
        for (matrix<T> *m : by_state) *m = a.take_matrix<T>(N, Q);
        matrix<T> *const square[] = {&scores, &grad_scores, &products, &weights};
        for (matrix<T> *m : square) *m = a.take_matrix<T>(Q, Q);
        matrix<T> *const by_step[] = {&dtx, &dy, &grad_dtx, &y};
        for (matrix<T> *m : by_step) *m = a.take_matrix<T>(Q, P);
        matrix<T> *const by_channel[] = {&dtx_by_channel, &dy_by_channel};
        for (matrix<T> *m : by_channel) *m = a.take_matrix<T>(P, Q);
        H = a.take_matrix<T>(N, P);
        T **const vectors[] = {&row_sum, &column_sum, &entering, &leaving};
        for (T **v : vectors) *v = a.take<T>(padded_columns<T>(Q));
        grad_H = a.take<matrix<T>>(heads);
        grad_A = a.take<double>(heads);
        grad_bias = a.take<double>(heads);
        grad_D = a.take<T>(heads * padded_columns<T>(P));
        for (int64_t head = 0; head < heads; ++head) {
            const matrix<T> state = a.take_matrix<T>(N, P);
            if (a.data) grad_H[head] = state;
        }
    }

    void run() {
        const int64_t heads = place.last - place.first;
        for (int64_t i = 0; i < heads; ++i) {
            const int64_t at = (place.batch * s.heads + place.first + i) * P * N;
            state_from(s.grad_last ? (const T *)s.grad_last + at : nullptr, N, P, grad_H[i]);
            grad_A[i] = grad_bias[i] = 0;
        }
        memset(grad_D, 0, (size_t)(heads * padded_columns<T>(P)) * sizeof(T));
        for (int64_t chunk = (s.length - 1) / s.chunk; chunk >= 0; --chunk) retreat(chunk);
        for (int64_t i = 0; i < heads; ++i) {
            const int64_t head = place.batch * s.heads + place.first + i;
            if (s.grad_initial) state_to(grad_H[i], N, P, (T *)s.grad_initial + head * P * N);
            ((T *)s.grad_A)[head] = (T)grad_A[i];
            if (s.bias) ((T *)s.grad_bias)[head] = (T)grad_bias[i];
            if (s.D) memcpy((T *)s.grad_D + head * P, grad_D + i * padded_columns<T>(P), (size_t)P * sizeof(T));
        }
    }

    void retreat(int64_t chunk) {
        const int64_t begin = chunk * s.chunk, count = s.length - begin < s.chunk ? s.length - begin : s.chunk;
        const T *B_rows = row_of<T>(s.B, place.batch, begin, place.group);
        const T *C_rows = row_of<T>(s.C, place.batch, begin, place.group);
        copy_rows(B_rows, s.B.row_stride, count, N, B);
        copy_rows(C_rows, s.C.row_stride, count, N, C);
        transpose(B_rows, s.B.row_stride, count, N, B_by_state);
        transpose(C_rows, s.C.row_stride, count, N, C_by_state);
        score(C, B_by_state, count, N, scores);
        const size_t row = (size_t)padded_columns<T>(count) * sizeof(T);
        for (int64_t n = 0; n < N; ++n) {
            memset(grad_B_by_state.row(n), 0, row);
            memset(grad_C_by_state.row(n), 0, row);
        }
        for (int64_t head = place.first; head < place.last; ++head) retreat(chunk, head, begin, count);

        transpose(grad_C_by_state.data, grad_C_by_state.ld, N, count, grad_rows);
        for_tiles<T>(count, N, [&](auto sums, int64_t i0, int64_t j0) {
            sums.add(plain(grad_scores), i0, B, j0, 0, i0 + sums.rows);
            write_weights(sums, i0, j0, begin, (T *)s.grad_C);
        });
        transpose(grad_B_by_state.data, grad_B_by_state.ld, N, count, grad_rows);
        for_tiles<T>(count, N, [&](auto sums, int64_t i0, int64_t j0) {
            sums.add(transposed(grad_scores), i0, C, j0, i0, count);
            write_weights(sums, i0, j0, begin, (T *)s.grad_B);
        });
    }

    // A tile of the gradient of B or C, with what lies in grad_rows, to its place in [slots, b, L, g, n].
    template <int R>
    SF_INLINE void write_weights(const tile<T, R> &sums, int64_t i0, int64_t j0, int64_t begin, T *grad) const {
        const int64_t first = (place.slot * s.batch + place.batch) * s.length + begin + i0;
        for (int i = 0; i < R; ++i) {
            T *to = grad + ((first + i) * s.groups + place.group) * N;
            for (int v = 0; v < 2; ++v) {
                const int64_t c = j0 + v * W;
                if (c < N) put(to + c, sums.sum[i][v] + load(grad_rows.row(i0 + i) + c), N - c);
            }
        }
    }

    // One head of a chunk.
    void retreat(int64_t chunk, int64_t head, int64_t begin, int64_t count) {
        const int64_t chunks = (s.length + s.chunk - 1) / s.chunk;
        const T *before = (const T *)s.kept + ((place.batch * chunks + chunk) * s.heads + head) * N * P;
        const matrix<T> grad_state = grad_H[head - place.first];
        const bool first_head = head == place.first;
        steps.read(s, place.batch, begin, count, head, true);
        scale_inputs(row_of<T>(s.x, place.batch, begin, head), s.x.row_stride, steps.dt, count, P, dtx);
        if (s.z.data) {  // the gate needs the output once more
            copy_rows(before, P, N, P, H);
            weigh(count, false, first_head);
            read_out(C, H, steps.from_start, weights, dtx, count, N, P, y);
        }
        through_gate(head, begin, count);
        transpose(dtx.data, dtx.ld, count, P, dtx_by_channel);
        transpose(dy.data, dy.ld, count, P, dy_by_channel);
        for_tiles<T>(count, count, [&](auto sums, int64_t i0, int64_t j0) {
            if (j0 >= i0 + sums.rows) return;
            sums.add(plain(dy), i0, dtx_by_channel, j0, 0, P);
            sums.store_to(products, i0, j0);
        });
        weigh(count, true, first_head);
        const left_operand<T> state = {before, P, 1};
        through_states(state, dy_by_channel, steps.from_start, C_by_state, count, entering, grad_C_by_state);
        through_states(plain(grad_state), dtx_by_channel, steps.until_last, B_by_state, count, leaving, grad_B_by_state);
        for_tiles<T>(count, P, [&](auto sums, int64_t i0, int64_t j0) {
            sums.add(plain(B), i0, grad_state, j0, 0, N);
            sums.scale_rows(steps.until_last + i0);
            sums.add(transposed(weights), i0, dy, j0, i0, count);
            sums.store_to(grad_dtx, i0, j0);
        });
        write_inputs(head, begin, count, steps.whole * dot(before, grad_state));
        const vec<T> whole = splat(steps.whole);
        for_tiles<T>(N, P, [&](auto sums, int64_t i0, int64_t j0) {
            sums.add(transposed(C), i0, dy, j0, 0, count);
            for (int i = 0; i < sums.rows; ++i)
                for (int v = 0; v < 2; ++v) sums.sum[i][v] += whole * load(grad_state.row(i0 + i) + j0 + v * W);
            sums.store_to(grad_state, i0, j0);
        });
    }

    // weights[l, s] = scores[l, s] 2^(cum_l - cum_s), zeros behind the diagonal. In the backward proper also: products
    // (dy_l . dtx_s) times the decay are added to grad_scores, and their products with the weights are summed over rows
    // and over columns. The diagonal is left out of these sums, where it would only be taken off again.
    void weigh(int64_t count, bool backwards, bool first_head) const {
        if (backwards) memset(column_sum, 0, (size_t)padded_columns<T>(count) * sizeof(T));
        for (int64_t l = 0; l < count; ++l) {
            vec<T> sum{};
            int64_t c = 0;
            for (; c + W <= l; c += W) {
                const vec<T> decay = steps.decay(l, c), weight = decay * load(scores.row(l) + c);
                store(weights.row(l) + c, weight);
                if (backwards) sum += weigh_gradient(l, c, decay, weight, first_head);
            }
            if (c <= l) {
                const vec<T> decay = up_to<T>(l - c, steps.decay(l, c));
                const vec<T> weight = up_to<T>(l - c, decay * load(scores.row(l) + c));
                store(weights.row(l) + c, weight);
                if (backwards) sum += weigh_gradient(l, c, decay, up_to<T>(l - c - 1, weight), first_head);
                c += W;
            }
            if (backwards) row_sum[l] = sum_lanes<T>(sum);
            for (; c < end_of_zeros<T>(l, count); c += W) {
                store(weights.row(l) + c, vec<T>{});
                if (backwards && first_head) store(grad_scores.row(l) + c, vec<T>{});
            }
        }
    }
    SF_INLINE vec<T> weigh_gradient(int64_t l, int64_t c, vec<T> decay, vec<T> beside_diagonal, bool first_head) const {
        T *const to = grad_scores.row(l) + c;
        const vec<T> product = load(products.row(l) + c), grad = decay * product;
        store(to, first_head ? grad : grad + load(to));
        const vec<T> both = beside_diagonal * product;
        store(column_sum + c, load(column_sum + c) + both);
        return both;
    }

    // With m[n, l] = decay_l (state[n, :] . rows[:, l]): grad[n, l] += m, and per_step[l] = sum over n of by_state * m.
    SF_INLINE void through_states(
        left_operand<T> state, matrix<T> rows, const T *decay, matrix<T> by_state, int64_t count, T *per_step,
        matrix<T> grad) const {
        memset(per_step, 0, (size_t)padded_columns<T>(count) * sizeof(T));
        for_tiles<T>(N, count, [&](auto sums, int64_t i0, int64_t j0) {
            sums.add(state, i0, rows, j0, 0, P);
            for (int v = 0; v < 2; ++v) {
                const int64_t c = j0 + v * W;
                const vec<T> factor = load(decay + c);
                vec<T> total = load(per_step + c);
                for (int i = 0; i < sums.rows; ++i) {
                    const vec<T> value = factor * sums.sum[i][v];
                    total += value * load(by_state.row(i0 + i) + c);
                    store(grad.row(i0 + i) + c, load(grad.row(i0 + i) + c) + value);
                }
                store(per_step + c, total);
            }
        });
    }

    // dy from the gradient of the gated output; the gradients of z and D.
    void through_gate(int64_t head, int64_t begin, int64_t count) const {
        const T *x = row_of<T>(s.x, place.batch, begin, head), *z = row_of<T>(s.z, place.batch, begin, head);
        const T *given = row_of<T>(s.grad_out, place.batch, begin, head);
        const T *D = s.D ? (const T *)s.D + head * P : nullptr;
        T *sum_D = grad_D + (head - place.first) * padded_columns<T>(P);
        T *grad_z = s.z.data ? (T *)s.grad_z + ((place.batch * s.length + begin) * s.heads + head) * P : nullptr;
        const vec<T> one = splat((T)1);
        for (int64_t l = 0; l < count; ++l) {
            for (int64_t c = 0; c < P; c += W) {
                const int64_t left = P - c;
                vec<T> grad = get(given + c, left);
                const vec<T> x_l = D ? get(x + c, left) : vec<T>{};
                if (s.z.data) {
                    const vec<T> gate = get(z + c, left), open = sigmoid(gate);
                    vec<T> out = load(y.row(l) + c);
                    if (D) out += get(D + c, left) * x_l;
                    put(grad_z + c, grad * out * open * (one + gate * (one - open)), left);
                    grad *= gate * open;
                }
                store(dy.row(l) + c, grad);
                if (D) store(sum_D + c, load(sum_D + c) + grad * x_l);
            }
            for (int64_t c = (P + W - 1) / W * W; c < padded_columns<T>(P); c += W) store(dy.row(l) + c, vec<T>{});
            x += s.x.row_stride, z += s.z.row_stride, given += s.grad_out.row_stride;
            if (grad_z) grad_z += s.heads * P;
        }
    }

    // The gradients of x and dt, and of A and the bias. `across` is what flows through the decay of the whole chunk.
    // Leaves dy_l scaled by 2^cum_l, as it enters the gradient of the state before the chunk.
    void write_inputs(int64_t head, int64_t begin, int64_t count, T across) {
        const T *x = row_of<T>(s.x, place.batch, begin, head);
        const T *D = s.D ? (const T *)s.D + head * P : nullptr;
        const int64_t first = (place.batch * s.length + begin) * s.heads + head;
        T *grad_x = (T *)s.grad_x + first * P, *grad_dt = (T *)s.grad_dt + first;
        double before = 0;  // sum of `leaving` over earlier steps
        for (int64_t l = 0; l < count; ++l) {
            const double now = leaving[l];
            leaving[l] = (T)before;
            before += now;
        }
        const double a = (double)((const T *)s.A)[head];
        double after = (double)across, sum_A = 0, sum_bias = 0;
        for (int64_t l = count - 1; l >= 0; --l) {
            const vec<T> step = splat(steps.dt[l]), scale = splat(steps.from_start[l]);
            const T *x_l = x + l * s.x.row_stride;
            T *to = grad_x + l * s.heads * P;
            vec<T> through_x{};
            for (int64_t c = 0; c < P; c += W) {
                const int64_t left = P - c;
                const vec<T> grad = load(grad_dtx.row(l) + c), out = load(dy.row(l) + c);
                through_x += grad * get(x_l + c, left);
                put(to + c, D ? step * grad + get(D + c, left) * out : step * grad, left);
                store(dy.row(l) + c, scale * out);
            }
            after += (double)entering[l] + ((double)row_sum[l] - (double)column_sum[l]);
            const double exponent = after + (double)leaving[l];  // the gradient of dt_l A
            const double grad = ((double)sum_lanes<T>(through_x) + a * exponent) * (double)steps.slope[l];
            grad_dt[l * s.heads] = (T)grad;
            sum_A += (double)steps.dt[l] * exponent;
            sum_bias += grad;
        }
        grad_A[head - place.first] += sum_A;
        grad_bias[head - place.first] += sum_bias;
    }

    T dot(const T *before, matrix<T> grad_state) const {
        vec<T> sum{};
        for (int64_t n = 0; n < N; ++n)
            for (int64_t c = 0; c < P; c += W) sum += get(before + n * P + c, P - c) * load(grad_state.row(n) + c);
        return sum_lanes<T>(sum);
    }

    static SF_INLINE vec<T> get(const T *from, int64_t left) { return left >= W ? load(from) : load_part(from, left); }
    static SF_INLINE void put(T *to, vec<T> x, int64_t left) {
        if (left >= W)
            store(to, x);
        else
            store_part(to, x, left);
    }
};

template <typename T>
int backward(const sf_ssd &s) {
    int failed = 0;
#pragma omp parallel for num_threads(s.threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < s.batch * s.groups * s.slots; ++task) {
        const flush_denormals guard;
        aligned_buffer memory(backward_task<T>::bytes(s, task));
        if (!memory.data) {
            __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
            continue;
        }
        arena pieces(memory.data);
        backward_task<T>(s, task, pieces).run();
    }
    return failed ? SF_NO_MEMORY : SF_OK;
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(ssd_backward_f32)(const sf_ssd *s) { return SF_ISA::backward<float>(*s); }
SF_EXPORT(ssd_backward_f64)(const sf_ssd *s) { return SF_ISA::backward<double>(*s); }
