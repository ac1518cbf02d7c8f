// Whole activations copied and cleared by all threads: one thread alone would hold up the others between two layers.
#pragma once

#include "rbar/core/parallel.hpp"

#include <algorithm>

namespace rbar {

namespace detail {
inline constexpr Eigen::Index bulk_chunk = 65536;  // elements
}

template <class T>
void bulk_copy(const T* from, Eigen::Index count, T* to) {
  parallel_for(count, detail::bulk_chunk,
               [&](Eigen::Index begin, Eigen::Index end) { std::copy(from + begin, from + end, to + begin); });
}

template <class T>
void bulk_zero(T* to, Eigen::Index count) {
  parallel_for(count, detail::bulk_chunk,
               [&](Eigen::Index begin, Eigen::Index end) { std::fill(to + begin, to + end, T(0)); });
}

}  // namespace rbar
