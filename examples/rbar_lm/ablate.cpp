// What the parts of phase-modulated attention are worth: a sweep over the model, the model without each of them, and a
// standard transformer, all of one size.
#include "arguments.hpp"
#include "sweep.hpp"

#include "rbar/io/config_json.hpp"
#include "rbar/model/pma_ablations.hpp"

#include <filesystem>

namespace rbar_lm {

int ablate(const Arguments& a) {
  using nlohmann::json;
  const std::filesystem::path path = std::filesystem::path(a.out) / "plan.json";
  if (a.report) return run_sweep(parse_plan(rbar::read_json(path), path.string()), a);
  const std::string text = read_text(a.text);
  const Corpus corpus(make_tokenizer(a.tokenizer, text, a.vocabulary, a.merges), text);
  const auto whole = fresh_model("pma", settings_of(a), corpus, a.training.config.window, a.seed);
  const auto config = rbar::from_json<rbar::PMAConfig>(whole->config());

  json runs = json::array();
  for (const rbar::PMAAblation& ablation : rbar::pma_ablations(config))
    runs.push_back({{"name", ablation.name}, {"model", "pma"}, {"config", rbar::to_json(ablation.config)}});
  runs.push_back(
      {{"name", "standard"}, {"model", "standard"}, {"config", rbar::to_json(rbar::matched_transformer(config))}});
  json plan = {{"text", a.text}, {"tokenizer", a.tokenizer}, {"train", rbar::to_json(a.training)}, {"runs", runs}};
  plan["seeds"] = a.seeds.empty() ? std::vector<std::uint64_t>{a.seed} : a.seeds;
  if (!a.vocabulary.empty()) plan["bpe_vocabulary"] = a.vocabulary;
  if (!a.merges.empty()) plan["bpe_merges"] = a.merges;
  const SweepPlan parsed = parse_plan(plan, path.string());
  require_known_runs(parsed, a.only);
  // The plan stays beside its runs, those included that are not asked for now: `rbar_lm sweep` goes on from there, with
  // more learning rates for instance.
  const bool known = std::filesystem::exists(path) && rbar::read_json(path) == json::parse(plan.dump());
  rbar::require(known || a.allow_changes || !std::filesystem::exists(path), "ablate", path.string(),
                "the plan of these arguments", "another; --allow-changes replaces it");
  std::filesystem::create_directories(a.out);
  if (!known) rbar::write_json(path, plan);
  return run_sweep(parsed, a);
}

}  // namespace rbar_lm
