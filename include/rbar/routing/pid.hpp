// A PID controller in discrete time, one update a step:
//   I_n = I_{n-1} + e_n,   u_n = base + K_p e_n + K_i I_n + K_d (e_n - e_{n-1}),   e_0 = I_0 = 0
// and u is clamped to [minimum, maximum]. Åström & Hägglund, "PID Controllers", 2nd ed., chapter 3.
#pragma once

#include "rbar/core/error.hpp"

#include <algorithm>
#include <cmath>

namespace rbar {

struct PidConfig {
  double proportional = 0.1;  // K_p, output per unit of error
  double integral = 0.01;     // K_i
  double derivative = 0.05;   // K_d
  double base = 0.15;         // output at zero error
  double minimum = 0.05;      // output limits
  double maximum = 0.50;
  // Stops the integral from growing while the output is clamped (conditional integration), so that
  // the controller answers at once when the error turns. The CoRT package has none: false for parity.
  bool anti_windup = true;

  template <class Visit>
  void fields(Visit&& visit) {
    visit("proportional", proportional);
    visit("integral", integral);
    visit("derivative", derivative);
    visit("base", base);
    visit("minimum", minimum);
    visit("maximum", maximum);
    visit("anti_windup", anti_windup);
  }

  void validate() const {
    for (const double value : {proportional, integral, derivative, base, minimum, maximum})
      require(std::isfinite(value), "PidConfig", "gain or limit", "a finite number", value);
    require(minimum <= maximum, "PidConfig", "minimum", "at most the maximum", minimum);
  }
};

struct PidController {
  PidConfig config;
  double integral = 0;        // I, in units of the error
  double previous_error = 0;  // e_{n-1}

  PidController() = default;
  explicit PidController(const PidConfig& config_) : config(config_) { config.validate(); }

  // What `update` would return, without moving the controller.
  double preview(double error) const { return PidController(*this).update(error); }

  // Takes one step; throws on a NaN or infinite error, which would poison the integral for good.
  double update(double error) {
    require(std::isfinite(error), "PidController::update", "error", "a finite number", error);
    const auto output = [&](double sum) {
      return config.base + config.proportional * error + config.integral * sum +
             config.derivative * (error - previous_error);
    };
    const double grown = output(integral + error);
    const bool windup = (grown > config.maximum && config.integral * error > 0) ||
                        (grown < config.minimum && config.integral * error < 0);
    if (!(config.anti_windup && windup)) integral += error;
    const double unclamped = output(integral);
    previous_error = error;
    return std::clamp(unclamped, config.minimum, config.maximum);
  }

  void reset() { integral = previous_error = 0; }
};

}  // namespace rbar
