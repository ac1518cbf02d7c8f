// What keeps oscillators from locking into one phase: noise on the angles, jitter on the frequencies, and a regulariser
// on the mean token order parameter R̄ (order_parameter.hpp),
//   ceiling  λ·max(0, R̄ − R*)²      center  λ(R̄ − R*)²      band  λ(max(0, R* − w − R̄)² + max(0, R̄ − R* − w)²), w = .1
// Source: the PhaseGPT package, where none of the three reaches the training; here they do.
#pragma once

#include "rbar/core/random.hpp"
#include "rbar/kuramoto/order_parameter.hpp"

#include <string_view>

namespace rbar {

enum class CoherenceTarget { none, ceiling, center, band };

inline constexpr CoherenceTarget all_coherence_targets[] = {CoherenceTarget::none, CoherenceTarget::ceiling,
                                                            CoherenceTarget::center, CoherenceTarget::band};
constexpr const char* name_of(CoherenceTarget target) {
  constexpr const char* names[] = {"none", "ceiling", "center", "band"};
  return names[static_cast<int>(target)];
}
constexpr bool parse(std::string_view text, CoherenceTarget& target) {
  for (const CoherenceTarget candidate : all_coherence_targets)
    if (text == name_of(candidate)) return target = candidate, true;
  return false;
}

struct CoherenceRegularizer {
  CoherenceTarget target = CoherenceTarget::none;
  double level = 0.45;      // R*
  double strength = 0.1;    // λ
  double half_width = 0.1;  // of the band

  void validate() const {
    require(level >= 0 && level <= 1, "CoherenceRegularizer", "level", "0 to 1", level);
    require(strength >= 0 && std::isfinite(strength), "CoherenceRegularizer", "strength", "at least 0", strength);
    require(half_width >= 0 && half_width <= 1, "CoherenceRegularizer", "half_width", "0 to 1", half_width);
  }
};

struct LossAndSlope {
  double loss = 0, slope = 0;  // λ·f(R̄) and its derivative
};

inline LossAndSlope coherence_loss(const CoherenceRegularizer& regularizer, double mean_order) {
  const auto [target, level, strength, half_width] = regularizer;
  const double over = mean_order - level;
  double excess = 0;  // signed distance into the forbidden side
  switch (target) {
    case CoherenceTarget::none:
      break;
    case CoherenceTarget::ceiling:
      excess = std::max(over, 0.0);  // in this order NaN stays NaN
      break;
    case CoherenceTarget::center:
      excess = over;
      break;
    case CoherenceTarget::band:
      excess = over > half_width ? over - half_width : std::min(over + half_width, 0.0);
      break;
  }
  return {strength * excess * excess, 2 * strength * excess};
}

// The loss of angles [batch, tokens, heads·oscillators]; dangles += its gradient where dangles is not null.
template <class T>
double coherence_regularizer(std::type_identity_t<ConstTensorView<T, 3>> angles, Index heads,
                             const CoherenceRegularizer& regularizer, Tensor<T, 3>* dangles = nullptr) {
  regularizer.validate();
  const Index oscillators = detail::require_phases<T>("coherence_regularizer", angles, heads);
  if (regularizer.target == CoherenceTarget::none) return 0;
  const Index count = angles.size() / oscillators;
  const auto sums_of = [&](Index i) { return simd::angle_sums(angles.data() + i * oscillators, oscillators); };
  const double total = parallel_sum(count, 256, [&](Index begin, Index end) {
    double sum = 0;
    for (Index i = begin; i < end; ++i) sum += detail::resultant(sums_of(i), oscillators);
    return sum;
  });
  const LossAndSlope loss = coherence_loss(regularizer, total / static_cast<double>(count));
  if (!dangles || loss.slope == 0) return loss.loss;
  require_shape("coherence_regularizer", "dangles", shape_of(*dangles), shape_of(angles));
  // R = |Z|/N with Z = Σ e^{iθ}: ∂R/∂θ_n = (Im Z·cos θ_n − Re Z·sin θ_n)/(N·|Z|); no direction where Z = 0.
  const double scale = loss.slope / static_cast<double>(count * oscillators);
  parallel_for(count, 256, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const simd::PhaseSums z = sums_of(i);
      const double length = std::hypot(z.cosine, z.sine);
      if (length == 0) continue;
      simd::angle_gradient<T>(angles.data() + i * oscillators, oscillators, static_cast<T>(scale * z.sine / length),
                              static_cast<T>(scale * z.cosine / length), dangles->data() + i * oscillators);
    }
  });
  return loss.loss;
}

// θ + σ·N(0, 1), element n from the n-th number of the stream: the same for every thread count. Gradient 1.
template <class T>
void add_phase_noise(double deviation, const Rng& stream, TensorView<T, 3> angles) {
  require(deviation >= 0 && std::isfinite(deviation), "add_phase_noise", "deviation", "at least 0", deviation);
  if (deviation == 0) return;
  parallel_for(angles.size(), 1024, [&](Index begin, Index end) {
    Rng rng(stream.seed, stream.stream, stream.position + 4 * static_cast<std::uint64_t>(begin));
    for (Index i = begin; i < end; ++i) angles.data()[i] += static_cast<T>(rng.normal(0, deviation));
  });
}

// factor[n] = 1 + amount·N(0, 1): ω ∘ factor is what moves the phases, dω = factor ∘ d(ω ∘ factor).
template <class T>
void frequency_jitter(double amount, const Rng& stream, Tensor<T, 2>& factor) {
  require(amount >= 0 && std::isfinite(amount), "frequency_jitter", "amount", "at least 0", amount);
  Rng rng = stream;
  for (T& value : elements(factor)) value = static_cast<T>(1 + amount * rng.normal());
}
template <class T>
void add_frequency_jitter(double amount, const Rng& stream, Tensor<T, 2>& frequency) {
  Tensor<T, 2> factor = frequency;
  frequency_jitter(amount, stream, factor);
  for (Index i = 0; i < frequency.size(); ++i) frequency.data()[i] *= factor.data()[i];
}

}  // namespace rbar
