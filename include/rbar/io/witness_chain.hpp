// Witnesses chained by BLAKE2b-256 (Aumasson et al., "BLAKE2: simpler, smaller, fast as MD5", ACNS 2013; libsodium's
// crypto_generichash):  hash_i = BLAKE2b(encoding of witness i, which holds hash_{i−1}).
// Any change of a witness, of their order or number before the last one breaks a link. What a chain cannot show by
// itself is that its end was cut off, or that all of it was written anew: keep the ChainHead elsewhere and verify
// against it. Link rbar::witness.
#pragma once

#include "rbar/routing/witness.hpp"

#include <sodium.h>

#include <optional>
#include <string>

namespace rbar {

// Where a chain ends: what must be kept out of reach of whoever might rewrite it.
struct ChainHead {
  std::uint64_t count = 0;  // witnesses
  WitnessHash hash{};       // of the last one; zeros without any

  bool operator==(const ChainHead&) const = default;
};

// The first thing that is wrong with a chain.
struct ChainFault {
  std::uint64_t witness = 0;  // its place in the chain, from 0
  std::string reason;
};

inline std::string to_hex(const WitnessHash& hash) {
  std::array<char, 2 * std::tuple_size_v<WitnessHash> + 1> text{};
  sodium_bin2hex(text.data(), text.size(), reinterpret_cast<const unsigned char*>(hash.data()), hash.size());
  return text.data();
}

namespace detail {

inline WitnessHash blake2b(std::span<const std::byte> bytes) {
  static const int status = sodium_init();  // chooses the fastest code for this processor
  require(status >= 0, "witness chain", "sodium_init", "success", status);
  WitnessHash hash;
  static_assert(std::tuple_size_v<WitnessHash> == crypto_generichash_BYTES);
  crypto_generichash(reinterpret_cast<unsigned char*>(hash.data()), hash.size(),
                     reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), nullptr, 0);
  return hash;
}

}  // namespace detail

// The next witness after `head`, which moves on to it. Errors: a trace with NaN; head is then as it was.
inline Witness seal(SequenceTrace trace, ChainHead& head) {
  Witness witness;
  witness.sequence_number = head.count;
  witness.decision = decision_of(trace);
  witness.trace = std::move(trace);
  witness.previous_hash = head.hash;
  std::vector<std::byte> bytes;
  encode_witness(witness, bytes);
  witness.hash = detail::blake2b(bytes);
  head = {head.count + 1, witness.hash};
  return witness;
}

namespace detail {

// Why `witness` cannot be the one after `head`; empty if it can, and head has then moved on to it.
inline std::string advance(ChainHead& head, const Witness& witness, std::vector<std::byte>& scratch) {
  if (witness.sequence_number != head.count)
    return "expected sequence number " + std::to_string(head.count) + ", got " +
           std::to_string(witness.sequence_number);
  if (witness.previous_hash != head.hash)
    return "it follows another witness: expected " + to_hex(head.hash) + ", got " + to_hex(witness.previous_hash);
  try {
    encode_witness(witness, scratch);
  } catch (const Error& error) {
    return error.what();
  }
  const WitnessHash hash = blake2b(scratch);
  if (witness.hash != hash)
    return "it was changed after it was sealed: its hash is " + to_hex(hash) + ", sealed was " + to_hex(witness.hash);
  head = {head.count + 1, hash};
  return {};
}

inline std::optional<ChainFault> compare_heads(const ChainHead& head, const std::optional<ChainHead>& kept) {
  if (!kept || head == *kept) return std::nullopt;
  if (head.count != kept->count)
    return ChainFault{std::min(head.count, kept->count),
                      "expected " + std::to_string(kept->count) + " witnesses, got " + std::to_string(head.count)};
  return ChainFault{head.count - 1,
                    "the chain was written anew: expected hash " + to_hex(kept->hash) + ", got " + to_hex(head.hash)};
}

}  // namespace detail

// Nothing, if every witness is in its place and as it was sealed, and the chain ends at `kept` (where given).
inline std::optional<ChainFault> find_fault(std::span<const Witness> chain, const std::optional<ChainHead>& kept = {}) {
  ChainHead head;
  std::vector<std::byte> scratch;
  for (const Witness& witness : chain)
    if (std::string reason = detail::advance(head, witness, scratch); !reason.empty())
      return ChainFault{head.count, std::move(reason)};
  return detail::compare_heads(head, kept);
}

}  // namespace rbar
