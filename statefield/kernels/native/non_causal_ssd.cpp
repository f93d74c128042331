// The non-causal state-space duality: S = B^T (a x), then y = C S + D x, and its gradients. The maths is in README.md
// of kernels/non_causal_ssd.
//
// Every product runs on panels (panels.h). x is scaled by a while it is packed, D x is added while y is written, and
// the sums over channels of the backward are taken from the registers of a product: no scaled copy of x, and no product
// that is only read once more, ever lies in memory.
//
// The sum over positions is cut into segments, each with a sum of its own; they are added in order. What is a segment
// depends on the sizes alone, so results do not depend on the number of threads.
#include "non_causal_ssd.h"

#include "panels.h"

namespace SF_ISA {
namespace {

constexpr int64_t PACKED_ROWS = 64;  // positions of a packed panel: 4 KiB beside 16 KiB of B, both in the first cache
constexpr int64_t CHUNK_ROWS = 36;   // positions that meet all panels of the state while their own rows are in cache

template <typename T>
struct rows {
    const T *data;
    int64_t batch_stride, row_stride;
    explicit rows(const sf_rows &given)
        : data((const T *)given.data), batch_stride(given.batch_stride), row_stride(given.row_stride) {}
    const T *at(int64_t batch, int64_t position) const { return data + batch * batch_stride + position * row_stride; }
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Sizes of one problem, in elements.
template <typename T>
struct layout {
    int64_t panels;       // of P columns
    int64_t state_size;   // a state [N, P] in panels [P / PANEL, N, PANEL]
    int64_t turned_size;  // its transpose [P, N] in panels [N / PANEL, P, PANEL]
    int64_t segments, segment_length, chunks;

