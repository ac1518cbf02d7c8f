// Gradients of sparse attention with the choice held fixed, the two policies, what a pass allocates, patterns given by
// the caller, reports and errors.
#include "rbar/audit/gradient_check.hpp"
#include "rbar/sheaf/csr_mask.hpp"
#include "rbar/sheaf/pattern_report.hpp"
#include "sheaf/sparse_problem.hpp"
#include "support/allocation_count.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <numeric>

using namespace rbar;

namespace {

double loss(sparse::Problem<double>& p, const sparse::Visible& visible) {
  std::vector<double> row;
  double sum = 0;
  const sparse::Sizes& s = p.sizes;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (Index i = 0; i < s.tokens; ++i) {
        sparse::attend_row(p, b, h, i, visible, row);
        for (Index d = 0; d < s.value_dim; ++d) sum += row.data()[d] * p.outputs(p.doutput).at(b, h, i)[d];
      }
  return sum;
}

SparsityConfig small_blocks(double epsilon, SparsityPolicy policy = SparsityPolicy::keep_coherent) {
  SparsityConfig config;
  config.epsilon = epsilon;
  config.block = 5;
  config.chunk = 7;
  config.policy = policy;
  config.keep_share = 0.4;
  return config;
}

// The share of the softmax that the pairs seen hold, smallest of all rows and on average.
std::pair<double, double> masses(const sparse::Problem<float>& p, const AttentionMask& mask) {
  double smallest = 1, sum = 0;
  for (Index h = 0; h < p.sizes.heads; ++h) {
    const auto report =
        pattern_report<float>(p.plan, p.queries(p.query), p.keys(p.key),
                              SheafScore<float>{p.beta.data(), p.norms.data(), p.sizes.kv_heads}, mask, 0, h);
    smallest = std::min(smallest, report.smallest_mass);
    sum += report.mean_mass / static_cast<double>(p.sizes.heads);
  }
  return {smallest, sum};
}

}  // namespace

TEST_CASE("gradients of sparse attention equal differences of its definition", "[sparse]") {
  Rng rng(8);
  for (int trial = 0; trial < 12; ++trial) {
    const Index kv_heads = sparse::pick(rng, 1, 2);
    sparse::Problem<double> p({sparse::pick(rng, 1, 2), sparse::pick(rng, 30, 60), kv_heads * sparse::pick(rng, 1, 2),
                               kv_heads, sparse::pick(rng, 2, 9), 3},
                              rng, 4, 4, 0, 0.5);
    AttentionMask mask;
    mask.causal = trial % 2 == 0;
    const auto policy = trial % 3 == 0 ? SparsityPolicy::keep_incoherent : SparsityPolicy::keep_coherent;
    p.attend(mask, small_blocks(0.3, policy));
    REQUIRE(p.plan.summary().skipped_blocks > 0);
    p.backward(mask);
    const auto visible = sparse::seen_by(p, mask);
    std::vector<double> dbeta(p.beta.size());
    for (std::size_t i = 0; i < p.dbeta.size(); ++i)
      dbeta[i % dbeta.size()] += p.dbeta[i] / p.beta[i % dbeta.size()];  // what came is β ∂L/∂β
    const std::vector<GradientPair> pairs = {
        {"query", p.query, p.dquery}, {"key", p.key, p.dkey}, {"value", p.value, p.dvalue}, {"beta", p.beta, dbeta}};
    const auto report = gradient_check(pairs, [&] { return loss(p, visible); }, {.samples_per_tensor = 15});
    CAPTURE(trial, report.worst);
    CHECK(report.error <= 1e-6);
  }
}

TEST_CASE("coherent blocks hold the softmax, incoherent ones next to nothing of it", "[sparse]") {
  Rng rng(9);
  sparse::Problem<float> p({1, 512, 2, 2, 16, 16}, rng, 10, 6, 0, 4);
  AttentionMask mask;
  mask.causal = false;
  SparsityConfig config;
  config.block = 16;
  config.keep_share = 0.1;
  p.attend(mask, config);
  const auto [coherent_smallest, coherent_mean] = masses(p, mask);
  CHECK(coherent_smallest >= 1 - config.epsilon / 2);
  CHECK(p.plan.summary().kept_share() < 0.3);
  config.policy = SparsityPolicy::keep_incoherent;
  p.attend(mask, config);
  const auto [incoherent_smallest, incoherent_mean] = masses(p, mask);
  CHECK(incoherent_mean < 1e-10);
  for (const RowOutcome& outcome : p.plan.outcomes)
    CHECK(outcome.visible - outcome.skipped == static_cast<int>(std::ceil(0.1 * outcome.visible)));
}

TEST_CASE("a tenth of the blocks at beta = 16: nearly all of the softmax, or next to nothing", "[sparse]") {
  Rng rng(19);
  sparse::Problem<float> p({1, 512, 1, 1, 16, 16}, rng, 10, 6);
  p.beta = {16};
  AttentionMask mask;
  mask.causal = false;
  SparsityConfig config;
  config.block = 16;
  config.epsilon = 0.02;
  p.attend(mask, config);
  CHECK(masses(p, mask).second >= 0.989);
  CHECK(p.plan.summary().kept_share() < 0.2);
  config.policy = SparsityPolicy::keep_incoherent;
  p.attend(mask, config);
  CHECK(masses(p, mask).second < 2e-17);
}

