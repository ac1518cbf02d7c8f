// A stream of any pieces is the full pass, whatever lanes the tokens are in; escalations leave no trace in it.
#include "model/cgt_support.hpp"
#include "rbar/model/generate.hpp"

using namespace rbar;
using namespace cgt_test;

namespace {

Tensor<Token, 2> piece_of(const Tensor<Token, 2>& tokens, Index first, Index count) {
  Tensor<Token, 2> piece(tokens.dimension(0), count);
  for (Index b = 0; b < tokens.dimension(0); ++b) std::copy_n(&tokens(b, first), count, &piece(b, 0));
  return piece;
}

// Logits of all tokens, streamed in pieces by run(piece, logits).
template <class T, class Run>
Tensor<T, 3> in_pieces(const Tensor<Token, 2>& tokens, Index vocabulary, Index piece, Run&& run) {
  const Index batch = tokens.dimension(0), length = tokens.dimension(1);
  Tensor<T, 3> all(batch, length, vocabulary), part;
  for (Index first = 0; first < length; first += piece) {
    const Index count = std::min(piece, length - first);
    run(piece_of(tokens, first, count), part);
    for (Index b = 0; b < batch; ++b) std::copy_n(&part(b, 0, 0), count * vocabulary, &all(b, first, 0));
  }
  return all;
}

template <class T>
double largest(const Tensor<T, 3>& x) {
  double result = 0;
  for (const T value : elements(x)) result = std::max(result, std::abs(static_cast<double>(value)));
  return result;
}

std::vector<CGTConfig> stream_configs() {
  const auto plain = tiny_config();
  auto by_embedding = plain;
  by_embedding.router.route_at = RouteAt::embedding;
  auto exits = plain;
  exits.early_exit.enabled = true;
  exits.early_exit.epsilon = 0.25;
  exits.n_layers = 7;
  exits.standard_layers = 4;
  auto rotary = plain;
  rotary.n_heads = 2;
  rotary.n_kv_heads = 1;
  rotary.positions = Positions::rotary;
  rotary.gate = false;
  auto sparse = plain;
  sparse.sparsity.enabled = true;
  sparse.sparsity.epsilon = 0.3;
  sparse.sparsity.block = 2;
  sparse.sparsity.chunk = 4;
  sparse.sparsity.clusters = 3;
  return {plain, by_embedding, exits, rotary, sparse};
}

}  // namespace

TEST_CASE("a gated transformer's stream has the logits of the full pass, tokens in mixed lanes") {
  const auto which = static_cast<std::size_t>(GENERATE(0, 1, 2, 3, 4));
  const auto config = stream_configs()[which];
  const double pressure = GENERATE(0.0, 0.4);
  INFO("config " << which << ", pressure " << pressure);
  const auto model = random_model<float>(config, 5);
  const auto tokens = random_tokens(3, 24, config.vocab_size, 9);
  CoherenceGatedTransformer<float>::Cache cache;
  cache.pressure = pressure;
  Tensor<float, 3> whole;
  model.forward(tokens, whole, cache);
  CHECK((pressure > 0 || lanes_are_mixed(cache.sheet())));
  if (config.early_exit.enabled && pressure == 0) {
    const auto& stopped = cache.sheet().stopped;
    CHECK(std::count(stopped.begin(), stopped.end(), true) > 0);
  }
  for (const Index piece : {1, 3, 7, 24}) {
    INFO("pieces of " << piece);
    CoherenceGatedTransformer<float>::State state;
    state.pressure = pressure;
    std::vector<Index> layers_used;
    const auto streamed = in_pieces<float>(tokens, config.vocab_size, piece, [&](const auto& part, auto& logits) {
      model.step(part, logits, state);
      const auto& used = state.sheet().layers_used;
      layers_used.insert(layers_used.end(), used.begin(), used.end());
    });
    CHECK(transformer_test::largest_difference(whole, streamed) <= 1e-5 * largest(whole));
    if (piece == 24) CHECK(layers_used == cache.sheet().layers_used);
  }
}

TEST_CASE("keys are projected when they are asked for, and not before") {
  auto config = tiny_config();
  auto model = random_model<double>(config, 15);
  const auto tokens = random_tokens(1, 12, config.vocab_size, 3);
  Tensor<double, 3> logits, expected;
  CoherenceGatedTransformer<double>::State lazy;
  // Everything stops at the first boundary: no key above it.
  auto nobody = model;
  nobody.stack.router.set_thresholds({1e20, 1e21, 1e22, 1e23});
  nobody.step(piece_of(tokens, 0, 8), logits, lazy);
  for (Index l = config.reflex_end(); l < config.n_layers; ++l)
    CHECK((lazy.stack.layers[static_cast<std::size_t>(l)].keys.keys.size() == 0 ||
           lazy.stack.layers[static_cast<std::size_t>(l)].keys.lengths(0) == 0));
  // Then everybody goes on, and asks for what has been waiting.
  auto everybody = model;
  everybody.stack.router.set_thresholds({0, 0, 1e22, 1e23});
  everybody.config.gate = everybody.stack.config.gate = false;
  everybody.step(piece_of(tokens, 8, 1), logits, lazy);
  for (const auto& layer : lazy.stack.layers) CHECK(layer.keys.lengths(0) == 9);
}

