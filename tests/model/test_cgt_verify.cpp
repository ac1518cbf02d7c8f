// The contract of the output: within the bound, or refused.
#include "model/cgt_support.hpp"

#include <limits>

using namespace rbar;
using namespace cgt_test;

namespace {

// E of state `own` [D] at position t against the routed states of its sequence, by definition.
double energy_of(const LaneRouter<double>& router, const double* own, const Tensor<double, 3>& routed, Index b,
                 Index t) {
  const Row q = map_row(router.measure.rho_query, own);
  double sum = 0;
  for (Index j = 0; j <= t; ++j) {
    const Row k = map_row(router.measure.rho_key, &routed(b, j, 0));
    for (std::size_t d = 0; d < q.size(); ++d) sum += (q[d] - k[d]) * (q[d] - k[d]);
  }
  return sum / static_cast<double>(t + 1) / router.scale(3);
}

// State of a token that is taken through segment 1 or 2 alone, by definition: its query among the routed keys.
Row escalated_state(const CoherenceGatedTransformer<double>& model, const Textbook& routed, int segment, Index b,
                    Index t) {
  const CGTConfig& config = model.config;
  const Index dim = config.d_model, tokens = routed.final_states.dimension(1);
  const auto thresholds = model.stack.router.thresholds_in_force();
  Row h(&routed.final_states(b, t, 0), &routed.final_states(b, t, 0) + dim);
  const Row entry = h;
  for (Index l = segment == 1 ? config.reflex_end() : config.standard_end();
       l < (segment == 1 ? config.standard_end() : config.n_layers); ++l) {
    const auto& layer = model.stack.layers[static_cast<std::size_t>(l)];
    // Keys 0 … t are the routed tokens', the query is a last token that is no key. No positions in these layers.
    Tensor<double, 3> x(1, t + 2, dim);
    std::copy_n(&routed.layer_inputs[static_cast<std::size_t>(l)](b, 0, 0), (t + 1) * dim, &x(0, 0, 0));
    std::copy_n(h.data(), dim, &x(0, t + 1, 0));
    const auto attended =
        naive::sheaf_attention(layer.attention, textbook_normed(layer.norm1, x), [&](Index row) { return row <= t; });
    for (Index d = 0; d < dim; ++d) h[static_cast<std::size_t>(d)] += attended(0, t + 1, d);
    textbook_second_half(layer, dim, h.data());
  }
  const double theta = segment == 1 ? thresholds.reflex : thresholds.standard;
  const double reached =
      std::max(theta, routed.energy[static_cast<std::size_t>(segment)][static_cast<std::size_t>(b * tokens + t)]);
  for (std::size_t d = 0; d < h.size(); ++d) h[d] = entry[d] + reached / (reached + theta) * (h[d] - entry[d]);
  return h;
}

}  // namespace

TEST_CASE("nothing above the bound is ever emitted") {
  constexpr int models = 60, texts = 20;
  Index emitted = 0, escalated = 0, refused_above = 0, refused_escalated = 0, uncertain_escalated = 0, left_early = 0;
  for (int m = 0; m < models; ++m) {
    Rng rng(static_cast<std::uint64_t>(m), 7);
    auto config = tiny_config();
    config.router.route_at = m % 3 == 0 ? RouteAt::embedding : RouteAt::boundaries;
    config.gate = m % 4 != 0;
    if (m % 2 == 0) config.router.share_deep = 0.05;
    config.early_exit.enabled = m % 5 == 0;
    config.early_exit.epsilon = 0.5;
    const auto model = random_model<double>(config, static_cast<std::uint64_t>(m), rng.uniform(0.02, 0.4));
    CoherenceGatedTransformer<double>::State state;
    for (int text = 0; text < texts; ++text) {
      INFO("model " << m << ", text " << text);
      state = {};
      const Index batch = 1 + static_cast<Index>(rng.below(2)), length = 1 + static_cast<Index>(rng.below(9));
      const auto tokens = random_tokens(batch, length, config.vocab_size, rng());
      const InferOptions options{
          .pressure = rng.uniform(),
          .max_energy = rng.below(4) == 0 ? std::numeric_limits<double>::infinity() : std::exp(rng.normal())};
      const auto output = model.infer(tokens, options, state);
      REQUIRE(output.bound() <= options.max_energy);
      REQUIRE(output.emitted() + output.refused() == batch * length);
      const Tensor<double, 3>& routed = state.stack.history;
      for (Index b = 0; b < batch; ++b)
        for (Index t = 0; t < length; ++t) {
          const double energy = energy_of(model.stack.router, &state.hidden(b, t, 0), routed, b, t);
          const TokenTrace& trace = output.trace(b, t);
          REQUIRE(trace.energy_out == Approx(energy).epsilon(1e-9).margin(1e-12));
          REQUIRE(std::holds_alternative<Emission>(output.at(b, t)) == trace.emitted);
          // The lane is where it ended; who sees all layers is uncertain by θ_deep, where that is not known before.
          const int segment = state.sheet().segment[static_cast<std::size_t>(b * length + t)] + trace.escalated;
          const bool above = config.router.route_at == RouteAt::embedding ? trace.routed == ComputeLane::escalate
                                                                          : energy >= state.sheet().thresholds.deep;
          REQUIRE(trace.lane == (segment == 0   ? ComputeLane::reflex
                                 : segment == 1 ? ComputeLane::standard
                                 : above        ? ComputeLane::escalate
                                                : ComputeLane::deep));
          left_early += !trace.escalated && trace.lane < trace.routed;
          if (const auto* emission = std::get_if<Emission>(&output.at(b, t))) {
            REQUIRE(emission->energy() <= output.bound());
            REQUIRE(energy <= output.bound() * (1 + 1e-9) + 1e-12);
            REQUIRE(output.logits(*emission).size() == 13);
            ++emitted;
            escalated += trace.escalated;
            REQUIRE(emission->uncertain() ==
                    (trace.lane == ComputeLane::escalate || trace.routed == ComputeLane::escalate));
            uncertain_escalated += trace.escalated && emission->uncertain();
          } else {
            const auto& refusal = std::get<Refusal>(output.at(b, t));
            REQUIRE(refusal.energy > refusal.bound);
            REQUIRE((trace.escalated || segment == 2));
            (trace.escalated ? refused_escalated : refused_above) += 1;
          }
        }
    }
  }
  // Every way of ending occurs often.
  CHECK(emitted > 1000);
  CHECK(escalated > 25);
  CHECK(refused_above > 50);
  CHECK(refused_escalated > 50);
  CHECK(uncertain_escalated > 0);
  CHECK(left_early > 0);
}

