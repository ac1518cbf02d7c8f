// rbar::gemm against two nested loops in double: every transpose, shape, tail, leading dimension.
#include "rbar/core/gemm.hpp"
#include "rbar/core/random.hpp"

#include "support/catch.hpp"

#include <complex>
#include <cstring>
#include <limits>

using rbar::Index;
using rbar::Transpose;

namespace {

// A row-major matrix with `pad` spare elements after each row and a border before and after, all filled
// with a canary that no product may change.
template <class T>
struct Padded {
  static constexpr Index border = 67;
  Index rows, columns, stride;
  std::vector<T> memory;

  Padded(Index rows_, Index columns_, Index pad, T canary)
      : rows(rows_),
        columns(columns_),
        stride(columns_ + pad),
        memory(static_cast<std::size_t>(rows_ * (columns_ + pad) + 2 * border), canary) {}

  T* data() { return memory.data() + border; }
  T& operator()(Index i, Index j) { return data()[i * stride + j]; }
  void fill(rbar::Rng& rng) {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) (*this)(i, j) = static_cast<T>(rng.uniform(-1, 1));
  }
};

template <class T>
struct Problem {
  Index m, n, k;
  bool transpose_a, transpose_b, accumulate;
  Padded<T> a, b, c;

  // Input borders are NaN: reading one and using it shows in the result.
  Problem(Index m_, Index n_, Index k_, bool ta, bool tb, bool add, Index pad, rbar::Rng& rng)
      : m(m_),
        n(n_),
        k(k_),
        transpose_a(ta),
        transpose_b(tb),
        accumulate(add),
        a(ta ? k_ : m_, ta ? m_ : k_, pad, std::numeric_limits<T>::quiet_NaN()),
        b(tb ? n_ : k_, tb ? k_ : n_, pad + 3, std::numeric_limits<T>::quiet_NaN()),
        c(m_, n_, pad + 1, T(-77)) {
    a.fill(rng), b.fill(rng), c.fill(rng);
  }

  double expected(Index i, Index j) {
    double sum = accumulate ? static_cast<double>(c(i, j)) : 0.0;
    for (Index p = 0; p < k; ++p)
      sum +=
          static_cast<double>(transpose_a ? a(p, i) : a(i, p)) * static_cast<double>(transpose_b ? b(j, p) : b(p, j));
    return sum;
  }

  void run(Padded<T>& out) {
    rbar::gemm(transpose_a ? Transpose::yes : Transpose::no, transpose_b ? Transpose::yes : Transpose::no, m, n, k,
               static_cast<const T*>(a.data()), a.stride, static_cast<const T*>(b.data()), b.stride, out.data(),
               out.stride, accumulate);
  }

  void check() {
    CAPTURE(m, n, k, transpose_a, transpose_b, accumulate, a.stride);
    Padded<T> expected_memory = c, got = c;
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) expected_memory(i, j) = static_cast<T>(expected(i, j));
    run(got);
    // |error| <= k·eps·Σ|a||b| with |a|,|b| <= 1; canaries must be equal, so the tolerance cannot hide them.
    const double tolerance = static_cast<double>(k + 2) * std::numeric_limits<T>::epsilon();
    double worst = 0;
    for (std::size_t i = 0; i < got.memory.size(); ++i) {
      const double difference =
          std::abs(static_cast<double>(got.memory[i]) - static_cast<double>(expected_memory.memory[i]));
      worst = difference <= worst ? worst : difference;  // a NaN sticks
    }
    REQUIRE(worst <= tolerance);
  }
};

template <class T>
void check_all_cases(Index m, Index n, Index k, Index pad, rbar::Rng& rng) {
  for (const bool transpose_a : {false, true})
    for (const bool transpose_b : {false, true})
      for (const bool accumulate : {false, true})
        Problem<T>(m, n, k, transpose_a, transpose_b, accumulate, pad, rng).check();
}

}  // namespace

TEMPLATE_TEST_CASE("gemm equals the double loop for every size around the register block", "[gemm]", float, double) {
  rbar::Rng rng(1);
  for (const Index m : {1, 3, 7, 8, 9, 17})
    for (const Index n : {1, 5, 16, 17, 33, 49})
      for (const Index k : {1, 16, 19}) check_all_cases<TestType>(m, n, k, (m + n + k) % 3, rng);
}

TEMPLATE_TEST_CASE("gemm equals the double loop for random shapes", "[gemm]", float, double) {
  const std::uint64_t seed = 20240611;
  INFO("seed " << seed);
  rbar::Rng rng(seed);
  for (int round = 0; round < 8; ++round) {
    const auto size = [&](std::uint64_t bound) { return static_cast<Index>(1 + rng.below(bound)); };
    check_all_cases<TestType>(size(150), size(300), size(500), size(9) - 1, rng);
  }
}