TEST_CASE("keep_incoherent keeps the blocks with the largest residuals", "[sparse]") {
  Rng rng(10);
  sparse::Problem<double> p({1, 60, 1, 1, 3, 2}, rng, 8, 8);
  AttentionMask mask;
  mask.causal = false;
  const SparsityConfig config = small_blocks(0, SparsityPolicy::keep_incoherent);
  p.attend(mask, config);
  KeyBlocks<double>& blocks = p.plan.blocks[0];
  const BlockBalls<double> balls = blocks.seek(60, p.plan.key.data());
  for (Index i = 0; i < 60; ++i) {
    double smallest_kept = INFINITY, largest_skipped = 0;
    for (Index b = 0; b < balls.count; ++b) {
      double distance = 0;
      for (Index d = 0; d < 3; ++d)
        distance += std::pow(p.query.data()[i * 3 + d] - blocks.origin.data()[d] - balls.center[b * 3 + d], 2);
      const double bound = std::max(std::sqrt(distance) - balls.radius[b], 0.0);
      if (p.plan.kept.data()[i * p.plan.words] >> b & 1)
        smallest_kept = std::min(smallest_kept, bound);
      else
        largest_skipped = std::max(largest_skipped, bound);
    }
    CHECK(smallest_kept >= largest_skipped - 1e-9);
  }
}

TEST_CASE("sparse attention among routed keys only", "[sparse]") {
  // Rows at odd positions, which are all the keys there are: the causal problem of those rows alone.
  Rng rng(11);
  sparse::Problem<float> p({1, 64, 2, 1, 8, 8}, rng);
  const SparsityConfig config = small_blocks(0.1);
  p.attend({}, config);
  const auto expected = p.output;
  std::vector<Index> positions(64), offsets = {0, 64};
  for (Index i = 0; i < 64; ++i) positions.data()[i] = 2 * i + 1;
  AttentionMask mask;
  mask.query_positions = mask.key_positions = positions.data();
  p.plan.clear();
  const auto packed = [&](auto& rows, Index heads) {
    return ragged_heads_view(rows.data(), 1, offsets.data(), heads, Index{8});
  };
  sparse_sheaf_attend<float>(packed(p.query, 2), packed(p.key, 1), packed(p.value, 1), p.score(), mask, config,
                             packed(p.output, 2), nullptr, p.plan);
  CHECK(p.output == expected);
}

TEST_CASE("a second sparse pass allocates nothing", "[sparse]") {
  Rng rng(12);
  sparse::Problem<float> p({2, 200, 4, 2, 16, 16}, rng);
  for (const bool causal : {true, false}) {
    AttentionMask mask;
    mask.causal = causal;
    const SparsityConfig config = small_blocks(0.01);
    const auto pass = [&] {
      p.attend(mask, config);
      p.backward(mask);
    };
    pass();
    CHECK(test::allocations_in(pass) == 0);
  }
}

TEST_CASE("attention along a given pattern, forward and backward", "[sparse]") {
  Rng rng(13);
  for (int trial = 0; trial < 8; ++trial) {
    sparse::Problem<double> p({2, sparse::pick(rng, 1, 150), 2, 1, 5, 4}, rng, 3, 3);
    const Index tokens = p.sizes.tokens;
    const bool per_head = trial % 2 == 0;
    std::vector<Index> offsets = {0}, columns;
    for (Index i = 0; i < (per_head ? 2 : 1) * tokens; ++i) {
      for (Index j = 0; j < tokens; ++j)
        if (i % 7 != 3 && rng.below(12) == 0) columns.push_back(j);
      offsets.push_back(static_cast<Index>(columns.size()));
    }
    columns.push_back(0);  // data() of an empty vector may be null
    const CsrMask mask{offsets.data(), columns.data(), tokens, 0, per_head ? 1 : 0};
    require_csr(mask, per_head ? 2 : 1, tokens);
    const sparse::Visible visible = [&](Index, Index h, Index i, Index j) {
      const Index row = (per_head ? h * tokens : 0) + i;
      return std::binary_search(columns.data() + offsets.data()[row], columns.data() + offsets.data()[row + 1], j);
    };
    attend<double>(p.queries(p.query), p.keys(p.key), p.values(p.value), p.score(), mask, p.outputs(p.output),
                   p.lse.data());
    std::vector<double> row;
    double worst = 0;
    Index empty_rows = 0;
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < tokens; ++i) {
        sparse::attend_row(p, 1, h, i, visible, row);
        empty_rows += std::count(row.begin(), row.end(), 0.0) == 4;
        for (Index d = 0; d < 4; ++d)
          worst = test::larger(worst, std::abs(row.data()[d] - p.outputs(p.output).at(1, h, i)[d]));
      }
    CHECK(worst <= 1e-12);
    CHECK(empty_rows >= tokens / 7);
    p.dbeta.assign(4, 0);
    std::fill(p.dnorms.begin(), p.dnorms.end(), 0.0);
    attend_backward<double>(p.queries(p.query), p.keys(p.key), p.values(p.value), p.outputs(p.output),
                            p.outputs(p.doutput), p.lse.data(), p.score(), mask, p.queries(p.dquery), p.keys(p.dkey),
                            p.values(p.dvalue), SheafScoreGradient<double>{p.dbeta.data(), p.dnorms.data(), 2, 1});
    square_norms_backward<double>(p.keys(std::as_const(p.key)), p.dnorms.data(), p.keys(p.dkey));
    const std::vector<GradientPair> pairs = {
        {"query", p.query, p.dquery}, {"key", p.key, p.dkey}, {"value", p.value, p.dvalue}};
    const auto report = gradient_check(pairs, [&] { return loss(p, visible); }, {.samples_per_tensor = 6});
    CAPTURE(trial, tokens, report.worst);
    CHECK(report.error <= 1e-6);
  }
}

