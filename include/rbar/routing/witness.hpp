// The witness of one gated sequence: what was routed where, what it cost, and what was decided, in a form that can be
// hashed. Witnesses form a chain (io/witness_chain.hpp): each holds the hash of the one before it, and its own hash is
// over its canonical encoding:
//   integers 8 bytes, doubles the 8 bytes of their IEEE 754 form, both least byte first; enumerators and bool 1 byte;
//   a list is its length, then its elements; a record is its fields in the order of their declaration.
// One witness has one encoding and the reverse: decode accepts nothing that encode would not write.
#pragma once

#include "rbar/routing/lane_trace.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace rbar {

using WitnessHash = std::array<std::byte, 32>;

enum class WitnessDecision { emitted, partly_refused, refused };  // every token, some of them, none

constexpr const char* name_of(WitnessDecision decision) {
  constexpr const char* names[] = {"emitted", "partly_refused", "refused"};
  return names[static_cast<int>(decision)];
}

// A sequence without tokens emits nothing that could be wrong.
inline WitnessDecision decision_of(const SequenceTrace& trace) {
  std::size_t emitted = 0;
  for (const TokenTrace& token : trace.tokens) emitted += token.emitted ? 1 : 0;
  return emitted == trace.tokens.size() ? WitnessDecision::emitted
         : emitted > 0                  ? WitnessDecision::partly_refused
                                        : WitnessDecision::refused;
}

struct Witness {
  std::uint64_t sequence_number = 0;  // place in its chain, from 0
  WitnessDecision decision = WitnessDecision::emitted;
  SequenceTrace trace;
  WitnessHash previous_hash{};  // of the witness before; zeros in the first
  WitnessHash hash{};           // of everything above
};

namespace detail {

inline constexpr std::string_view witness_label = "rbar witness 1";  // what the bytes are, and their version

template <class Enum>
inline constexpr Enum last_enumerator = Enum{};
template <>
inline constexpr ComputeLane last_enumerator<ComputeLane> = ComputeLane::escalate;
template <>
inline constexpr ExitReason last_enumerator<ExitReason> = ExitReason::collapsed;
template <>
inline constexpr DriftLevel last_enumerator<DriftLevel> = DriftLevel::severe;
template <>
inline constexpr WitnessDecision last_enumerator<WitnessDecision> = WitnessDecision::refused;

// field(name, member) for every member, in order. The bindings name all members: one that is added to a record
// stops compiling here rather than going unwitnessed. Written once for reading and writing.
template <class Record, class Field>
void witness_fields(Record& record, Field&& field) {
  using Plain = std::remove_const_t<Record>;
  if constexpr (std::is_same_v<Plain, TokenTrace>) {
    auto& [routed, lane, energy_in, energy_out, layers_used, exit, emitted, escalated] = record;
    field("routed", routed), field("lane", lane), field("energy_in", energy_in), field("energy_out", energy_out);
    field("layers_used", layers_used), field("exit", exit), field("emitted", emitted);
    field("escalated", escalated);
  } else if constexpr (std::is_same_v<Plain, ResidualPair>) {
    auto& [query, key, energy] = record;
    field("query", query), field("key", key), field("energy", energy);
  } else if constexpr (std::is_same_v<Plain, SpectralSummary>) {
    auto& [lambda_2, gap, drift, level] = record;
    field("lambda_2", lambda_2), field("gap", gap), field("drift", drift), field("level", level);
  } else if constexpr (std::is_same_v<Plain, CoherenceThresholds>) {
    auto& [reflex, standard, deep, max] = record;
    field("reflex", reflex), field("standard", standard), field("deep", deep), field("max", max);
  } else if constexpr (std::is_same_v<Plain, SequenceTrace>) {
    auto& [tokens, top_residuals, residuals, visited, skipped, skipped_mass, spectra, thresholds, pressure] = record;
    field("tokens", tokens), field("top_residuals", top_residuals), field("residuals", residuals);
    field("blocks_visited", visited), field("blocks_skipped", skipped), field("skipped_mass", skipped_mass);
    field("spectra", spectra), field("thresholds", thresholds), field("pressure", pressure);
  } else {
    static_assert(std::is_same_v<Plain, Witness>);
    auto& [sequence_number, decision, trace, previous_hash, hash] = record;
    field("sequence_number", sequence_number), field("decision", decision), field("trace", trace);
    field("previous_hash", previous_hash);  // `hash` is of what is encoded here, and no part of it
  }
}

// Both ends refuse NaN, whose many bit patterns compare alike to no one, and enumerators without a name.
struct WitnessWriter {
  std::vector<std::byte>& out;

