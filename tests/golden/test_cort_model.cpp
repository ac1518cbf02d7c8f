#include "rbar/io/config_json.hpp"
#include "rbar/model/cort.hpp"
#include "rbar/train/adamw.hpp"
#include "rbar/train/loss.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace rbar;

namespace {

// The number after `key` in a sentence such as "lr 3e-3, betas .9 .95"; `skip` numbers later.
double number_after(const std::string& text, const std::string& key, int skip = 0) {
  const auto found = text.find(key);
  require(found != std::string::npos, "golden", "adamw", key + " <number>", text);
  const char* from = text.c_str() + found + key.size();
  char* end = nullptr;
  double value = std::strtod(from, &end);
  for (; skip > 0; --skip) value = std::strtod(end, &end);
  return value;
}

}  // namespace

TEST_CASE("CoRT model: logits, loss, gradients and AdamW steps of the package", "[golden]") {
  for (const auto& path : golden::files("cort_model")) {
    INFO(path);
    const SafetensorsFile file(path);
    auto config = from_json<CoRTConfig>(nlohmann::json::parse(file.metadata().at("config")));
    config.causality = Causality::reference;
    Rng rng;
    CoRTModel<float> model(config, rng);
    golden::load_parameters(file, "", model);

    const auto ids = file.tensor<Token, 2>("input_ids");
    const Index batch = ids.dimension(0), tokens = ids.dimension(1) - 1;
    Tensor<Token, 2> inputs(batch, tokens), targets(batch, tokens);
    for (Index b = 0; b < batch; ++b)
      for (Index t = 0; t < tokens; ++t) {
        inputs(b, t) = ids(b, t);
        targets(b, t) = ids(b, t + 1);
      }

    CoRTModel<float>::Cache cache;
    auto gradient = zeros_like(model);
    Tensor<float, 3> logits, dlogits;
    const auto forward_backward = [&] {
      set_zero(gradient);
      model.forward(inputs, logits, cache);
      const double loss = cross_entropy<float>(view(std::as_const(logits)), view(std::as_const(targets)), &dlogits);
      model.backward(view(std::as_const(dlogits)), cache, gradient);
      return loss;
    };
    const double loss = forward_backward();
    CHECK(golden::excess(logits, file.tensor<float, 3>("logits")) <= 1);
    CHECK(loss == Approx(file.tensor<float, 0>("loss")()).epsilon(golden::tolerance));
    const auto worst = golden::parameter_excess(file, "grad.", gradient, golden::largest_gradient(file));
    INFO(worst.name);
    CHECK(worst.value <= 1);

    const std::string recipe = file.metadata().at("adamw");
    AdamWConfig adamw;
    adamw.learning_rate = number_after(recipe, "lr ");
    adamw.weight_decay = number_after(recipe, "weight_decay ");
    adamw.beta1 = number_after(recipe, "betas ");
    adamw.beta2 = number_after(recipe, "betas ", 1);
    adamw.epsilon = number_after(recipe, "eps ");
    adamw.decay = WeightDecayGroup::all;
    AdamW<float> optimizer(adamw);
    const auto losses = file.tensor<float, 1>("adamw.losses");
    FlatParameters<float> parameters(model), gradients(gradient);
    for (Index step = 0; step < losses.size(); ++step) {
      CHECK(forward_backward() == Approx(losses(step)).epsilon(golden::after_steps));
      optimizer.step(parameters, gradients, adamw.learning_rate,
                     clip_factor(global_norm(gradients), number_after(recipe, "clip ")));
      model.adapt(cache);
    }
    const auto after = golden::parameter_excess(file, "after5.", model, 0, golden::after_steps);
    INFO(after.name);
    CHECK(after.value <= 1);
  }
}