TEST_CASE("what is emitted where it was routed has the logits of a step; what is escalated those of its definition") {
  const auto config = tiny_config();
  Index direct = 0, by_definition = 0;
  for (std::uint64_t seed : {1u, 2u, 3u, 4u}) {
    const auto model = random_model<double>(config, seed);
    const auto tokens = random_tokens(2, 15, config.vocab_size, seed + 50);
    CoherenceGatedTransformer<double>::State stepped, state;
    Tensor<double, 3> logits;
    model.step(tokens, logits, stepped);
    const Textbook expected = textbook(model, tokens);
    std::vector<double> energies = expected.energy[3];
    std::sort(energies.begin(), energies.end());
    const auto output = model.infer(tokens, {.max_energy = energies[energies.size() / 2]}, state);
    for (Index b = 0; b < 2; ++b)
      for (Index t = 0; t < 15; ++t) {
        const TokenTrace& trace = output.trace(b, t);
        const auto* emission = std::get_if<Emission>(&output.at(b, t));
        if (!trace.escalated) {
          if (!emission) continue;
          const auto emitted = output.logits(*emission);
          for (std::size_t v = 0; v < emitted.size(); ++v) CHECK(emitted[v] == logits(b, t, static_cast<Index>(v)));
          ++direct;
        } else {
          const Row h = escalated_state(model, expected, trace.lane == ComputeLane::standard ? 1 : 2, b, t);
          for (Index d = 0; d < config.d_model; ++d)
            CHECK(state.hidden(b, t, d) == Approx(h[static_cast<std::size_t>(d)]).epsilon(1e-8).margin(1e-9));
          CHECK(trace.layers_used == (trace.lane == ComputeLane::standard ? 3 : 5));
          ++by_definition;
        }
      }
  }
  CHECK(direct > 30);
  CHECK(by_definition > 10);
}

