// From a model's pass over a text to a chain that shows what was done to it.
#include "rbar/io/witness_chain.hpp"
#include "rbar/model/cgt.hpp"
#include "support/catch.hpp"

using namespace rbar;

TEST_CASE("what a gated transformer did is sealed, and what is changed afterwards is found", "[io]") {
  CGTConfig config;
  config.vocab_size = 11;
  config.d_model = 8;
  config.n_heads = 2;
  config.n_layers = 3;
  config.d_ff = 8;
  config.max_seq_len = 16;
  config.router.energy_dim = 4;
  Rng rng(1);
  const CoherenceGatedTransformer<float> model(config, rng);
  ChainHead head;
  std::vector<Witness> chain;
  for (int text = 0; text < 3; ++text) {
    std::vector<Token> tokens(12);
    for (Token& token : tokens) token = static_cast<Token>(rng.below(11));
    const SequenceTrace trace = model.trace(tokens, {.max_energy = text == 2 ? 0 : 1e9});
    chain.push_back(seal(trace, head));
    CHECK(chain.back().trace.tokens.size() == 12);
    CHECK(chain.back().trace.residuals == trace.residuals);
  }
  CHECK(chain[0].decision == WitnessDecision::emitted);
  CHECK(chain[2].decision == WitnessDecision::partly_refused);  // the first token agrees with itself
  CHECK_FALSE(find_fault(chain, head));

  std::vector<std::byte> bytes;
  encode_witness(chain[1], bytes);
  const Witness decoded = decode_witness(bytes);
  CHECK(decoded.trace.tokens[5].energy_out == chain[1].trace.tokens[5].energy_out);

  const auto tampered = [&](std::size_t place, auto&& change) {
    auto changed = chain;
    change(changed[place].trace);
    const auto fault = find_fault(changed, head);
    return fault && fault->witness == place;
  };
  CHECK(tampered(2, [](SequenceTrace& trace) { trace.tokens[3].emitted = true; }));
  CHECK(tampered(1, [](SequenceTrace& trace) { trace.tokens[5].energy_out *= 0.5; }));
  CHECK(tampered(0, [](SequenceTrace& trace) { trace.tokens[11].escalated = true; }));
  CHECK(tampered(0, [](SequenceTrace& trace) { trace.thresholds.max = 1; }));
  CHECK(tampered(1, [](SequenceTrace& trace) { trace.top_residuals.pop_back(); }));
}
