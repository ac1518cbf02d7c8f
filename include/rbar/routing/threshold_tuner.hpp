// Keeps the share of tokens below a threshold at its target while the energies drift (the online tuner that ADR-015
// calls SONA), with hysteresis: a threshold that moves at every batch would make every batch another model.
//   q ← q + w (batch quantile at the target − q),   s ← s + w (observed share − s)
// θ stays where it is until |s − target| exceeds `start`, then follows q until it is below `stop`. Both are in units of
// √(target (1 − target)), so that a target of .01 is watched as closely as one of .5.
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/routing/quantile.hpp"

#include <cmath>
#include <span>
#include <vector>

namespace rbar {

struct ThresholdTunerConfig {
  double smoothing = 0.2;  // w, weight of the newest batch
  double start = 0.06;     // error of the share that sets a correction off
  double stop = 0.02;      // error that ends it
  Index log_size = 256;    // proposals that are remembered

  template <class Visit>
  void fields(Visit&& visit) {
    visit("tuner_smoothing", smoothing);
    visit("tuner_start", start);
    visit("tuner_stop", stop);
    visit("tuner_log_size", log_size);
  }

  void validate() const {
    constexpr const char* where = "ThresholdTunerConfig";
    require(smoothing > 0 && smoothing <= 1, where, "tuner_smoothing", "0 < smoothing <= 1", smoothing);
    require(stop >= 0, where, "tuner_stop", "at least 0", stop);
    require(start >= stop && std::isfinite(start), where, "tuner_start", "finite, and at least tuner_stop", start);
    require(log_size >= 0, where, "tuner_log_size", "at least 0", log_size);
  }
};

enum class ProposalReason { first_batch, share_too_low, share_too_high };
constexpr const char* name_of(ProposalReason reason) {
  constexpr const char* names[] = {"first_batch", "share_too_low", "share_too_high"};
  return names[static_cast<int>(reason)];
}

// A threshold that was moved, and why.
struct ThresholdProposal {
  Index step = 0;       // batches this threshold had learned from before
  Index threshold = 0;  // which one
  double previous = 0, proposed = 0;
  double observed_share = 0, target_share = 0;  // smoothed share of energies below `previous`
  ProposalReason reason = ProposalReason::first_batch;
};

template <class T>
struct ThresholdTuner {
  using Scalar = T;

  static constexpr double above_every_energy = 1e30;

  ThresholdTunerConfig config;
  Tensor<T, 1> value;                  // buffer [n] θ
  Tensor<T, 2> state;                  // buffer [n, 4]: batches seen, q, s, correcting (0 or 1)
  std::vector<ThresholdProposal> log;  // oldest first, the last config.log_size of them

  ThresholdTuner() = default;
  ThresholdTuner(const ThresholdTunerConfig& config_, std::span<const double> initial)
      : config(config_), value(static_cast<Index>(initial.size())), state(static_cast<Index>(initial.size()), 4) {
    config.validate();
    std::transform(initial.begin(), initial.end(), value.data(), [](double theta) { return static_cast<T>(theta); });
    state.setZero();
  }

  double operator()(Index threshold) const { return static_cast<double>(value(threshold)); }

  // Learns from the energies of one training step. A target of 0 or 1 puts θ below or above everything.
  // Errors: another threshold, no energies, one that is not finite, a target outside [0, 1].
  void adapt(Index threshold, std::span<const T> energies, double target) {
    constexpr const char* where = "ThresholdTuner::adapt";
    require(threshold >= 0 && threshold < value.size(), where, "threshold", value.size(), threshold);
    require(!energies.empty(), where, "energies", "at least one", energies.size());
    require_finite(where, "energies", energies);
    require(target >= 0 && target <= 1, where, "target", "0 <= target <= 1", target);
    const double unit = std::sqrt(target * (1 - target)), theta = (*this)(threshold);
    if (unit == 0) {
      value(threshold) = static_cast<T>(target == 0 ? 0 : above_every_energy);
      return;
    }
    T& seen = state(threshold, 0);
    T& quantile = state(threshold, 1);
    T& share = state(threshold, 2);
    T& correcting = state(threshold, 3);
    const double batch_quantile = separator(energies, target * static_cast<double>(energies.size()));
    if (seen == T(0)) {
      quantile = static_cast<T>(batch_quantile);
      share = static_cast<T>(share_below(energies, theta));
      move(threshold, target, ProposalReason::first_batch);
      share = static_cast<T>(target);
    } else {
      const auto towards = [&](T& smoothed, double newest) {
        smoothed += static_cast<T>(config.smoothing * (newest - static_cast<double>(smoothed)));
      };
      towards(quantile, batch_quantile);
      towards(share, share_below(energies, theta));
      const double error = (static_cast<double>(share) - target) / unit;
      correcting = T(std::abs(error) > (correcting != T(0) ? config.stop : config.start) ? 1 : 0);
      if (correcting != T(0)) {
        move(threshold, target, error < 0 ? ProposalReason::share_too_low : ProposalReason::share_too_high);
        // The smoothed share was that of the old θ; the new one starts with what it does to this batch.
        share = static_cast<T>(share_below(energies, (*this)(threshold)));
      }
    }
    // An exact count, as far as the scalar counts exactly.
    seen = std::min(seen + T(1), static_cast<T>(1 << 24));
  }

  void buffers(auto&& visit) {
    visit("thresholds", value);
    visit("tuner_state", state);
  }

 private:
  void move(Index threshold, double target, ProposalReason reason) {
    const auto number = [&](Index i) { return static_cast<double>(state(threshold, i)); };
    if (config.log_size > 0) {
      if (static_cast<Index>(log.size()) >= config.log_size) log.erase(log.begin());
      log.push_back(
          {static_cast<Index>(number(0)), threshold, (*this)(threshold), number(1), number(2), target, reason});
    }
    value(threshold) = state(threshold, 1);
  }
};

}  // namespace rbar
