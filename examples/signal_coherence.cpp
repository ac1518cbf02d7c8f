// Coherence of a signal: sixty-four oscillators, each with a frequency of its own, that begin to hear one
// another half-way (Kuramoto, 1975):  dθ_i/dt = ω_i + K·R̄·sin(ψ − θ_i),  R̄·e^{iψ} = mean of e^{iθ}.
// R̄ of their phases shows the moment: near 1/√64 before, near 1 after.
#include "rbar/coherence/phase_coherence.hpp"
#include "rbar/core/random.hpp"

#include <cmath>
#include <cstdio>
#include <numbers>
#include <string>

using rbar::Index;

int main() {
  constexpr Index samples = 400, oscillators = 64;
  constexpr float dt = 0.05f;

  rbar::Rng rng(1);
  auto frequency = rbar::zeros<float, 1>({oscillators}), angle = frequency;
  for (Index i = 0; i < oscillators; ++i) {
    frequency(i) = static_cast<float>(rng.normal(1.0, 0.3));
    angle(i) = static_cast<float>(rng.uniform(0, 2 * std::numbers::pi));
  }

  auto phases = rbar::zeros<float, 2>({samples, oscillators});
  for (Index t = 0; t < samples; ++t) {
    const float coupling = t < samples / 2 ? 0.0f : 2.0f;
    float cosine = 0, sine = 0;
    for (Index i = 0; i < oscillators; ++i) {
      phases(t, i) = angle(i);
      cosine += std::cos(angle(i)) / oscillators;
      sine += std::sin(angle(i)) / oscillators;
    }
    for (Index i = 0; i < oscillators; ++i)
      angle(i) += dt * (frequency(i) + coupling * (sine * std::cos(angle(i)) - cosine * std::sin(angle(i))));
  }

  const rbar::Tensor<float, 1> r_bar = rbar::r_bar_from_phases(phases);  // [samples]
  for (Index t = 0; t < samples; t += 20)
    std::printf("t %5.1f  R̄ %.3f  %s\n", double(dt) * double(t), double(r_bar(t)),
                std::string(static_cast<std::size_t>(40 * r_bar(t)), '#').c_str());
  return r_bar(samples / 2) < 0.4f && r_bar(samples - 1) > 0.9f ? 0 : 1;
}
