// AnyModel for one type of model; every models/<name>.cpp instantiates it once.
#pragma once

#include "any_model.hpp"

#include "rbar/audit/causality.hpp"
#include "rbar/io/checkpoint.hpp"
#include "rbar/io/pretrained.hpp"
#include "rbar/model/generate.hpp"
#include "rbar/nn/linear.hpp"
#include "rbar/train/callbacks.hpp"
#include "rbar/train/progress.hpp"

#include <algorithm>
#include <utility>

namespace rbar_lm {

// What only some families can do; specialised for their models.
template <class M>
struct FamilyTools {};

template <rbar::LanguageModel M>
class ModelOf final : public AnyModel {
 public:
  explicit ModelOf(M model) : model_(std::move(model)) {}

  std::string family() const override { return M::model_type; }
  nlohmann::ordered_json config() const override {
    nlohmann::ordered_json json;
    auto config = model_.config;
    config.fields([&](const char* name, auto& member) { json[name] = rbar::detail::value_to_json(name, member); });
    return json;
  }
  std::vector<std::pair<std::string, std::vector<Index>>> parameters() const override {
    std::vector<std::pair<std::string, std::vector<Index>>> list;
    for (const auto& parameter : rbar::parameters_of(model_)) list.emplace_back(parameter.name, parameter.shape);
    return list;
  }
  Index vocabulary() const override { return model_.config.vocab_size; }
  Index longest_context() const override { return model_.config.max_seq_len; }
  double flops_per_token(Index window, double attention_share) const override {
    if constexpr (requires { flops(model_.config, window, attention_share).total(); })
      return flops(model_.config, window, attention_share).total();
    else
      return flops(model_.config, window);
  }

  void pack_weights() override { rbar::pack_weights(model_); }
  void round_weights(rbar::Bf16Inputs inputs) override { rbar::round_weights(model_, inputs); }

  TrainingResult train(const TrainingRun& run) override {
    rbar::Trainer<M> trainer(model_, run.config);
    const auto checkpoint = run.folder / "checkpoint.safetensors";
    if (run.resume)
      rbar::load_checkpoint(checkpoint, trainer,
                            run.allow_changes ? rbar::TrainingConfigCheck::free : rbar::TrainingConfigCheck::same);

    TrainingResult result;
    rbar::EvaluationOptions options;
    options.window = run.config.window;
    options.bytes_per_token = run.bytes_per_token;
    const auto measure = [&](auto&, const rbar::StepReport& report) {
      result.seconds += report.seconds;
      result.tokens += report.tokens;
    };
    const Index never = run.config.steps + 1;  // the last step evaluates and saves in any case
    rbar::PeriodicEvaluation<M> evaluation{
        .tokens = run.validation, .every = run.validate_every > 0 ? run.validate_every : never, .options = options};
    const auto remember = [&](auto&, const rbar::StepReport& report) {
      if (report.evaluation) result.validation = *report.evaluation;
    };
    rbar::CsvLog csv(run.csv);
    const auto log = [&](auto& trained, rbar::StepReport& report) {
      if (!run.csv.empty()) csv(trained, report);
    };
    rbar::Progress progress;
    const auto show = [&](auto& trained, rbar::StepReport& report) {
      if (!run.quiet) progress(trained, report);
    };
    const rbar::CheckpointEvery saver{checkpoint, run.save_every > 0 ? run.save_every : never};
    const auto save_run = [&](auto& trained, rbar::StepReport& report) {
      if (!run.folder.empty()) saver(trained, report);
    };
    if constexpr (requires { &FamilyTools<M>::phase_log; }) {
      const Index every = std::max<Index>(1, std::min(evaluation.every, run.config.steps));
      auto phases = FamilyTools<M>::phase_log(run.folder / "phases.csv", run.validation, run.config.window, every);
      const auto log_phases = [&](auto& trained, rbar::StepReport& report) {
        if (!run.folder.empty()) phases(trained, report);
      };
      trainer.train(run.train, measure, evaluation, remember, log, log_phases, show, save_run);
    } else {
      trainer.train(run.train, measure, evaluation, remember, log, show, save_run);
    }
    // Also when nothing was left to train: the run may have ended between its last checkpoint and this line.
    if (!run.folder.empty()) save(run.folder);
    result.windows = trainer.state.windows.drawn;
    if (result.tokens == 0) result.validation = rbar::evaluate(model_, run.validation, options);
    return result;
  }

