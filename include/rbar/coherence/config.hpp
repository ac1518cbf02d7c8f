// Which coherence of the sigmoid phases φ = 2πσ(x) a layer asks for, and over which tokens.
#pragma once

#include "rbar/core/causality.hpp"
#include "rbar/core/tensor.hpp"

#include <string_view>

namespace rbar {

enum class CoherenceMode {
  token,     // over the features of a token
  local,     // per feature over a window of tokens, then mean over features
  cross,     // phase locking of a token with its neighbours
  combined,  // ½ token + ½ local
};

inline constexpr CoherenceMode all_coherence_modes[] = {CoherenceMode::token, CoherenceMode::local,
                                                        CoherenceMode::cross, CoherenceMode::combined};
constexpr const char* name_of(CoherenceMode mode) {
  constexpr const char* names[] = {"token", "local", "cross", "combined"};
  return names[static_cast<int>(mode)];
}
constexpr bool parse(std::string_view text, CoherenceMode& mode) {
  for (const CoherenceMode candidate : all_coherence_modes)
    if (text == name_of(candidate)) return mode = candidate, true;
  return false;
}

// A window's sums hold this many tokens exactly.
inline constexpr Index largest_coherence_window = Index{1} << 20;

struct CoherenceConfig {
  CoherenceMode mode = CoherenceMode::combined;
  Index window = 8;   // tokens, of local and combined
  Index offsets = 4;  // neighbours, of cross
  Causality causality = Causality::causal;

  template <class Visit>
  void fields(Visit&& visit) {
    visit("mode", mode);
    visit("window", window);
    visit("offsets", offsets);
    visit("causality", causality);
  }

  bool uses_token() const { return mode == CoherenceMode::token || mode == CoherenceMode::combined; }
  bool uses_window() const { return mode == CoherenceMode::local || mode == CoherenceMode::combined; }

  void validate() const {
    require(window >= 1 && window <= largest_coherence_window, "CoherenceConfig", "window", "1 to 1048576", window);
    require(offsets >= 1, "CoherenceConfig", "offsets", "at least 1", offsets);
  }
};

}  // namespace rbar
