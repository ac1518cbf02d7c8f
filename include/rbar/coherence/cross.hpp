// Cross-token coherence: phase locking of a token with its n neighbours,
//   M[t,o] = Σ_d e^{i(φ[t,d] − φ[p,d])},   R̄_cross[t] = 1/N_t · Σ_o |M[t,o]| / D,
// with partner p = t − o and N_t = how many exist (0 for t = 0) when causal; p = t + o and N_t = n in the reference.
// Internals of phase_coherence.hpp.
#pragma once

#include "rbar/coherence/windowed.hpp"

#include <cmath>

namespace rbar::detail {

struct TokenPairs {
  Index tokens, offsets;
  bool ahead;

  TokenPairs(const CoherenceConfig& config, Index tokens_)
      : tokens(tokens_), offsets(config.offsets), ahead(config.causality == Causality::reference) {}

  Index partner(Index token, Index offset) const { return ahead ? token + offset : token - offset; }
  bool exists(Index token) const { return token >= 0 && token < tokens; }
  // 1/N_t, 0 where there is no neighbour.
  double share(Index token) const {
    const Index count = ahead ? offsets : std::min(token, offsets);
    return count == 0 ? 0.0 : 1.0 / static_cast<double>(count);
  }
};

// R̄_cross of one token; phasors(token) gives its row cos | sin. Writes M[t,·] to pairs [n, 2] unless it is null.
template <class Phasors>
double cross_token(const TokenPairs& pairs, Index token, Index features, Phasors&& phasors, double* sums) {
  double total = 0;
  for (Index o = 1; o <= pairs.offsets; ++o) {
    const Index partner = pairs.partner(token, o);
    simd::PhaseSums m;
    if (pairs.exists(partner)) {
      const auto *z = phasors(token), *other = phasors(partner);
      m = simd::phase_difference_sums(z, z + features, other, other + features, features);
    }
    total += std::hypot(m.cosine, m.sine);
    if (sums) {
      sums[2 * (o - 1)] = m.cosine;
      sums[2 * (o - 1) + 1] = m.sine;
    }
  }
  return features == 0 ? 0.0 : total * pairs.share(token) / static_cast<double>(features);
}

// dx[k] of one token. With W[t,o] = ∂loss/∂R̄[t] · M/|M| / (N_t·D) and
//   G_k = Σ_o W[k,o]·z_p(k,o) + Σ_{t: p(t,o)=k} conj(W[t,o])·z_t,   dφ_k = cos φ_k·Im G_k − sin φ_k·Re G_k.
template <class T>
void cross_token_backward(const TokenPairs& pairs, Index k, Index features, const T* x, const T* phasors,
                          const T* weights, T* dx) {
  using simd::feature_block;
  for (Index first = 0; first < features; first += feature_block) {
    const Index size = std::min(feature_block, features - first);
    alignas(64) T real[feature_block] = {}, imaginary[feature_block] = {};
    const auto add = [&](Index token, T w_real, T w_imaginary) {
      const T *cosine = phasors + token * 2 * features + first, *sine = cosine + features;
      const auto re = simd::broadcast(w_real), im = simd::broadcast(w_imaginary);
      simd::detail::for_registers<T>(size, [&](Index d, Index count) {
        const auto c = simd::detail::load_up_to(cosine + d, count), s = simd::detail::load_up_to(sine + d, count);
        const auto sum_real = simd::multiply_add(re, c, simd::load(real + d));
        const auto sum_imaginary = simd::multiply_add(re, s, simd::load(imaginary + d));
        simd::store(real + d, simd::multiply_add(-im, s, sum_real));
        simd::store(imaginary + d, simd::multiply_add(im, c, sum_imaginary));
      });
    };
    for (Index o = 1; o <= pairs.offsets; ++o) {
      const auto weight = [&](Index token) { return weights + (token * pairs.offsets + o - 1) * 2; };
      const Index partner = pairs.partner(k, o), admirer = 2 * k - partner;  // the token whose partner is k
      if (pairs.exists(partner)) add(partner, weight(k)[0], weight(k)[1]);
      if (pairs.exists(admirer)) add(admirer, weight(admirer)[0], -weight(admirer)[1]);
    }
    simd::sigmoid_phase_gradient(x + first, size, imaginary, real, dx + first);
  }
}

}  // namespace rbar::detail
