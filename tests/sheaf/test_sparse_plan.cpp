// What a block-sparse plan keeps from one pass to the next, and what a row's choice must not depend on.
#include "sheaf/sparse_problem.hpp"
#include "support/catch.hpp"

using namespace rbar;

namespace {

// Blocks of one key each, at any centers.
template <class T>
struct Points {
  Index count, dim;
  std::vector<T> center, norm, nothing;
  Points(Index count_, Index dim_) : count(count_), dim(dim_) {
    center.resize(static_cast<std::size_t>(count * dim));
    norm.resize(static_cast<std::size_t>(count));
    nothing.resize(static_cast<std::size_t>(count));
  }
  BlockBalls<T> balls() {
    for (Index b = 0; b < count; ++b) {
      norm.data()[b] = 0;
      for (Index d = 0; d < dim; ++d) norm.data()[b] += center.data()[b * dim + d] * center.data()[b * dim + d];
    }
    const T* zeros = nothing.data();
    return {count, dim, 1, center.data(), norm.data(), zeros, zeros, zeros};
  }
};

template <class T>
struct Choice {
  std::vector<std::vector<std::uint64_t>> kept;
  std::vector<RowOutcome> outcomes;
};
// rows: numbers into query [·][dim], one for each lane.
template <class T>
Choice<T> choose(const BlockBalls<T>& balls, const std::vector<T>& query, const std::vector<T>& beta,
                 const std::vector<Index>& rows, const SparsityConfig& config) {
  constexpr Index L = simd::lanes<T>;
  const auto words = static_cast<std::size_t>((balls.count + 63) / 64);
  Choice<T> choice{std::vector(static_cast<std::size_t>(L), std::vector<std::uint64_t>(words)),
                   std::vector<RowOutcome>(static_cast<std::size_t>(L))};
  std::vector<T> lanes(static_cast<std::size_t>(balls.dim * L));
  BoundRows<T> bound;
  bound.count = L;
  bound.query = lanes.data();
  for (Index lane = 0; lane < L; ++lane) {
    const Index row = rows[static_cast<std::size_t>(lane)];
    bound.square_norm[lane] = 0;
    for (Index d = 0; d < balls.dim; ++d) {
      const T q = query.data()[row * balls.dim + d];
      lanes.data()[d * L + lane] = q;
      bound.square_norm[lane] += q * q;
    }
    bound.beta[lane] = beta.data()[row];
    bound.log2_open[lane] = -std::numeric_limits<T>::infinity();
    bound.kept[lane] = choice.kept[static_cast<std::size_t>(lane)].data();
  }
  choose_blocks(balls, bound, config, choice.outcomes.data());
  return choice;
}

template <class T>
void check_company(std::uint64_t seed) {
  constexpr Index L = simd::lanes<T>;
  Rng rng(seed);
  for (int trial = 0; trial < 100; ++trial) {
    const Index dim = sparse::pick(rng, 1, 6);
    Points<T> points(sparse::pick(rng, 2, 90), dim);
    for (T& c : points.center) c = static_cast<T>(rng.normal(0, 2));
    std::vector<T> query, beta;
    for (Index i = 0; i < L * dim; ++i) query.push_back(static_cast<T>(rng.normal(0, 2)));
    for (Index i = 0; i < L; ++i) beta.push_back(static_cast<T>(sparse::magnitude(rng, -1, 1)));
    SparsityConfig config;
    config.epsilon = sparse::magnitude(rng, -6, -0.2);
    std::vector<Index> all;
    for (Index i = 0; i < L; ++i) all.push_back(i);
    const auto balls = points.balls();
    const auto together = choose(balls, query, beta, all, config);
    for (Index lane = 0; lane < L; ++lane) {
      const auto at = static_cast<std::size_t>(lane);
      const auto alone = choose(balls, query, beta, std::vector<Index>(static_cast<std::size_t>(L), lane), config);
      CAPTURE(trial, lane);
      CHECK(alone.kept[at] == together.kept[at]);
      CHECK(alone.outcomes[at].share_bound == together.outcomes[at].share_bound);
      CHECK(alone.outcomes[at].skipped == together.outcomes[at].skipped);
    }
  }
}

}  // namespace