TEST_CASE("what is escalated leaves no trace in a stream, and does not depend on its pieces") {
  const auto which = static_cast<std::size_t>(GENERATE(0, 1, 2, 3, 4));
  const auto config = stream_configs()[which];
  INFO("config " << which);
  auto model = random_model<double>(config, 25);
  const auto tokens = random_tokens(2, 24, config.vocab_size, 19);
  Tensor<double, 3> logits;
  CoherenceGatedTransformer<double>::State plain;
  model.step(tokens, logits, plain);
  // A bound that a good part of the final energies is above.
  std::vector<double> energies(elements(plain.sheet().energy[3]).begin(), elements(plain.sheet().energy[3]).end());
  std::sort(energies.begin(), energies.end());
  const InferOptions options{.max_energy = energies[energies.size() / 2]};
  const CGTOutput<double> whole = [&] {
    CoherenceGatedTransformer<double>::State state;
    return model.infer(tokens, options, state);
  }();
  Index escalated = 0;
  for (const Index piece : {1, 5}) {
    CoherenceGatedTransformer<double>::State state, undisturbed;
    for (Index first = 0; first < 24; first += piece) {
      const Index count = std::min<Index>(piece, 24 - first);
      const auto part = piece_of(tokens, first, count);
      const auto output = model.infer(part, options, state);
      model.step(part, logits, undisturbed);
      for (Index b = 0; b < 2; ++b)
        for (Index t = 0; t < count; ++t) {
          const TokenTrace &now = output.trace(b, t), &then = whole.trace(b, first + t);
          CHECK(now.lane == then.lane);
          CHECK(now.emitted == then.emitted);
          CHECK(now.energy_out == Approx(then.energy_out).epsilon(1e-9));
          escalated += now.lane != now.routed;
        }
    }
    for (std::size_t l = 0; l < state.stack.layers.size(); ++l)
      for (Index b = 0; b < 2; ++b) {
        const auto &asked = state.stack.layers[l].keys, &spared = undisturbed.stack.layers[l].keys;
        if (spared.keys.size() == 0) continue;
        for (Index h = 0; h < asked.heads(); ++h)
          for (Index t = 0; t < std::min(asked.lengths(b), spared.lengths(b)); ++t)
            for (Index d = 0; d < asked.head_dim(); ++d) CHECK(asked.keys(b, h, t, d) == spared.keys(b, h, t, d));
      }
  }
  CHECK(escalated > 0);
}

TEST_CASE("a gated stream ends at its limit and refuses another batch") {
  const auto model = random_model<double>(tiny_config(), 35);
  CoherenceGatedTransformer<double>::State state;
  Tensor<double, 3> logits;
  model.step(random_tokens(2, 23, 13, 1), logits, state);
  CHECK_THROWS_AS(model.step(random_tokens(2, 2, 13, 1), logits, state), Error);
  CHECK_THROWS_AS(model.step(random_tokens(3, 1, 13, 1), logits, state), Error);
  CHECK_THROWS_AS(model.step(Tensor<Token, 2>(2, 0), logits, state), Error);
  model.step(random_tokens(2, 1, 13, 1), logits, state);
}

TEST_CASE("a gated transformer generates, with its stream and without") {
  auto model = random_model<double>(tiny_config(), 45);
  auto& bound = model.stack.router.thresholds.value(3);
  bound = std::numeric_limits<double>::infinity();
  const std::vector<Token> prompt{1, 5, 2};
  GenerateOptions options;
  options.max_new_tokens = 40;  // beyond max_seq_len
  const auto with_cache = generate(model, prompt, options);
  options.use_cache = false;
  CHECK(with_cache == generate(model, prompt, options));
  CHECK(with_cache.size() == 40);

  // A bound that some tokens break: the text goes as far as it was emitted. Below every energy it does not begin.
  std::vector<Token> text = prompt;
  text.insert(text.end(), with_cache.begin(), with_cache.begin() + 20);
  std::vector<double> energies;
  const auto output = model.infer(view(std::as_const(text).data(), 1, 23));
  for (Index t = 2; t < 23; ++t) energies.push_back(output.trace(0, t).energy_out);
  bound = *std::max_element(energies.begin(), energies.end()) * (1 - 1e-6);
  for (const bool use_cache : {true, false}) {
    options.use_cache = use_cache;
    const auto cut = generate(model, prompt, options);
    CHECK(cut.size() <= 40);
    CHECK(std::equal(cut.begin(), cut.begin() + std::min<std::ptrdiff_t>(std::ssize(cut), 20), with_cache.begin()));
  }
  bound = 0;
  for (const bool use_cache : {true, false}) {
    options.use_cache = use_cache;
    std::vector<Token> heard;
    CHECK(generate(model, prompt, options, [&](Token token) { heard.push_back(token); }).empty());
    CHECK(heard.empty());
  }
}