TEST_CASE("gemm equals the double loop across cache blocks", "[gemm]") {
  rbar::Rng rng(3);
  Problem<float>(37, 40, 7001, false, true, false, 0, rng).check();  // many slices of k
  Problem<float>(37, 40, 7001, true, false, true, 5, rng).check();
  Problem<float>(2, 900, 600, false, true, true, 1, rng).check();    // few rows, several chunks
  Problem<float>(9, 90, 1003, false, true, true, 18, rng).check();   // few rows, of B whole pages apart
  Problem<float>(3000, 2, 300, false, true, false, 0, rng).check();  // few columns, several chunks
  Problem<float>(40, 5000, 31, false, false, true, 0, rng).check();
  Problem<float>(290, 110, 1201, false, false, true, 3, rng).check();  // B packed while it is multiplied
  Problem<double>(5000, 20, 31, true, true, false, 2, rng).check();
}

TEST_CASE("gemm takes large operands piece by piece", "[gemm]") {
  // Many slices and chunks: checked on a sample of C, exact in small integers.
  for (const bool tall : {false, true}) {
    const Index m = tall ? 9000 : 24, n = tall ? 24 : 9000, k = 1100;
    std::vector<float> a(static_cast<std::size_t>(m * k)), b(static_cast<std::size_t>(n * k)),
        c(static_cast<std::size_t>(m * n));
    rbar::Rng rng(4);
    for (auto* v : {&a, &b})
      for (float& x : *v) x = static_cast<float>(static_cast<int>(rng.below(7)) - 3);
    rbar::gemm(Transpose::no, Transpose::yes, m, n, k, std::as_const(a).data(), k, std::as_const(b).data(), k, c.data(),
               n);
    Index wrong = 0;
    for (Index sample = 0; sample < 4000; ++sample) {
      const Index i = static_cast<Index>(rng.below(static_cast<std::uint64_t>(m)));
      const Index j = static_cast<Index>(rng.below(static_cast<std::uint64_t>(n)));
      float sum = 0;
      for (Index p = 0; p < k; ++p)
        sum += a[static_cast<std::size_t>(i * k + p)] * b[static_cast<std::size_t>(j * k + p)];
      wrong += sum != c[static_cast<std::size_t>(i * n + j)];
    }
    REQUIRE(wrong == 0);
  }
}

TEST_CASE("gemm of an empty inner dimension is zero, or adds nothing", "[gemm]") {
  rbar::Rng rng(5);
  for (const bool accumulate : {false, true}) {
    Problem<float>(5, 7, 0, false, false, accumulate, 2, rng).check();
    Problem<float>(0, 7, 3, true, false, accumulate, 2, rng).check();
    Problem<float>(5, 0, 3, false, true, accumulate, 2, rng).check();
  }
}

TEST_CASE("gemm does not skip zeros: NaN and infinity propagate", "[gemm]") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const Index m : {1, 20})
    for (const bool transpose_b : {false, true}) {
      const Index n = 60, k = 50;
      std::vector<float> a(static_cast<std::size_t>(m * k), 0.0f), b(static_cast<std::size_t>(n * k), 1.0f),
          c(static_cast<std::size_t>(m * n), nan);
      const auto at = [&](Index p, Index j) -> float& {
        return b[static_cast<std::size_t>(transpose_b ? j * k + p : p * n + j)];
      };
      at(49, 59) = nan;
      at(3, 17) = infinity;
      rbar::gemm(Transpose::no, transpose_b ? Transpose::yes : Transpose::no, m, n, k, std::as_const(a).data(), k,
                 std::as_const(b).data(), transpose_b ? k : n, c.data(), n);
      for (Index i = 0; i < m; ++i)
        for (Index j = 0; j < n; ++j) {
          const float value = c[static_cast<std::size_t>(i * n + j)];
          REQUIRE((j == 59 || j == 17 ? std::isnan(value) : value == 0.0f));
        }
    }
}

TEMPLATE_TEST_CASE("gemm with a bias has the bits of adding to rows of it", "[gemm]", float, double,
                   std::complex<float>) {
  using T = TestType;
  struct Threads {
    ~Threads() { rbar::set_num_threads(1); }
  } restore;
  rbar::Rng rng(7);
  // A row, few rows, few columns, yᵀ = W xᵀ, whole slices, many of them, an inner dimension of nothing.
  for (const auto& shape : {std::array<Index, 3>{1, 70, 90},
                            {9, 300, 65},
                            {200, 3, 50},
                            {70, 200, 90},
                            {300, 150, 130},
                            {530, 100, 40},
                            {120, 310, 1100},
                            {5, 6, 0}})
    for (const int threads : {1, 3})
      for (const bool transpose_a : {false, true})
        for (const bool transpose_b : {false, true}) {
          const Index m = shape[0], n = shape[1], k = shape[2];
          CAPTURE(m, n, k, threads, transpose_a, transpose_b);
          rbar::set_num_threads(threads);
          const auto random = [&](Index count) {
            std::vector<T> values(static_cast<std::size_t>(count));
            for (T& value : values) value = T(static_cast<float>(rng.uniform(-1, 1)));
            return values;
          };
          const std::vector<T> a = random(m * k), b = random(n * k), bias = random(n);
          std::vector<T> begun(static_cast<std::size_t>(m * n)), added(begun.size());
          const auto run = [&](std::vector<T>& c, bool accumulate, const T* begin) {
            rbar::gemm(transpose_a ? Transpose::yes : Transpose::no, transpose_b ? Transpose::yes : Transpose::no, m, n,
                       k, a.data(), transpose_a ? m : k, b.data(), transpose_b ? k : n, c.data(), n, accumulate, begin);
          };
          for (Index i = 0; i < m; ++i) std::copy_n(bias.data(), n, added.data() + i * n);
          run(added, true, nullptr);
          run(begun, false, bias.data());
          REQUIRE(std::memcmp(begun.data(), added.data(), begun.size() * sizeof(T)) == 0);
        }
  T one(1);
  REQUIRE_THROWS_WITH(rbar::gemm(Transpose::no, Transpose::no, 1, 1, 1, &one, 1, &one, 1, &one, 1, true, &one),
                      ContainsText("gemm: accumulate"));
}

