#include "any_model.hpp"

#include "rbar/io/json.hpp"

#include <algorithm>
#include <functional>
#include <numeric>

namespace rbar_lm {

Index count_parameters(const AnyModel& model) {
  Index count = 0;
  for (const auto& [name, shape] : model.parameters())
    count += std::accumulate(shape.begin(), shape.end(), Index{1}, std::multiplies<>());
  return count;
}

double attention_share(const AnyModel& model, rbar::TokenSpan tokens, Index window) {
  constexpr std::size_t most = 64;
  const std::size_t length = std::min(static_cast<std::size_t>(window), tokens.size());
  const std::size_t windows = std::clamp<std::size_t>(tokens.size() / length, 1, most);
  double sum = 0;
  for (std::size_t i = 0; i < windows; ++i) {
    const std::size_t start = windows > 1 ? (tokens.size() - length) * i / (windows - 1) : 0;
    const rbar::RoutingReport report = model.routing(tokens.subspan(start, length), std::vector<std::string>(length));
    if (report.layers.empty()) return 1;
    sum += report.attention_share();
  }
  return sum / static_cast<double>(windows);
}

std::vector<Family>& families() {
  static std::vector<Family> list;
  return list;
}

const Family& family(const std::string& name) {
  std::string names;
  for (const Family& family : families()) {
    if (family.name == name) return family;
    names += (names.empty() ? "" : ", ") + family.name;
  }
  throw rbar::Error("arguments", "--model", "one of " + names, "'" + name + "'");
}

std::unique_ptr<AnyModel> load_model(const std::filesystem::path& folder) {
  const nlohmann::json json = rbar::read_json(folder / "config.json");
  const bool named = json.is_object() && json.contains("model_type") && json["model_type"].is_string();
  rbar::require(named, "load_model", (folder / "config.json").string(), "a model_type", "none");
  return family(json["model_type"].get<std::string>()).load(folder);
}

}  // namespace rbar_lm
