// Row kernels at every size from nothing to beyond two registers and at some larger ones, at every misalignment, with
// guards around the output.
#include "rbar/core/random.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/simd/energy.hpp"
#include "rbar/simd/phase.hpp"
#include "rbar/simd/softmax.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <cmath>
#include <vector>

using namespace rbar;

namespace {

// A row of `count` random numbers that starts `offset` elements after a 64-byte boundary, guard values around it.
template <class T>
struct Row {
  static constexpr T guard = T(12345);
  std::vector<T> memory;
  T* data;
  Index count;

  Row(Index count_, Index offset, std::uint64_t seed)
      : memory(static_cast<std::size_t>(count_) + 192 / sizeof(T), guard), count(count_) {
    const auto misaligned = reinterpret_cast<std::uintptr_t>(memory.data()) % 64 / sizeof(T);
    data = memory.data() + (64 / sizeof(T) - misaligned) % (64 / sizeof(T)) + offset;
    Rng rng(seed);
    for (Index i = 0; i < count; ++i) data[i] = static_cast<T>(rng.normal(0.2, 1.5));
  }
  bool intact() const {
    for (const T& value : memory)
      if ((&value < data || &value >= data + count) && value != guard) return false;
    return true;
  }
};

template <class T, class Body>
void for_all_rows(Body&& body) {
  for (Index count = 0; count <= 2 * simd::lanes<T> + 1; ++count)
    for (Index offset = 0; offset < simd::lanes<T>; ++offset) body(count, offset);
  // Beyond the groups of registers and the blocks of a sum.
  constexpr Index L = simd::lanes<T>;
  for (const Index count : {4 * L, 5 * L + 3, 9 * L + 1, 1024 + 3 * L + 5}) body(count, Index{1});
}

template <class T>
double tolerance() {
  return std::is_same_v<T, float> ? 1e-6 : 1e-14;
}

double angle_of(double x) { return 2 * std::numbers::pi / (1 + std::exp(-x)); }

}  // namespace

TEMPLATE_TEST_CASE("phase sums, phasors and their gradient at all sizes and misalignments", "[simd]", float, double) {
  using T = TestType;
  double worst = 0;
  bool intact = true;
  for_all_rows<T>([&](Index count, Index offset) {
    Row<T> x(count, offset, 1), cosine(count, offset, 2), sine(count, (offset + 1) % simd::lanes<T>, 3);
    Row<T> gradient(count, offset, 4), angle_gradient(count, offset, 4), varied(count, offset, 4);
    const Row<T> before(count, offset, 4), a(count, offset, 5), b(count, offset, 6);
    const auto sums = simd::sigmoid_phase_sums(x.data, count), plain = simd::angle_sums(x.data, count);
    simd::write_phasors(x.data, count, cosine.data, sine.data);
    const auto differences =
        simd::phase_difference_sums(cosine.data, sine.data, sine.data, cosine.data, count);  // z·conj(i·conj z)
    simd::sigmoid_phase_gradient(x.data, count, T(0.7), T(-0.4), gradient.data);
    simd::sigmoid_phase_gradient(x.data, count, a.data, b.data, varied.data);
    simd::angle_gradient(x.data, count, T(0.7), T(-0.4), angle_gradient.data);
    double sc = 0, ss = 0, pc = 0, ps = 0, dc = 0, ds = 0;
    for (Index i = 0; i < count; ++i) {
      const double v = static_cast<double>(x.data[i]), c = std::cos(angle_of(v)), s = std::sin(angle_of(v));
      const double sigma = angle_of(v) / (2 * std::numbers::pi), slope = angle_of(v) * (1 - sigma);
      const double old = static_cast<double>(before.data[i]);
      sc += c, ss += s, pc += std::cos(v), ps += std::sin(v), dc += 2 * c * s, ds += s * s - c * c;
      const auto compare = [&](T actual, double expected) {
        worst = test::larger(worst, std::abs(static_cast<double>(actual) - expected) / (1 + std::abs(expected)));
      };
      compare(cosine.data[i], c);
      compare(sine.data[i], s);
      compare(gradient.data[i], old + slope * (0.7 * c + 0.4 * s));
      compare(varied.data[i], old + slope * (static_cast<double>(a.data[i]) * c - static_cast<double>(b.data[i]) * s));
      compare(angle_gradient.data[i], old + 0.7 * std::cos(v) + 0.4 * std::sin(v));
    }
    const double n = static_cast<double>(count + 1);
    for (const double error : {sums.cosine - sc, sums.sine - ss, plain.cosine - pc, plain.sine - ps,
                               differences.cosine - dc, differences.sine - ds})
      worst = test::larger(worst, std::abs(error) / n);
    intact = intact && cosine.intact() && sine.intact() && gradient.intact() && varied.intact();
  });
  CHECK(worst <= 2 * tolerance<T>());  // `varied` has factors of up to 4
  CHECK(intact);
}