    explicit layout(const sf_duality &d) {
        panels = panels_of(d.channels, PANEL<T>);
        state_size = panels * d.states * PANEL<T>;
        turned_size = panels_of(d.states, PANEL<T>) * d.channels * PANEL<T>;
        // At least 64 tasks where the sum is long enough, of equal lengths, so that no thread waits for another.
        const int64_t wanted = (63 + d.batch * d.heads) / (d.batch * d.heads), most = (d.length + 511) / 512;
        segments = wanted < most ? wanted : most;
        segment_length = (d.length + segments - 1) / segments;
        segments = (d.length + segment_length - 1) / segment_length;
        chunks = (d.length + CHUNK_ROWS - 1) / CHUNK_ROWS;
    }
};

// One segment of sum over positions of left_l (scale_l right_l)^T, for one head, in panels. No scale: dt is null.
template <typename T>
void sum_segment(
    const sf_duality &d, const rows<T> &left, const rows<T> &right, const rows<T> *dt, const T *A, int64_t b, int64_t h,
    int64_t begin, int64_t end, T *sum) {
    const int64_t N = d.states, P = d.channels;
    alignas(64) T packed[PACKED_ROWS * PANEL<T>];
    T scale[PACKED_ROWS];
    for (int64_t l = begin; l < end; l += PACKED_ROWS) {
        const int64_t count = least(PACKED_ROWS, end - l);
        for (int64_t i = 0; i < count; ++i) scale[i] = dt ? dt->at(b, l + i)[h] * A[h] : T(1);
        const T *left_rows = left.at(b, l) + h % d.groups * N, *right_rows = right.at(b, l) + h * P;
        const bool is_first = l == begin;
        for_each_panel<T>(P, [&](auto whole, int64_t p) SF_LAMBDA {
            constexpr bool Whole = decltype(whole)::value;
            for (int64_t i = 0; i < count; ++i) {
                const twin<vec<T>> x = load_panel<Whole>(right_rows + i * right.row_stride + p, P - p);
                store_panel<true>(packed + i * PANEL<T>, x * all<twin<vec<T>>>(scale[i]), PANEL<T>);
            }
            T *panel = sum + p * N;
            panel_product(
                left_rows, 1, left.row_stride, (const T *)packed, count, N,
                [=](int64_t n, twin<vec<T>> more) SF_LAMBDA {
                    T *to = panel + n * PANEL<T>;
                    if (!is_first) more = more + load_panel<true>((const T *)to, PANEL<T>);
                    store_panel<true>(to, more, PANEL<T>);
                });
        });
    }
}

// All segments of all heads, then their sum over segments in order: [B, H] states in panels, at the first segment's
// place.
template <typename T>
void sum_over_positions(
    const sf_duality &d, const layout<T> &sizes, const rows<T> &left, const rows<T> &right, const rows<T> *dt,
    const T *A, T *sums) {
    const int64_t entries = d.batch * d.heads, size = sizes.state_size;
#pragma omp parallel for num_threads(d.threads) schedule(static)
    for (int64_t task = 0; task < sizes.segments * entries; ++task) {
        const int64_t segment = task / entries, entry = task % entries;
        const int64_t begin = segment * sizes.segment_length;
        const int64_t end = least(begin + sizes.segment_length, d.length);
        sum_segment(d, left, right, dt, A, entry / d.heads, entry % d.heads, begin, end, sums + task * size);
    }
    if (sizes.segments == 1) return;
#pragma omp parallel for num_threads(d.threads) schedule(static)
    for (int64_t entry = 0; entry < entries; ++entry) {
        T *total = sums + entry * size;
        for (int64_t segment = 1; segment < sizes.segments; ++segment) {
            const T *more = sums + (segment * entries + entry) * size;
            for (int64_t i = 0; i < size; i += PANEL<T>) {
                const twin<vec<T>> before = load_panel<true>((const T *)total + i, PANEL<T>);
                const twin<vec<T>> sum = before + load_panel<true>(more + i, PANEL<T>);
                store_panel<true>(total + i, sum, PANEL<T>);
            }
        }
    }
}

// A state in panels to [N, P].
template <typename T>
void unpack(const T *panels, T *state, int64_t N, int64_t P) {
    for (int64_t p = 0; p < P; p += PANEL<T>) {
        for (int64_t n = 0; n < N; ++n) {
            store_panel<false>(state + n * P + p, load_panel<true>(panels + p * N + n * PANEL<T>, PANEL<T>), P - p);
        }
    }
}

// The transpose of a state, [P, N], in panels over N; at(n, p) reads the state.
template <typename T, typename At>
void turn(T *turned, int64_t N, int64_t P, At at) {
    for (int64_t n = 0; n < N; n += PANEL<T>) {
        T *panel = turned + n * P;
        for (int64_t p = 0; p < P; ++p) {
            for (int64_t i = 0; i < PANEL<T>; ++i) panel[p * PANEL<T> + i] = n + i < N ? at(n + i, p) : T(0);
        }
    }
}

template <typename T>
int forward(const sf_duality &d) {
    const layout<T> sizes(d);
    const rows<T> x(d.x), dt(d.dt), B(d.B), C(d.C);
    const T *A = (const T *)d.A, *D = (const T *)d.D;
    const int64_t N = d.states, P = d.channels, H = d.heads;
    aligned_buffer buffer((size_t)(sizes.segments * d.batch * H * sizes.state_size) * sizeof(T));
    T *states = (T *)buffer.data, *y = (T *)d.y;
    if (!states) return SF_NO_MEMORY;

    sum_over_positions(d, sizes, B, x, &dt, A, states);
#pragma omp parallel for num_threads(d.threads) schedule(static)
    for (int64_t task = 0; task < d.batch * sizes.chunks; ++task) {
        const int64_t b = task / sizes.chunks, chunk = task % sizes.chunks, begin = chunk * CHUNK_ROWS;
        const int64_t count = least(CHUNK_ROWS, d.length - begin);
        for (int64_t h = 0; h < H; ++h) {
            const T *state = states + (b * H + h) * sizes.state_size;
            if (chunk == 0) unpack(state, (T *)d.state + (b * H + h) * N * P, N, P);
            const bool skips = D;
            const twin<vec<T>> skip = all<twin<vec<T>>>(D ? D[h] : T(0));
            const T *C_rows = C.at(b, begin) + h % d.groups * N;
            for_each_panel<T>(P, [&](auto whole, int64_t p) SF_LAMBDA {
                constexpr bool Whole = decltype(whole)::value;
                const int64_t x_row = x.row_stride, y_row = H * P, left = P - p;
                const T *x_rows = x.at(b, begin) + h * P + p;
                T *y_rows = y + (b * d.length + begin) * y_row + h * P + p;
                panel_product(
                    C_rows, C.row_stride, 1, state + p * N, N, count, [=](int64_t i, twin<vec<T>> sum) SF_LAMBDA {
                        if (skips) sum = sum + skip * load_panel<Whole>(x_rows + i * x_row, left);
                        store_panel<Whole>(y_rows + i * y_row, sum, left);
                    });
            });
        }
    }
    return SF_OK;
}

// What one chunk of positions gives to the gradients; `sums` [2, H]: its part of dA and dD.
template <typename T>
struct gradients {
    const sf_duality &d;
    const layout<T> &sizes;
    rows<T> x, dt, B, C, grad;
    const T *A, *D;
    const T *grad_states;     // [B, H] in panels
    const T *turned;          // [B, H] states, turned
    const T *turned_grads;    // [B, H] their gradients, turned

