// Smallest eigenvalues of sheaf Laplacians, and what is reported of them: they say how many independent ways there are
// to agree everywhere (the zeros) and how strongly the rest is held together (λ₂, the gap). Nothing here feeds an
// output. Small matrices are solved densely by Eigen; large sparse ones by Spectra where RBAR_SPECTRA is defined
// (CMake: link rbar::spectra), and are refused elsewhere.
#pragma once

#include "rbar/sheaf/residual.hpp"
#include "rbar/sheaf/sheaf_laplacian.hpp"
#include "rbar/sheaf/spectral_summary.hpp"

#include <Eigen/Eigenvalues>

#if defined(RBAR_SPECTRA)
#include <Spectra/SymEigsSolver.h>
#include <Eigen/SparseCholesky>
#endif

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

namespace rbar {

struct SpectrumConfig {
  Index count = 8;           // eigenvalues, or as many as there are
  Index dense_limit = 1024;  // rows up to which the dense solver is used: cubic, below a second here
  double mild = 0.05, strong = 0.2, severe = 0.5;  // drift at which a level starts

  template <class V>
  void fields(V&& v) {
    v("count", count);
    v("dense_limit", dense_limit);
    v("mild", mild);
    v("strong", strong);
    v("severe", severe);
  }
  void validate() const {
    constexpr const char* where = "SpectrumConfig";
    require(count >= 1, where, "count", "at least 1", count);
    require(dense_limit >= 1, where, "dense_limit", "at least 1", dense_limit);
    require(mild > 0 && std::isfinite(mild), where, "mild", "a positive number", mild);
    require(strong > mild && std::isfinite(strong), where, "strong", "a number above mild", strong);
    require(severe > strong && std::isfinite(severe), where, "severe", "a number above strong", severe);
  }
};

namespace detail {

#if defined(RBAR_SPECTRA)

// x -> ((L − σI)⁻¹ − V diag(ν) Vᵀ) x: the inverse that turns the smallest eigenvalues into the largest, without the
// pairs (ν, V) already found.
struct DeflatedInverse {
  using Scalar = double;

  Eigen::SimplicialLLT<SparseMatrix> factor;
  Eigen::MatrixXd vectors;  // V [n, found]
  Eigen::VectorXd values;   // ν [found], descending

  Index rows() const { return factor.rows(); }
  Index cols() const { return factor.cols(); }
  void perform_op(const double* x, double* y) const {
    const Eigen::Map<const Eigen::VectorXd> in(x, rows());
    Eigen::Map<Eigen::VectorXd> out(y, rows());
    out = factor.solve(in);
    out -= vectors * values.cwiseProduct(vectors.transpose() * in);
  }

  // Keeps the `count` largest of what was found and what is new; a new one must be larger by more than rounding, or a
  // kernel of many dimensions would never be done with. False: nothing new is among them.
  bool merge(const Eigen::VectorXd& new_values, const Eigen::MatrixXd& new_vectors, Index count) {
    const Index old = values.size();
    Eigen::VectorXd all_values(old + new_values.size());
    all_values << values, new_values;
    Eigen::MatrixXd all_vectors(rows(), all_values.size());
    all_vectors << vectors, new_vectors;
    std::vector<Index> order(static_cast<std::size_t>(all_values.size()));
    std::iota(order.begin(), order.end(), Index{0});
    const auto rank = [&](Index i) { return i < old ? all_values(i) * (1 + 1e-9) : all_values(i); };
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return rank(a) > rank(b); });
    order.resize(std::min(order.size(), static_cast<std::size_t>(count)));
    const bool changed = std::any_of(order.begin(), order.end(), [&](Index i) { return i >= old; });
    values.resize(static_cast<Index>(order.size()));
    vectors.resize(rows(), values.size());
    for (Index i = 0; i < values.size(); ++i) {
      values(i) = all_values(order[static_cast<std::size_t>(i)]);
      vectors.col(i) = all_vectors.col(order[static_cast<std::size_t>(i)]);
    }
    return changed;
  }
};

// Lanczos sees a repeated eigenvalue once, and rounding alone brings its twins: so what was found is taken out and the
// search repeated until it brings nothing that belongs to the `count` smallest.
template <class SymmetricMatrix>
std::vector<double> lanczos_smallest(const SymmetricMatrix& matrix, Index count) {
  const Index size = matrix.rows();
  SparseMatrix shifted;
  if constexpr (requires { matrix.sparseView(); })
    shifted = matrix.sparseView();
  else
    shifted = matrix;
  for (Index i = 0; i < shifted.nonZeros(); ++i)
    require(std::isfinite(shifted.valuePtr()[i]), "smallest_eigenvalues", "matrix", "finite values",
            shifted.valuePtr()[i]);
  const double scale = Eigen::VectorXd(shifted.diagonal()).cwiseAbs().mean();
  if (!(scale > 0)) return std::vector<double>(static_cast<std::size_t>(count), 0.0);
  const double shift = -1e-3 * scale;
  for (Index i = 0; i < size; ++i) shifted.coeffRef(i, i) -= shift;
  DeflatedInverse inverse;
  inverse.factor.compute(shifted);
  require(inverse.factor.info() == Eigen::Success, "smallest_eigenvalues", "matrix", "no negative eigenvalue", "some");
  inverse.vectors.resize(size, 0);
  bool changed = true;
  while (changed) {
    const Index basis = std::min(size, std::max<Index>(2 * count + 1, 20));
    Spectra::SymEigsSolver<DeflatedInverse> solver(inverse, count, basis);
    solver.init();
    const Index converged = solver.compute(Spectra::SortRule::LargestAlge, 1000, 1e-11);
    require(converged == count, "smallest_eigenvalues", "converged eigenvalues", count, converged);
    changed = inverse.merge(solver.eigenvalues(), solver.eigenvectors(), count);
  }
  std::vector<double> spectrum;
  for (const double value : inverse.values) spectrum.push_back(shift + 1 / value);
  std::sort(spectrum.begin(), spectrum.end());
  return spectrum;
}

