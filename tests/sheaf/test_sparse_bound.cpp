// The promise of keep_coherent: no row and head is further from dense sheaf attention than ε·max‖v‖, whatever the keys,
// the blocks and β. And how little room there is under it.
#include "sheaf/sparse_problem.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

using namespace rbar;

TEST_CASE("no row is further from dense attention than promised", "[sparse]") {
  Rng rng(1);
  double closest = 0;  // to the promise, of all rows
  Index skipped = 0, visible = 0, rows_that_skip = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    auto p = sparse::random_problem<double>(rng, 10);
    const SparsityConfig config = sparse::random_config(rng);
    AttentionMask mask;
    mask.causal = trial % 2 == 0;
    p.attend(mask, config);
    double worst = 0, worst_to_bound = 0;
    sparse::compare_with_dense(
        p, mask.causal ? sparse::past : sparse::everything, [&](Index b, Index h, Index i, double distance) {
          const auto row = static_cast<std::size_t>((b * p.sizes.tokens + i) * p.sizes.heads + h);
          const RowOutcome& outcome = p.plan.outcomes[row];
          // Δ is a float, and y and the definition round.
          const double bound = 2 * static_cast<double>(outcome.share_bound) * (1 + 1e-6) + 1e-9;
          worst = test::larger(worst, distance - config.epsilon - 1e-9);
          worst_to_bound = test::larger(worst_to_bound, distance - bound);
          closest = std::max(closest, distance / config.epsilon);
          rows_that_skip += outcome.skipped > 0;
        });
    const auto summary = p.plan.summary();
    skipped += summary.skipped_blocks;
    visible += summary.visible_blocks;
    if (!(worst <= 0 && worst_to_bound <= 0) || 2 * summary.largest_share_bound > config.epsilon) {
      CAPTURE(trial, config.epsilon, config.block, config.chunk, p.sizes.tokens, p.sizes.dim, mask.causal);
      CHECK(worst <= 0);
      CHECK(worst_to_bound <= 0);
      CHECK(2 * summary.largest_share_bound <= config.epsilon);
    }
  }
  CHECK(rows_that_skip > 10000);
  CHECK(skipped > visible / 10);
  CHECK(closest > 0.2);
}

TEST_CASE("the promise holds in float, up to its rounding", "[sparse]") {
  Rng rng(2);
  for (int trial = 0; trial < 1000; ++trial) {
    auto p = sparse::random_problem<float>(rng, 3);
    const SparsityConfig config = sparse::random_config(rng);
    AttentionMask mask;
    mask.causal = trial % 2 == 0;
    p.attend(mask, config);
    // The engine expands ‖q − k‖²: the logits, not the choice of blocks, are off by β‖q‖² rounding errors.
    double norm = 1;
    for (const float n : p.norms) norm = std::max(norm, static_cast<double>(n));
    const double rounding =
        1e-6 * (10 + 4 * norm * static_cast<double>(*std::max_element(p.beta.begin(), p.beta.end())));
    double worst = 0;
    sparse::compare_with_dense(p, mask.causal ? sparse::past : sparse::everything,
                               [&](Index, Index, Index, double distance) { worst = test::larger(worst, distance); });
    CAPTURE(trial);
    CHECK(worst <= config.epsilon + rounding);
  }
}

namespace {

// One query at 0, `near` keys on it and `far` keys at the distance where all of them together hold `share` of the
// softmax; values +1 and −1. Blocks of one key: the bounds are exact.
struct Line {
  Index near, far;
  double share;
  double distance() const {
    const double weight = share / (1 - share) * static_cast<double>(near) / static_cast<double>(far);
    return std::sqrt(-std::log(weight));
  }
};

double error_of(const Line& line, double epsilon, RowOutcome& outcome) {
  Rng rng(3);
  sparse::Problem<double> p({1, line.near + line.far, 1, 1, 1, 1}, rng);
  p.beta = {1.0};
  for (Index j = 0; j < p.sizes.tokens; ++j) {
    p.query.data()[j] = 0;
    // No two keys alike, so that none share a block.
    p.key.data()[j] = j < line.near ? 1e-9 * static_cast<double>(j) : line.distance() + 1e-9 * static_cast<double>(j);
    p.value.data()[j] = j < line.near ? 1 : -1;
  }
  AttentionMask mask;
  mask.causal = false;
  SparsityConfig config;
  config.epsilon = epsilon;
  config.block = 1;
  p.attend(mask, config);
  outcome = p.plan.outcomes[0];
  double error = 0;
  sparse::compare_with_dense(p, sparse::everything, [&](Index, Index, Index i, double distance) {
    if (i == 0) error = distance;
  });
  return error;
}

}  // namespace

