// The linear part A of a restriction map ρ(x) = A x + b, one struct for each way of storing it. Rows of anything are
// mapped at once, x [N, in] -> y [N, out], and every kind offers
//   product(x, y, accumulate)                  y (+)= x Aᵀ
//   backward(dy, x, dx, grad, accumulate_dx)   dA += dyᵀ x on what is stored of A;  dx (+)= dy A, skipped if empty
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/nn/linear.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>
#include <vector>

namespace rbar {

namespace detail {

// body(row of a, row of b) over all rows.
template <class A, class B, class Body>
void for_each_row(A& a, B& b, Body&& body) {
  const Index chunk = std::max<Index>(1, 32768 / std::max<Index>(1, a.cols() + b.cols()));
  parallel_for(a.rows(), chunk, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) body(a.data() + row * a.cols(), b.data() + row * b.cols());
  });
}

}  // namespace detail

// A = I.
template <class T>
struct IdentityRestriction {
  Index dim = 0;

  Index in() const { return dim; }
  Index out() const { return dim; }
  void product(ConstMatrixView<T> x, MatrixView<T> y, bool accumulate) const {
    detail::for_each_row(x, y, [&](const T* from, T* to) {
      if (!accumulate)
        std::copy_n(from, dim, to);
      else
        for (Index i = 0; i < dim; ++i) to[i] += from[i];
    });
  }
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T>, MatrixView<T> dx, IdentityRestriction&,
                bool accumulate_dx) const {
    if (dx.size() > 0) product(dy, dx, accumulate_dx);
  }
  void parameters(auto&&) {}
};

// A = diag(a).
template <class T>
struct DiagonalRestriction {
  Tensor<T, 1> diagonal;  // a [dim]

  DiagonalRestriction() = default;
  // U(−√3, √3): y has the spread of x, and two such maps start apart.
  DiagonalRestriction(Index dim, Rng& rng) : diagonal(dim) {
    const double bound = std::sqrt(3.0);
    for (T& value : elements(diagonal)) value = static_cast<T>(rng.uniform(-bound, bound));
  }

  Index in() const { return diagonal.size(); }
  Index out() const { return diagonal.size(); }
  void product(ConstMatrixView<T> x, MatrixView<T> y, bool accumulate) const {
    const T* a = diagonal.data();
    detail::for_each_row(x, y, [&](const T* from, T* to) {
      if (!accumulate)
        for (Index i = 0; i < in(); ++i) to[i] = a[i] * from[i];
      else
        for (Index i = 0; i < in(); ++i) to[i] += a[i] * from[i];
    });
  }
  // da = Σₙ dyₙ ∘ xₙ. Threads take columns, and sums of 128 rows are added up separately (add_column_sums).
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, MatrixView<T> dx, DiagonalRestriction& grad,
                bool accumulate_dx) const {
    constexpr Index columns = 64, row_block = 128;
    parallel_for(in(), columns, [&](Index begin, Index end) {
      for (Index first = 0; first < x.rows(); first += row_block) {
        T sum[columns] = {};
        for (Index row = first; row < std::min(first + row_block, x.rows()); ++row)
          for (Index i = begin; i < end; ++i) sum[i - begin] += dy.data()[row * in() + i] * x.data()[row * in() + i];
        for (Index i = begin; i < end; ++i) grad.diagonal.data()[i] += sum[i - begin];
      }
    });
    if (dx.size() > 0) product(dy, dx, accumulate_dx);
  }
  void parameters(auto&& visit) { visit("diagonal", diagonal); }
};

// Row r of A is the unit vector of coordinate kept[r].
template <class T>
struct ProjectionRestriction {
  Index from = 0;           // in
  std::vector<Index> kept;  // [out], each 0 <= kept < in

  Index in() const { return from; }
  Index out() const { return static_cast<Index>(kept.size()); }
  void product(ConstMatrixView<T> x, MatrixView<T> y, bool accumulate) const {
    detail::for_each_row(x, y, [&](const T* source, T* target) {
      for (std::size_t r = 0; r < kept.size(); ++r) target[r] = source[kept[r]] + (accumulate ? target[r] : T(0));
    });
  }
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T>, MatrixView<T> dx, ProjectionRestriction&,
                bool accumulate_dx) const {
    if (dx.size() == 0) return;
    detail::for_each_row(dy, dx, [&](const T* source, T* target) {
      if (!accumulate_dx) std::fill_n(target, from, T(0));
      for (std::size_t r = 0; r < kept.size(); ++r) target[kept[r]] += source[r];
    });
  }
  void parameters(auto&&) {}
};

// A = W: a dense layer without a bias.
template <class T>
using DenseRestriction = Linear<T>;

