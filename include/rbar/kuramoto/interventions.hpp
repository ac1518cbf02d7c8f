// Interventions on phase-modulated attention: what one layer is made to use instead of what it computes. Causal
// experiments on a trained model ("what if R were 1?"), in the sense of do(·).
#pragma once

#include "rbar/core/error.hpp"

#include <cmath>
#include <optional>
#include <string_view>

namespace rbar {

// Empty members leave the layer alone (`= {}`: so that compilers let designated initialisers leave some out). What is
// overridden is a constant to the backward pass.
struct PhaseIntervention {
  std::optional<double> coupling = {};         // K of every token, at most largest_phase_step/dt with |ω|
  std::optional<double> order_parameter = {};  // R where the temperature reads it, in [0, 1]; the phases keep their own
  std::optional<double> temperature = {};      // τ of every row, positive
  std::optional<double> gate = {};             // λ, in [0, 1]
  std::optional<double> phase = {};            // φ of every head of every token, after the last step

  bool empty() const { return !coupling && !order_parameter && !temperature && !gate && !phase; }

  void validate(std::string_view where = "PhaseIntervention") const {
    const auto number = [&](const std::optional<double>& value, std::string_view name) {
      if (value) require(std::isfinite(*value), where, name, "a finite number", *value);
    };
    const auto share = [&](const std::optional<double>& value, std::string_view name) {
      if (value) require(*value >= 0 && *value <= 1, where, name, "a number in [0, 1]", *value);
    };
    number(coupling, "coupling");
    share(order_parameter, "order_parameter");
    number(temperature, "temperature");
    if (temperature) require(*temperature > 0, where, "temperature", "a positive number", *temperature);
    share(gate, "gate");
    number(phase, "phase");
  }
};

}  // namespace rbar
