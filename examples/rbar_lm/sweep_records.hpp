// What the folders of a sweep's runs hold, and the tables and pictures made of it.
//   runs/<name>-lr<lr>-seed<seed>/   run.json (what is trained), model and checkpoint, log.csv, result.json (when it is
//                                    finished) or failure.txt (why it is not)
#pragma once

#include "sweep_plan.hpp"

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace rbar_lm {

// All that a run's numbers depend on.
struct RunDefinition {
  std::string name, model, tokenizer;
  std::string data;  // digest of every window in the order of training, and of the validation tokens
  Index parameters = 0;
  std::uint64_t seed = 1;
  TrainingOptions train;
  nlohmann::json config;  // of the model, complete

  template <class V>
  void fields(V&& v) {
    v("name", name);
    v("model", model);
    v("tokenizer", tokenizer);
    v("data", data);
    v("parameters", parameters);
    v("seed", seed);
    v("train", train);
  }

  nlohmann::json to_json() const;
  // `source` names the file in messages. Errors: what is no definition of a run, or of none that can be trained.
  static RunDefinition from_json(const std::string& source, nlohmann::json);
};

struct RunResult {
  double val_nats = 0, bits_per_byte = 0;
  std::optional<double> perplexity = {};  // none where it is beyond all numbers: more than 709 nats
  Index val_tokens = 0;

  template <class V>
  void fields(V&& v) {
    v("val_nats", val_nats);
    v("bits_per_byte", bits_per_byte);
    v("perplexity", perplexity);
    v("val_tokens", val_tokens);
  }
};

// About 500 points of a run's log: the training loss is the mean since the point before.
struct CurvePoint {
  Index step = 0, tokens = 0;  // tokens seen until then
  double train_nats = 0;
  double val_nats = 0;  // NaN where nothing was evaluated
};

// The phases of a phase-modulated model after a step, means over its layers (rbar::PhaseLog).
struct PhasePoint {
  Index step = 0;
  double order_parameter = 0, gate = 0;
};

struct RunRecord {
  RunDefinition definition;
  std::optional<RunResult> result;
  std::string failure;
  double tokens_per_second = 0;  // of all training steps
  std::vector<CurvePoint> curve;
  std::vector<PhasePoint> phases;  // none for a model without phases

  double learning_rate() const { return definition.train.config.optimizer.learning_rate; }
  Index tokens() const;  // of the whole run
};

inline std::filesystem::path run_folder(const std::filesystem::path& out, const PlannedRun& run) {
  return out / "runs" / run.folder_name();
}
// Nothing for a run that was never started.
std::optional<RunRecord> read_record(const std::filesystem::path& folder);

// Runs of one seed must have seen the same windows in the same order. Error: two that have not.
void require_same_data(const std::vector<RunDefinition>&);

// One row for each name and learning rate.
struct SummaryRow {
  const RunRecord* first = nullptr;
  std::vector<const RunRecord*> finished = {};
  Index failed = 0;
  double val_nats = 0, val_spread = 0;  // mean over the seeds and their standard deviation; NaN if there is none
  double bits_per_byte = 0, bits_spread = 0, tokens_per_second = 0;
  bool best = false;  // of the learning rates of this name: no run failed, all seeds are there, lowest mean
};
// `seeds`: how many the plan has.
std::vector<SummaryRow> summarise(const std::vector<RunRecord>&, std::size_t seeds);

// results.csv, summary.csv, curves.csv, curves.svg, lr.svg where a name has several learning rates, and phases.svg
// where a model has phases. The records must be of the same data, and the rows of the records.
void write_report(const std::filesystem::path& out, const std::vector<RunRecord>&, const std::vector<SummaryRow>&);

}  // namespace rbar_lm
