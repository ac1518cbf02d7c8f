#include "rbar/attention/multi_head_attention.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace rbar;

TEST_CASE("multi-head attention gives the package's outputs and gradients", "[golden]") {
  for (const auto& path : golden::files("multi_head_attention")) {
    INFO(path.string());
    const SafetensorsFile file(path);
    const auto hidden = file.tensor<float, 3>("hidden"), dout = file.tensor<float, 3>("dout");
    MultiHeadAttentionConfig config;
    config.d_model = hidden.dimension(2);
    config.n_heads = std::stol(file.metadata().at("n_heads"));
    Rng rng;
    MultiHeadAttention<float> layer(config, rng);
    golden::load_parameters(file, "", layer);

    MultiHeadAttention<float>::Cache cache;
    Tensor<float, 3> y, dhidden;
    layer.forward(hidden, y, cache);
    CHECK(golden::excess(y, file.tensor<float, 3>("output")) <= 1);

    auto grad = zeros_like(layer);
    layer.backward(dout, cache, dhidden, grad);
    const double scale = golden::largest_gradient(file);
    const auto expected = file.tensor<float, 3>("dhidden");
    CHECK(golden::excess(elements(std::as_const(dhidden)), elements(expected), scale) <= 1);
    const auto worst = golden::parameter_excess(file, "grad.", grad, scale);
    INFO(worst.name);
    CHECK(worst.value <= 1);

    layer.config.causal = false;
    CHECK(golden::excess(layer(hidden), file.tensor<float, 3>("output_bidirectional")) <= 1);
  }
}
