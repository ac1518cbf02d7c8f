// The dense product in what a layer computes it in.
#pragma once

#include "rbar/core/bf16.hpp"
#include "rbar/core/gemm.hpp"
#include "rbar/simd/bf16_product.hpp"

#include <type_traits>

namespace rbar {

// gemm as core/gemm.hpp has it, or as simd/bf16_product.hpp does; in double always the former.
template <class T>
void gemm(Products products, Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, const T* a,
          Index lda, const T* b, Index ldb, T* c, Index ldc, bool accumulate = false,
          const std::type_identity_t<T>* bias = nullptr) {
  if constexpr (std::is_same_v<T, float>)
    if (products == Products::bf16) {
      if (bias != nullptr) detail::fill_rows(bias, m, n, c, ldc);
      return simd::rounded_gemm(transpose_a == Transpose::yes, transpose_b == Transpose::yes, m, n, k, a, lda, b, ldb,
                                c, ldc, accumulate || bias != nullptr);
    }
  gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, accumulate, bias);
}

}  // namespace rbar