#endif

}  // namespace detail

// The `config.count` smallest eigenvalues of a symmetric matrix, dense or sparse, ascending. Errors: a matrix that is
// empty, not square, not finite or too large for the solvers there are.
template <class SymmetricMatrix>
std::vector<double> smallest_eigenvalues(const SymmetricMatrix& matrix, const SpectrumConfig& config = {}) {
  constexpr const char* where = "smallest_eigenvalues";
  config.validate();
  const Index size = matrix.rows();
  require(size > 0 && matrix.cols() == size, where, "matrix", "a square one", matrix.cols());
  // Lanczos needs room between what is asked for and what there is.
  if (size > std::max(config.dense_limit, 4 * config.count)) {
#if defined(RBAR_SPECTRA)
    return detail::lanczos_smallest(matrix, config.count);
#else
    require(false, where, "rows without RBAR_SPECTRA (config.dense_limit)", config.dense_limit, size);
#endif
  }
  const Eigen::MatrixXd& dense = matrix;  // itself, or a dense copy of a sparse one
  require_finite(where, "matrix", std::span(dense.data(), static_cast<std::size_t>(dense.size())));
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(dense, Eigen::EigenvaluesOnly);
  require(solver.info() == Eigen::Success, where, "dense solver", "convergence", "none");
  const auto& values = solver.eigenvalues();
  return {values.data(), values.data() + std::min(config.count, size)};
}

// Σ of the sheaf's energies weighs pairs alike, whatever the tokens are. The tokens enter here: the Laplacian of their
// graph with an edge j < i of weight w_ij = exp(−E_ij / s), E_ij = ‖ρ_q h_i − ρ_k h_j‖², so that clusters of tokens
// that agree with each other only show as small eigenvalues.
//   query, key [n, d]: ρ_q h and ρ_k h;   s = scale, or the mean of the E_ij where it is 0.
// Errors: those of pairwise_energies, a negative scale.
template <class T>
Eigen::MatrixXd coherence_laplacian(ConstMatrixView<T> query, ConstMatrixView<T> key, double scale = 0) {
  const Index tokens = query.rows();
  require(scale >= 0 && std::isfinite(scale), "coherence_laplacian", "scale", "finite, at least 0", scale);
  require_shape("coherence_laplacian", "key", key, {tokens, query.cols()});
  Matrix<T> energy(tokens, tokens);
  pairwise_energies<T>(query, key, MatrixView<T>(energy.data(), tokens, tokens));
  if (scale == 0) {
    for (Index i = 0; i < tokens; ++i)
      for (Index j = 0; j < i; ++j) scale += static_cast<double>(energy(i, j));
    scale /= static_cast<double>(std::max<Index>(1, tokens * (tokens - 1) / 2));
  }
  Eigen::MatrixXd laplacian = Eigen::MatrixXd::Zero(tokens, tokens);
  for (Index i = 0; i < tokens; ++i)
    for (Index j = 0; j < i; ++j) {
      const double weight = scale > 0 ? std::exp(-static_cast<double>(energy(i, j)) / scale) : 1;
      laplacian(i, j) = laplacian(j, i) = -weight;
      laplacian(i, i) += weight;
      laplacian(j, j) += weight;
    }
  return laplacian;
}

// ‖λ − μ‖ / max(‖λ‖, ‖μ‖) over the eigenvalues that both have; 0 when all are 0.
inline double spectral_drift(std::span<const double> spectrum, std::span<const double> before) {
  double difference = 0, now = 0, then = 0;
  for (std::size_t i = 0; i < std::min(spectrum.size(), before.size()); ++i) {
    difference += (spectrum[i] - before[i]) * (spectrum[i] - before[i]);
    now += spectrum[i] * spectrum[i];
    then += before[i] * before[i];
  }
  return difference > 0 ? std::sqrt(difference / std::max(now, then)) : 0;
}

inline DriftLevel drift_level(double drift, const SpectrumConfig& config = {}) {
  return drift >= config.severe   ? DriftLevel::severe
         : drift >= config.strong ? DriftLevel::strong
         : drift >= config.mild   ? DriftLevel::mild
                                  : DriftLevel::none;
}

// Ascending eigenvalues; `before` is the spectrum of the layer below, or empty. Two eigenvalues differ when they do so
// by more than a millionth of the largest.
inline SpectralSummary summarise_spectrum(std::span<const double> spectrum, std::span<const double> before = {},
                                          const SpectrumConfig& config = {}) {
  require(!spectrum.empty(), "summarise_spectrum", "spectrum", "at least one eigenvalue", "none");
  require_finite("summarise_spectrum", "spectrum", spectrum);
  SpectralSummary summary;
  summary.lambda_2 = spectrum.size() > 1 ? spectrum[1] : 0;
  const double same = 1e-6 * std::abs(spectrum.back());
  for (std::size_t i = 1; i < spectrum.size() && summary.gap == 0; ++i)
    if (spectrum[i] - spectrum[i - 1] > same) summary.gap = spectrum[i] - spectrum[i - 1];
  summary.drift = spectral_drift(spectrum, before);
  summary.level = drift_level(summary.drift, config);
  return summary;
}

}  // namespace rbar
