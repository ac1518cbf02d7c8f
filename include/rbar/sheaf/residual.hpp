// Residuals and energies on a sheaf's edges (Hansen, Ghrist 2019; ADR-014): with the images a = ρ_u(x_u), b = ρ_v(x_v)
//   r_uv = a − b,    E_uv = w_uv ‖r_uv‖².
// The expansion ‖a‖² + ‖b‖² − 2a·b is a matrix product for many pairs, but cancels: with a common offset of 10 in fp32
// an energy of .006 is off by 100%. So single edges subtract first, and tiles are centred before they are expanded.
#pragma once

#include "rbar/core/gemm.hpp"
#include "rbar/nn/linear.hpp"
#include "rbar/simd/energy.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>
#include <span>

namespace rbar {

// r = a − b, all of one size.
template <class T>
void residual(std::span<const T> a, std::span<const T> b, std::span<T> r) {
  require(a.size() == b.size(), "residual", "size of b", a.size(), b.size());
  require(a.size() == r.size(), "residual", "size of r", a.size(), r.size());
  std::transform(a.begin(), a.end(), b.begin(), r.begin(), [](T left, T right) { return left - right; });
}

// w ‖a − b‖². Errors: different sizes, an energy that is not finite.
template <class T>
double edge_energy(std::span<const T> a, std::span<const T> b, double weight = 1) {
  require(a.size() == b.size(), "edge_energy", "size of b", a.size(), b.size());
  const double energy = weight * simd::residual_energy(a.data(), b.data(), static_cast<Index>(a.size()));
  require(std::isfinite(energy), "edge_energy", "energy", "a finite number", energy);
  return energy;
}

// E_ij = ‖q_i − k_j‖² of all pairs, query [N, d], key [M, d] -> energy [N, M]:
//   E_ij = (‖q_i − c‖² + ‖k_j − c‖² − 2 (q_i − c)·(k_j − c))₊.
// The error of E_ij is a few roundings of ‖q_i − c‖² + ‖k_j − c‖². The center c [d] is the mean of the keys unless one
// is given; who must not look at later keys gives one. Errors: other shapes, no key, values or energies that are not
// finite.
template <class T>
void pairwise_energies(ConstMatrixView<T> query, ConstMatrixView<T> key, MatrixView<T> energy,
                       const T* center = nullptr) {
  constexpr const char* where = "pairwise_energies";
  const Index dim = query.cols(), queries = query.rows(), keys = key.rows();
  require(keys > 0 && dim > 0, where, "key", "at least one, of at least one feature", keys);
  require_shape(where, "key", key, {keys, dim});
  require_shape(where, "energy", energy, {queries, keys});
  require_finite(where, "query", std::span(query.data(), static_cast<std::size_t>(query.size())));
  require_finite(where, "key", std::span(key.data(), static_cast<std::size_t>(key.size())));

  struct Purpose {};
  T* mean = simd::thread_scratch<T, Purpose>(dim + (queries + keys) * (dim + 1));
  T* centred_query = mean + dim;
  T* centred_key = centred_query + queries * dim;
  T* query_norm = centred_key + keys * dim;
  T* key_norm = query_norm + queries;
  if (center) {
    std::copy_n(center, dim, mean);
  } else {
    std::fill_n(mean, dim, T(0));
    detail::add_column_sums(key, mean);
    for (Index d = 0; d < dim; ++d) mean[d] /= static_cast<T>(keys);
  }
  const auto centre = [&](ConstMatrixView<T> x, T* centred, T* norm) {
    parallel_for(x.rows(), std::max<Index>(1, 32768 / dim), [&](Index begin, Index end) {
      for (Index row = begin; row < end; ++row) {
        norm[row] = static_cast<T>(simd::residual_energy(x.data() + row * dim, mean, dim));
        for (Index d = 0; d < dim; ++d) centred[row * dim + d] = x.data()[row * dim + d] - mean[d];
      }
    });
  };
  centre(query, centred_query, query_norm);
  centre(key, centred_key, key_norm);
  gemm(Transpose::no, Transpose::yes, queries, keys, dim, centred_query, dim, centred_key, dim, energy.data(), keys);
  parallel_for(queries, std::max<Index>(1, 32768 / keys), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      T* row = energy.data() + i * keys;
      for (Index j = 0; j < keys; ++j)
        row[j] = std::max(query_norm[i] + key_norm[j] - 2 * row[j], T(0));  // keeps a NaN
    }
  });
  require_finite(where, "energy", std::span<const T>(energy.data(), static_cast<std::size_t>(energy.size())));
}

}  // namespace rbar
