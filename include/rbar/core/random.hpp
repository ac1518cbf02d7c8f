// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers:
// as easy as 1, 2, 3", SC'11). The whole state is three integers, so it is saved exactly in a
// checkpoint, and element i of a stream is computed without its predecessors: masks drawn in
// parallel have the same bits for every thread count.
#pragma once

#include "rbar/config.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>

namespace rbar {

// One block of four 32-bit words from a 128-bit counter and a 64-bit key.
constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                  std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(product0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// A stream of random numbers: a UniformRandomBitGenerator, plus the two distributions used here
// (the standard library's give other numbers on every implementation).
struct Rng {
  using result_type = std::uint32_t;

  std::uint64_t seed = 0;      // key
  std::uint64_t stream = 0;    // upper half of the counter: independent streams of one seed
  std::uint64_t position = 0;  // number of 32-bit words drawn so far

  Rng() = default;
  explicit Rng(std::uint64_t seed_, std::uint64_t stream_ = 0, std::uint64_t position_ = 0)
      : seed(seed_), stream(stream_), position(position_) {}

  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return std::numeric_limits<result_type>::max(); }

  result_type at(std::uint64_t index) const {
    const std::uint64_t block = index / 4;
    const auto words = philox4x32({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                                   static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)},
                                  {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
    return words[index % 4];
  }
  result_type operator()() { return at(position++); }

  // Uniform in [0, 1) with 53 random bits.
  double uniform() {
    const std::uint64_t high = (*this)();
    const std::uint64_t bits = (high << 21) ^ ((*this)() >> 11);
    return static_cast<double>(bits) * 0x1.0p-53;
  }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }

  // Standard normal by Box-Muller; two uniforms a number, so that every draw advances alike.
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }
  double normal(double mean, double deviation) { return mean + deviation * normal(); }

  // Uniform in {0, ..., bound-1}, without the bias of a plain remainder.
  std::uint64_t below(std::uint64_t bound) {
    const std::uint64_t limit = bound * (std::numeric_limits<std::uint64_t>::max() / bound);
    for (;;) {
      const std::uint64_t high = (*this)();
      const std::uint64_t value = (high << 32) | (*this)();
      if (value < limit) return value % bound;
    }
  }

  bool operator==(const Rng&) const = default;
};

}  // namespace rbar
