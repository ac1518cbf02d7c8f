// Three numbers that the literature calls R, under three names. Angles [batch, tokens, heads·oscillators], radians.
//   head order parameter     R[b,h]   = |mean over tokens and oscillators e^{iθ}|      one phase for a whole head?
//   token order parameter    R[b,t,h] = |mean over oscillators e^{iθ}|                 do a token's oscillators agree?
//   mean-phase order parameter R[b]   = |mean over tokens and oscillators e^{iθ̄}|, θ̄ = mean over heads of the raw angle
// The last averages angles before it looks at their spread: heads that have nothing in common then look synchronised
// (.89 for an untrained model). It is here because published figures use it. Source: the PhaseGPT package.
#pragma once

#include "rbar/coherence/circular.hpp"
#include "rbar/core/parallel.hpp"
#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace rbar {

namespace detail {

// Errors: no heads, features that are not whole heads, no tokens.
template <class T>
Index require_phases(std::string_view operation, ConstTensorView<T, 3> angles, Index heads) {
  require(heads >= 1, operation, "heads", "at least 1", heads);
  require(angles.dimension(2) > 0 && angles.dimension(2) % heads == 0, operation, "angles",
          "heads·oscillators features", angles.dimension(2));
  require(angles.dimension(1) > 0, operation, "tokens", "at least 1", angles.dimension(1));
  return angles.dimension(2) / heads;
}

// At most 1, whatever rounding says. The bound comes second: std::min hands on its first argument where that is NaN.
inline double resultant(const simd::PhaseSums& sums, Index count) {
  return std::min(std::hypot(sums.cosine, sums.sine) / static_cast<double>(count), 1.0);
}

}  // namespace detail

// [batch, heads].
template <class T>
Tensor<T, 2> head_order_parameter(std::type_identity_t<ConstTensorView<T, 3>> angles, Index heads) {
  const Index oscillators = detail::require_phases<T>("head_order_parameter", angles, heads);
  const Index tokens = angles.dimension(1), width = angles.dimension(2);
  Tensor<T, 2> order(angles.dimension(0), heads);
  parallel_for(order.size(), 1, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      simd::PhaseSums total;
      for (Index t = 0; t < tokens; ++t) {
        const simd::PhaseSums sums =
            simd::angle_sums(angles.data() + (i / heads * tokens + t) * width + i % heads * oscillators, oscillators);
        total.cosine += sums.cosine, total.sine += sums.sine;
      }
      order.data()[i] = static_cast<T>(detail::resultant(total, tokens * oscillators));
    }
  });
  return order;
}

// [batch, tokens, heads].
template <class T>
Tensor<T, 3> token_order_parameter(std::type_identity_t<ConstTensorView<T, 3>> angles, Index heads) {
  const Index oscillators = detail::require_phases<T>("token_order_parameter", angles, heads);
  Tensor<T, 3> order(angles.dimension(0), angles.dimension(1), heads);
  parallel_for(order.size(), 256, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      order.data()[i] = static_cast<T>(
          detail::resultant(simd::angle_sums(angles.data() + i * oscillators, oscillators), oscillators));
  });
  return order;
}

// [batch].
template <class T>
Tensor<T, 1> mean_phase_order_parameter(std::type_identity_t<ConstTensorView<T, 3>> angles, Index heads) {
  const Index oscillators = detail::require_phases<T>("mean_phase_order_parameter", angles, heads);
  const Index tokens = angles.dimension(1), width = angles.dimension(2);
  Tensor<T, 1> order(angles.dimension(0));
  std::vector<double> mean(static_cast<std::size_t>(oscillators));
  for (Index b = 0; b < order.size(); ++b) {
    simd::PhaseSums total;
    for (Index t = 0; t < tokens; ++t) {
      const T* row = angles.data() + (b * tokens + t) * width;
      std::fill(mean.begin(), mean.end(), 0.0);
      for (Index w = 0; w < width; ++w)
        mean[static_cast<std::size_t>(w % oscillators)] += static_cast<double>(row[w]) / static_cast<double>(heads);
      const simd::PhaseSums sums = simd::angle_sums(mean.data(), oscillators);
      total.cosine += sums.cosine, total.sine += sums.sine;
    }
    order(b) = static_cast<T>(detail::resultant(total, tokens * oscillators));
  }
  return order;
}

// Mean and spread of an order parameter over training: one call of `observe` a step.
struct CoherenceTracker {
  std::vector<double> history;  // mean R of each observation
  double smoothing = 0.99;      // of `average`, from 0 to less than 1
  double average = 0;           // exponential, corrected for its start

  // Errors: no values, or one outside [0, 1]; a smoothing of 1, which would never look at one.
  template <class T>
  void observe(std::span<const T> order) {
    require(smoothing >= 0 && smoothing < 1, "CoherenceTracker::observe", "smoothing", "from 0 to less than 1",
            smoothing);
    require(!order.empty(), "CoherenceTracker::observe", "order", "at least one value", order.size());
    double sum = 0;
    for (const T r : order) {
      require(r >= T(0) && r <= T(1), "CoherenceTracker::observe", "order", "0 to 1", r);
      sum += static_cast<double>(r);
    }
    history.push_back(sum / static_cast<double>(order.size()));
    weight_ = smoothing * weight_ + (1 - smoothing);
    raw_ = smoothing * raw_ + (1 - smoothing) * history.back();
    average = raw_ / weight_;
  }
  // Standard deviation of the last `count` observations (all of them if fewer); 0 for none.
  double deviation(std::size_t count) const {
    count = std::min(count, history.size());
    double mean = 0, square = 0;
    for (std::size_t i = history.size() - count; i < history.size(); ++i)
      mean += history[i] / static_cast<double>(count);
    for (std::size_t i = history.size() - count; i < history.size(); ++i)
      square += (history[i] - mean) * (history[i] - mean);
    return count == 0 ? 0.0 : std::sqrt(square / static_cast<double>(count));
  }

 private:
  double raw_ = 0, weight_ = 0;
};

}  // namespace rbar
