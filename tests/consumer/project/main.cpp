// Two translation units that include rbar and call into it: nothing may be defined twice.
#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"

#include <cstdio>
#include <utility>

double sum_of(rbar::ConstTensorView<float, 2> values);

int main() {
  auto values = rbar::zeros<float, 2>({3, 4});
  values.setConstant(0.5f);
  const double sum = sum_of(rbar::view(std::as_const(values)));
  std::printf("rbar %s: %g\n", RBAR_VERSION_STRING, sum);
  return sum == 6.0 ? 0 : 1;
}
