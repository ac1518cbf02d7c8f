// The causal decision of a router: a token goes to attention when its score lies below τ. Choosing
// the k lowest scores of a sequence would look at later tokens; a threshold looks at one.
// τ is moved between training steps so that a given share of tokens (the budget) lies below it:
//   τ = q + s·PID(budget − observed share)
// q = running quantile of the scores at the budget, s = their running standard deviation: the
// quantile brings τ near, the PID removes what is left of the error, and s makes its gains mean the
// same whatever the spread of the scores.
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/routing/pid.hpp"
#include "rbar/routing/quantile.hpp"

#include <cmath>
#include <limits>
#include <span>

namespace rbar {

template <class T>
struct ScoreThreshold {
  using Scalar = T;

  static constexpr double smoothing = 0.2;  // weight of the newest batch in q and s

  Tensor<T, 1> value;  // [1] τ
  Tensor<T, 1> state;  // [5] has seen a batch (0 or 1), q, s, PID integral, PID previous error

  ScoreThreshold() = default;
  // Before the first batch τ is a guess from the mean and deviation that the scores are expected to
  // have: the quantile of a uniform distribution with these two. The first `adapt` replaces it.
  ScoreThreshold(double budget, double expected_mean, double expected_deviation) : value(1), state(5) {
    state.setZero();
    const double width = std::sqrt(12.0) * expected_deviation;
    value(0) = budget >= 1 ? above_every_score : static_cast<T>(expected_mean + width * (budget - 0.5));
  }

  T operator()() const { return value(0); }

  // Learns from the scores of one training step, which the present τ has divided. A budget of 1
  // lets everything through, exactly. Errors: no scores, a NaN or an infinity among them.
  void adapt(std::span<const T> scores, double budget) {
    require(!scores.empty(), "ScoreThreshold::adapt", "scores", "at least one", scores.size());
    require_finite("ScoreThreshold::adapt", "scores", scores);
    require(budget > 0 && budget <= 1, "ScoreThreshold::adapt", "budget", "0 < budget <= 1", budget);
    if (budget >= 1) {
      value(0) = above_every_score;
      return;
    }
    const auto count = static_cast<double>(scores.size());
    double below = 0, sum = 0, squares = 0;
    for (const T score : scores) {
      below += score < value(0) ? 1 : 0;
      sum += static_cast<double>(score);
    }
    for (const T score : scores) squares += std::pow(static_cast<double>(score) - sum / count, 2);
    const double quantile = separator(scores, budget * count), deviation = std::sqrt(squares / count);

    const bool first = state(0) == T(0);
    const double weight = first ? 1.0 : smoothing;
    state(0) = T(1);
    state(1) += static_cast<T>(weight * (quantile - static_cast<double>(state(1))));
    state(2) += static_cast<T>(weight * (deviation - static_cast<double>(state(2))));
    double correction = 0;
    if (!first) {  // the share that a guessed τ gave says nothing
      PidController pid(gains);
      pid.integral = static_cast<double>(state(3));
      pid.previous_error = static_cast<double>(state(4));
      correction = pid.update(budget - below / count);
      state(3) = static_cast<T>(pid.integral);
      state(4) = static_cast<T>(pid.previous_error);
    }
    value(0) = static_cast<T>(static_cast<double>(state(1)) + static_cast<double>(state(2)) * correction);
  }

  void buffers(auto&& visit) {
    visit("threshold", value);
    visit("threshold_state", state);
  }

 private:
  static constexpr T above_every_score = std::numeric_limits<T>::max();
  // One standard deviation of the scores moves the share by about .2: with these gains the loop
  // closes a tenth of an error a step, slow enough not to follow the noise of one batch.
  static constexpr PidConfig gains{.proportional = 0.1,
                                   .integral = 0.25,
                                   .derivative = 0.0,
                                   .base = 0.0,
                                   .minimum = -3.0,
                                   .maximum = 3.0,
                                   .anti_windup = true};
};

}  // namespace rbar
