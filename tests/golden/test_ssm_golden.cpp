#include "rbar/nn/ssm.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace rbar;

// The file is from bench/peers/ssm_golden.py: the published equations in PyTorch, in double.
TEST_CASE("the selective SSM gives the outputs and gradients of its equations in PyTorch", "[golden]") {
  for (const auto& path : golden::files("selective_ssm")) {
    INFO(path.string());
    const SafetensorsFile file(path);
    const auto hidden = file.tensor<float, 3>("hidden"), dout = file.tensor<float, 3>("dout");
    const auto sizes = file.at("A_log").shape;
    SelectiveSSMConfig config;
    config.d_model = hidden.dimension(2);
    config.expand = sizes[0] / config.d_model;
    config.d_state = sizes[1];
    config.d_conv = file.at("conv_weight").shape[1];
    config.dt_rank = file.at("dt_proj.weight").shape[1];
    Rng rng;
    SelectiveSSM<float> layer(config, rng);
    golden::load_parameters(file, "", layer);

    SelectiveSSM<float>::Cache cache;
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
  }
}