TEST_CASE("a row's choice does not depend on its company", "[sparse]") {
  check_company<float>(1);
  check_company<double>(2);
}

TEST_CASE("the rounding of long sums does not break the promise", "[sparse]") {
  // One block on the query, very many at one distance, which together hold a little more than may go.
  constexpr Index many = 20000;
  Rng rng(3);
  Points<float> points(many + 1, 1);
  std::fill(points.center.begin() + 1, points.center.end(), 1.0f);
  const auto balls = points.balls();
  for (int trial = 0; trial < 30; ++trial) {
    const auto beta = static_cast<float>(rng.uniform(12, 14));
    const double weight = many * std::exp(-static_cast<double>(beta)), share = weight / (1 + weight);
    SparsityConfig config;
    config.epsilon = 2 * share * (1 - 1.5e-5);
    const std::vector<Index> rows(static_cast<std::size_t>(simd::lanes<float>), 0);
    const auto choice = choose<float>(balls, {0.0f}, {beta}, rows, config);
    CAPTURE(trial, beta);
    CHECK(choice.outcomes[0].skipped == 0);
  }
}

TEST_CASE("a cleared plan takes keys and blocks of any size", "[sparse]") {
  const auto config = [](Index block, Index chunk, Index clusters) {
    SparsityConfig c;
    c.epsilon = 0.1;
    c.block = block, c.chunk = chunk, c.clusters = clusters;
    return c;
  };
  const std::pair<sparse::Sizes, SparsityConfig> passes[] = {
      {{1, 300, 1, 1, 4, 4}, config(16, 16, 16)}, {{1, 300, 1, 1, 5, 5}, config(16, 16, 16)},
      {{1, 300, 1, 1, 5, 5}, config(64, 16, 16)}, {{1, 300, 1, 1, 5, 5}, config(64, 16, 64)},
      {{2, 90, 2, 1, 33, 9}, config(8, 8, 64)},   {{1, 400, 4, 2, 3, 40}, config(128, 32, 8)},
      {{1, 300, 1, 1, 40, 4}, config(16, 16, 4)}, {{1, 300, 1, 1, 2, 2}, config(1, 1, 300)}};
  for (const bool causal : {true, false}) {
    AttentionMask mask;
    mask.causal = causal;
    BlockSparsePlan<float> plan;
    for (std::size_t i = 0; i < std::size(passes); ++i) {
      Rng rng(7 + i);
      sparse::Problem<float> p(passes[i].first, rng, 40, 6);
      p.attend(mask, passes[i].second);
      const auto expected = p.output;
      std::swap(p.plan, plan);
      p.attend(mask, passes[i].second);
      std::swap(p.plan, plan);
      CAPTURE(causal, i);
      CHECK(p.output == expected);
    }
  }
}

TEST_CASE("keys that are bundled stay in the blocks of their config until clear()", "[sparse]") {
  Rng rng(8);
  sparse::Problem<float> p({1, 300, 1, 1, 4, 4}, rng, 40, 6);
  SparsityConfig config;
  config.block = 8, config.chunk = 16, config.clusters = 32;
  p.attend({}, config);
  const auto go_on = [&](const SparsityConfig& other) {
    sparse_sheaf_attend<float>(p.queries(p.query), p.keys(p.key), p.values(p.value), p.score(), {}, other,
                               p.outputs(p.output), nullptr, p.plan);
  };
  for (Index SparsityConfig::*field : {&SparsityConfig::block, &SparsityConfig::chunk, &SparsityConfig::clusters}) {
    SparsityConfig other = config;
    other.*field /= 4;
    CHECK_THROWS_WITH(go_on(other), ContainsText("clear()"));
  }
  SparsityConfig other = config;
  other.epsilon = 0.5;
  CHECK_NOTHROW(go_on(other));
  p.plan.clear();
  CHECK(p.plan.summary().visible_blocks == 0);
}
