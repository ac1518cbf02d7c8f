#include "rbar/routing/adaptive_router.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace rbar;

namespace {

double number(const SafetensorsFile& file, const std::string& key) { return std::stod(file.metadata().at(key)); }

}  // namespace

TEST_CASE("router: scores and decisions of the package, in every mode", "[golden]") {
  for (const auto& path : golden::files("cort_router")) {
    const SafetensorsFile file(path);
    const auto hidden = file.tensor<float, 3>("hidden");
    for (const auto mode :
         {CoherenceMode::token, CoherenceMode::local, CoherenceMode::cross, CoherenceMode::combined}) {
      INFO(path << ", " << name_of(mode));
      RouterConfig config;
      config.d_model = hidden.dimension(2);
      config.route_frac = number(file, "route_frac");
      config.entropy_weight = number(file, "entropy_weight");
      config.coherence_weight = number(file, "coherence_weight");
      config.learned_weight = number(file, "learned_weight");
      config.coherence_window = static_cast<Index>(number(file, "window"));
      config.coherence_mode = mode;
      config.causality = Causality::reference;
      Rng rng;
      CoherentRouter<float> router(config, rng);
      golden::load_parameters(file, "", router);
      CoherentRouter<float>::Cache cache;
      router.forward(hidden, cache);
      const std::string prefix = name_of(mode);
      CHECK(golden::excess(cache.scores, file.tensor<float, 2>(prefix + ".scores")) <= 1);
      const auto mask = file.tensor<std::uint8_t, 2>(prefix + ".attn_mask");
      REQUIRE(mask.size() == cache.routing.attention_mask.size());
      for (Index i = 0; i < mask.size(); ++i) CHECK(cache.routing.attention_mask.data()[i] == (mask.data()[i] != 0));
    }
  }
}

TEST_CASE("adaptive router: the package's controller, step by step", "[golden]") {
  for (const auto& path : golden::files("cort_pid")) {
    INFO(path);
    const SafetensorsFile file(path);
    const auto hidden = file.tensor<float, 4>("hidden");
    const auto error = file.tensor<float, 1>("error"), integral = file.tensor<float, 1>("integral");
    const auto mean_coherence = file.tensor<float, 1>("mean_coherence");
    const auto attended = file.tensor<std::int64_t, 1>("n_attn");
    AdaptiveRouterConfig config;
    config.router.d_model = hidden.dimension(3);
    config.router.route_frac = number(file, "base");
    config.router.coherence_mode = CoherenceMode::token;
    config.router.causality = Causality::reference;
    config.target_coherence = number(file, "target");
    config.pid.proportional = number(file, "kp");
    config.pid.integral = number(file, "ki");
    config.pid.derivative = number(file, "kd");
    config.pid.minimum = number(file, "min");
    config.pid.maximum = number(file, "max");
    config.pid.anti_windup = false;
    Rng rng;
    AdaptiveCoherentRouter<float> router(config, rng);
    AdaptiveCoherentRouter<float>::Cache cache;
    for (Index step = 0; step < hidden.dimension(0); ++step) {
      INFO("step " << step);
      router.forward(view(&hidden(step, 0, 0, 0), hidden.dimension(1), hidden.dimension(2), hidden.dimension(3)),
                     cache);
      router.adapt(cache);
      CHECK(cache.stats.mean_coherence == Approx(mean_coherence(step)).epsilon(golden::tolerance));
      CHECK(router.budget_state(1) == Approx(error(step)).margin(golden::tolerance));
      CHECK(router.budget_state(0) == Approx(integral(step)).margin(golden::tolerance));
      for (Index b = 0; b < hidden.dimension(1); ++b) {
        const auto& offsets = cache.routing.attention_offsets;
        CHECK(offsets[static_cast<std::size_t>(b + 1)] - offsets[static_cast<std::size_t>(b)] == attended(step));
      }
    }
  }
}
