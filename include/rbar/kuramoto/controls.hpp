// What keeps oscillators from locking into one phase: noise on the angles, jitter on the frequencies, and a regulariser
// on the mean token order parameter R̄ (order_parameter.hpp),
//   ceiling  λ·max(0, R̄ − R*)²      center  λ(R̄ − R*)²      band  λ(max(0, R* − w − R̄)² + max(0, R̄ − R* − w)²), w = .1
// Source: the PhaseGPT package, where none of the three reaches the training; here they do.
#pragma once

#include "rbar/core/philox.hpp"
#include "rbar/core/random.hpp"
#include "rbar/kuramoto/order_parameter.hpp"
#include "rbar/simd/oscillator.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numbers>
#include <string_view>
#include <vector>

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

// What the regulariser's gradient takes over from its loss.
struct RegularizerCache {
  LossAndSlope loss;
  Index oscillators = 0;              // of a head
  std::vector<simd::PhaseSums> sums;  // Σ cos, Σ sin of every token and head
};

namespace detail {

struct WrappedPhase {
  template <class T>
  RBAR_INLINE const T* prepare(const T* angles, Index, T*) const {
    return angles;
  }
  template <class T>
  RBAR_INLINE simd::Phasor<T> phasor(const simd::Batch<T>& angle) const {
    return simd::angle_phasor(simd::wrap_angle(angle));
  }
  template <class T>
  RBAR_INLINE void add(const simd::Batch<T>& angle, simd::Batch<T>& cosine, simd::Batch<T>& half_sine) const {
    const simd::Phasor<T> z = phasor<T>(angle);
    cosine = cosine + z.cosine;
    half_sine = simd::multiply_add(simd::broadcast(T(0.5)), z.sine, half_sine);
  }
};

}  // namespace detail

// The loss of angles [batch, tokens, heads·oscillators].
template <class T>
double coherence_regularizer(std::type_identity_t<ConstTensorView<T, 3>> angles, Index heads,
                             const CoherenceRegularizer& regularizer, RegularizerCache& cache) {
  regularizer.validate();
  const Index oscillators = cache.oscillators = detail::require_phases<T>("coherence_regularizer", angles, heads);
  cache.loss = {};
  if (regularizer.target == CoherenceTarget::none) return 0;
  const Index count = angles.size() / oscillators;
  cache.sums.resize(static_cast<std::size_t>(count));
  const double total = parallel_sum(count, 256, [&](Index begin, Index end) {
    double sum = 0;
    for (Index i = begin; i < end; ++i) {
      simd::PhaseSums& z = cache.sums[static_cast<std::size_t>(i)];
      z = simd::detail::sum_phasors(angles.data() + i * oscillators, oscillators, detail::WrappedPhase{});
      sum += detail::resultant(z, oscillators);
    }
    return sum;
  });
  cache.loss = coherence_loss(regularizer, total / static_cast<double>(count));
  return cache.loss.loss;
}
template <class T>
double coherence_regularizer(std::type_identity_t<ConstTensorView<T, 3>> angles, Index heads,
                             const CoherenceRegularizer& regularizer) {
  RegularizerCache cache;
  return coherence_regularizer<T>(angles, heads, regularizer, cache);
}

// dangles += the gradient of that loss. Errors: other angles' shape than dangles'.
template <class T>
void coherence_regularizer_backward(std::type_identity_t<ConstTensorView<T, 3>> angles, const RegularizerCache& cache,
                                    Tensor<T, 3>& dangles) {
  if (cache.loss.slope == 0) return;
  require_shape("coherence_regularizer_backward", "dangles", shape_of(dangles), shape_of(angles));
  const Index oscillators = cache.oscillators, count = angles.size() / oscillators;
  require(std::ssize(cache.sums) == count, "coherence_regularizer_backward", "tokens·heads of the cache", count,
          cache.sums.size());
  // R = |Z|/N with Z = Σ e^{iθ}: ∂R/∂θ_n = (Im Z·cos θ_n − Re Z·sin θ_n)/(N·|Z|); no direction where Z = 0.
  const double scale = cache.loss.slope / static_cast<double>(count * oscillators);
  parallel_for(count, 256, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const simd::PhaseSums& z = cache.sums[static_cast<std::size_t>(i)];
      const double length = std::hypot(z.cosine, z.sine);
      if (length == 0) continue;
      simd::detail::add_phasor_gradient(
          angles.data() + i * oscillators, oscillators, static_cast<T>(scale * z.sine / length),
          static_cast<T>(scale * z.cosine / length), dangles.data() + i * oscillators, detail::WrappedPhase{});
    }
  });
}

namespace detail {

inline constexpr Index noise_group = 4 * static_cast<Index>(philox_batch);

// noise_group normal numbers from as many random words. Two words make two (Box & Muller, 1958):
// √(−2 ln u)·cos 2πv and √(−2 ln u)·sin 2πv, u in (0, 1), of 24 bits each, so that none is beyond 5.9.
template <class T>
RBAR_NOINLINE void normal_numbers(std::uint64_t seed, std::uint64_t stream, std::uint64_t first_block, T* to) {
  constexpr Index batch = static_cast<Index>(philox_batch), L = simd::lanes<T>;
  static_assert(batch % L == 0);
  std::uint32_t words[4][philox_batch];
  philox_blocks(seed, stream, first_block, words);
  alignas(64) T uniform[4][philox_batch];
  for (std::size_t w = 0; w < 4; ++w)
    for (std::size_t i = 0; i < philox_batch; ++i)
      uniform[w][i] = static_cast<T>(static_cast<std::int32_t>(words[w][i] >> 8)) * T(0x1p-24);
  constexpr T pi = std::numbers::pi_v<T>;
  for (Index pair = 0; pair < 4; pair += 2)
    for (Index i = 0; i < batch; i += L) {
      const simd::Batch<T> u = simd::load(uniform[pair] + i) + simd::broadcast(T(0x1p-25));
      const simd::Batch<T> v = simd::load(uniform[pair + 1] + i);
      const simd::Batch<T> radius = xsimd::sqrt(simd::broadcast(T(-2)) * xsimd::log(u));
      const simd::Phasor<T> z = simd::angle_phasor(simd::broadcast(2 * pi) * v - simd::broadcast(pi));
      simd::store(to + pair * batch + i, radius * z.cosine);
      simd::store(to + (pair + 1) * batch + i, radius * z.sine);
    }
}

}  // namespace detail

// θ + σ·N(0, 1). Element n's noise depends on the stream and on n alone: the same for every thread count. Gradient 1.
template <class T>
void add_phase_noise(double deviation, const Rng& stream, TensorView<T, 3> angles) {
  require(deviation >= 0 && std::isfinite(deviation), "add_phase_noise", "deviation", "at least 0", deviation);
  if (deviation == 0) return;
  const std::uint64_t first_block = (stream.position + 3) / 4;
  constexpr Index group = detail::noise_group;
  parallel_for(angles.size(), 16 * group, [&](Index begin, Index end) {
    alignas(64) T noise[static_cast<std::size_t>(group)];
    const T scale = static_cast<T>(deviation);
    for (Index first = begin; first < end; first += group) {
      detail::normal_numbers(stream.seed, stream.stream, first_block + static_cast<std::uint64_t>(first / 4), noise);
      T* RBAR_RESTRICT to = angles.data() + first;
      for (Index i = 0; i < std::min(group, end - first); ++i) to[i] += scale * noise[i];
    }
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
