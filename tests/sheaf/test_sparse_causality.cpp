// What a row of block-sparse attention depends on: itself and the past, to the last bit; not on its company, its
// stream's cuts or the threads.
#include "sheaf/sparse_problem.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

using namespace rbar;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Routed {
  std::vector<Index> rows, offsets, positions;
};
Routed some_rows(Rng& rng, const sparse::Sizes& s) {
  Routed routed{{}, {0}, {}};
  for (Index b = 0; b < s.batch; ++b) {
    for (Index t = 0; t < s.tokens; ++t)
      if (rng.below(3) == 0) routed.rows.push_back(b * s.tokens + t), routed.positions.push_back(t);
    routed.offsets.push_back(static_cast<Index>(routed.rows.size()));
  }
  return routed;
}

}  // namespace

TEST_CASE("a later token moves no earlier row of sparse attention by a bit", "[sparse]") {
  Rng rng(5);
  for (int trial = 0; trial < 1000; ++trial) {
    auto p = sparse::random_problem<float>(rng, 3);
    SparsityConfig config = sparse::random_config(rng);
    if (trial % 5 == 0) config.policy = SparsityPolicy::keep_incoherent;
    p.attend({}, config);
    const auto before = p.output;
    const auto lse = p.lse;
    const sparse::Sizes& s = p.sizes;
    const Index b = sparse::pick(rng, 0, s.batch - 1), t = sparse::pick(rng, 0, s.tokens - 1);
    for (Index later = t; later < s.tokens; ++later) {
      const float size = static_cast<float>(sparse::magnitude(rng, -2, 2));
      for (Index h = 0; h < s.heads; ++h) p.queries(p.query).at(b, h, later)[0] += size;
      for (Index h = 0; h < s.kv_heads; ++h) p.keys(p.key).at(b, h, later)[0] -= size;
      for (Index h = 0; h < s.kv_heads; ++h) p.values(p.value).at(b, h, later)[0] *= size;
    }
    p.attend({}, config);
    Index moved = 0;
    for (Index sequence = 0; sequence < s.batch; ++sequence)
      for (Index i = 0; i < (sequence == b ? t : s.tokens); ++i) {
        const Index row = sequence * s.tokens + i;
        for (Index h = 0; h < s.heads; ++h) moved += lse[at(row * s.heads + h)] != p.lse[at(row * s.heads + h)];
        for (Index e = row * s.heads * s.value_dim; e < (row + 1) * s.heads * s.value_dim; ++e)
          moved += before[at(e)] != p.output[at(e)];
      }
    CAPTURE(trial, t, config.block, config.chunk);
    CHECK(moved == 0);
  }
}

TEST_CASE("a stream of any steps makes the choices of the full pass, and its numbers", "[sparse]") {
  Rng rng(6);
  for (int trial = 0; trial < 60; ++trial) {
    auto p = sparse::random_problem<float>(rng, 3);
    const SparsityConfig config = sparse::random_config(rng);
    const sparse::Sizes& s = p.sizes;
    p.attend({}, config);
    const auto expected = p.output;
    const auto outcomes = p.plan.outcomes;
    p.plan.clear();
    std::vector<Index> counts(at(s.batch));
    auto key = p.keys(std::as_const(p.key)), value = p.values(std::as_const(p.value));
    key.row_counts = value.row_counts = counts.data();
    const auto from = [&](auto view, Index t, Index count) {
      view.sequence_stride = s.tokens * view.token_stride;
      view.data += t * view.token_stride;
      view.tokens = count;
      return view;
    };
    Index differing = 0;
    for (Index t = 0, count; t < s.tokens; t += count) {
      count = std::min(sparse::pick(rng, 1, 9), s.tokens - t);
      std::fill(counts.begin(), counts.end(), t + count);
      AttentionMask mask;
      mask.query_offset = t;
      sparse_sheaf_attend<float>(from(p.queries(std::as_const(p.query)), t, count), key, value, p.score(), mask, config,
                                 from(p.outputs(p.output), t, count), nullptr, p.plan);
      for (Index b = 0; b < s.batch; ++b)
        for (Index i = 0; i < count * s.heads; ++i) {
          const RowOutcome &now = p.plan.outcomes[at(b * count * s.heads + i)],
                           &then = outcomes[at((b * s.tokens + t) * s.heads + i)];
          differing += now.visible != then.visible || now.skipped != then.skipped;
        }
    }
    double worst = 0, largest = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      worst = test::larger(worst, static_cast<double>(std::abs(expected[i] - p.output[i])));
      largest = std::max(largest, static_cast<double>(std::abs(expected[i])));
    }
    CAPTURE(trial, config.block, config.chunk, s.tokens);
    CHECK(differing == 0);
    CHECK(worst <= 1e-5 * largest);

    // Rows of before, asked again now that later keys are bundled: as they were then.
    const Routed routed = some_rows(rng, s);
    std::vector<float> packed, again(routed.rows.size() * at(s.heads * s.value_dim));
    for (const Index row : routed.rows)
      packed.insert(packed.end(), p.query.data() + row * s.heads * s.dim, p.query.data() + (row + 1) * s.heads * s.dim);
    AttentionMask mask;
    mask.query_positions = routed.positions.data();
    sparse_sheaf_attend<float>(
        ragged_heads_view(std::as_const(packed).data(), s.batch, routed.offsets.data(), s.heads, s.dim), key, value,
        p.score(), mask, config, ragged_heads_view(again.data(), s.batch, routed.offsets.data(), s.heads, s.value_dim),
        nullptr, p.plan);
    Index moved = 0;
    for (std::size_t i = 0; i < routed.rows.size(); ++i)
      for (Index e = 0; e < s.heads * s.value_dim; ++e)
        moved +=
            again[i * at(s.heads * s.value_dim) + at(e)] != expected[at(routed.rows[i] * s.heads * s.value_dim + e)];
    CHECK(moved == 0);
  }
}

TEST_CASE("sparse attention has the same bits at every number of threads", "[sparse]") {
  Rng rng(7);
  sparse::Problem<float> p({2, 300, 4, 2, 16, 16}, rng, 6, 6);
  SparsityConfig config;
  config.block = config.chunk = 32;
  AttentionMask mask;
  for (const bool causal : {false, true}) {
    mask.causal = causal;
    std::vector<std::vector<float>> results;
    for (const int threads : {1, 2, 5}) {
      set_num_threads(threads);
      p.attend(mask, config);
      p.backward(mask);
      auto all = p.output;
      for (const auto* part : {&p.dquery, &p.dkey, &p.dvalue}) all.insert(all.end(), part->begin(), part->end());
      results.push_back(all);
    }
    set_num_threads(1);
    CHECK(p.plan.summary().skipped_blocks > 0);
    CHECK(results[0] == results[1]);
    CHECK(results[0] == results[2]);
  }
}
