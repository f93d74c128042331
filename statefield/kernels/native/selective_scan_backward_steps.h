// The steps of the selective scan backward: what selective_scan_backward.cpp and routed_scan_backward.cpp share.
#pragma once
#include "selective_scan_backward_many.h"
#include "selective_scan_backward_one.h"

namespace SF_ISA {
namespace {

// The way of one state, or that of several: its tables, and how many vectors of channels a block has at most for its
// tables to stay in the second-level cache.
template <typename T>
struct one_state {
    using tables = one_state_tables<T>;
    template <class Walk, bool ConstantB, bool ConstantC, bool Decaying>
    using steps = one_state_steps<T, Walk, ConstantB, ConstantC, Decaying>;
    static int64_t most_vectors(const sf_scan &s) { return 196608 / (4 * s.chunk * SF_VECTOR_BYTES); }
};
template <typename T>
struct many_states {
    using tables = chunk_tables<T>;
    template <class Walk, bool ConstantB, bool ConstantC, bool Decaying>
    using steps = many_states_steps<T, Walk, ConstantB, ConstantC, Decaying>;
    static int64_t most_vectors(const sf_scan &s) { return 131072 / (6 * s.chunk * SF_VECTOR_BYTES); }
};

template <class Way>
int64_t most_vectors(const sf_scan &s) {
    const int64_t most = Way::most_vectors(s);
    return most < 1 ? 1 : most;
}
template <typename T, class Way>
size_t bytes_of(const sf_scan &s) {
    const int64_t most = most_vectors<Way>(s);
    return block<T>::bytes(s, most) +
           (size_t)(block_sums<T>::count(s, most) + Way::tables::count(s, most)) * sizeof(vec<T>);
}
// What a task needs for one block.
template <typename T>
size_t working_bytes(const sf_scan &s) {
    return s.states == 1 ? bytes_of<T, one_state<T>>(s) : bytes_of<T, many_states<T>>(s);
}
// The vectors [begin, end) in as few blocks as possible, and equal ones: `run(first, end, is_first)` for each.
template <typename T, class Run>
void for_blocks(const sf_scan &s, int64_t begin, int64_t end, const Run &run) {
    const int64_t most = s.states == 1 ? most_vectors<one_state<T>>(s) : most_vectors<many_states<T>>(s);
    const int64_t count = end - begin, parts = (count + most - 1) / most;
    for (int64_t part = 0; part < parts; ++part)
        run(begin + part * count / parts, begin + (part + 1) * count / parts, part == 0);
}

template <typename T, class Way, bool ConstantB, bool ConstantC, class Walk>
void run_block(const sf_scan &s, const block<T> &k, const Walk &walk, const weight_gradients<T> &grad, vec<T> *memory) {
    const block_sums<T> sums(s, k, memory);
    const typename Way::tables tables(s, k.vectors, memory + block_sums<T>::count(s, k.vectors));
    if (s.softplus && k.decaying)
        typename Way::template steps<Walk, ConstantB, ConstantC, true>{s, k, sums, tables, walk, grad}.run();
    else
        typename Way::template steps<Walk, ConstantB, ConstantC, false>{s, k, sums, tables, walk, grad}.run();
    sums.finish(s, k);
}

template <typename T, class Way, bool Constants, class Walk>
void run_block(const sf_scan &s, const block<T> &k, const Walk &walk, const weight_gradients<T> &grad, vec<T> *memory) {
    if (Constants && s.b_constant && s.c_constant)
        run_block<T, Way, Constants, Constants>(s, k, walk, grad, memory);
    else if (Constants && s.b_constant)
        run_block<T, Way, Constants, false>(s, k, walk, grad, memory);
    else if (Constants && s.c_constant)
        run_block<T, Way, false, Constants>(s, k, walk, grad, memory);
    else
        run_block<T, Way, false, false>(s, k, walk, grad, memory);
}

// The vectors [begin, end) of the channels of a group. `Constants`: B or C may be constant in time.
template <typename T, bool Constants, class Walk>
void run_vectors(const sf_scan &s, const Walk &walk, int64_t batch, int64_t group, int64_t begin, int64_t end,
                 const weight_gradients<T> &grad, void *memory) {
    const block<T> k(s, batch, group, begin, end, memory);
    vec<T> *const rest = (vec<T> *)memory + block<T>::bytes(s, k.vectors) / sizeof(vec<T>);
    if (s.states == 1)
        run_block<T, one_state<T>, Constants>(s, k, walk, grad, rest);
    else
        run_block<T, many_states<T>, Constants>(s, k, walk, grad, rest);
}

}  // namespace
}  // namespace SF_ISA
