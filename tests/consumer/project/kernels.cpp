#include "rbar/core/gemm.hpp"

#if !defined(RBAR_COMPILED_KERNELS)
#error "rbar::kernels brings no declarations"
#endif

void product_of(const rbar::Matrix<float>& a, const rbar::Matrix<float>& b, rbar::Matrix<float>& c) {
  rbar::gemm(rbar::Transpose::no, rbar::Transpose::no, a.rows(), b.cols(), a.cols(), a.data(), a.cols(), b.data(),
             b.cols(), c.data(), c.cols());
}
