// A packed matrix multiplies like the one it was made of, to the last bit.
#include "rbar/core/gemm.hpp"
#include "rbar/core/random.hpp"
#include "rbar/nn/packed_matrix.hpp"

#include "support/catch.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

using rbar::Index;
using rbar::PackedMatrix;
using rbar::PagedBuffer;

namespace {

template <class T>
rbar::Tensor<T, 2> random_matrix(Index rows, Index columns, rbar::Rng& rng) {
  rbar::Tensor<T, 2> matrix(rows, columns);
  for (T& value : rbar::elements(matrix)) value = static_cast<T>(rng.uniform(-1, 1));
  return matrix;
}

template <class T>
PackedMatrix<T> pack(const rbar::Tensor<T, 2>& matrix) {
  return PackedMatrix<T>(rbar::rows(matrix));
}

// y (+)= x Wᵀ by the packed and by the plain matrix; x and y lie among NaN and canaries.
template <class T>
void compare(Index m, Index n, Index k, bool accumulate, rbar::Rng& rng) {
  INFO("m " << m << ", n " << n << ", k " << k << ", accumulate " << accumulate);
  const auto weight = random_matrix<T>(n, k, rng);
  constexpr Index border = 96;
  const auto x = random_matrix<T>(m, k, rng), start = random_matrix<T>(m, n, rng);
  std::vector<T> left(static_cast<std::size_t>(m * k + 2 * border), std::numeric_limits<T>::quiet_NaN());
  std::vector<T> right(static_cast<std::size_t>(m * n + 2 * border), T(-77));
  std::copy_n(x.data(), m * k, left.data() + border);
  std::copy_n(start.data(), m * n, right.data() + border);
  rbar::Tensor<T, 2> expected = start;
  rbar::gemm(rbar::Transpose::no, rbar::Transpose::yes, m, n, k, x.data(), k, weight.data(), k, expected.data(), n,
             accumulate);
  pack(weight).product({left.data() + border, m, k}, {right.data() + border, m, n}, accumulate);
#if defined(RBAR_GEMM_EIGEN) || defined(RBAR_GEMM_ONEDNN)
  const bool same_bits = false;
#else
  const bool same_bits = n > rbar::simd::gemm_few_columns;
#endif
  // Sums of k products of numbers below 1, in whatever order.
  const double tolerance =
      same_bits ? 0
                : 2 * static_cast<double>(std::numeric_limits<T>::epsilon()) * static_cast<double>((k + 1) * (k + 1));
  for (Index i = 0; i < m * n; ++i)
    if (!(std::abs(static_cast<double>(right[static_cast<std::size_t>(border + i)] - expected.data()[i])) <= tolerance))
      FAIL("element " << i << ": " << right[static_cast<std::size_t>(border + i)] << ", not " << expected.data()[i]);
  const auto bias = random_matrix<T>(1, n, rng);
  rbar::Tensor<T, 2> begun = start, added(m, n);
  for (Index i = 0; i < m; ++i) std::copy_n(bias.data(), n, added.data() + i * n);
  pack(weight).product({left.data() + border, m, k}, rbar::rows(begun), false, bias.data());
  pack(weight).product({left.data() + border, m, k}, rbar::rows(added), true);
  REQUIRE(std::memcmp(begun.data(), added.data(), static_cast<std::size_t>(m * n) * sizeof(T)) == 0);
  for (Index i = 0; i < border; ++i) {
    REQUIRE(right[static_cast<std::size_t>(i)] == T(-77));
    REQUIRE(right[static_cast<std::size_t>(border + m * n + i)] == T(-77));
  }
}

}  // namespace