TEST_CASE("a pattern report counts what was seen, and draws it", "[sparse]") {
  Rng rng(14);
  sparse::Problem<float> p({1, 90, 1, 1, 8, 8}, rng, 3, 6, 0, 2);
  p.attend({}, small_blocks(1e-3));
  const auto report = pattern_report<float>(p.plan, p.queries(p.query), p.keys(p.key), p.score(), {}, 0, 0);
  const auto visible = sparse::seen_by(p, {});
  double pairs = 0;
  for (Index i = 0; i < 90; ++i)
    for (Index j = 0; j < 90; ++j) {
      pairs += visible(0, 0, i, j);
      CHECK(report.seen.data()[i * 90 + j] == (visible(0, 0, i, j) ? 2 : j <= i ? 1 : 0));
    }
  CHECK(report.pairs_kept == Approx(pairs / (90 * 91 / 2)));
  CHECK(report.blocks_kept == Approx(p.plan.summary().kept_share()));
  CHECK(report.epsilon_achieved <= 1e-3);
  CHECK(report.smallest_mass >= 1 - report.epsilon_achieved / 2 - 1e-6);
  CHECK(report.mean_mass >= report.smallest_mass);

  const PatternPicture picture = pattern_picture(report, 30);
  CHECK(picture.grey.size() == 900);
  CHECK(picture.grey[0] < 200);    // a row's own key
  CHECK(picture.grey[29] == 255);  // the future
  CHECK(pattern_pgm(picture).substr(0, 13) == "P5\n30 30\n255\n");
  CHECK(pattern_pgm(picture).size() == 913);
  const std::string svg = pattern_svg(picture);
  CHECK(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 30 30\""));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK_THROWS_AS(pattern_picture(report, 0), Error);
  p.plan.clear();  // what a dense pass does
  CHECK_THROWS_WITH(pattern_report<float>(p.plan, p.queries(p.query), p.keys(p.key), p.score(), {}, 0, 0),
                    ContainsText("plan: expected that of a sparse pass"));
}

TEST_CASE("sparse attention says what is wrong", "[sparse]") {
  const auto invalid = [](auto&& change, const std::string& field) {
    SparsityConfig config;
    change(config);
    CHECK_THROWS_WITH(config.validate(), ContainsText(field));
  };
  invalid([](auto& c) { c.epsilon = -1; }, "epsilon");
  invalid([](auto& c) { c.epsilon = std::nan(""); }, "epsilon");
  invalid([](auto& c) { c.keep_share = 1.5; }, "keep_share");
  invalid([](auto& c) { c.block = 0; }, "block");
  invalid([](auto& c) { c.chunk = 0; }, "chunk");
  invalid([](auto& c) { c.clusters = 0; }, "clusters");
  SparsityPolicy policy{};
  for (const SparsityPolicy each : all_sparsity_policies) CHECK((parse(name_of(each), policy) && policy == each));
  CHECK_FALSE(parse("keep", policy));

  Rng rng(15);
  sparse::Problem<float> p({1, 40, 1, 1, 4, 4}, rng), other({1, 20, 1, 1, 5, 5}, rng);
  AttentionMask window;
  window.window = 4;
  CHECK_THROWS_WITH(p.attend(window, small_blocks(0.1)), ContainsText("window"));
  p.attend({}, small_blocks(0.1));
  std::swap(p.plan, other.plan);
  CHECK_THROWS_WITH(sparse_sheaf_attend<float>(other.queries(other.query), other.keys(other.key),
                                               other.values(other.value), other.score(), {}, small_blocks(0.1),
                                               other.outputs(other.output), nullptr, other.plan),
                    ContainsText("clear()"));
  const std::vector<Index> offsets = {0, 2}, falling = {0, 2, 1}, columns = {3, 1};
  CHECK_THROWS_AS(require_csr(CsrMask{offsets.data(), columns.data(), 1}, 1, 4), Error);
  CHECK_THROWS_AS(require_csr(CsrMask{falling.data(), columns.data(), 2}, 1, 4), Error);
  CHECK_THROWS_AS(require_csr(CsrMask{}, 1, 4), Error);
}