TEST_CASE("the trace of a sequence says what infer did") {
  auto config = tiny_config();
  config.sparsity.enabled = true;
  config.sparsity.block = 2;
  config.sparsity.chunk = 4;
  config.sparsity.clusters = 2;
  config.sparsity.epsilon = 0.5;
  const auto model = random_model<double>(config, 12);
  const auto tokens = random_tokens(1, 20, config.vocab_size, 3);
  const InferOptions options{.pressure = 0.1, .max_energy = 1.2};
  const SequenceTrace trace = model.trace(elements(tokens), options);
  const auto output = model.infer(tokens, options);
  REQUIRE(trace.tokens.size() == 20);
  std::size_t refused = 0;
  for (Index t = 0; t < 20; ++t) {
    const TokenTrace& token = trace.tokens[static_cast<std::size_t>(t)];
    CHECK(token.lane == output.trace(0, t).lane);
    CHECK(token.energy_out == output.trace(0, t).energy_out);
    CHECK(token.layers_used >= config.reflex_end());
    CHECK(token.layers_used <= config.n_layers);
    refused += !token.emitted;
  }
  CHECK(refused == static_cast<std::size_t>(output.refused()));
  CHECK(trace.pressure == 0.1);
  CHECK(trace.thresholds.max == output.bound());
  CHECK(trace.spectra.size() == 3);  // points 1, 2 and 3
  CHECK(trace.spectra[0].drift == 0);
  CHECK(trace.spectra[1].drift > 0);
  CHECK(trace.blocks_visited + trace.blocks_skipped > 0);
  CHECK(trace.blocks_skipped > 0);
  CHECK(trace.skipped_mass > 0);
  CHECK(trace.skipped_mass <= 0.25 + 1e-9);  // 2Δ <= ε, and pressure leaves an ε above .1 alone
  REQUIRE(trace.residuals.size() == 400);
  REQUIRE(trace.top_residuals.size() == 16);
  for (std::size_t i = 0; i + 1 < 16; ++i) CHECK(trace.top_residuals[i].energy >= trace.top_residuals[i + 1].energy);
  std::vector<double> past;
  for (std::size_t i = 0; i < 20; ++i) past.insert(past.end(), &trace.residuals[i * 20], &trace.residuals[i * 20 + i]);
  std::sort(past.rbegin(), past.rend());
  for (std::size_t i = 0; i < 16; ++i) CHECK(trace.top_residuals[i].energy == past[i]);
  // Beyond the limit the largest pairs are all that is kept, and they are the same.
  CoherenceGatedTransformer<double>::State state;
  model.infer(tokens, options, state);
  SequenceTrace limited;
  detail::trace_residuals<double>(state.stack.points_state[3].energy.cache, model.stack.router.scale(3), limited,
                                  /*limit=*/7);
  CHECK(limited.residuals.empty());
  REQUIRE(limited.top_residuals.size() == 16);
  for (std::size_t i = 0; i < 16; ++i) {
    CHECK(limited.top_residuals[i].energy == Approx(past[i]).epsilon(1e-9));
    CHECK(limited.top_residuals[i].query == trace.top_residuals[i].query);
  }
  const ResidualPair& top = trace.top_residuals[0];
  CHECK(top.key < top.query);
  CHECK(trace.residuals[static_cast<std::size_t>(top.query * 20 + top.key)] == top.energy);
  CHECK(*std::max_element(trace.residuals.begin(), trace.residuals.end()) >= top.energy);
  // The mean of a row is the token's energy, where it was not escalated.
  for (std::size_t t = 0; t < 20; ++t) {
    if (trace.tokens[t].escalated) continue;
    double sum = 0;
    for (std::size_t j = 0; j <= t; ++j) sum += trace.residuals[t * 20 + j];
    CHECK(sum / static_cast<double>(t + 1) == Approx(trace.tokens[t].energy_out).epsilon(1e-6));
  }
}

TEST_CASE("a lane without layers is no lane to escalate to") {
  auto config = tiny_config();
  config.n_layers = 3;
  config.standard_layers = 1;  // = reflex_layers
  config.router.share_reflex = 0.8;
  config.router.share_standard = 0;
  config.router.share_deep = 0.15;
  Index deep = 0;
  for (std::uint64_t seed : {1u, 2u, 3u}) {
    const auto model = random_model<double>(config, seed);
    const auto output = model.infer(random_tokens(2, 20, config.vocab_size, seed), {.max_energy = 0});
    for (Index t = 0; t < 20; ++t) {
      CHECK(output.trace(1, t).layers_used == 3);
      deep += output.trace(1, t).escalated;
    }
    config.standard_layers = 3;  // and none above
    const auto flat = random_model<double>(config, seed).infer(random_tokens(1, 20, 13, seed), {.max_energy = 0});
    for (Index t = 0; t < 20; ++t) {
      CHECK(flat.trace(0, t).layers_used == 3);
      CHECK((flat.trace(0, t).lane == ComputeLane::standard || !flat.trace(0, t).escalated));
    }
    config.standard_layers = 1;
  }
  CHECK(deep > 10);
}

TEST_CASE("infer refuses what makes no sense") {
  auto model = random_model<double>(tiny_config(), 22);
  const auto tokens = random_tokens(1, 4, 13, 3);
  CHECK_THROWS_AS(model.infer(tokens, {.pressure = -0.1}), Error);
  CHECK_THROWS_AS(model.infer(tokens, {.pressure = 1.1}), Error);
  CHECK_THROWS_AS(model.infer(tokens, {.max_energy = -1}), Error);
  CHECK_THROWS_AS(model.infer(tokens, {.max_energy = std::numeric_limits<double>::quiet_NaN()}), Error);
  CHECK_THROWS_AS(model.infer(Tensor<Token, 2>(1, 0)), Error);
  const auto output = model.infer(tokens);
  CHECK_THROWS_AS(output.at(0, 4), Error);
  CHECK_THROWS_AS(output.at(1, 0), Error);
  // Nor does a verdict open the logits of another output.
  const auto other = model.infer(random_tokens(1, 4, 13, 4));
  const auto* emission = std::get_if<Emission>(&output.at(0, 1));
  REQUIRE(emission);
  CHECK_NOTHROW(output.logits(*emission));
  CHECK_THROWS_AS(other.logits(*emission), Error);
  // Logits that are not finite get out neither.
  model.ends.final_norm.weight(3) = std::numeric_limits<double>::infinity();
  CHECK_THROWS_WITH(model.infer(tokens), ContainsText("logits"));
  for (double& value : elements(model.stack.layers[0].attention.out_proj.bias))
    value = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(model.infer(tokens), ContainsText("energy"));
}