TEST_CASE("a packed matrix multiplies to the bits of the plain one: any rows, tails, slices") {
  rbar::Rng rng(1);
  for (const Index m : {1, 2, 3, 7, 8, 12, 16, 17, 33, 130})
    for (const Index n : {1, 4, 5, 47, 48, 49, 200})
      for (const Index k : {1, 15, 64, 700}) compare<float>(m, n, k, (m + n + k) % 2 == 0, rng);
  for (int i = 0; i < 20; ++i) {
    const auto size = [&](std::uint64_t most) { return static_cast<Index>(1 + rng.below(most)); };
    compare<float>(size(300), size(300), size(1500), i % 2 == 0, rng);
    compare<double>(size(40), size(90), size(600), i % 2 == 0, rng);
  }
}

TEST_CASE("a packed matrix multiplies to the same bits on any number of threads") {
  rbar::Rng rng(2);
  for (const Index m : {1, 9, 257}) {
    const auto weight = random_matrix<float>(1200, 300, rng), x = random_matrix<float>(m, 300, rng);
    const auto packed = pack(weight);
    rbar::Tensor<float, 2> one(m, 1200), many(m, 1200);
    rbar::set_num_threads(1);
    packed.product(rbar::rows(x), rbar::rows(one), false);
    for (const int threads : {2, 3, 8}) {
      rbar::set_num_threads(threads);
      many.setZero();
      packed.product(rbar::rows(x), rbar::rows(many), false);
      CHECK(std::memcmp(one.data(), many.data(), sizeof(float) * static_cast<std::size_t>(one.size())) == 0);
    }
    rbar::set_num_threads(1);
  }
}

TEST_CASE("a packed matrix hands on NaN and infinity, and knows its sizes") {
  rbar::Rng rng(3);
  auto weight = random_matrix<float>(50, 20, rng);
  weight(49, 3) = std::numeric_limits<float>::infinity();
  weight(7, 0) = std::numeric_limits<float>::quiet_NaN();
  PackedMatrix<float> packed;
  CHECK(packed.empty());
  packed = pack(weight);
  const PackedMatrix<float> copy = packed;  // a copy has memory of its own
  CHECK(copy.memory().data() != packed.memory().data());
  const PackedMatrix<float> moved = std::move(packed);
  CHECK(moved.in() == 20);
  CHECK(moved.out() == 50);
  const auto x = random_matrix<float>(2, 20, rng);
  rbar::Tensor<float, 2> y(2, 50), wrong(2, 49);
  for (const auto& each : {std::cref(copy), std::cref(moved)}) {
    each.get().product(rbar::rows(x), rbar::rows(y), false);
    CHECK(std::isinf(y(1, 49)));
    CHECK(std::isnan(y(1, 7)));
    CHECK(std::isfinite(y(1, 8)));
  }
  CHECK_THROWS_WITH(copy.product(rbar::rows(std::as_const(wrong)), rbar::rows(y), false),
                    ContainsText("PackedMatrix::product"));
  CHECK_THROWS_WITH(copy.product(rbar::rows(x), rbar::rows(wrong), false), ContainsText("PackedMatrix::product"));
  CHECK_THROWS_WITH(PackedMatrix<float>(rbar::ConstMatrixView<float>(weight.data(), 0, 20)),
                    ContainsText("PackedMatrix"));
}

TEST_CASE("a paged buffer copies and moves like the memory it is") {
  for (const std::size_t size : {std::size_t{0}, std::size_t{3}, std::size_t{1} << 20}) {
    PagedBuffer<float> first(size);
    for (std::size_t i = 0; i < size; ++i) first.data()[i] = static_cast<float>(i);
    PagedBuffer<float> second = first, third;
    third = first;
    const PagedBuffer<float>& same = first;
    first = same;
    const PagedBuffer<float> last = std::move(second);
    CHECK(second.size() == 0);
    for (const auto* each : std::initializer_list<const PagedBuffer<float>*>{&first, &third, &last}) {
      REQUIRE(each->size() == size);
      if (size > 0) CHECK(each->data()[size - 1] == static_cast<float>(size - 1));
    }
  }
}
