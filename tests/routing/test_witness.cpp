#include "rbar/routing/witness.hpp"

#include "routing/witness_support.hpp"
#include "support/catch.hpp"

#include <limits>

using namespace rbar;
using namespace witness_test;

namespace {

std::vector<std::byte> encoding_of(const Witness& witness) {
  std::vector<std::byte> bytes;
  encode_witness(witness, bytes);
  return bytes;
}

Witness random_witness(std::uint64_t seed) {
  Rng rng(seed);
  Witness witness;
  witness.sequence_number = rng.below(1u << 30);
  witness.trace = random_trace(static_cast<Index>(rng.below(5)), rng);
  witness.decision = decision_of(witness.trace);
  for (std::byte& byte : witness.previous_hash) byte = static_cast<std::byte>(rng.below(256));
  return witness;
}

}  // namespace

TEST_CASE("decode reads what encode writes") {
  for (std::uint64_t seed = 1; seed <= 1000; ++seed) {
    const Witness witness = random_witness(seed);
    const auto bytes = encoding_of(witness);
    const Witness back = decode_witness(bytes);
    INFO("seed " << seed);
    CHECK(encoding_of(back) == bytes);
    CHECK(back.sequence_number == witness.sequence_number);
    CHECK(back.previous_hash == witness.previous_hash);
    REQUIRE(back.trace.tokens.size() == witness.trace.tokens.size());
    for (std::size_t t = 0; t < back.trace.tokens.size(); ++t) {
      CHECK(back.trace.tokens[t].lane == witness.trace.tokens[t].lane);
      CHECK(back.trace.tokens[t].energy_out == witness.trace.tokens[t].energy_out);
      CHECK(back.trace.tokens[t].emitted == witness.trace.tokens[t].emitted);
    }
    CHECK(back.trace.thresholds.max == witness.trace.thresholds.max);
    CHECK(back.trace.pressure == witness.trace.pressure);
  }
}

TEST_CASE("every value of a witness is in its encoding") {
  Witness witness = random_witness(4);
  REQUIRE(witness.trace.tokens.size() > 0);
  const auto bytes = encoding_of(witness);
  int changed = 0, total = 0;
  for (int leaf = 0;; ++leaf) {
    Witness other = witness;
    int index = 0;
    bool inside_hash = false, found = false;
    for_each_leaf(other, [&](const std::string& name, auto& value) {
      if (index++ != leaf) return;
      Tamper{}(value);
      found = true;
      inside_hash = name == "hash";
    });
    if (!found) break;
    ++total;
    if (encoding_of(other) != bytes)
      ++changed;
    else
      CHECK(inside_hash);  // which is of the encoding, and not in it
  }
  CHECK(total > 32 + 32 + 14);
  CHECK(changed == total - 32);
}

TEST_CASE("the encoding is fixed: other versions must read it") {
  Witness witness;
  witness.sequence_number = 0x0102;
  witness.trace.tokens.push_back({.lane = ComputeLane::deep, .energy_out = 1, .layers_used = 12});
  witness.trace.blocks_skipped = 3;
  const auto bytes = encoding_of(witness);
  std::string text;
  for (const std::byte byte : bytes) {
    constexpr char digits[] = "0123456789abcdef";
    text += digits[std::to_integer<unsigned>(byte) >> 4];
    text += digits[std::to_integer<unsigned>(byte) & 15];
  }
  const std::string zero8(16, '0');
  CHECK(text ==
        "0e00000000000000"
        "72626172207769746e6573732031"  // "rbar witness 1"
        "0201000000000000"
        "00"                // sequence number, decision
        "0100000000000000"  // one token
        "00"
        "02" +
            zero8 +
            "000000000000f03f"
            "0c00000000000000"
            "00"    // layers used and why no more
            "01"    // emitted
            "00" +  // not escalated
            zero8 +
            zero8 +                               // no residual pairs, no residuals
            zero8 + "0300000000000000" + zero8 +  // blocks visited, skipped, mass
            zero8 +                               // no spectra
            "7b14ae47e17a843f"
            "9a9999999999b93f"
            "000000000000f03f"
            "0000000000002440" +    // thresholds
            zero8 +                 // pressure
            std::string(64, '0'));  // previous hash
}

TEST_CASE("decode takes nothing that encode would not write") {
  const Witness witness = random_witness(4);
  const auto bytes = encoding_of(witness);
  for (std::size_t size = 0; size < bytes.size(); ++size)
    CHECK_THROWS_AS(decode_witness(std::span(bytes).first(size)), Error);
  auto longer = bytes;
  longer.push_back(std::byte{0});
  CHECK_THROWS_WITH(decode_witness(longer), ContainsText("bytes after the witness"));

  // Whatever strangers send: an Error, or a witness with exactly these bytes.
  Rng rng(5);
  int accepted = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    auto changed = bytes;
    for (std::uint64_t edits = 1 + rng.below(3); edits > 0; --edits)
      changed[rng.below(changed.size())] = static_cast<std::byte>(rng.below(256));
    if (trial % 5 == 0) changed.resize(rng.below(changed.size() + 20));
    try {
      const Witness read = decode_witness(changed);
      ++accepted;
      if (encoding_of(read) != changed) FAIL("two encodings of one witness, trial " << trial);
    } catch (const Error&) {
    }
  }
  CHECK(accepted > 1000);  // changed numbers are numbers

  std::vector<std::byte> hostile(bytes.begin(), bytes.begin() + 8 + 14 + 8 + 1);
  hostile.insert(hostile.end(), 8, std::byte{0xff});  // 2⁶⁴ − 1 tokens
  CHECK_THROWS_WITH(decode_witness(hostile), ContainsText("routed"));
}

TEST_CASE("a witness holds numbers and names only") {
  Witness witness = random_witness(4);
  std::vector<std::byte> bytes;
  witness.trace.pressure = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(encode_witness(witness, bytes), ContainsText("pressure"));
  witness = random_witness(4);
  witness.trace.tokens[0].energy_in = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(encode_witness(witness, bytes), ContainsText("energy_in"));
  witness = random_witness(4);
  witness.trace.tokens[0].exit = static_cast<ExitReason>(77);
  CHECK_THROWS_WITH(encode_witness(witness, bytes), ContainsText("exit"));
  witness = random_witness(4);
  witness.trace.thresholds.max = std::numeric_limits<double>::infinity();  // no bound is a bound
  CHECK(decode_witness(encoding_of(witness)).trace.thresholds.max == std::numeric_limits<double>::infinity());
}

TEST_CASE("the decision is the tokens'") {
  SequenceTrace trace;
  CHECK(decision_of(trace) == WitnessDecision::emitted);
  trace.tokens.resize(3);
  CHECK(decision_of(trace) == WitnessDecision::emitted);
  trace.tokens[1].emitted = false;
  CHECK(decision_of(trace) == WitnessDecision::partly_refused);
  trace.tokens[0].emitted = trace.tokens[2].emitted = false;
  CHECK(decision_of(trace) == WitnessDecision::refused);
  CHECK(name_of(WitnessDecision::partly_refused) == std::string("partly_refused"));
}