  rbar::Evaluation evaluate(rbar::TokenSpan tokens, const rbar::EvaluationOptions& options) const override {
    return rbar::evaluate(model_, tokens, options);
  }
  double nats_from_the_past(rbar::TokenSpan tokens, Index window) const override {
    constexpr Index lengths = 8, rows_of_a_length = 64;
    rbar::require(static_cast<Index>(tokens.size()) > window && window >= lengths, "nats_from_the_past", "tokens",
                  "more than a window", tokens.size());
    typename M::Cache cache;
    rbar::Tensor<float, 3> logits;
    rbar::TokenBatch batch;
    double sum = 0;
    for (Index i = 1; i <= lengths; ++i) {
      const Index length = window * i / lengths;
      rbar::RandomWindows{.seed = static_cast<std::uint64_t>(i)}.next(tokens, rows_of_a_length, length, batch);
      for (Index row = 0; row < rows_of_a_length; ++row)
        for (Index t = 0; t + 1 < length; ++t) batch.targets(row, t) = rbar::ignore_index;
      model_.forward(rbar::view(std::as_const(batch.inputs)), logits, cache);
      sum += rbar::cross_entropy<float>(rbar::view(std::as_const(logits)), rbar::view(std::as_const(batch.targets)),
                                        nullptr);
    }
    return sum / lengths;
  }
  std::vector<Token> generate(rbar::TokenSpan prompt, const rbar::GenerateOptions& options) const override {
    return rbar::generate(model_, prompt, options);
  }
  rbar::CausalityReport causality(const rbar::CausalityOptions& options) const override {
    return rbar::causality(model_, options);
  }
  rbar::RoutingReport routing(rbar::TokenSpan tokens, std::vector<std::string> pieces) const override {
    if constexpr (rbar::RoutedModel<M>)
      return rbar::routing_report(model_, tokens, std::move(pieces));
    else
      return {std::move(pieces), {}};
  }
  rbar::LaneReport lanes(rbar::TokenSpan tokens, std::vector<std::string> pieces) const override {
    if constexpr (rbar::TracedModel<M>)
      return rbar::lane_report(model_, tokens, std::move(pieces));
    else
      throw rbar::Error("lanes", "model", "a family whose tokens take lanes, such as cgt", M::model_type);
  }
  std::vector<InterventionRow> intervene(rbar::TokenSpan tokens, const InterventionSweep& sweep) override {
    if constexpr (requires { &FamilyTools<M>::intervene; })
      return FamilyTools<M>::intervene(model_, tokens, sweep);
    else
      throw rbar::Error("intervene", "model", "a family with phases to set, such as pma", M::model_type);
  }
  void save(const std::filesystem::path& folder) const override { rbar::save_pretrained(model_, folder); }

 private:
  M model_;
};

// What a fresh model of this program is, where its family has the field: small enough to try things.
inline const nlohmann::json small_model = {{"d_model", 128}, {"n_layers", 4}, {"n_heads", 4}, {"dropout", 0.0}};

template <class M>
M make_model(const nlohmann::json& settings, std::uint64_t seed) {
  using Config = typename M::Config;
  nlohmann::json config = rbar::to_json(Config{});
  for (const auto& [name, value] : small_model.items())
    if (config.contains(name)) config[name] = value;
  // A word of the command line such as 7 is a number, and text where the field is (a list of layers).
  for (const auto& [name, value] : settings.items()) {
    const bool text = config.contains(name) && config[name].is_string() && value.is_number();
    config[name] = text ? nlohmann::json(value.dump()) : value;
  }
  rbar::Rng rng(seed);
  return M(rbar::from_json<Config>(config), rng);
}

template <class M>
bool register_family(const std::string& description) {
  families().push_back({M::model_type, description,
                        [](const nlohmann::json& settings, std::uint64_t seed) -> std::unique_ptr<AnyModel> {
                          return std::make_unique<ModelOf<M>>(make_model<M>(settings, seed));
                        },
                        [](const std::filesystem::path& folder) -> std::unique_ptr<AnyModel> {
                          return std::make_unique<ModelOf<M>>(rbar::from_pretrained<M>(folder));
                        }});
  return true;
}

}  // namespace rbar_lm