TEST_CASE("the factor 2 is tight: what is skipped may point the other way", "[sparse]") {
  RowOutcome outcome;
  const double epsilon = 0.01;
  const double error = error_of({4, 1, 0.499 * epsilon}, epsilon, outcome);
  CHECK(outcome.skipped == 1);
  CHECK(error <= epsilon);
  CHECK(error > 0.99 * epsilon);
  error_of({4, 1, 0.501 * epsilon}, epsilon, outcome);
  CHECK(outcome.skipped == 0);
}

TEST_CASE("dropping every block that is small by itself would not be enough", "[sparse]") {
  // 20 blocks that hold 0.45·ε of the softmax each: every one of them could go, all of them together must not.
  const double epsilon = 0.01;
  const Line line{2, 20, 20 * 0.45 * epsilon};
  RowOutcome outcome;
  CHECK(error_of(line, epsilon, outcome) <= epsilon);
  CHECK(outcome.skipped <= 1);
  const double error_without_all = 2 * line.share;
  CHECK(error_without_all > 17 * epsilon);
}

TEST_CASE("the bounds enclose the weight of a block", "[sparse]") {
  Rng rng(4);
  for (int trial = 0; trial < 300; ++trial) {
    auto p = sparse::random_problem<double>(rng, 10);
    SparsityConfig config = sparse::random_config(rng);
    const Index tokens = p.sizes.tokens, dim = p.sizes.dim;
    KeyBlocks<double> blocks;
    blocks.reserve(config, dim, tokens);
    std::vector<double> by_slot(
        static_cast<std::size_t>(KeyBlocks<double>::max_blocks(config, tokens) * config.block * dim));
    const auto row = [&](Index j) { return p.keys(p.key).at(0, 0, j); };
    blocks.bundle(config, tokens, row, [&](Index first, Index count, const Index* slots) {
      for (Index i = 0; i < count; ++i) std::copy_n(row(first + i), dim, by_slot.data() + slots[i] * dim);
    });
    const Index keys = sparse::pick(rng, 1, tokens);
    const BlockBalls<double> balls = blocks.seek(keys, by_slot.data());
    const double* query = p.queries(p.query).at(0, 0, 0);
    const double beta = p.beta[0];
    Index members = 0;
    for (Index b = 0; b < balls.count; ++b) {
      double center_distance = 0, sum = 0;
      for (Index d = 0; d < dim; ++d) {
        const double r = query[d] - blocks.origin.data()[d] - balls.center[b * dim + d];
        center_distance += r * r;
      }
      const Index n = blocks.filled(b, keys);
      members += n;
      for (Index i = 0; i < n; ++i) {
        double energy = 0;
        for (Index d = 0; d < dim; ++d)
          energy += std::pow(query[d] - by_slot.data()[(b * config.block + i) * dim + d], 2);
        sum += std::exp(-beta * energy);
      }
      const double distance = std::sqrt(center_distance), r = balls.radius[b], count = static_cast<double>(n);
      const double upper = count * std::exp(-beta * std::pow(std::max(distance - r, 0.0), 2));
      const double lower = count * std::exp(-beta * (center_distance + balls.spread[b]));
      const double plain_lower = count * std::exp(-beta * std::pow(distance + r, 2));
      CAPTURE(trial, b, n);
      CHECK(sum <= upper * (1 + 1e-9));
      CHECK(sum >= lower * (1 - 1e-9));
      CHECK(lower >= plain_lower * (1 - 1e-9));
      CHECK(std::exp2(balls.log2_keys[b]) == Approx(count));
    }
    CHECK(members == keys);
  }
}