    void chunk(int64_t b, int64_t begin, int64_t count, T *sums) const {
        for (int64_t h = 0; h < d.heads; ++h) {
            const int64_t entry = b * d.heads + h;
            of_inputs(b, h, begin, count, grad_states + entry * sizes.state_size, sums);
            const T *turned_state = turned + entry * sizes.turned_size;
            const T *turned_grad = turned_grads + entry * sizes.turned_size;
            of_weights(grad, nullptr, b, h, begin, count, turned_state, (T *)d.grad_C);
            of_weights(x, A, b, h, begin, count, turned_grad, (T *)d.grad_B);
        }
    }

    // dx = a (dS^T B) + D dy; da = x . (dS^T B).
    void of_inputs(int64_t b, int64_t h, int64_t begin, int64_t count, const T *grad_state, T *sums) const {
        const int64_t N = d.states, P = d.channels, H = d.heads, row = H * P;
        const twin<vec<T>> skip = all<twin<vec<T>>>(D ? D[h] : T(0));
        const T *B_rows = B.at(b, begin) + h % d.groups * N;
        T *grad_x = (T *)d.grad_x + (b * d.length + begin) * row + h * P;
        T *grad_dt = (T *)d.grad_dt + (b * d.length + begin) * H + h;
        T scale[CHUNK_ROWS];
        for (int64_t i = 0; i < count; ++i) scale[i] = dt.at(b, begin + i)[h] * A[h];
        vec<T> grad_a[CHUNK_ROWS] = {}, skipped[CHUNK_ROWS] = {};
        for_each_panel<T>(P, [&](auto whole, int64_t p) SF_LAMBDA {
            constexpr bool Whole = decltype(whole)::value;
            const int64_t x_row = x.row_stride, g_row = grad.row_stride, left = P - p;
            const T *x_rows = x.at(b, begin) + h * P + p, *g_rows = grad.at(b, begin) + h * P + p, *a = scale;
            T *out = grad_x + p;
            vec<T> *const through_x = grad_a, *const through_D = skipped;
            panel_product(
                B_rows, B.row_stride, 1, grad_state + p * N, N, count, [=](int64_t i, twin<vec<T>> grad_ax) SF_LAMBDA {
                    const twin<vec<T>> x_ = load_panel<Whole>(x_rows + i * x_row, left);
                    const twin<vec<T>> g = load_panel<Whole>(g_rows + i * g_row, left);
                    through_x[i] += x_.a * grad_ax.a + x_.b * grad_ax.b;
                    through_D[i] += x_.a * g.a + x_.b * g.b;
                    store_panel<Whole>(out + i * row, all<twin<vec<T>>>(a[i]) * grad_ax + skip * g, left);
                });
        });
        T grad_A = 0;
        vec<T> grad_D = {};
        for (int64_t i = 0; i < count; ++i) {
            const T sum = sum_lanes<T>(grad_a[i]);
            grad_dt[i * H] = sum * A[h];
            grad_A += sum * dt.at(b, begin + i)[h];
            grad_D += skipped[i];
        }
        sums[h] = grad_A;
        sums[H + h] = sum_lanes<T>(grad_D);
    }

