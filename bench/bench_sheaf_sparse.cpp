// Block-sparse sheaf attention against the dense one, on tokens of ten kinds in random order (what a row attends to is
// a tenth of the blocks), ε = 1e-3. The time includes bundling the keys and choosing the blocks. Counters:
//   speedup        dense time / sparse time
//   blocks_kept    share of the blocks that a row could see
//   finding_share  of the time: bundling and choosing
//   two_delta      the largest bound of a row's error, in units of max‖v‖: at most ε
//   distance       the largest distance from the dense output met, in the same units
#include "rbar/core/random.hpp"
#include "rbar/sheaf/sparse_sheaf.hpp"
#include "support.hpp"

#include <cmath>

using namespace rbar;

namespace {

struct Setting {
  Index tokens, heads, dim;
  AttentionMask mask;
  SparsityConfig config;
  std::vector<float> query, key, value, output, log_sum_exp, norms, beta;
  BlockSparsePlan<float> plan;

  Setting(Index tokens_, bool causal) : tokens(tokens_), heads(8), dim(64) {
    constexpr Index kinds = 10;
    mask.causal = causal;
    config.block = 128;
    Rng rng(1);
    std::vector<float> centers;
    for (Index i = 0; i < kinds * heads * dim; ++i) centers.push_back(static_cast<float>(rng.normal(0, 4)));
    for (Index t = 0; t < tokens; ++t) {
      const auto kind = static_cast<Index>(rng.below(kinds));
      for (Index i = 0; i < heads * dim; ++i) {
        const float center = centers.data()[kind * heads * dim + i];
        query.push_back(center + static_cast<float>(rng.uniform(-0.8, 0.8)));
        key.push_back(center + static_cast<float>(rng.uniform(-0.8, 0.8)));
        value.push_back(static_cast<float>(rng.uniform(-1, 1)));
      }
    }
    output.resize(query.size());
    log_sum_exp.resize(static_cast<std::size_t>(tokens * heads));
    norms.resize(log_sum_exp.size());
    beta.assign(static_cast<std::size_t>(heads), 0.0625f);  // 1/(2√d)
  }

  template <class V>
  auto view(V& rows) const {
    return heads_view(rows.data(), 1, tokens, heads, dim);
  }
  SheafScore<float> score() {
    square_norms<float>(view(std::as_const(key)), norms.data());
    return {beta.data(), norms.data(), heads};
  }
  void dense() {
    attend<float>(view(query), view(key), view(value), score(), mask, view(output), log_sum_exp.data());
    benchmark::ClobberMemory();
  }
  void sparse() {
    plan.clear();
    sparse_sheaf_attend<float>(view(query), view(key), view(value), score(), mask, config, view(output),
                               log_sum_exp.data(), plan);
    benchmark::ClobberMemory();
  }
  // Bundling and choosing again; the log-sum-exps are good enough for the time it takes.
  void find() {
    plan.clear();
    plan.bundle(view(query), view(key), view(value), score(), {mask, config.chunk}, config);
    plan.choose(view(query), score(), config, mask.causal ? log_sum_exp.data() : nullptr);
  }
  double distance() {
    dense();
    const auto expected = output;
    sparse();
    double worst = 0, largest = 0;
    for (Index row = 0; row < tokens * heads; ++row) {
      double difference = 0, norm = 0;
      for (Index i = row * dim; i < (row + 1) * dim; ++i) {
        const double r = static_cast<double>(output.data()[i]) - static_cast<double>(expected.data()[i]);
        difference += r * r;
        norm += static_cast<double>(value.data()[i]) * static_cast<double>(value.data()[i]);
      }
      worst = std::max(worst, difference);
      largest = std::max(largest, norm);
    }
    return std::sqrt(worst / largest);
  }
};

void sparse(benchmark::State& state, bool causal) {
  Setting x(state.range(0), causal);
  const double distance = x.distance();
  bench::measure(
      state, {.elements = static_cast<double>(x.tokens * x.heads)}, [&] { x.sparse(); }, [&] { x.dense(); });
  const double whole = bench::best_seconds([&] { x.sparse(); }), finding = bench::best_seconds([&] { x.find(); });
  x.sparse();
  const SparsitySummary summary = x.plan.summary();
  state.counters["blocks_kept"] = summary.kept_share();
  state.counters["finding_share"] = finding / whole;
  state.counters["two_delta"] = 2 * summary.largest_share_bound;
  state.counters["distance"] = distance;
}
void sparse_full(benchmark::State& state) { sparse(state, false); }
void sparse_causal(benchmark::State& state) { sparse(state, true); }

void lengths(benchmark::internal::Benchmark* b) {
  b->ArgName("tokens")->Arg(1024)->Arg(4096)->UseManualTime()->Iterations(7)->Unit(benchmark::kMillisecond);
}
BENCHMARK(sparse_full)->Apply(lengths);
BENCHMARK(sparse_causal)->Apply(lengths);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
