#include "rbar/core/random.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/simd/math.hpp"
#include "rbar/simd/phase.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <cmath>
#include <vector>

using namespace rbar;
using simd::Batch;

namespace {

// f(x) in one lane, the others holding something else.
template <class T, class F>
T lane(T x, F f, Index which) {
  alignas(64) T in[simd::lanes<T>], out[simd::lanes<T>];
  for (Index i = 0; i < simd::lanes<T>; ++i) in[i] = i == which ? x : T(0.25) * static_cast<T>(i);
  simd::store(out, f(simd::load(in)));
  return out[which];
}

const auto vector_exp = [](const auto& x) { return simd::exp(x); };
const auto vector_exp2 = [](const auto& x) { return simd::exp2(x); };

}  // namespace

TEMPLATE_TEST_CASE("exp and exp2 are accurate over their whole range", "[simd]", float, double) {
  using T = TestType;
  const bool single = std::is_same_v<T, float>;
  const double tolerance = single ? 3e-7 : 1e-14;
  const double lowest = single ? -125.4 : -1020, highest = single ? 127.99 : 1022;  // xsimd's exp2 gives up at 1023
  double worst = 0;
  Index which = 0;
  for (int i = 0; i <= 200000; ++i) {
    which = (which + 1) % simd::lanes<T>;
    const T t = static_cast<T>(lowest + (highest - lowest) * i / 200000);
    const T x = static_cast<T>(static_cast<double>(t) * std::numbers::ln2 * 0.999);
    worst = test::larger(
        worst, std::abs(static_cast<double>(lane(t, vector_exp2, which)) / std::exp2(static_cast<double>(t)) - 1));
    worst = test::larger(
        worst, std::abs(static_cast<double>(lane(x, vector_exp, which)) / std::exp(static_cast<double>(x)) - 1));
  }
  CHECK(worst <= tolerance);
}

TEMPLATE_TEST_CASE("exp and exp2 are total", "[simd]", float, double) {
  using T = TestType;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  for (Index which = 0; which < simd::lanes<T>; ++which) {
    for (const T low : {-infinity, std::numeric_limits<T>::lowest(), T(-2000)}) {
      CHECK(lane(low, vector_exp, which) == 0);
      CHECK(lane(low, vector_exp2, which) == 0);
    }
    for (const T high : {infinity, std::numeric_limits<T>::max(), T(2000)}) {
      CHECK(lane(high, vector_exp, which) == infinity);
      CHECK(lane(high, vector_exp2, which) == infinity);
    }
    for (const char* payload : {"", "1", "511", "4194303"}) {  // a NaN keeps being one, whatever its payload
      const T nan = static_cast<T>(std::nan(payload));
      CHECK(std::isnan(lane(nan, vector_exp, which)));
      CHECK(std::isnan(lane(nan, vector_exp2, which)));
      CHECK(std::isnan(lane(static_cast<T>(std::nanf(payload)), vector_exp, which)));
    }
    CHECK(lane(T(0), vector_exp, which) == 1);
    CHECK(lane(T(0), vector_exp2, which) == 1);
    CHECK(lane(T(10), vector_exp2, which) == Approx(1024));
  }
  // The largest finite results, and the first infinite ones.
  CHECK(lane(88.72f, vector_exp, 0) == Approx(std::exp(88.72f)));
  CHECK(std::isinf(lane(88.73f, vector_exp, 0)));
  CHECK(std::isfinite(lane(127.9999f, vector_exp2, 0)));
  CHECK(std::isinf(lane(128.0f, vector_exp2, 0)));
}

TEMPLATE_TEST_CASE("sigmoid phases are the phasors of 2πσ(x)", "[simd]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 7e-7 : 4e-15;
  double worst = 0, worst_length = 0, sum = 0;
  const auto check = [&](T x, Index which) {
    const auto cosine = lane(
        x, [](const auto& v) { return simd::sigmoid_phase(v).cosine; }, which);
    const auto sine = lane(
        x, [](const auto& v) { return simd::sigmoid_phase(v).sine; }, which);
    const auto slope = lane(
        x, [](const auto& v) { return simd::sigmoid_phase(v).slope; }, which);
    const double sigma = 1 / (1 + std::exp(-static_cast<double>(x))), angle = 2 * std::numbers::pi * sigma;
    const double c = static_cast<double>(cosine), s = static_cast<double>(sine);
    for (const double error : {c - std::cos(angle), s - std::sin(angle),
                               static_cast<double>(slope) - 2 * std::numbers::pi * sigma * (1 - sigma)}) {
      worst = test::larger(worst, std::abs(error));
      sum += std::abs(error) / 3;
    }
    worst_length = test::larger(worst_length, std::abs(std::hypot(c, s) - 1));
  };
  constexpr int count = 100000;
  for (int i = 0; i <= count; ++i) check(static_cast<T>(-20 + 40.0 * i / count), i % simd::lanes<T>);
  CHECK(worst <= tolerance);
  CHECK(sum / count <= tolerance / 4);
  for (const double x : {-1e30, -1000.0, -88.0, -0.0, 88.0, 1000.0, 1e30}) check(static_cast<T>(x), 0);
  check(std::numeric_limits<T>::infinity(), 0);
  check(-std::numeric_limits<T>::infinity(), 0);
  CHECK(worst <= tolerance);
  CHECK(worst_length <= tolerance);
  CHECK(std::isnan(lane(
      std::numeric_limits<T>::quiet_NaN(), [](const auto& v) { return simd::sigmoid_phase(v).sine; }, 0)));
}
