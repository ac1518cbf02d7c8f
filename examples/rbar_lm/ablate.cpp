// What the parts of phase-modulated attention are worth: a sweep over the model, the model without each of them, and a
// standard transformer, all of one size.
#include "arguments.hpp"
#include "sweep.hpp"

#include "rbar/io/config_json.hpp"
#include "rbar/model/pma_ablations.hpp"

#include <algorithm>

namespace rbar_lm {

int ablate(const Arguments& a) {
  using nlohmann::json;
  const std::string text = read_text(a.text);
  const Corpus corpus(make_tokenizer(a.tokenizer, text, a.vocabulary, a.merges), text);
  const auto whole = fresh_model("pma", settings_of(a), corpus, a.training.config.window, a.seed);
  const auto config = rbar::from_json<rbar::PMAConfig>(whole->config());

  json runs = json::array();
  for (const rbar::PMAAblation& ablation : rbar::pma_ablations(config))
    runs.push_back({{"name", ablation.name}, {"model", "pma"}, {"config", rbar::to_json(ablation.config)}});
  runs.push_back(
      {{"name", "standard"}, {"model", "standard"}, {"config", rbar::to_json(rbar::matched_transformer(config))}});
  std::string names;
  for (const json& run : runs) names += (names.empty() ? "" : ", ") + run["name"].get<std::string>();
  json chosen = a.only.empty() ? runs : json::array();
  for (const std::string& name : a.only) {
    const auto run = std::find_if(runs.begin(), runs.end(), [&](const json& one) { return one["name"] == name; });
    rbar::require(run != runs.end(), "arguments", "--only", "names among " + names, name);
    chosen.push_back(*run);
  }

  json plan = {{"text", a.text}, {"tokenizer", a.tokenizer}, {"train", rbar::to_json(a.training)}, {"runs", chosen}};
  plan["seeds"] = a.seeds.empty() ? std::vector<std::uint64_t>{a.seed} : a.seeds;
  if (!a.vocabulary.empty()) plan["bpe_vocabulary"] = a.vocabulary;
  if (!a.merges.empty()) plan["bpe_merges"] = a.merges;
  // The plan stays beside its runs: `rbar_lm sweep` goes on from there, with more learning rates for instance.
  std::filesystem::create_directories(a.out);
  const std::filesystem::path path = std::filesystem::path(a.out) / "plan.json";
  rbar::write_json(path, plan);
  return run_sweep(parse_plan(plan, path.string()), a);
}

}  // namespace rbar_lm
