// Bidirectional WKV backward: three sweeps over time, all linear in tokens. wkv/README.md has the formulas.
//
//   from the right   the sums behind every segment, as in the forward
//   from the left    the mean of each token again, and from it a_t = dL/d(numerator, denominator) = g_t / d_t (1, -y_t);
//                    the sums of a over all tokens before each segment
//   from the right   the sums of a over all tokens behind, and with them the gradients
//
// a_t waits for the last sweep where the gradients of v and k will be. It is as large as the weights of its token are
// small: its exponent is -M where theirs is M.
#include "wkv_block.h"

namespace SF_ISA {
namespace {

// Sums of a over the tokens behind t, each with the weight that a token at t has for them, exp(k_t) left out.
template <typename T>
struct wkv_adjoint {
    using V = vec<T>;
    wkv_sums<T> earlier;  // what an exp(k) among `wkv_left::earlier` at t is worth
    wkv_sums<T> chunk;    // among `wkv_left::chunk` after t; the scale is `earlier`'s
    wkv_sums<T> second;   // among `wkv_left::second` at t, its factor 1 - exp(w) left out
    wkv_sums<T> paper;    // with the paper's weights; the scale is `earlier`'s

    static wkv_adjoint none() {
        return {wkv_sums<T>::none(), wkv_sums<T>::none(), wkv_sums<T>::none(), wkv_sums<T>::none()};
    }
    SF_INLINE void enter(V M, V drift) {
        const V by = exp2(earlier.scale + M) * drift;
        earlier.rescale(by);
        chunk.rescale(by);
        paper.rescale(by);
        second.rescale(exp2(second.scale + M));
    }
    SF_INLINE void leave(V M) {
        earlier.scale = second.scale = -M;
        const V by = renormalise<T>(magnitude(earlier.n) + magnitude(earlier.d) + magnitude(chunk.n) +
                                        magnitude(chunk.d) + magnitude(paper.n) + magnitude(paper.d),
                                    earlier.scale);
        earlier.rescale(by);
        chunk.rescale(by);
        paper.rescale(by);
        second.rescale(renormalise<T>(magnitude(second.n) + magnitude(second.d), second.scale));
    }
};

template <typename T>
SF_INLINE vec<T> dot(wkv_pair<T> a, vec<T> n, vec<T> d) {
    return a.n * n + a.d * d;
}

// What a task needs besides the block.
template <typename T>
struct wkv_tables {
    using V = vec<T>;
    aligned_buffer memory;
    void *rest;                // where the block's own tables are laid out
    wkv_left<T> *left;         // [segment][column]: before each segment
    wkv_sums<T> *before;       // [segment][column]: sums of a before each segment, as its first token sees them
    wkv_left<T> *carried;      // [column]
    wkv_sums<T> *of_right;     // [column]: `before`, on its way
    wkv_adjoint<T> *adjoint;   // [column]
    V *grad_w, *grad_u;        // [column]
    V *a_n, *a_d;              // [column][span]: a of the segment at hand, and then the gradients of v and k
    V *weight;                 // [span], as all below, of the column at hand
    wkv_pair<T> *behind, *chunk, *earlier, *seen;  // at each token; `seen` is the sum of a over the tokens before it
    wkv_pair<T> *second;       // [span + 1]: one before the segment's first token, then after each

    explicit wkv_tables(const wkv_block<T> &b)
        : memory(b.bytes() +
                 (size_t)(b.segments * b.columns) * (sizeof(*left) + sizeof(*before)) +
                 (size_t)b.columns * (sizeof(*carried) + sizeof(*of_right) + sizeof(*adjoint) +
                                      (size_t)(2 + 2 * b.span) * sizeof(V)) +
                 (size_t)b.span * (sizeof(V) + 5 * sizeof(*behind)) + sizeof(*second)) {
        if (!memory.data) return;
        left = (wkv_left<T> *)memory.data;
        before = (wkv_sums<T> *)(left + b.segments * b.columns);
        carried = (wkv_left<T> *)(before + b.segments * b.columns);
        of_right = (wkv_sums<T> *)(carried + b.columns);
        adjoint = (wkv_adjoint<T> *)(of_right + b.columns);
        grad_w = (V *)(adjoint + b.columns);
        grad_u = grad_w + b.columns;
        a_n = grad_u + b.columns;
        a_d = a_n + b.columns * b.span;
        weight = a_d + b.columns * b.span;
        behind = (wkv_pair<T> *)(weight + b.span);
        chunk = behind + b.span;
        earlier = chunk + b.span;
        seen = earlier + b.span;
        second = seen + b.span;
        rest = second + b.span + 1;
        for (int64_t c = 0; c < b.columns; ++c) {
            carried[c] = wkv_left<T>::none();
            of_right[c] = wkv_sums<T>::none();
            adjoint[c] = wkv_adjoint<T>::none();
            grad_w[c] = grad_u[c] = V{};
        }
    }
};

template <typename T, bool Kernel, bool Official>
struct wkv_backward {
    using V = vec<T>;