  void bytes(std::span<const std::byte> some) const { out.insert(out.end(), some.begin(), some.end()); }
  void word(std::uint64_t value) const {
    for (int shift = 0; shift < 64; shift += 8) out.push_back(static_cast<std::byte>(value >> shift & 0xff));
  }

  template <class Value>
  void operator()(const char* name, const Value& value) const {
    if constexpr (std::is_same_v<Value, double>) {
      require(!std::isnan(value), "encode_witness", name, "a number", value);
      word(std::bit_cast<std::uint64_t>(value));
    } else if constexpr (std::is_enum_v<Value>) {
      require(value >= Value{} && value <= last_enumerator<Value>, "encode_witness", name, "a known enumerator",
              static_cast<int>(value));
      out.push_back(static_cast<std::byte>(value));
    } else if constexpr (std::is_same_v<Value, bool>) {
      out.push_back(static_cast<std::byte>(value));
    } else if constexpr (std::is_integral_v<Value>) {
      word(static_cast<std::uint64_t>(value));
    } else if constexpr (std::is_same_v<Value, WitnessHash>) {
      bytes(value);
    } else if constexpr (requires { value.size(); }) {
      word(value.size());
      for (const auto& item : value) (*this)(name, item);
    } else {
      witness_fields(value, *this);
    }
  }
};

struct WitnessReader {
  std::span<const std::byte>& in;  // what is left

  std::span<const std::byte> bytes(std::size_t count, const char* name) const {
    require(in.size() >= count, "decode_witness", name, count, in.size());
    const auto some = in.first(count);
    in = in.subspan(count);
    return some;
  }
  std::uint64_t word(const char* name) const {
    std::uint64_t value = 0;
    int shift = 0;
    for (const std::byte byte : bytes(8, name)) value |= std::to_integer<std::uint64_t>(byte) << shift, shift += 8;
    return value;
  }
  unsigned byte(const char* name, unsigned last) const {
    const auto value = std::to_integer<unsigned>(bytes(1, name)[0]);
    require(value <= last, "decode_witness", name, "a known enumerator", value);
    return value;
  }

  template <class Value>
  void operator()(const char* name, Value& value) const {
    if constexpr (std::is_same_v<Value, double>) {
      value = std::bit_cast<double>(word(name));
      require(!std::isnan(value), "decode_witness", name, "a number", value);
    } else if constexpr (std::is_enum_v<Value>) {
      value = static_cast<Value>(byte(name, static_cast<unsigned>(last_enumerator<Value>)));
    } else if constexpr (std::is_same_v<Value, bool>) {
      value = byte(name, 1) != 0;
    } else if constexpr (std::is_integral_v<Value>) {
      value = static_cast<Value>(word(name));
    } else if constexpr (std::is_same_v<Value, WitnessHash>) {
      std::ranges::copy(bytes(value.size(), name), value.begin());
    } else if constexpr (requires { value.size(); }) {
      value.clear();  // grows by what is really there: a length that lies runs out of bytes
      for (std::uint64_t count = word(name); count > 0; --count) (*this)(name, value.emplace_back());
    } else {
      witness_fields(value, *this);
    }
  }
};

}  // namespace detail

// The bytes that are hashed: all of the witness but its own hash. Overwrites `out`. Errors: NaN, unknown enumerators.
inline void encode_witness(const Witness& witness, std::vector<std::byte>& out) {
  out.clear();
  const detail::WitnessWriter write{out};
  write.word(detail::witness_label.size());
  write.bytes(std::as_bytes(std::span(detail::witness_label)));
  write("witness", witness);
}

// The witness that these bytes are the encoding of; its own hash is left zero. Errors: any other bytes.
inline Witness decode_witness(std::span<const std::byte> bytes) {
  const detail::WitnessReader read{bytes};
  constexpr std::string_view label = detail::witness_label;
  const std::uint64_t size = read.word("label");
  require(
      size == label.size() && std::ranges::equal(read.bytes(label.size(), "label"), std::as_bytes(std::span(label))),
      "decode_witness", "label", label, "another one");
  Witness witness;
  read("witness", witness);
  require(bytes.empty(), "decode_witness", "bytes after the witness", 0, bytes.size());
  return witness;
}

}  // namespace rbar
