// Matrices that multiply often and change no more: laid out once as the products read them.
#pragma once

#include "rbar/core/bf16.hpp"
#include "rbar/core/paged_buffer.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/simd/bf16_packed.hpp"
#include "rbar/simd/gemm_packed.hpp"

#include <algorithm>
#include <span>

namespace rbar {

// W [out, in], in a little more than its own memory. Decoding reads it in one stream instead of sixteen, products of
// many rows pack nothing. The bits of y are those of gemm's own kernels.
// Errors: sizes below 1; x or y of another shape.
template <class T>
class PackedMatrix {
 public:
  PackedMatrix() = default;
  explicit PackedMatrix(ConstMatrixView<T> matrix) : out_(matrix.rows()), in_(matrix.cols()) {
    require(out_ > 0 && in_ > 0, "PackedMatrix", "sizes", "out > 0 and in > 0", std::min(out_, in_));
    memory_ = PagedBuffer<T>(static_cast<std::size_t>(simd::packed_size<T>(out_, in_)));
    simd::pack_matrix(out_, in_, matrix.data(), in_, memory_.data());
  }

  Index in() const { return in_; }
  Index out() const { return out_; }
  bool empty() const { return out_ == 0; }
  std::span<const T> memory() const { return {memory_.data(), memory_.size()}; }

  // y (+)= x Wᵀ, or with a bias [out] y = bias + x Wᵀ.
  void product(ConstMatrixView<T> x, MatrixView<T> y, bool accumulate, const T* bias = nullptr) const {
    require_shape("PackedMatrix::product", "x", x, {-1, in_});
    require_shape("PackedMatrix::product", "y", y, {x.rows(), out_});
    simd::packed_gemm(x.rows(), out_, in_, x.data(), in_, memory_.data(), y.data(), out_, accumulate, bias);
  }

 private:
  Index out_ = 0, in_ = 0;
  PagedBuffer<T> memory_;
};

// W rounded to bf16: half the memory, which decoding reads in half the time. Sums are fp32. With Bf16Inputs::both the
// elements of x are rounded as well, and products of many rows are faster still.
// Errors: as PackedMatrix.
class RoundedMatrix {
 public:
  RoundedMatrix() = default;
  explicit RoundedMatrix(const ConstMatrixView<float>& matrix) : out_(matrix.rows()), in_(matrix.cols()) {
    require(out_ > 0 && in_ > 0, "RoundedMatrix", "sizes", "out > 0 and in > 0", std::min(out_, in_));
    memory_ = PagedBuffer<simd::Bf16Pair>(static_cast<std::size_t>(simd::packed_bf16_size(out_, in_)));
    simd::pack_bf16(out_, in_, matrix.data(), in_, memory_.data());
  }

  Index in() const { return in_; }
  Index out() const { return out_; }
  bool empty() const { return out_ == 0; }

  // y (+)= x Wᵀ.
  void product(const ConstMatrixView<float>& x, MatrixView<float> y, bool accumulate, Bf16Inputs inputs) const {
    require_shape("RoundedMatrix::product", "x", x, {-1, in_});
    require_shape("RoundedMatrix::product", "y", y, {x.rows(), out_});
    simd::packed_bf16_gemm(x.rows(), out_, in_, x.data(), in_, memory_.data(), y.data(), out_, accumulate, inputs);
  }

 private:
  Index out_ = 0, in_ = 0;
  PagedBuffer<simd::Bf16Pair> memory_;
};

}  // namespace rbar
