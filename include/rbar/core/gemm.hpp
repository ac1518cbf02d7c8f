// The one seam for dense matrix products. All matrices are row-major with a leading dimension
// (elements from one row to the next).
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/tensor.hpp"

namespace rbar {

enum class Transpose { no, yes };

// C[m,n] = op(A)[m,k] · op(B)[k,n], or C += with accumulate. A is stored [m,k] (or [k,m] transposed),
// B [k,n] (or [n,k] transposed). Chunks over rows of C are fixed, so bits do not depend on threads.
template <class T>
void gemm(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, const T* a, Index lda, const T* b,
          Index ldb, T* c, Index ldc, bool accumulate = false) {
  using Strided = Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>;
  using ConstStrided = Eigen::Map<const Matrix<T>, 0, Eigen::OuterStride<>>;
  if (m == 0 || n == 0) return;
  constexpr Index chunk = 128;
  parallel_for(m, chunk, [&](Index begin, Index end) {
    const Index count = end - begin;
    Strided out(c + begin * ldc, count, n, Eigen::OuterStride<>(ldc));
    if (!accumulate) out.setZero();
    if (k == 0) return;
    const auto multiply = [&](const auto& left) {
      if (transpose_b == Transpose::no)
        out.noalias() += left * ConstStrided(b, k, n, Eigen::OuterStride<>(ldb));
      else
        out.noalias() += left * ConstStrided(b, n, k, Eigen::OuterStride<>(ldb)).transpose();
    };
    if (transpose_a == Transpose::no)
      multiply(ConstStrided(a + begin * lda, count, k, Eigen::OuterStride<>(lda)));
    else
      multiply(ConstStrided(a + begin, k, count, Eigen::OuterStride<>(lda)).transpose());
  });
}

}  // namespace rbar