    // The sweep from the left over one column of a segment: its a, from the cotangent in a_n.
    static void find_a(const wkv_block<T> &b, const wkv_tables<T> &m, int64_t segment, int64_t c) {
        const int64_t place = segment * b.columns + c;
        const wkv_constants<T> constant = b.constants[c];
        V *a_n = m.a_n + c * b.span, *a_d = m.a_d + c * b.span;
        wkv_left<T> left = m.left[place] = m.carried[c];
        wkv_sums<T> seen = m.before[place] = m.of_right[c];
        const V M = left.template top<Kernel>(b.exponent[place]);
        left.template enter<Kernel>(M, constant.drift);
        seen.rescale(exp2(seen.scale + M) * constant.drift);
        const auto visit = [&](int64_t i, V n, V d, const wkv_left<T> &) {
            const V share = a_n[i] / d;
            a_n[i] = share;
            a_d[i] = -share * (n / d);
            seen.n = seen.n * constant.decay + a_n[i];
            seen.d = seen.d * constant.decay + a_d[i];
        };
        wkv_walk<T, Kernel>(b, constant, segment, c, M, left, m.weight, m.behind, visit);
        left.template leave<Kernel>(M);
        m.carried[c] = left;
        seen.scale = -M;
        seen.rescale(renormalise<T>(magnitude(seen.n) + magnitude(seen.d), seen.scale));
        m.of_right[c] = seen;
    }

    // The sweep from the right over one column of a segment: the gradients, from its a.
    static void find_gradients(const wkv_block<T> &b, const wkv_tables<T> &m, int64_t segment, int64_t c) {
        const int64_t place = segment * b.columns + c, count = b.length(segment);
        const wkv_constants<T> constant = b.constants[c];
        const V decay = constant.decay, *value = b.values + c * b.span;
        V *a_n = m.a_n + c * b.span, *a_d = m.a_d + c * b.span;
        wkv_left<T> left = m.left[place];
        wkv_sums<T> seen = m.before[place];
        const V M = left.template top<Kernel>(b.exponent[place]);
        left.template enter<Kernel>(M, constant.drift);
        seen.rescale(exp2(seen.scale + M) * constant.drift);
        m.second[0] = {left.second.n, left.second.d};
        const auto note = [&](int64_t i, V, V, const wkv_left<T> &now) {
            m.chunk[i] = {now.chunk.n, now.chunk.d};
            m.seen[i] = {seen.n, seen.d};
            seen.n = seen.n * decay + a_n[i];
            seen.d = seen.d * decay + a_d[i];
            if (!Kernel) return;
            m.earlier[i] = {now.earlier.n, now.earlier.d};
            m.second[i + 1] = {now.second.n, now.second.d};
        };
        wkv_walk<T, Kernel>(b, constant, segment, c, M, left, m.weight, m.behind, note);

        wkv_adjoint<T> to = m.adjoint[c];
        to.enter(M, constant.drift);
        V grad_u{}, steps{};  // steps: what the sums lose with one step more between tokens, that is -dw
        const int64_t size = Kernel ? b.problem.chunk : 1, end = b.begin(segment) + count - 1;
        int64_t chunk_at = Kernel ? end / size * size - b.begin(segment) : -1;
        for (int64_t i = count - 1; i >= 0; --i) {
            const V e = m.weight[i], v = value[i], n = a_n[i], d = a_d[i];
            V c_n = constant.own * n, c_d = constant.own * d;  // what exp(k) is worth, times v, and alone
            grad_u += e * (c_n * v + c_d);

            const V far = Kernel && !Official ? decay : splat((T)1);
            c_n += far * m.seen[i].n;
            c_d += far * m.seen[i].d;
            V behind_n = m.behind[i].n, behind_d = m.behind[i].d;
            if (Kernel) {
                behind_n += e * v;
                behind_d += e;
            }
            steps += decay * dot<T>(m.seen[i], behind_n, behind_d);

            c_n += Official ? to.paper.n : to.chunk.n;
            c_d += Official ? to.paper.d : to.chunk.d;
            steps += decay * dot<T>(m.chunk[i], to.chunk.n, to.chunk.d);
            if (Official) {
                to.paper.n = to.paper.n * decay + n;
                to.paper.d = to.paper.d * decay + d;
            }
            if (Kernel) {
                const bool begins = i == chunk_at;
                if (!begins) {
                    to.second.n = to.second.n * constant.growth + n;
                    to.second.d = to.second.d * constant.growth + d;
                    if (!Official) {
                        c_n += constant.second * to.second.n;
                        c_d += constant.second * to.second.d;
                    }
                    steps += constant.growth * (dot<T>(m.second[i + 1], n, d) -
                                                constant.second * dot<T>(m.second[i], to.second.n, to.second.d));
                }
                to.earlier.n = to.earlier.n * decay + n;
                to.earlier.d = to.earlier.d * decay + d;
                steps += dot<T>(m.earlier[i], to.earlier.n, to.earlier.d);
                if (begins) {
                    to.chunk.n = decay * to.earlier.n;
                    to.chunk.d = decay * to.earlier.d;
                    to.second.n = to.second.d = V{};
                    chunk_at -= size;
                } else {
                    to.chunk.n = to.chunk.n * decay + n;
                    to.chunk.d = to.chunk.d * decay + d;
                }
            } else {
                to.chunk.n = to.chunk.n * decay + n;
                to.chunk.d = to.chunk.d * decay + d;
            }
            a_n[i] = e * c_n;
            a_d[i] = v * a_n[i] + e * c_d;
        }
        to.leave(M);
        m.adjoint[c] = to;
        m.grad_w[c] -= steps;
        m.grad_u[c] += grad_u;
    }