TEST_CASE("gemm gives the same bits for any number of threads", "[gemm]") {
  struct Threads {
    ~Threads() { rbar::set_num_threads(1); }
  } restore;
  rbar::Rng rng(6);
  // The last two: more slices than are in memory at once, of more columns than a thread takes; few panels to pack.
  for (const auto& [m, n, k] :
       {std::array<Index, 3>{300, 517, 700}, {3, 1000, 511}, {130, 33, 6500}, {290, 900, 2900}, {70, 1111, 600}})
    for (const bool transpose_a : {false, true}) {
      const bool transpose_b = n != 517 && !(transpose_a && m == 290);
      Problem<float> problem(m, n, k, transpose_a, transpose_b, true, 1, rng);
      rbar::set_num_threads(1);
      Padded<float> one = problem.c;
      problem.run(one);
      for (const int threads : {2, 3, 5, 16}) {
        rbar::set_num_threads(threads);
        Padded<float> many = problem.c;
        problem.run(many);
        REQUIRE(std::memcmp(one.memory.data(), many.memory.data(), one.memory.size() * sizeof(float)) == 0);
      }
    }
}

#if !defined(RBAR_GEMM_EIGEN) && !defined(RBAR_GEMM_ONEDNN)
TEMPLATE_TEST_CASE("a row of gemm has the same bits among any number of rows", "[gemm]", float, double) {
  struct Threads {
    ~Threads() { rbar::set_num_threads(1); }
  } restore;
  const std::uint64_t seed = 20241122;
  rbar::Rng rng(seed);
  for (int round = 0; round < 48; ++round) {
    const auto size = [&](std::uint64_t bound) { return static_cast<Index>(1 + rng.below(bound)); };
    const Index total = round % 8 == 4 ? 601 : 137, n = round % 3 == 0 ? size(5) : size(200),
                k = round % 3 == 1 ? size(40) : size(800);
    const bool transpose_a = round & 1, transpose_b = round & 2, accumulate = round & 4;
    const Index pad = round & 8 ? 1021 - k : round % 5;  // 1021: rows of B are then whole pages apart
    Problem<TestType> problem(total, n, k, transpose_a, transpose_b, accumulate, pad, rng);
    rbar::set_num_threads(1);
    Padded<TestType> all = problem.c;
    problem.run(all);
    for (const Index m : {1, 2, 7, 8, 9, 16, 17, 100}) {
      const int threads = 1 + round % 3;
      const Index first = static_cast<Index>(rng.below(static_cast<std::uint64_t>(total - m + 1)));
      CAPTURE(seed, round, m, n, k, transpose_a, transpose_b, accumulate, first, threads);
      rbar::set_num_threads(threads);
      Padded<TestType> some = problem.c;
      rbar::gemm(transpose_a ? Transpose::yes : Transpose::no, transpose_b ? Transpose::yes : Transpose::no, m, n, k,
                 static_cast<const TestType*>(&problem.a(transpose_a ? 0 : first, transpose_a ? first : 0)),
                 problem.a.stride, static_cast<const TestType*>(problem.b.data()), problem.b.stride, &some(first, 0),
                 some.stride, accumulate);
      Index different = 0;
      for (Index i = first; i < first + m; ++i)
        different += std::memcmp(&some(i, 0), &all(i, 0), sizeof(TestType) * static_cast<std::size_t>(n)) != 0;
      REQUIRE(different == 0);
    }
  }
}
#endif

TEST_CASE("gemm serves scalars without a kernel through Eigen", "[gemm]") {
  using Complex = std::complex<double>;
  const std::vector<Complex> a{{1, 2}, {0, 1}, {3, 0}, {1, -1}}, b{{2, 0}, {1, 1}, {0, -1}, {4, 0}};
  std::vector<Complex> c(4);
  rbar::gemm(Transpose::no, Transpose::yes, 2, 2, 2, a.data(), 2, b.data(), 2, c.data(), 2);
  REQUIRE(c[0] == a[0] * b[0] + a[1] * b[1]);
  REQUIRE(c[3] == a[2] * b[2] + a[3] * b[3]);
}