TEST_CASE("angles of any size keep their phase", "[simd]") {
  std::vector<float> angles;
  for (const float turns : {1.0f, 100.0f, 1e4f, 1e6f})
    for (int i = 0; i < 9; ++i) angles.push_back(turns * (1 + 0.37f * static_cast<float>(i)));
  for (const float angle : angles) {
    const auto sums = simd::angle_sums(&angle, 1);
    CHECK(sums.cosine == Approx(std::cos(static_cast<double>(angle))).margin(2e-6));
    CHECK(sums.sine == Approx(std::sin(static_cast<double>(angle))).margin(2e-6));
  }
}

TEMPLATE_TEST_CASE("softmax rows and their vjp at all sizes and misalignments", "[simd]", float, double) {
  using T = TestType;
  double worst = 0;
  bool intact = true;
  for_all_rows<T>([&](Index count, Index offset) {
    if (count == 0) return;
    Row<T> x(count, offset, 7), y(count, (offset + 3) % simd::lanes<T>, 8), dx(count, offset, 9);
    const Row<T> dy(count, offset, 10);
    simd::softmax_row(x.data, count, y.data);
    simd::softmax_row_backward(y.data, dy.data, count, dx.data);
    double total = 0, mean = 0;
    for (Index i = 0; i < count; ++i) total += std::exp(static_cast<double>(x.data[i]));
    for (Index i = 0; i < count; ++i)
      mean += std::exp(static_cast<double>(x.data[i])) / total * static_cast<double>(dy.data[i]);
    for (Index i = 0; i < count; ++i) {
      const double expected = std::exp(static_cast<double>(x.data[i])) / total;
      worst = test::larger(worst, std::abs(static_cast<double>(y.data[i]) - expected));
      worst = test::larger(
          worst, std::abs(static_cast<double>(dx.data[i]) - expected * (static_cast<double>(dy.data[i]) - mean)));
    }
    intact = intact && y.intact() && dx.intact();
    simd::softmax_row(x.data, count, x.data);  // in place
    for (Index i = 0; i < count; ++i) intact = intact && x.data[i] == y.data[i];
  });
  CHECK(worst <= tolerance<T>());
  CHECK(intact);
}

TEMPLATE_TEST_CASE("softmax of hidden, huge and broken rows", "[simd]", float, double) {
  using T = TestType;
  constexpr T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  constexpr Index count = 2 * simd::lanes<T> + 3;
  for (Index special = 0; special < count; ++special) {
    std::vector<T> x(count, -infinity), y(count, T(7));
    simd::softmax_row(x.data(), count, y.data());
    for (const T value : y) CHECK(value == 0);

    x[static_cast<std::size_t>(special)] = T(1e30);
    simd::softmax_row(x.data(), count, y.data());
    for (Index i = 0; i < count; ++i) CHECK(y[static_cast<std::size_t>(i)] == (i == special ? 1 : 0));

    for (const T rest : {-infinity, T(0.5)}) {
      std::fill(x.begin(), x.end(), rest);
      x[static_cast<std::size_t>(special)] = nan;
      simd::softmax_row(x.data(), count, y.data());
      for (const T value : y) CHECK(std::isnan(value));
    }
  }
}

TEMPLATE_TEST_CASE("residual energy at all sizes, misalignments and thread counts", "[simd]", float, double) {
  using T = TestType;
  const auto expected = [](const T* a, const T* b, Index count) {
    double sum = 0;
    for (Index i = 0; i < count; ++i) {
      const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
      sum += difference * difference;
    }
    return sum;
  };
  const auto compare = [&](Index count, Index offset) {
    const Row<T> a(count, offset, 11), b(count, (offset + 5) % simd::lanes<T>, 12);
    return std::abs(simd::residual_energy(a.data, b.data, count) - expected(a.data, b.data, count)) /
           (1 + expected(a.data, b.data, count));
  };
  double worst = 0;
  for_all_rows<T>([&](Index count, Index offset) { worst = test::larger(worst, compare(count, offset)); });
  for (const Index count : {127, 128, 4095, 4096, 4097, 300001}) worst = test::larger(worst, compare(count, 1));
  CHECK(worst <= std::max(tolerance<T>(), 1e-12));  // the plain sum of 300,001 terms rounds too

  const Row<T> a(300001, 0, 13), b(300001, 0, 14);
  const double one = simd::residual_energy(a.data, b.data, a.count);
  for (const int threads : {2, 5}) {
    set_num_threads(threads);
    CHECK(simd::residual_energy(a.data, b.data, a.count) == one);
  }
  set_num_threads(1);
}
