#include "rbar/core/parallel.hpp"
#include "rbar/core/random.hpp"
#include "rbar/simd/bf16_product.hpp"
#include "simd/rounding_error.hpp"
#include "support/allocations.hpp"
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

// C = op(A)·op(B), each operand in the order that its transposition says, rows as far apart as they are long.
struct Product {
  bool transpose_a, transpose_b;
  Index m, n, k;

  float a(const std::vector<float>& values, Index i, Index p) const {
    return values[static_cast<std::size_t>(transpose_a ? p * m + i : i * k + p)];
  }
  float b(const std::vector<float>& values, Index p, Index j) const {
    return values[static_cast<std::size_t>(transpose_b ? j * k + p : p * n + j)];
  }
  void compute(const std::vector<float>& left, const std::vector<float>& right, std::vector<float>& c,
               bool accumulate = false) const {
    simd::rounded_gemm(transpose_a, transpose_b, m, n, k, left.data(), transpose_a ? m : k, right.data(),
                       transpose_b ? k : n, c.data(), n, accumulate);
  }
  std::vector<float> operator()(const std::vector<float>& left, const std::vector<float>& right) const {
    std::vector<float> c(static_cast<std::size_t>(m * n), 7.0f);
    compute(left, right, c);
    return c;
  }
};

}  // namespace

// Naive: both factors rounded to bf16, products summed in fp32, front to back.
TEST_CASE("rounded products are at most twice as far from exact ones as the naive ones are") {
  const Index sizes[][3] = {{1, 1, 1},     {1, 7, 5},    {2, 4, 32},   {3, 50, 31},  {17, 6, 95},   {70, 37, 66},
                            {1, 256, 513}, {130, 19, 3}, {8, 64, 512}, {260, 49, 7}, {20, 21, 2085}};
  for (const bool transpose_a : {false, true})
    for (const bool transpose_b : {false, true})
      for (const auto& [m, n, k] : sizes) {
        INFO(m << " × " << n << " × " << k << ", transposed: " << transpose_a << transpose_b);
        const Product product{transpose_a, transpose_b, m, n, k};
        const auto a = random_floats(m * k, 1), b = random_floats(k * n, 2);
        const auto c = product(a, b);
        test::RoundingError far;
        for (Index i = 0; i < m; ++i)
          for (Index j = 0; j < n; ++j)
            far.add(
                c[static_cast<std::size_t>(i * n + j)], k, /*rounds_left=*/true,
                [&](Index p) { return product.a(a, i, p); }, [&](Index p) { return product.b(b, p, j); });
        CHECK(far.error <= 2 * far.naive_error);
        // Nothing else is rounded: the rest is fp32.
        CHECK(far.apart <= 2e-7 * static_cast<double>(k) + 1e-6);
      }
}

TEST_CASE("a row of a rounded product does not know the others, nor the number of threads, nor the last call") {
  const Product shapes[] = {{false, true, 139, 403, 1203},
                            {false, true, 300, 43, 203},
                            {false, false, 75, 601, 77},
                            {true, false, 180, 99, 65}};
  for (const Product& product : shapes) {
    INFO("transposed: " << product.transpose_a << product.transpose_b);
    const auto a = random_floats(product.m * product.k, 3), b = random_floats(product.k * product.n, 4);
    auto together = product(a, b);
    for (const Index i : {Index{0}, Index{5}, Index{64}, product.m - 1}) {
      Product one = product;
      one.m = 1;
      std::vector<float> row;
      for (Index p = 0; p < product.k; ++p) row.push_back(product.a(a, i, p));
      CHECK(one(row, b) ==
            std::vector<float>(together.begin() + i * product.n, together.begin() + (i + 1) * product.n));
    }
    for (const int threads : {2, 5}) {
      set_num_threads(threads);
      CHECK(product(a, b) == together);
    }
    set_num_threads(1);
    if (test::counts_allocations) CHECK(test::allocations_in([&] { product.compute(a, b, together); }) == 0);
  }
}

TEST_CASE("rounded products accumulate, keep to their rows and pass NaN and infinity on") {
  const Index m = 3, n = 5, k = 37, ldc = 7;
  auto a = random_floats(m * k, 5), b = random_floats(n * k, 6);
  const Product product{false, true, m, n, k};
  const auto plain = product(a, b);
  std::vector<float> c(static_cast<std::size_t>(m * ldc), 2.0f);
  simd::rounded_gemm(false, true, m, n, k, a.data(), k, b.data(), k, c.data(), ldc, /*accumulate=*/true);
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < ldc; ++j) {
      const float expected = j < n ? 2.0f + plain[static_cast<std::size_t>(i * n + j)] : 2.0f;
      CHECK(c[static_cast<std::size_t>(i * ldc + j)] == expected);
    }
  simd::rounded_gemm(false, true, m, n, 0, a.data(), k, b.data(), k, c.data(), ldc, /*accumulate=*/false);
  CHECK(c[0] == 0);
  CHECK(c[5] == 2);

  a[static_cast<std::size_t>(k + 36)] = std::numeric_limits<float>::quiet_NaN();
  b[static_cast<std::size_t>(2 * k)] = std::numeric_limits<float>::max();  // infinite in bf16
  const auto result = product(a, b);
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < n; ++j) {
      const float value = result[static_cast<std::size_t>(i * n + j)];
      INFO(i << ", " << j);
      CHECK(std::isnan(value) == (i == 1));
      CHECK(std::isinf(value) == (i != 1 && j == 2));
    }
}
