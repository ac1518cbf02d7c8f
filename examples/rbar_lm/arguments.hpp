// What the command line said, in plain data.
#pragma once

#include "training.hpp"

#include "rbar/core/bf16.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace rbar_lm {

using rbar::Index;

struct Arguments {
  std::string command;

  // The model: a saved one (`from`), or a fresh one of a family with some fields of its config set.
  std::string from;
  std::string model = "standard";
  std::string config_file;          // JSON with fields of the config
  std::vector<std::string> fields;  // "--d_model", "256", "--n_layers=4": what the program itself has no option for

  // The text.
  std::string text;
  std::string tokenizer = "bytes";
  std::string vocabulary, merges;  // GPT-2's encoder.json and vocab.bpe
  std::string split = "validation";
  std::optional<rbar::Bf16Inputs> bf16;

  TrainingOptions training;
  bool context_given = false, model_given = false, tokenizer_given = false;
  std::string out, csv;
  bool resume = false, allow_changes = false;

  std::string prompt;
  Index new_tokens = 200;
  double temperature = 0.8, top_p = 1;
  Index top_k = 0;
  bool no_cache = false;

  Index audit_trials = 16;
  std::string html;  // file for the lane report

  // Interventions.
  std::string on, svg;
  std::vector<double> values;
  Index layer = -1, windows = 128;

  std::string plan;  // of a sweep
  std::vector<std::uint64_t> seeds;
  std::vector<std::string> only;  // of the runs; empty: all
  int jobs = 1;                   // runs at once
  bool report = false;            // only the tables

  std::uint64_t seed = 1;
  int threads = 0;  // 0: all cores
  bool json = false, quiet = false;
};

int train(const Arguments&);
int eval(const Arguments&);
int generate(const Arguments&);
int audit(const Arguments&);
int inspect(const Arguments&);
int lanes(const Arguments&);
int sweep(const Arguments&);
int ablate(const Arguments&);
int intervene(const Arguments&);

// Fields of the model's config: those of the file, then those of the command line.
nlohmann::json settings_of(const Arguments&);

}  // namespace rbar_lm
