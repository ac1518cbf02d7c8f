// The dense products for every program of a build, compiled once: what linking rbar::kernels brings. A source that sees
// RBAR_COMPILED_KERNELS (which comes with it) declares them only.
#include "rbar/simd/bf16_packed.hpp"
#include "rbar/simd/bf16_product.hpp"
#include "rbar/simd/gemm.hpp"
#include "rbar/simd/gemm_packed.hpp"

namespace rbar::simd {

template void blocked_gemm(bool, bool, Index, Index, Index, const float*, Index, const float*, Index, float*, Index,
                           bool, const float*);
template void blocked_gemm(bool, bool, Index, Index, Index, const double*, Index, const double*, Index, double*, Index,
                           bool, const double*);

template void pack_matrix(Index, Index, const float*, Index, float*);
template void pack_matrix(Index, Index, const double*, Index, double*);
template void packed_gemm(Index, Index, Index, const float*, Index, const float*, float*, Index, bool, const float*);
template void packed_gemm(Index, Index, Index, const double*, Index, const double*, double*, Index, bool,
                          const double*);

template void pack_bf16(Index, Index, const float*, Index, Bf16Pair*);
template void packed_bf16_gemm(Index, Index, Index, const float*, Index, const Bf16Pair*, float*, Index, bool,
                               Bf16Inputs);
template void rounded_gemm(bool, bool, Index, Index, Index, const float*, Index, const float*, Index, float*, Index,
                           bool);

}  // namespace rbar::simd
