#include "rbar/core/parallel.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/simd/batch.hpp"

double sum_of(rbar::ConstTensorView<float, 2> values) {
  return rbar::parallel_sum(values.size(), 5, [&](rbar::Index begin, rbar::Index end) {
    double sum = 0;
    for (rbar::Index i = begin; i < end; ++i) sum += values.data()[i];
    return sum;
  });
}
