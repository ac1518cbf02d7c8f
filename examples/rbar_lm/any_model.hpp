// A language model whose type is chosen at run time, as the programs here need it. The library itself has
// no such thing: a family of models is compiled once, in models/<name>.cpp, and this is all that the
// programs see of it.
#pragma once

#include "rbar/audit/causality.hpp"
#include "rbar/audit/lane_report.hpp"
#include "rbar/audit/routing_report.hpp"
#include "rbar/core/bf16.hpp"
#include "rbar/model/generate.hpp"
#include "rbar/train/trainer.hpp"

#include <nlohmann/json_fwd.hpp>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace rbar_lm {

using rbar::Index;
using rbar::Token;

// What a training run does beside learning.
struct TrainingRun {
  rbar::TokenSpan train, validation;
  rbar::TrainingConfig config;
  Index validate_every = 0;  // steps; 0: only at the end
  Index save_every = 0;      // steps; 0: only at the end
  double bytes_per_token = 1;
  std::filesystem::path csv;     // log, a line a step; empty: none
  std::filesystem::path folder;  // of model and checkpoint; empty: nothing is written
  bool resume = false;           // go on from the checkpoint in `folder`
  bool allow_changes = false;    // ... even if `config` is not the run's
  bool quiet = false;            // no progress on the terminal
};

struct TrainingResult {
  double seconds = 0;         // spent in training steps
  Index tokens = 0;           // seen by them
  std::uint64_t windows = 0;  // drawn from the text since the run began
  rbar::Evaluation validation;
};

// Values that `on` (coupling, order_parameter, temperature, gate or phase) is set to, one after the other.
struct InterventionSweep {
  std::string on;
  std::vector<double> values;
  Index layer = -1;       // of attention; -1: every one
  Index window = 128;     // tokens of context
  Index max_windows = 0;  // of the text; 0: all
};

// Means over the tokens, and over heads and layers where a token has several; entropies in nats.
struct InterventionRow {
  std::optional<double> value = {};  // none: without an intervention
  double nats = 0, next_token_entropy = 0;
  double attention_entropy = 0, R_mean = 0, coupling = 0, temperature = 0, gate = 0;  // of the layers that are set
};

class AnyModel {
 public:
  virtual ~AnyModel() = default;
  virtual std::string family() const = 0;
  virtual nlohmann::ordered_json config() const = 0;
  virtual std::vector<std::pair<std::string, std::vector<Index>>> parameters() const = 0;  // name, shape
  virtual Index vocabulary() const = 0;
  virtual Index longest_context() const = 0;
  // Operations of a forward pass per token, if this share of the tokens goes to attention.
  virtual double flops_per_token(Index window, double attention_share) const = 0;
  // For inference only from then on: large matrices as products read them, or in bf16. Errors, afterwards: training,
  // saving, parameters().
  virtual void pack_weights() = 0;
  virtual void round_weights(rbar::Bf16Inputs) = 0;
  virtual TrainingResult train(const TrainingRun&) = 0;
  virtual rbar::Evaluation evaluate(rbar::TokenSpan, const rbar::EvaluationOptions&) const = 0;
  // Mean loss in nats when every prediction is the last of its window, with nothing after it to look at:
  // what the model knows without the future. 512 predictions, spread over the text.
  virtual double nats_from_the_past(rbar::TokenSpan, Index window) const = 0;
  virtual std::vector<Token> generate(rbar::TokenSpan prompt, const rbar::GenerateOptions&) const = 0;
  virtual rbar::CausalityReport causality(const rbar::CausalityOptions&) const = 0;
  // What the routers do with a text; no layers for a model without routers.
  virtual rbar::RoutingReport routing(rbar::TokenSpan, std::vector<std::string> pieces) const = 0;
  // Which lanes the tokens take. Errors: a family without lanes.
  virtual rbar::LaneReport lanes(rbar::TokenSpan, std::vector<std::string> pieces) const = 0;
  // The model without an intervention, then under each. Errors: a family without phases.
  virtual std::vector<InterventionRow> intervene(rbar::TokenSpan, const InterventionSweep&) = 0;
  virtual void save(const std::filesystem::path& folder) const = 0;
};

// A family: how to make its models. `settings` are fields of its config; what is not named keeps the
// family's default. Errors: unknown fields, and what the config refuses.
struct Family {
  std::string name, description;
  std::function<std::unique_ptr<AnyModel>(const nlohmann::json& settings, std::uint64_t seed)> create;
  std::function<std::unique_ptr<AnyModel>(const std::filesystem::path& folder)> load;
};

Index count_parameters(const AnyModel&);
// Share of the tokens that goes to attention, mean over layers and over at most 64 windows spread over the
// text; 1 without routers.
double attention_share(const AnyModel&, rbar::TokenSpan, Index window);

std::vector<Family>& families();                                            // in the order of registration
const Family& family(const std::string& name);                              // throws rbar::Error that lists the names
std::unique_ptr<AnyModel> load_model(const std::filesystem::path& folder);  // the family is in its config.json

}  // namespace rbar_lm
