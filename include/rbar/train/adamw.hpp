// AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled weight decay
// regularization", ICLR 2019), in the order of operations of PyTorch's torch.optim.AdamW:
//   w ← w·(1 − η·λ)                                  decayed groups only
//   m ← β₁·m + (1 − β₁)·g        v ← β₂·v + (1 − β₂)·g²
//   w ← w − η/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
#pragma once

#include "rbar/simd/batch.hpp"
#include "rbar/train/flat_parameters.hpp"

#include <cmath>
#include <string_view>

namespace rbar {

// Which parameters the weight decay shrinks.
enum class WeightDecayGroup {
  matrices,  // those that the model's rule lets decay (flat_parameters.hpp): matrices, unless it has its own
  all,       // every one, whatever the rule
};

constexpr const char* name_of(WeightDecayGroup group) { return group == WeightDecayGroup::all ? "all" : "matrices"; }
constexpr bool parse(std::string_view text, WeightDecayGroup& group) {
  for (const auto candidate : {WeightDecayGroup::matrices, WeightDecayGroup::all})
    if (text == name_of(candidate)) return group = candidate, true;
  return false;
}

struct AdamWConfig {
  double learning_rate = 3e-4;  // η; a schedule may scale it from step to step
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;  // λ
  WeightDecayGroup decay = WeightDecayGroup::matrices;

  template <class V>
  void fields(V&& v) {
    v("learning_rate", learning_rate);
    v("beta1", beta1);
    v("beta2", beta2);
    v("epsilon", epsilon);
    v("weight_decay", weight_decay);
    v("decay", decay);
  }

  void validate() const {
    require(learning_rate >= 0 && std::isfinite(learning_rate), "AdamWConfig", "learning_rate", "at least 0",
            learning_rate);
    require(beta1 >= 0 && beta1 < 1, "AdamWConfig", "beta1", "in [0, 1)", beta1);
    require(beta2 >= 0 && beta2 < 1, "AdamWConfig", "beta2", "in [0, 1)", beta2);
    require(epsilon > 0 && std::isfinite(epsilon), "AdamWConfig", "epsilon", "above 0", epsilon);
    require(weight_decay >= 0 && std::isfinite(weight_decay), "AdamWConfig", "weight_decay", "at least 0",
            weight_decay);
  }
};

enum class GradientAfterStep { keep, zero };

namespace detail {

template <class T>
struct AdamWFactors {
  T gradient_scale, keep, beta1, one_minus_beta1, beta2, one_minus_beta2, minus_step_size, root_correction2, epsilon;
};

// One step for `count` elements that share the factors.
template <class T>
void adamw_update(const AdamWFactors<T>& f, T* RBAR_RESTRICT weight, T* RBAR_RESTRICT gradient, T* RBAR_RESTRICT first,
                  T* RBAR_RESTRICT second, Index count, bool zero_gradient) {
  constexpr Index lanes = simd::lanes<T>;
  using simd::broadcast;
  const auto gradient_scale = broadcast(f.gradient_scale), keep = broadcast(f.keep), epsilon = broadcast(f.epsilon);
  const auto beta1 = broadcast(f.beta1), one_minus_beta1 = broadcast(f.one_minus_beta1);
  const auto beta2 = broadcast(f.beta2), one_minus_beta2 = broadcast(f.one_minus_beta2);
  const auto minus_step_size = broadcast(f.minus_step_size), over_root = broadcast(T(1) / f.root_correction2);
  const auto nothing = simd::zero<T>();
  const auto update = [&](const auto& load, const auto& store) RBAR_INLINE_LAMBDA {
    const auto g = load(gradient) * gradient_scale;
    const auto m = simd::multiply_add(one_minus_beta1, g, beta1 * load(first));
    const auto v = simd::multiply_add(one_minus_beta2 * g, g, beta2 * load(second));
    const auto direction = m / simd::multiply_add(sqrt(v), over_root, epsilon);
    store(first, m);
    store(second, v);
    store(weight, simd::multiply_add(minus_step_size, direction, load(weight) * keep));
    if (zero_gradient) store(gradient, nothing);
  };
  Index i = 0;
  for (; i + lanes <= count; i += lanes)
    update([i](const T* data) { return simd::load(data + i); },
           [i](T* data, const simd::Batch<T>& value) { simd::store(data + i, value); });
  if (const Index rest = count - i; rest > 0)
    update([=](const T* data) { return simd::load_partial(data + i, rest); },
           [=](T* data, const simd::Batch<T>& value) { simd::store_partial(data + i, value, rest); });
}

}  // namespace detail

// The state of the optimiser: two moments for every parameter, in the order of the model's visitor.
template <class T>
struct AdamW {
  AdamWConfig config;
  std::int64_t steps = 0;  // t
  std::vector<T> first;    // m
  std::vector<T> second;   // v

  AdamW() = default;
  explicit AdamW(const AdamWConfig& config_) : config(config_) { config.validate(); }

  // Moments of zero for `size` parameters; the first step does it where nobody has.
  void allocate(Index size) {
    first.assign(static_cast<std::size_t>(size), T(0));
    second.assign(static_cast<std::size_t>(size), T(0));
  }

  // One step with this learning rate. The gradient enters as gradient·gradient_scale, which carries
  // clipping and the mean over accumulated batches without another pass over memory; `zero` clears it
  // for the next backward pass while it is in the cache.
  void step(const FlatParameters<T>& parameters, const FlatParameters<T>& gradient, double learning_rate,
            double gradient_scale = 1, GradientAfterStep after = GradientAfterStep::keep) {
    const auto size = static_cast<std::size_t>(parameters.size());
    require(gradient.size() == parameters.size(), "AdamW::step", "elements of the gradient", size, gradient.size());
    if (steps == 0 && first.empty()) allocate(parameters.size());
    require(first.size() == size, "AdamW::step", "elements of the parameters (as in the moments)", first.size(), size);
    ++steps;
    const double t = static_cast<double>(steps);
    detail::AdamWFactors<T> factors;
    factors.gradient_scale = static_cast<T>(gradient_scale);
    factors.beta1 = static_cast<T>(config.beta1);
    factors.one_minus_beta1 = static_cast<T>(1 - config.beta1);
    factors.beta2 = static_cast<T>(config.beta2);
    factors.one_minus_beta2 = static_cast<T>(1 - config.beta2);
    factors.minus_step_size = static_cast<T>(-learning_rate / (1 - std::pow(config.beta1, t)));
    factors.root_correction2 = static_cast<T>(std::sqrt(1 - std::pow(config.beta2, t)));
    factors.epsilon = static_cast<T>(config.epsilon);

    parallel_for(parameters.size(), FlatParameters<T>::chunk_size, [&](Index begin, Index end) {
      parameters.for_range(begin, end, [&](std::size_t part, Index from, Index to) {
        const auto& weight = parameters.parts()[part];
        const bool decayed = config.decay == WeightDecayGroup::all || parameters.decays(part);
        detail::AdamWFactors<T> own = factors;
        own.keep = static_cast<T>(decayed ? 1 - learning_rate * config.weight_decay : 1.0);
        const Index at = parameters.offset(part) + from;
        detail::adamw_update(own, weight.data + from, gradient.parts()[part].data + from, first.data() + at,
                             second.data() + at, to - from, after == GradientAfterStep::zero);
      });
    });
  }

  // For a loop of one's own: collects the parameters anew at each call.
  template <Parameterised L>
  void step(L& layer, L& gradient, double gradient_scale = 1) {
    step(FlatParameters<T>(layer), FlatParameters<T>(gradient), config.learning_rate, gradient_scale);
  }
};

}  // namespace rbar
