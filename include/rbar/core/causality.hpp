// Whether a layer may look at later tokens. Everything is causal unless `reference` is asked for.
#pragma once

#include <string_view>

namespace rbar {

enum class Causality {
  causal,     // changing token t never changes an output before t
  reference,  // what the published packages compute, leaks included: for parity tests only
};

inline constexpr Causality all_causality[] = {Causality::causal, Causality::reference};
constexpr const char* name_of(Causality causality) { return causality == Causality::causal ? "causal" : "reference"; }
constexpr bool parse(std::string_view text, Causality& causality) {
  for (const Causality candidate : all_causality)
    if (text == name_of(candidate)) return causality = candidate, true;
  return false;
}

}  // namespace rbar
