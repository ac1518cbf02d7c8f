// A causal CoRT leaks nothing, not even rounding: which later tokens are routed changes how many rows the matrix
// products and the attention get at once, and may not change a bit of the rows before.
#include "rbar/audit/causality.hpp"
#include "rbar/model/cort.hpp"
#include "routing/routing_support.hpp"
#include "support/catch.hpp"

using namespace rbar;

namespace {

// Random sizes, odd ones too: every head has an even number of features, as elsewhere, and at least 2.
CoRTConfig random_config(KeyValues key_values, Rng& rng) {
  const auto between = [&](Index low, Index high) {
    return low + static_cast<Index>(rng.below(static_cast<std::uint64_t>(high - low + 1)));
  };
  CoRTConfig config;
  config.vocab_size = between(2, 70);
  config.n_heads = between(1, 4);
  config.d_model = config.n_heads * 2 * between(1, 12);
  config.n_layers = between(1, 3);
  config.d_ff = between(1, 90);
  config.max_seq_len = between(2, 90);
  config.dropout = 0;
  config.route_frac = rng.uniform(0.05, 0.9);
  config.coherence_window = between(1, 9);
  config.coherence_mode = rng.below(2) == 0 ? CoherenceMode::combined : CoherenceMode::local;
  config.learnable_mixer = rng.below(2) == 0;
  config.key_values = key_values;
  return config;
}

}  // namespace

TEST_CASE("A causal CoRT does not leak a bit") {
#if defined(RBAR_GEMM_EIGEN) || defined(RBAR_GEMM_ONEDNN)
  const double allowed = CausalityReport::tolerance;  // their products sum few rows in another order than many
#else
  const double allowed = 0;
#endif
  const auto key_values = GENERATE(KeyValues::all, KeyValues::routed);
  const Index batch = GENERATE(2, 8);
  const std::uint64_t seed = 20241122;
  Rng rng(seed);
  for (int round = 0; round < 12; ++round) {
    const auto config = random_config(key_values, rng);
    CoRTModel<float> model(config, rng);
    test::shake(model, 0.1, rng);
    const auto report = causality(model, {.length = 90, .batch = batch, .trials = 12, .seed = rng.below(1u << 30)});
    CAPTURE(seed, round, name_of(key_values), batch, config.d_model, config.n_heads, config.d_ff, config.max_seq_len,
            config.route_frac, name_of(config.coherence_mode));
    INFO(report.text());
    CHECK(report.largest_output > 0);
    CHECK(report.leak <= allowed);
  }
}