    // out[l, group, :] (+)= scale_l * (rows of head h)[l, :] times the turned state; no scale where A is null. The
    // heads of a group come one after the other; the first sets what the others add to.
    void of_weights(
        const rows<T> &given, const T *A, int64_t b, int64_t h, int64_t begin, int64_t count, const T *turned_state,
        T *out) const {
        const int64_t N = d.states, P = d.channels, row = d.groups * N;
        const bool is_first = h < d.groups;
        T scale[CHUNK_ROWS];
        for (int64_t i = 0; i < count; ++i) scale[i] = A ? dt.at(b, begin + i)[h] * A[h] : T(1);
        out += (b * d.length + begin) * row + h % d.groups * N;
        const T *given_rows = given.at(b, begin) + h * P;
        for_each_panel<T>(N, [&](auto whole, int64_t n) SF_LAMBDA {
            constexpr bool Whole = decltype(whole)::value;
            const int64_t left = N - n;
            T *out_rows = out + n;
            const T *a = scale;
            panel_product(
                given_rows, given.row_stride, 1, turned_state + n * P, P, count,
                [=](int64_t i, twin<vec<T>> sum) SF_LAMBDA {
                    T *to = out_rows + i * row;
                    sum = all<twin<vec<T>>>(a[i]) * sum;
                    if (!is_first) sum = sum + load_panel<Whole>((const T *)to, left);
                    store_panel<Whole>(to, sum, left);
                });
        });
    }
};

template <typename T>
int backward(const sf_duality &d) {
    const layout<T> sizes(d);
    const int64_t N = d.states, P = d.channels, entries = d.batch * d.heads, tasks = d.batch * sizes.chunks;
    const rows<T> C(d.C), grad(d.grad);
    aligned_buffer grad_buffer((size_t)(sizes.segments * entries * sizes.state_size) * sizeof(T));
    aligned_buffer turned_buffer((size_t)(2 * entries * sizes.turned_size) * sizeof(T));
    aligned_buffer sums_buffer((size_t)(tasks * 2 * d.heads) * sizeof(T));
    T *grad_states = (T *)grad_buffer.data, *turned = (T *)turned_buffer.data, *sums = (T *)sums_buffer.data;
    if (!grad_states || !turned || !sums) return SF_NO_MEMORY;
    T *turned_grads = turned + entries * sizes.turned_size;

    sum_over_positions<T>(d, sizes, C, grad, nullptr, nullptr, grad_states);
#pragma omp parallel for num_threads(d.threads) schedule(static)
    for (int64_t entry = 0; entry < entries; ++entry) {
        const T *state = (const T *)d.state + entry * N * P, *grad_state = grad_states + entry * sizes.state_size;
        turn(turned + entry * sizes.turned_size, N, P, [=](int64_t n, int64_t p) { return state[n * P + p]; });
        turn(turned_grads + entry * sizes.turned_size, N, P, [=](int64_t n, int64_t p) {
            return grad_state[p / PANEL<T> * PANEL<T> * N + n * PANEL<T> + p % PANEL<T>];
        });
    }
    const gradients<T> run{
        d, sizes, rows<T>(d.x), rows<T>(d.dt), rows<T>(d.B), C, grad,
        (const T *)d.A, (const T *)d.D, grad_states, turned, turned_grads};
#pragma omp parallel for num_threads(d.threads) schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t begin = task % sizes.chunks * CHUNK_ROWS;
        run.chunk(task / sizes.chunks, begin, least(CHUNK_ROWS, d.length - begin), sums + task * 2 * d.heads);
    }
    for (int64_t h = 0; h < d.heads; ++h) {
        T grad_A = 0, grad_D = 0;
        for (int64_t task = 0; task < tasks; ++task) {
            grad_A += sums[task * 2 * d.heads + h];
            grad_D += sums[task * 2 * d.heads + d.heads + h];
        }
        ((T *)d.grad_A)[h] = grad_A;
        if (d.grad_D) ((T *)d.grad_D)[h] = grad_D;
    }
    return SF_OK;
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(non_causal_ssd_forward_f32)(const sf_duality *d) { return SF_ISA::forward<float>(*d); }
SF_EXPORT(non_causal_ssd_forward_f64)(const sf_duality *d) { return SF_ISA::forward<double>(*d); }
SF_EXPORT(non_causal_ssd_backward_f32)(const sf_duality *d) { return SF_ISA::backward<float>(*d); }
SF_EXPORT(non_causal_ssd_backward_f64)(const sf_duality *d) { return SF_ISA::backward<double>(*d); }
