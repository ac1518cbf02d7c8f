#include "rbar/io/config_json.hpp"
#include "rbar/model/cort_layer.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace rbar;

TEST_CASE("CoRT layer: forward, gradients and shares of the package", "[golden]") {
  for (const auto& path : golden::files("cort_layer")) {
    INFO(path);
    const SafetensorsFile file(path);
    const auto hidden = file.tensor<float, 3>("hidden"), dout = file.tensor<float, 3>("dout");
    CoRTConfig config;
    config.d_model = hidden.dimension(2);
    config.n_heads = std::stol(file.metadata().at("n_heads"));
    config.d_ff = file.at("ffn.net.0.weight").shape[0];
    config.route_frac = std::stod(file.metadata().at("route_frac"));
    REQUIRE(parse(file.metadata().at("mode"), config.coherence_mode));
    config.dropout = 0;
    config.causality = Causality::reference;
    Rng rng;
    CoRTLayer<float> layer(config, rng);
    golden::load_parameters(file, "", layer);

    CoRTLayer<float>::Cache cache;
    Tensor<float, 3> output, dhidden;
    layer.forward(hidden, output, cache);
    CHECK(golden::excess(output, file.tensor<float, 3>("output")) <= 1);
    // The package's "mean_coherence" is the mean routing score.
    const auto stats = nlohmann::json::parse(file.metadata().at("stats"));
    const RoutingStats& ours = cache.routed.router.stats;
    CHECK(ours.attention_share == Approx(stats["attn_ratio"].get<double>()));
    CHECK(ours.mixing_share == Approx(stats["mix_ratio"].get<double>()));
    CHECK(ours.mean_score == Approx(stats["mean_coherence"].get<double>()).epsilon(golden::tolerance));

    auto gradient = zeros_like(layer);
    layer.backward(dout, cache, dhidden, gradient);
    const double scale = golden::largest_gradient(file);
    const auto expected = file.tensor<float, 3>("dhidden");
    CHECK(golden::excess(elements(dhidden), elements(expected), scale) <= 1);
    const auto worst = golden::parameter_excess(file, "grad.", gradient, scale);
    INFO(worst.name);
    CHECK(worst.value <= 1);
  }
}
