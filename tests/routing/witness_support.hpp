// Witnesses with something in every field, and a way to every single value in them.
#pragma once

#include "rbar/core/random.hpp"
#include "rbar/routing/witness.hpp"

namespace witness_test {

using namespace rbar;

inline SequenceTrace random_trace(Index tokens, Rng& rng) {
  SequenceTrace trace;
  const auto pick = [&]<class Enum>(Enum) {
    return static_cast<Enum>(rng.below(static_cast<std::uint64_t>(detail::last_enumerator<Enum>) + 1));
  };
  for (Index t = 0; t < tokens; ++t)
    trace.tokens.push_back({pick(ComputeLane{}), pick(ComputeLane{}), rng.uniform(0, 3), rng.uniform(0, 3),
                            static_cast<Index>(rng.below(13)), pick(ExitReason{}), rng.below(4) != 0,
                            rng.below(4) == 0});
  for (std::uint64_t i = rng.below(3); i > 0; --i)
    trace.top_residuals.push_back({static_cast<Index>(rng.below(90)), static_cast<Index>(rng.below(9)), rng.normal()});
  for (std::uint64_t i = rng.below(5); i > 0; --i) trace.residuals.push_back(rng.normal());
  trace.blocks_visited = static_cast<Index>(rng.below(1000));
  trace.blocks_skipped = static_cast<Index>(rng.below(1000));
  trace.skipped_mass = rng.uniform();
  for (std::uint64_t i = rng.below(3); i > 0; --i)
    trace.spectra.push_back({rng.normal(), rng.normal(), rng.normal(), pick(DriftLevel{})});
  trace.thresholds = {rng.uniform(), 1 + rng.uniform(), 2 + rng.uniform(), 3 + rng.uniform()};
  trace.pressure = rng.uniform();
  return trace;
}

// visit(name, value) for every enumerator, number, flag and hash inside, and for every list as a whole.
template <class Visit>
struct Leaves {
  Visit visit;
  template <class Value>
  void operator()(const char* name, Value& value) const {
    if constexpr (std::is_arithmetic_v<Value> || std::is_enum_v<Value>) {
      visit(name, value);
    } else if constexpr (std::is_same_v<Value, WitnessHash>) {
      for (std::byte& byte : value) visit(name, byte);
    } else if constexpr (requires { value.push_back({}); }) {
      for (auto& item : value) (*this)(name, item);
      visit(name, value);
    } else {
      detail::witness_fields(value, *this);
    }
  }
};

template <class Visit>
void for_each_leaf(Witness& witness, Visit visit) {
  Leaves<Visit>{visit}("witness", witness);
  for (std::byte& byte : witness.hash) visit("hash", byte);
}

// Another value that the encoding allows.
struct Tamper {
  template <class Value>
  void operator()(Value& value) const {
    if constexpr (std::is_same_v<Value, bool>)
      value = !value;
    else if constexpr (std::is_same_v<Value, std::byte>)
      value ^= std::byte{1};
    else if constexpr (std::is_enum_v<Value>)
      value = value == Value{} ? detail::last_enumerator<Value> : Value{};
    else if constexpr (std::is_same_v<Value, double>)
      value = value == 0 ? -0.0 : std::nextafter(value, 1e9);
    else if constexpr (std::is_integral_v<Value>)
      ++value;
    else
      value.push_back({});
  }
};

}  // namespace witness_test
