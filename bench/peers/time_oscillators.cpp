// `coherence BATCH TOKENS FEATURES`: token coherence |mean exp(2 pi i sigmoid(x))| over the features.
// `kuramoto_all TOKENS HEADS`, `kuramoto_prefix ...`: ten Euler steps of 32 oscillators a head, forward and backward.
// `all` is the coupling of the PhaseGPT package (all positions, repelling), `prefix` this library's (positions so far,
// attracting). `phase_all ...`, `phase_prefix ...`: PhaseAttention of d = 768 around them, the angles read out raw.
#include "row.hpp"

#include "rbar/coherence/phase_coherence.hpp"
#include "rbar/kuramoto/phase_attention.hpp"

namespace {

using namespace rbar;

peers::Row coherence(std::span<const Index> sizes) {
  struct Setting {
    Tensor<float, 3> x;
    Tensor<float, 2> r;
    CoherenceCache<float> cache;
  };
  const auto s = std::make_shared<Setting>();
  s->x.resize(sizes[0], sizes[1], sizes[2]);
  peers::fill_normal(s->x, 1);
  constexpr double flops_of_phasor = 46;  // as bench_coherence counts them
  return {flops_of_phasor * static_cast<double>(s->x.size()),
          [=] { coherence_forward(s->x, CoherenceConfig{.mode = CoherenceMode::token}, s->r, s->cache); },
          {peers::numbers("x", s->x)},
          [=] { return std::vector{peers::numbers("y", s->r)}; },
          {}};
}

// Forward and backward of a layer that has angles.
template <class Layer>
struct Passes {
  Rng rng{1};
  Layer layer, grad;
  typename Layer::Cache cache;
  Tensor<float, 3> x, y, dx, dy;

  Passes(const auto& config, Index tokens, Index width)
      : layer(config, rng), grad(zeros_like(layer)), x(1, tokens, width), dy(1, tokens, width) {
    peers::fill_normal(x, 2);
    peers::fill_normal(dy, 3);
  }
  void run() {
    set_zero(grad);
    layer.forward(x, y, cache);
    layer.backward(dy, cache, dx, grad);
  }
  const Tensor<float, 3>& angles() const {
    if constexpr (requires { cache.angles; })
      return cache.angles;
    else
      return y;
  }
};

KuramotoConfig kuramoto_config(Index heads, bool all) {
  KuramotoConfig config{.n_heads = heads, .n_oscillators = 32};
  if (all) {
    config.coupling = Coupling::reference;
    config.causality = Causality::reference;
  }
  return config;
}

// What bench_kuramoto counts for all evaluations of a phase, forward and backward.
double flops_of_phase(const KuramotoConfig& config, bool all) {
  return (all ? 33 + 33 + 13 : 44 + 44 + 27) * static_cast<double>(config.steps().evaluations());
}

template <class Layer>
peers::Row row(const auto& config, Index tokens, Index width, double flops) {
  const auto s = std::make_shared<Passes<Layer>>(config, tokens, width);
  peers::Row row;
  row.flops = flops;
  row.run = [=] { s->run(); };
  row.inputs = {peers::numbers("x", s->x), peers::numbers("dy", s->dy)};
  row.add_parameters(s->layer);
  row.outputs = [=] {
    std::vector list{peers::numbers("y", s->y), peers::numbers("angles", s->angles()), peers::numbers("dx", s->dx)};
    for (const auto& parameter : parameters_of(std::as_const(s->grad)))
      list.push_back({"grad." + parameter.name, std::as_bytes(parameter.values())});
    return list;
  };
  return row;
}

peers::Family kuramoto(bool all) {
  return [all](std::span<const Index> sizes) {
    const KuramotoConfig config = kuramoto_config(sizes[1], all);
    const double phases = static_cast<double>(sizes[0] * config.width());
    return row<KuramotoDynamics<float>>(config, sizes[0], config.width(), phases * flops_of_phase(config, all));
  };
}

peers::Family phase(bool all) {
  return [all](std::span<const Index> sizes) {
    PhaseAttentionConfig config;
    config.d_model = 768;
    config.kuramoto = kuramoto_config(sizes[1], all);
    config.readout = PhaseReadout::raw;
    const double phases = static_cast<double>(sizes[0] * config.kuramoto.width());
    const double flops = flops_of_phase(config.kuramoto, all) + 3 * 2 * 2 * static_cast<double>(config.d_model);
    return row<PhaseAttention<float>>(config, sizes[0], config.d_model, phases * flops);
  };
}

}  // namespace

int main(int argc, char** argv) {
  return rbar::peers::serve(argc, argv,
                            {{"coherence", coherence},
                             {"kuramoto_all", kuramoto(true)},
                             {"kuramoto_prefix", kuramoto(false)},
                             {"phase_all", phase(true)},
                             {"phase_prefix", phase(false)}});
}