    static bool task(const sf_wkv &p, const blocking &cut, int64_t number) {
        wkv_block<T> b(p, cut, number);
        const wkv_tables<T> m(b);
        if (!m.memory.data) return false;
        b.place(m.rest);
        b.template look_right<Kernel>();
        for (int64_t segment = 0; segment < b.segments; ++segment) {
            b.pack(b.values, b.v, segment, splat((T)1));
            b.pack(m.a_n, b.grad, segment, splat((T)1));
            for (int64_t c = 0; c < b.columns; ++c) find_a(b, m, segment, c);
            b.unpack(p.grad_v, m.a_n, segment);
            b.unpack(p.grad_k, m.a_d, segment);
        }
        const int64_t row = p.channels;
        const rows<T> a_n({p.grad_v, p.tokens * row, row}, b.batch, b.first);
        const rows<T> a_d({p.grad_k, p.tokens * row, row}, b.batch, b.first);
        for (int64_t segment = b.segments - 1; segment >= 0; --segment) {
            b.pack(b.values, b.v, segment, splat((T)1));
            b.pack(m.a_n, a_n, segment, splat((T)1));
            b.pack(m.a_d, a_d, segment, splat((T)1));
            for (int64_t c = 0; c < b.columns; ++c) find_gradients(b, m, segment, c);
            b.unpack(p.grad_v, m.a_n, segment);
            b.unpack(p.grad_k, m.a_d, segment);
        }
        for (int64_t c = 0; c < b.columns; ++c) {
            const int64_t at = b.batch * row + b.first + c * lanes<T>::count;
            const int64_t count = c == b.columns - 1 ? b.left : lanes<T>::count;
            store_part((T *)p.grad_w + at, m.grad_w[c], count);
            store_part((T *)p.grad_u + at, m.grad_u[c], count);
        }
        return true;
    }
};

template <typename T>
int backward(const sf_wkv &p) {
    const blocking cut(p.batch, (p.channels + lanes<T>::count - 1) / lanes<T>::count, kWkvColumns, p.threads);
    const auto task = !p.chunk      ? wkv_backward<T, false, false>::task
                      : !p.official ? wkv_backward<T, true, false>::task
                                    : wkv_backward<T, true, true>::task;
    int failed = 0;
#pragma omp parallel for num_threads(p.threads) schedule(dynamic, 1)
    for (int64_t number = 0; number < cut.tasks; ++number) {
        const flush_denormals guard;
        if (!task(p, cut, number)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    }
    return failed ? SF_NO_MEMORY : SF_OK;
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(wkv_backward_f32)(const sf_wkv *p) { return SF_ISA::backward<float>(*p); }
SF_EXPORT(wkv_backward_f64)(const sf_wkv *p) { return SF_ISA::backward<double>(*p); }
