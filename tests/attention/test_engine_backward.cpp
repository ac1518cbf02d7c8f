// The backward pass against central differences of the definition, in double.
#include "attention/naive_attention.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "support/catch.hpp"

using namespace rbar;
using naive::Problem;
using naive::Sizes;

namespace {

// Gradients of the engine against differences of naive::loss.
template <class Mask>
GradientCheckReport check(const Sizes& sizes, const Mask& mask, const naive::Visible& visible, std::uint64_t seed = 1) {
  Problem<double> p(sizes, seed);
  const double scale = 1 / std::sqrt(static_cast<double>(sizes.dim));
  p.attend(DotProductScore{scale}, mask);
  p.backward(DotProductScore{scale}, mask);
  const std::vector<GradientPair> pairs = {
      {"query", p.query, p.dquery}, {"key", p.key, p.dkey}, {"value", p.value, p.dvalue}};
  return gradient_check(pairs, [&] { return naive::loss(p, naive::scaled(scale), visible); },
                        {.samples_per_tensor = 12});
}

}  // namespace

TEST_CASE("attention's gradients equal central differences", "[engine]") {
  Rng rng(12);
  for (int trial = 0; trial < 12; ++trial) {
    const auto pick = [&](Index low, Index high) {
      return low + static_cast<Index>(rng.below(static_cast<std::uint64_t>(high - low + 1)));
    };
    Sizes s;
    s.batch = pick(1, 2);
    s.kv_heads = pick(1, 2);
    s.heads = s.kv_heads * pick(1, 3);
    s.queries = pick(1, 70);
    s.keys = pick(1, 90);
    s.dim = trial % 2 == 0 ? pick(1, 40) : 16;
    s.value_dim = trial % 4 < 2 ? s.dim : pick(1, 40);
    const Index offset = pick(0, s.keys), window = pick(1, 40);
    const auto seed = static_cast<std::uint64_t>(trial);
    const auto full = check(s, FullMask{}, naive::everything, seed);
    CAPTURE(trial, s.queries, s.keys, s.heads, s.kv_heads, s.dim, s.value_dim, offset, window);
    CAPTURE(full.worst);
    CHECK(full.error <= 1e-6);
    const auto causal = check(
        s, CausalMask{offset}, [&](Index, Index, Index i, Index j) { return j <= i + offset; }, seed);
    CAPTURE(causal.worst);
    CHECK(causal.error <= 1e-6);
    const auto windowed = check(
        s, WindowMask{window, offset},
        [&](Index, Index, Index i, Index j) { return j <= i + offset && j > i + offset - window; }, seed);
    CAPTURE(windowed.worst);
    CHECK(windowed.error <= 1e-6);
  }
}

TEST_CASE("attention's gradients hold at the largest head_dim", "[engine]") {
  const auto report = check({1, 20, 20, 2, 1, 256, 131}, FullMask{}, naive::everything);
  INFO(report.worst);
  CHECK(report.error <= 1e-6);
}

TEST_CASE("attention's gradients where the keys come in several parts", "[engine]") {
  const Sizes s{1, 40, 260, 2, 1, 256, 256};  // parts of 64
  const auto full = check(s, FullMask{}, naive::everything);
  INFO(full.worst);
  CHECK(full.error <= 1e-6);
  const Index offset = 200, window = 100;
  const auto causal = check(s, CausalMask{offset}, [&](Index, Index, Index i, Index j) { return j <= i + offset; });
  INFO(causal.worst);
  CHECK(causal.error <= 1e-6);
  const auto windowed = check(s, WindowMask{window, offset}, [&](Index, Index, Index i, Index j) {
    return j <= i + offset && j > i + offset - window;
  });
  INFO(windowed.worst);
  CHECK(windowed.error <= 1e-6);
}

TEST_CASE("float gradients equal those of double", "[engine]") {
  for (const Index dim : {5, 64}) {
    Problem<float> p({2, 100, 130, 4, 2, dim, dim}, 3);
    Problem<double> twin(p);
    const DotProductScore score{1 / std::sqrt(static_cast<double>(dim))};
    p.attend(score, CausalMask{30});
    p.backward(score, CausalMask{30});
    twin.attend(score, CausalMask{30});
    twin.backward(score, CausalMask{30});
    CHECK(naive::difference(p.dquery, twin.dquery) <= 1e-5);
    CHECK(naive::difference(p.dkey, twin.dkey) <= 1e-5);
    CHECK(naive::difference(p.dvalue, twin.dvalue) <= 1e-5);
  }
}
