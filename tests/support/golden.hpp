// Golden vectors: outputs of the published packages, computed in fp32 by PyTorch. Every test runs on every
// file of its name below the folder and takes all sizes from the file, so that other files of the same
// shape can be tried: RBAR_GOLDEN_DIR=folder ./test_golden
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/io/safetensors.hpp"
#include "support/differences.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace golden {

inline constexpr double tolerance = 2e-5;           // of a tensor's largest value, or a file's largest gradient
inline constexpr double after_steps = 1e-4;         // of a tensor's largest value, after five AdamW steps
inline constexpr double absolute_below = 1e-6;      // what is smaller than this ...
inline constexpr double absolute_tolerance = 1e-7;  // ... is compared absolutely

inline std::filesystem::path folder() {
  const char* chosen = std::getenv("RBAR_GOLDEN_DIR");
  return chosen && *chosen ? chosen : RBAR_GOLDEN_DIR;
}

// All files "<name>*.safetensors" of the folder and those below it; at least one.
inline std::vector<std::filesystem::path> files(const std::string& name) {
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder())) {
    const std::string file = entry.path().filename().string();
    if (entry.is_regular_file() && file.starts_with(name) && file.ends_with(".safetensors"))
      found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  rbar::require(!found.empty(), "golden::files", folder().string(), "a file " + name + "*.safetensors", "none");
  return found;
}

template <class Expected>
double largest(const Expected& expected) {
  double value = 0;
  for (const auto element : rbar::elements(expected)) value = std::max(value, std::abs(static_cast<double>(element)));
  return value;
}

// max |actual − expected| as a multiple of what is allowed: passes when <= 1. `scale` is the value that the
// tolerance is relative to. NaN never passes.
inline double excess(std::span<const float> actual, std::span<const float> expected, double scale,
                     double relative = tolerance) {
  rbar::require(actual.size() == expected.size(), "golden::excess", "size", expected.size(), actual.size());
  const double allowed = scale < absolute_below ? absolute_tolerance : relative * scale;
  double worst = 0;
  for (std::size_t i = 0; i < actual.size(); ++i)
    worst = test::larger(worst, std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i])));
  return worst / allowed;
}
template <int Rank>
double excess(const rbar::Tensor<float, Rank>& actual, const rbar::Tensor<float, Rank>& expected) {
  rbar::require_shape("golden::excess", "actual", rbar::shape_of(actual), rbar::shape_of(expected));
  return excess(rbar::elements(actual), rbar::elements(expected), largest(expected));
}

// Fills a layer's parameters from the tensors of the file, "<prefix><parameter name>".
template <class Layer>
void load_parameters(const rbar::SafetensorsFile& file, const std::string& prefix, Layer& layer) {
  for (const auto& parameter : rbar::parameters_of(layer)) {
    rbar::require_shape("golden::load_parameters", parameter.name, parameter.shape,
                        file.at(prefix + parameter.name).shape);
    file.copy_to(prefix + parameter.name, parameter.values());
  }
}

// The worst excess of a layer's tensors (a gradient, or parameters) over the file's "<prefix><name>". With
// `scale` 0 each tensor is relative to its own largest value.
struct ParameterExcess {
  double value = 0;
  std::string name;
};
template <class Layer>
ParameterExcess parameter_excess(const rbar::SafetensorsFile& file, const std::string& prefix, const Layer& layer,
                                 double scale = 0, double relative = tolerance) {
  ParameterExcess worst;
  for (const auto& parameter : rbar::parameters_of(layer)) {
    if (parameter.name.ends_with("k_proj.bias")) continue;  // its true gradient is 0: only noise to compare
    std::vector<float> expected(static_cast<std::size_t>(parameter.size));
    file.copy_to(prefix + parameter.name, std::span<float>(expected));
    double reference = scale;
    if (scale == 0)
      for (const float value : expected) reference = std::max(reference, std::abs(static_cast<double>(value)));
    const double value = excess(parameter.values(), expected, reference, relative);
    if (!std::isnan(worst.value) && !(value <= worst.value)) worst = {value, parameter.name};
  }
  return worst;
}

// The largest gradient of the file: what every gradient in it is compared with.
inline double largest_gradient(const rbar::SafetensorsFile& file) {
  double value = 0;
  for (const auto& entry : file.entries()) {
    if (!entry.name.starts_with("grad.") && !entry.name.starts_with("dhidden")) continue;
    std::vector<float> gradient(entry.data.size() / sizeof(float));
    file.copy_to(entry.name, std::span<float>(gradient));
    for (const float element : gradient) value = std::max(value, std::abs(static_cast<double>(element)));
  }
  return value;
}

}  // namespace golden
