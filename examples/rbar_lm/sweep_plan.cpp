#include "sweep_plan.hpp"

#include "rbar/io/config_json.hpp"

#include <algorithm>
#include <charconv>
#include <set>
#include <span>
#include <utility>

namespace rbar_lm {
namespace {

using nlohmann::json;

void require_known_keys(const std::string& where, const json& object, std::initializer_list<std::string_view> known) {
  rbar::require(object.is_object(), "sweep", where, "an object", object.type_name());
  for (const auto& [key, ignored] : object.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const auto distance = [&word = key](std::string_view name) {
      return rbar::detail::edit_distance(std::string_view(word).substr(0, 100), name);
    };
    const auto nearest =
        std::min_element(known.begin(), known.end(), [&](auto a, auto b) { return distance(a) < distance(b); });
    throw rbar::Error("sweep", where, "a known key (the nearest is '" + std::string(*nearest) + "')",
                      rbar::detail::printable("'" + key + "'"));
  }
}

template <class T>
void read(const std::string& where, const json& object, const char* key, T& value) {
  if (object.contains(key)) rbar::detail::value_from_json(where + "." + key, object[key], value);
}

// "lr" may be a list: that is the grid.
struct TrainingGrid {
  TrainingOptions options;
  std::vector<double> learning_rates = {options.config.optimizer.learning_rate};

  void read(const std::string& where, json settings) {
    rbar::require(settings.is_object(), "sweep", where, "an object", settings.type_name());
    if (const auto lr = settings.find("lr"); lr != settings.end()) {
      if (!lr->is_array()) *lr = json::array({*lr});
      rbar_lm::read(where, settings, "lr", learning_rates);
      rbar::require(!learning_rates.empty(), "sweep", where + ".lr", "at least one learning rate", "none");
      settings.erase(lr);
    }
    rbar::detail::fields_from_json(where, settings, options);
  }
};

template <class T>
void require_distinct(const std::string& where, const std::vector<T>& values) {
  for (const T& value : values)
    rbar::require(std::count(values.begin(), values.end(), value) == 1, "sweep", where, "each value once", value);
}

bool names_a_folder(std::string_view name) {
  constexpr std::string_view inside = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+=-";
  return !name.empty() && name.size() <= 60 && name.find_first_not_of(inside) == name.npos && name[0] != '.' &&
         name[0] != '-';
}

}  // namespace

std::string short_number(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

std::string PlannedRun::folder_name() const {
  return name + "-lr" + short_number(training.config.optimizer.learning_rate) + "-seed" +
         std::to_string(training.config.seed);
}

SweepPlan parse_plan(const json& plan, const std::string& source) {
  SweepPlan result;
  require_known_keys(source, plan, {"text", "tokenizer", "bpe_vocabulary", "bpe_merges", "seeds", "train", "runs"});
  read(source, plan, "text", result.text);
  read(source, plan, "tokenizer", result.tokenizer);
  read(source, plan, "bpe_vocabulary", result.bpe_vocabulary);
  read(source, plan, "bpe_merges", result.bpe_merges);
  read(source, plan, "seeds", result.seeds);
  rbar::require(!result.seeds.empty(), "sweep", source + ".seeds", "at least one seed", "none");
  require_distinct(source + ".seeds", result.seeds);
  TrainingGrid common;
  if (plan.contains("train")) common.read(source + ".train", plan["train"]);

  const bool has_runs = plan.contains("runs") && plan["runs"].is_array() && !plan["runs"].empty();
  rbar::require(has_runs, "sweep", source + ".runs", "a list of runs",
                plan.contains("runs") ? "another value" : "none");
  std::set<std::string> names;
  for (const json& entry : plan["runs"]) {
    const std::string index = source + ".runs[" + std::to_string(names.size()) + "]";
    require_known_keys(index, entry, {"name", "model", "config", "train"});
    PlannedRun run;
    read(index, entry, "name", run.name);
    rbar::require(names_a_folder(run.name), "sweep", index + ".name",
                  "1 to 60 letters, digits and ._+=-, the first no . or -",
                  rbar::detail::printable("'" + run.name + "'"));
    rbar::require(names.insert(run.name).second, "sweep", index + ".name", "another name than those before",
                  "'" + run.name + "'");
    const std::string where = source + ": " + run.name;
    rbar::require(entry.contains("model"), "sweep", where + ".model", "the family of the model", "none");
    read(where, entry, "model", run.model);
    if (entry.contains("config")) run.config = entry["config"];
    rbar::require(run.config.is_object(), "sweep", where + ".config", "an object", run.config.type_name());
    TrainingGrid grid = common;
    if (entry.contains("train")) grid.read(where + ".train", entry["train"]);
    require_distinct(where + ".train.lr", grid.learning_rates);
    run.training = grid.options;
    for (const double learning_rate : grid.learning_rates)
      for (const std::uint64_t seed : result.seeds) {
        run.training.config.optimizer.learning_rate = learning_rate;
        run.training.config.seed = seed;
        run.training.validate(where);
        result.runs.push_back(run);
      }
  }
  return result;
}

}  // namespace rbar_lm