// A = U V.
template <class T>
struct LowRankRestriction {
  DenseRestriction<T> down, up;  // V [rank, in], U [out, rank]

  LowRankRestriction() = default;
  // U ~ N(0, 1/rank), V with the bound of a Xavier-uniform [out, in]: y then has the spread of the dense kind's.
  LowRankRestriction(Index in, Index out, Index rank, Rng& rng) {
    const double bound = std::sqrt(6.0 / static_cast<double>(in + out));
    ensure_shape(down.weight, {rank, in});
    ensure_shape(up.weight, {out, rank});
    for (T& value : elements(down.weight)) value = static_cast<T>(rng.uniform(-bound, bound));
    normal(up.weight, 1 / std::sqrt(static_cast<double>(rank)), rng);
  }

  Index in() const { return down.in(); }
  Index out() const { return up.out(); }
  Index rank() const { return down.out(); }
  void product(ConstMatrixView<T> x, MatrixView<T> y, bool accumulate) const {
    MatrixView<T> inner(scratch(x.rows()), x.rows(), rank());
    down.product(x, inner, false);
    up.product(as_const(inner), y, accumulate);
  }
  // V x is computed again: it is the small part, and saves every caller a cache.
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, MatrixView<T> dx, LowRankRestriction& grad,
                bool accumulate_dx) const {
    T* memory = scratch(2 * x.rows());
    MatrixView<T> inner(memory, x.rows(), rank()), dinner(memory + inner.size(), x.rows(), rank());
    down.product(x, inner, false);
    up.backward(dy, as_const(inner), dinner, grad.up, false);
    down.backward(as_const(dinner), x, dx, grad.down, accumulate_dx);
  }
  void parameters(auto&& visit) {
    visit_layer(visit, "down", down);
    visit_layer(visit, "up", up);
  }
  void linears(auto&& visit) {
    down.linears(visit);
    up.linears(visit);
  }

 private:
  T* scratch(Index rows) const { return simd::thread_scratch<T, LowRankRestriction>(rows * rank()); }
};

// A in compressed rows: the elements of row r lie at row_start[r] <= e < row_start[r + 1].
template <class T>
struct CsrRestriction {
  Index from = 0;                // in
  std::vector<Index> row_start;  // [out + 1], ascending, from 0 to the number of elements
  std::vector<Index> column;     // [elements], each 0 <= column < in
  Tensor<T, 1> values;           // [elements]

  Index in() const { return from; }
  Index out() const { return static_cast<Index>(row_start.size()) - 1; }
  void product(ConstMatrixView<T> x, MatrixView<T> y, bool accumulate) const {
    detail::for_each_row(x, y, [&](const T* source, T* target) {
      for (Index r = 0; r < out(); ++r) {
        T sum = accumulate ? target[r] : T(0);
        for (Index e = first(r); e < first(r + 1); ++e) sum += values.data()[e] * source[column_of(e)];
        target[r] = sum;
      }
    });
  }
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, MatrixView<T> dx, CsrRestriction& grad,
                bool accumulate_dx) const {
    // Threads take elements; sums of 128 rows are added up separately, as for the diagonal.
    constexpr Index chunk = 64, row_block = 128;
    parallel_for(values.size(), chunk, [&](Index begin, Index end) {
      Index row_of[chunk];
      Index r = std::upper_bound(row_start.begin(), row_start.end(), begin) - row_start.begin() - 1;
      for (Index e = begin; e < end; ++e) {
        while (first(r + 1) <= e) ++r;
        row_of[e - begin] = r;
      }
      for (Index n = 0; n < x.rows(); n += row_block) {
        T sum[chunk] = {};
        for (Index row = n; row < std::min(n + row_block, x.rows()); ++row)
          for (Index e = begin; e < end; ++e)
            sum[e - begin] += dy.data()[row * out() + row_of[e - begin]] * x.data()[row * from + column_of(e)];
        for (Index e = begin; e < end; ++e) grad.values.data()[e] += sum[e - begin];
      }
    });
    if (dx.size() == 0) return;
    detail::for_each_row(dy, dx, [&](const T* source, T* target) {
      if (!accumulate_dx) std::fill_n(target, from, T(0));
      for (Index r = 0; r < out(); ++r)
        for (Index e = first(r); e < first(r + 1); ++e) target[column_of(e)] += values.data()[e] * source[r];
    });
  }
  void parameters(auto&& visit) { visit("values", values); }

 private:
  Index first(Index row) const { return row_start[static_cast<std::size_t>(row)]; }
  Index column_of(Index element) const { return column[static_cast<std::size_t>(element)]; }
};

}  // namespace rbar
