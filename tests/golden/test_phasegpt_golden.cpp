#include "rbar/kuramoto/phase_attention.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace rbar;

TEST_CASE("phase attention gives the package's outputs, order parameters and gradients", "[golden]") {
  for (const auto& path : golden::files("phasegpt_attention")) {
    INFO(path.string());
    const SafetensorsFile file(path);
    const auto hidden = file.tensor<float, 3>("hidden"), dout = file.tensor<float, 3>("dout");
    PhaseAttentionConfig config;
    config.d_model = hidden.dimension(2);
    config.kuramoto.n_heads = std::stol(file.metadata().at("n_heads"));
    config.kuramoto.n_oscillators = std::stol(file.metadata().at("osc"));
    config.kuramoto.n_steps = std::stol(file.metadata().at("iterations"));
    config.kuramoto.dt = std::stod(file.metadata().at("dt"));
    config.kuramoto.causality = Causality::reference;
    config.kuramoto.coupling = Coupling::reference;
    config.readout = PhaseReadout::raw;
    Rng rng;
    PhaseAttention<float> layer(config, rng);
    // Flat: the package keeps K as [heads, 1, 1].
    for (const auto& parameter : parameters_of(layer)) file.copy_to(parameter.name, parameter.values());

    PhaseAttention<float>::Cache cache;
    Tensor<float, 3> y, dhidden;
    layer.forward(hidden, y, cache);
    CHECK(golden::excess(y, file.tensor<float, 3>("output")) <= 1);
    // [B, H, T, N] there, [B, T, H·N] here.
    const auto phases = file.tensor<float, 4>("phases");
    Tensor<float, 4> angles(shape_of(phases)[0], shape_of(phases)[1], shape_of(phases)[2], shape_of(phases)[3]);
    for (Index b = 0; b < angles.dimension(0); ++b)
      for (Index h = 0; h < angles.dimension(1); ++h)
        for (Index t = 0; t < angles.dimension(2); ++t)
          for (Index n = 0; n < angles.dimension(3); ++n)
            angles(b, h, t, n) = cache.angles(b, t, h * angles.dimension(3) + n);
    CHECK(golden::excess(angles, phases) <= 1);

    const Index heads = config.kuramoto.n_heads;
    CHECK(golden::excess(head_order_parameter<float>(cache.angles, heads), file.tensor<float, 2>("R")) <= 1);
    const auto of_tokens = token_order_parameter<float>(cache.angles, heads);
    const auto expected_tokens = file.tensor<float, 3>("R_osc");
    double mean = 0;
    for (Index b = 0; b < of_tokens.dimension(0); ++b)
      for (Index t = 0; t < of_tokens.dimension(1); ++t)
        for (Index h = 0; h < heads; ++h) {
          CHECK(of_tokens(b, t, h) == Approx(expected_tokens(b, h, t)).margin(2e-5));
          mean += static_cast<double>(of_tokens(b, t, h)) / static_cast<double>(of_tokens.size());
        }
    for (const CoherenceTarget target : {CoherenceTarget::ceiling, CoherenceTarget::center, CoherenceTarget::band}) {
      float expected = 0;
      file.copy_to(std::string("reg.") + name_of(target), std::span<float>(&expected, 1));
      INFO("mean R " << mean << ", " << name_of(target));
      CHECK(coherence_regularizer<float>(cache.angles, heads, {target}) == Approx(expected).margin(1e-7).epsilon(1e-3));
    }

    auto grad = zeros_like(layer);
    layer.backward(dout, cache, dhidden, grad);
    const double scale = golden::largest_gradient(file);
    const auto expected = file.tensor<float, 3>("dhidden");
    CHECK(golden::excess(elements(std::as_const(dhidden)), elements(expected), scale) <= 1);
    const auto worst = golden::parameter_excess(file, "grad.", grad, scale);
    INFO(worst.name);
    CHECK(worst.value <= 1);
  }
}
