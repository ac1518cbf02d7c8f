// The one seam for dense matrix products. All matrices are row-major with a leading dimension
// (elements from one row to the next). float and double run on the blocked kernels of simd/gemm.hpp;
// RBAR_GEMM_EIGEN or RBAR_GEMM_ONEDNN (CMake: -DRBAR_GEMM=eigen|onednn) choose another library, and
// other scalars always use Eigen.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <type_traits>

#if defined(RBAR_GEMM_ONEDNN)
#include <dnnl.h>
#endif
#if !defined(RBAR_GEMM_EIGEN)
#include "rbar/simd/gemm.hpp"
#endif

namespace rbar {

enum class Transpose { no, yes };

namespace detail {

// Every row of C [m, n] becomes `row`.
template <class T>
void fill_rows(const T* row, Index m, Index n, T* c, Index ldc) {
  parallel_for(m, std::max<Index>(1, 32768 / std::max<Index>(1, n)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) std::copy_n(row, n, c + i * ldc);
  });
}

// Chunks over rows of C are fixed, so bits do not depend on threads.
template <class T>
void eigen_gemm(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, const T* a, Index lda,
                const T* b, Index ldb, T* c, Index ldc, bool accumulate) {
  using Strided = Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>;
  using ConstStrided = Eigen::Map<const Matrix<T>, 0, Eigen::OuterStride<>>;
  constexpr Index chunk = 128;
  parallel_for(m, chunk, [&](Index begin, Index end) {
    const Index count = end - begin;
    Strided out(c + begin * ldc, count, n, Eigen::OuterStride<>(ldc));
    if (!accumulate) out.setZero();
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

}  // namespace detail

// C[m,n] = op(A)[m,k] · op(B)[k,n], or C += with accumulate, or C = bias [n] + with a bias (and no accumulate). A is
// stored [m,k] (or [k,m] transposed), B [k,n] (or [n,k] transposed); C overlaps neither. NaN and infinity propagate.
// Same bits for every number of threads (with oneDNN: if its own OpenMP threads keep their number). Row i of C depends
// on row i of op(A) alone, to the last bit: it may be computed among any number of rows. That is a promise of our own
// kernels (float and double), not of Eigen's or oneDNN's, which sum small products in another order than large ones.
template <class T>
void gemm(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, const T* a, Index lda, const T* b,
          Index ldb, T* c, Index ldc, bool accumulate = false, const std::type_identity_t<T>* bias = nullptr) {
  require(bias == nullptr || !accumulate, "gemm", "accumulate", "false with a bias", "true");
  if (m <= 0 || n <= 0) return;
  if (k <= 0) {
    if (bias != nullptr)
      detail::fill_rows(bias, m, n, c, ldc);
    else if (!accumulate)
      for (Index i = 0; i < m; ++i) std::fill(c + i * ldc, c + i * ldc + n, T(0));
    return;
  }
#if !defined(RBAR_GEMM_EIGEN) && !defined(RBAR_GEMM_ONEDNN)
  constexpr bool has_kernel = std::is_same_v<T, float> || std::is_same_v<T, double>;
#elif defined(RBAR_GEMM_ONEDNN)
  constexpr bool has_kernel = std::is_same_v<T, double>;
#else
  constexpr bool has_kernel = false;
#endif
  if (!has_kernel && bias != nullptr) {
    detail::fill_rows(bias, m, n, c, ldc);
    accumulate = true;
  }
#if defined(RBAR_GEMM_ONEDNN)
  if constexpr (std::is_same_v<T, float>) {
    const dnnl_status_t status =
        dnnl_sgemm(transpose_a == Transpose::yes ? 'T' : 'N', transpose_b == Transpose::yes ? 'T' : 'N', m, n, k, 1.0f,
                   a, lda, b, ldb, accumulate ? 1.0f : 0.0f, c, ldc);
    require(status == dnnl_success, "gemm", "dnnl_sgemm", "success", static_cast<int>(status));
    return;
  }
#endif
#if !defined(RBAR_GEMM_EIGEN)
  if constexpr (has_kernel) {
    simd::blocked_gemm(transpose_a == Transpose::yes, transpose_b == Transpose::yes, m, n, k, a, lda, b, ldb, c, ldc,
                       accumulate, bias);
    return;
  }
#endif
  detail::eigen_gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}

}  // namespace rbar
