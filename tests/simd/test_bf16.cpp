#include "rbar/core/parallel.hpp"
#include "rbar/core/random.hpp"
#include "rbar/simd/bf16_packed.hpp"
#include "simd/rounding_error.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <limits>
#include <vector>

using namespace rbar;
using simd::Index;

namespace {

std::vector<float> random_floats(Index count, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.normal(0, 1));
  return values;
}
std::vector<simd::Bf16Pair> packed(Index n, Index k, const std::vector<float>& b) {
  std::vector<simd::Bf16Pair> result(static_cast<std::size_t>(simd::packed_bf16_size(n, k)), 0x7fc07fc0);  // NaN
  simd::pack_bf16(n, k, b.data(), k, result.data());
  return result;
}
std::vector<float> product(Index m, Index n, Index k, const std::vector<float>& a, const std::vector<float>& b,
                           Bf16Inputs inputs) {
  std::vector<float> c(static_cast<std::size_t>(m * n));
  simd::packed_bf16_gemm(m, n, k, a.data(), k, packed(n, k, b).data(), c.data(), n, /*accumulate=*/false, inputs);
  return c;
}

}  // namespace

TEST_CASE("rounding to bf16 takes the nearest, ties to even") {
  CHECK(to_float(to_bf16(1.0f)) == 1.0f);
  CHECK(to_float(to_bf16(1.00390625f)) == 1.0f);          // 1 + 2⁻⁸: a tie, down to the even mantissa
  CHECK(to_float(to_bf16(1.01171875f)) == 1.015625f);     // 1 + 3·2⁻⁸: a tie, up to the even one
  CHECK(to_float(to_bf16(1.0039063692f)) == 1.0078125f);  // just above a tie
  CHECK(to_float(to_bf16(-1.01171875f)) == -1.015625f);
  CHECK(to_float(to_bf16(std::numeric_limits<float>::max())) == std::numeric_limits<float>::infinity());
  CHECK(to_float(to_bf16(-std::numeric_limits<float>::infinity())) == -std::numeric_limits<float>::infinity());
  CHECK(to_bf16(-0.0f).bits == 0x8000);
  CHECK(std::abs(to_float(to_bf16(3e-39f)) - 3e-39f) < 5e-41f);  // subnormals are not flushed
  for (const std::uint32_t nan : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffc12345u}) {
    const BFloat16 result = to_bf16(std::bit_cast<float>(nan));
    INFO(nan);
    CHECK(std::isnan(to_float(result)));
    CHECK((result.bits >> 15) == (nan >> 31));
  }
  Rng rng(1);
  for (int i = 0; i < 10000; ++i) {
    const auto value = static_cast<float>(std::exp(rng.uniform(-60, 60)) * (rng.uniform() < 0.5 ? -1 : 1));
    const BFloat16 nearest = to_bf16(value);
    const float error = std::abs(to_float(nearest) - value);
    for (const int step : {-1, 1})
      REQUIRE(error <= std::abs(to_float({static_cast<std::uint16_t>(nearest.bits + step)}) - value));
  }
}

// Naive: both factors rounded to bf16, products summed in fp32, front to back.
TEST_CASE("products with bf16 weights are at most twice as far from exact ones as the naive ones are") {
  const Index sizes[][3] = {{1, 1, 1},   {1, 7, 5},    {2, 4, 32},    {3, 5, 31},     {4, 9, 33},    {5, 130, 64},
                            {17, 6, 95}, {66, 37, 70}, {1, 256, 513}, {130, 19, 257}, {8, 64, 2048}, {19, 50, 3001}};
  for (const auto& size : sizes)
    for (const Bf16Inputs inputs : all_bf16_inputs) {
      const Index m = size[0], n = size[1], k = size[2];
      INFO(m << " × " << n << " × " << k << ", rounded: " << name_of(inputs));
      const auto a = random_floats(m * k, 1), weights = random_floats(n * k, 2);
      const auto c = product(m, n, k, a, weights, inputs);
      test::RoundingError far;
      for (Index i = 0; i < m; ++i)
        for (Index j = 0; j < n; ++j)
          far.add(
              c[static_cast<std::size_t>(i * n + j)], k, inputs == Bf16Inputs::both,
              [&](Index p) { return a[static_cast<std::size_t>(i * k + p)]; },
              [&](Index p) { return weights[static_cast<std::size_t>(j * k + p)]; });
      CHECK(far.error <= 2 * far.naive_error);
      // Nothing else is rounded: the rest is fp32.
      CHECK(far.apart <= 1e-6 * static_cast<double>(k) + 1e-6);
    }
}

TEST_CASE("a row of a product with bf16 weights does not know the others, nor the number of threads") {
  const Index m = 139, n = 43, k = 203;
  const auto a = random_floats(m * k, 3);
  const auto b = random_floats(n * k, 4);
  for (const Bf16Inputs inputs : all_bf16_inputs) {
    INFO("rounded: " << name_of(inputs));
    const auto together = product(m, n, k, a, b, inputs);
    for (const Index i : {Index{0}, Index{5}, Index{64}, Index{128}, m - 1}) {
      const std::vector<float> row(a.begin() + i * k, a.begin() + (i + 1) * k);
      CHECK(product(1, n, k, row, b, inputs) ==
            std::vector<float>(together.begin() + i * n, together.begin() + (i + 1) * n));
    }
    for (const int threads : {2, 5}) {
      set_num_threads(threads);
      CHECK(product(m, n, k, a, b, inputs) == together);
    }
    set_num_threads(1);
  }
}

TEST_CASE("what a product rounds has a name") {
  Bf16Inputs inputs = Bf16Inputs::weights;
  CHECK((parse("both", inputs) && inputs == Bf16Inputs::both));
  CHECK((parse("weights", inputs) && inputs == Bf16Inputs::weights));
  CHECK_FALSE(parse("all", inputs));
}

TEST_CASE("products with bf16 weights accumulate, keep to their rows and pass NaN and infinity on") {
  const Index m = 3, n = 5, k = 37, ldc = 7;
  const Bf16Inputs inputs = GENERATE(Bf16Inputs::weights, Bf16Inputs::both);
  INFO("rounded: " << name_of(inputs));
  auto a = random_floats(m * k, 5);
  auto b = random_floats(n * k, 6);
  const auto plain = product(m, n, k, a, b, inputs);
  std::vector<float> c(static_cast<std::size_t>(m * ldc), 2.0f);
  simd::packed_bf16_gemm(m, n, k, a.data(), k, packed(n, k, b).data(), c.data(), ldc, /*accumulate=*/true, inputs);
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < ldc; ++j) {
      const float expected = j < n ? 2.0f + plain[static_cast<std::size_t>(i * n + j)] : 2.0f;
      CHECK(c[static_cast<std::size_t>(i * ldc + j)] == expected);
    }
  simd::packed_bf16_gemm(m, n, 0, a.data(), k, nullptr, c.data(), ldc, /*accumulate=*/false, inputs);
  CHECK(c[0] == 0);
  CHECK(c[5] == 2);

  a[static_cast<std::size_t>(k + 36)] = std::numeric_limits<float>::quiet_NaN();
  b[static_cast<std::size_t>(2 * k)] = std::numeric_limits<float>::infinity();
  const auto result = product(m, n, k, a, b, inputs);
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < n; ++j) {
      const float value = result[static_cast<std::size_t>(i * n + j)];
      INFO(i << ", " << j);
      CHECK(std::isnan(value) == (i == 1));
      CHECK(std::isinf(value) == (i != 1 && j == 2));
    }
}
