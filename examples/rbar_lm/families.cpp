#include "any_model.hpp"

#include "rbar/io/json.hpp"

#include <functional>
#include <numeric>

namespace rbar_lm {

Index count_parameters(const AnyModel& model) {
  Index count = 0;
  for (const auto& [name, shape] : model.parameters())
    count += std::accumulate(shape.begin(), shape.end(), Index{1}, std::multiplies<>());
  return count;
}

double attention_share(const AnyModel& model, rbar::TokenSpan tokens) {
  const rbar::RoutingReport report = model.routing(tokens, std::vector<std::string>(tokens.size()));
  return report.layers.empty() ? 1 : report.attention_share();
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
