#include "rbar/routing/mixer.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace rbar;

namespace {

CoherenceMixer<float> load_mixer(const SafetensorsFile& file, const std::string& prefix, Index dim, bool learnable) {
  Rng rng;
  CoherenceMixer<float> mixer({dim, learnable, Causality::reference}, rng);
  golden::load_parameters(file, prefix, mixer);
  return mixer;
}

}  // namespace

TEST_CASE("pair mixer: forward and gradients of the package", "[golden]") {
  for (const auto& path : golden::files("cort_mixer")) {
    INFO(path);
    const SafetensorsFile file(path);
    const auto hidden = file.tensor<float, 3>("hidden");
    const auto coherence = file.tensor<float, 2>("coherence"), no_coherence = Tensor<float, 2>(0, 0);
    const auto mixer = load_mixer(file, "", hidden.dimension(2), true);
    std::vector<Index> every(static_cast<std::size_t>(coherence.size()));
    std::iota(every.begin(), every.end(), Index{0});

    CoherenceMixer<float>::Cache cache;
    Tensor<float, 3> output(hidden.dimensions());
    mixer.forward(hidden, every, no_coherence, rows(output), cache);
    CHECK(golden::excess(output, file.tensor<float, 3>("output_no_coherence")) <= 1);
    mixer.forward(hidden, every, coherence, rows(output), cache);
    CHECK(golden::excess(output, file.tensor<float, 3>("output")) <= 1);

    const auto dout = file.tensor<float, 3>("dout"), dhidden = file.tensor<float, 3>("dhidden");
    auto gradient = zeros_like(mixer);
    auto dinput = zeros<float, 3>(shape_of(hidden));
    auto dcoherence = zeros<float, 2>(shape_of(coherence));
    mixer.backward(rows(dout), hidden, every, coherence, cache, dinput, dcoherence, gradient);
    const double scale = golden::largest_gradient(file);
    CHECK(golden::excess(elements(dinput), elements(dhidden), scale) <= 1);
    const auto worst = golden::parameter_excess(file, "grad.", gradient, scale);
    INFO(worst.name);
    CHECK(worst.value <= 1);

    const auto fixed = load_mixer(file, "fixed.", hidden.dimension(2), false);
    fixed.forward(hidden, every, coherence, rows(output), cache);
    CHECK(golden::excess(output, file.tensor<float, 3>("fixed.output")) <= 1);
  }
}
