// The forward pass against the definition: shapes, masks, extreme logits, few queries.
#include "attention/naive_attention.hpp"
#include "rbar/core/parallel.hpp"
#include "support/catch.hpp"

using namespace rbar;
using naive::Problem;
using naive::Sizes;

namespace {

std::string text(const Sizes& s) {
  std::ostringstream out;
  out << "batch " << s.batch << ", queries " << s.queries << ", keys " << s.keys << ", heads " << s.heads << "/"
      << s.kv_heads << ", dims " << s.dim << "/" << s.value_dim;
  return out.str();
}

// Float: a logit of size |s| carries |s|·2^-24·√dim of rounding, which is its weight's relative error; |s| stays below
// about 5 here. Averaging over keys keeps it. 2e-6 of the largest output holds with room for the sums.
template <class T>
constexpr double tolerance = std::is_same_v<T, float> ? 3e-6 : 1e-13;

template <class T, class Mask>
void compare(const Sizes& sizes, const Mask& mask, const naive::Visible& visible, std::uint64_t seed = 1) {
  INFO(text(sizes) << ", seed " << seed);
  Problem<T> tested(sizes, seed);
  Problem<double> expected(tested);
  const double scale = 1 / std::sqrt(static_cast<double>(sizes.dim));
  tested.attend(DotProductScore{scale}, mask);
  naive::attend(expected, naive::scaled(scale), visible);
  CHECK(naive::difference(tested.output, expected.output) <= tolerance<T>);
  CHECK(naive::difference(tested.lse, expected.lse) <= tolerance<T>);
}

}  // namespace

TEMPLATE_TEST_CASE("attention equals its definition for all shapes", "[engine]", float, double) {
  Rng rng(11);
  for (int trial = 0; trial < 40; ++trial) {
    const auto pick = [&](Index low, Index high) {
      return low + static_cast<Index>(rng.below(static_cast<std::uint64_t>(high - low + 1)));
    };
    Sizes s;
    s.batch = pick(1, 2);
    s.kv_heads = pick(1, 2);
    s.heads = s.kv_heads * pick(1, 3);
    s.queries = trial % 3 == 0 ? pick(1, 4) : pick(1, 150);
    s.keys = pick(1, 150);
    s.dim = trial % 2 == 0 ? pick(1, 80) : 16 * pick(1, 4);
    s.value_dim = trial % 4 < 2 ? s.dim : pick(1, 40);
    const Index offset = pick(0, s.keys), window = pick(1, 40);
    compare<TestType>(s, FullMask{}, naive::everything, rng.seed + static_cast<std::uint64_t>(trial));
    compare<TestType>(s, CausalMask{offset}, [&](Index, Index, Index i, Index j) { return j <= i + offset; });
    compare<TestType>(s, WindowMask{window, offset},
                      [&](Index, Index, Index i, Index j) { return j <= i + offset && j > i + offset - window; });
  }
}

TEMPLATE_TEST_CASE("attention equals its definition at the largest head_dim", "[engine]", float, double) {
  for (const Index dim : {127, 129, 250, 256}) {
    compare<TestType>({1, 40, 70, 2, 2, dim, dim}, FullMask{}, naive::everything);
    compare<TestType>({1, 2, 33, 2, 1, dim, 7}, FullMask{}, naive::everything);
    compare<TestType>({1, 33, 33, 1, 1, 3, dim}, CausalMask{}, [](Index, Index, Index i, Index j) { return j <= i; });
  }
}
