// What a sweep trains. A plan is one JSON file:
//   {"text": "wiki.txt", "tokenizer": "bytes", "seeds": [1, 2, 3],
//    "train": {"steps": 2000, "batch": 16, "context": 256},
//    "runs": [{"name": "torus", "model": "kuramoto", "config": {"d_model": 128}, "train": {"lr": [1e-3, 2e-3]}},
//             {"name": "baseline", "model": "standard"}]}
// "train" has the options of `rbar_lm train` by their names, those of a run before those of the plan. Every run is
// trained with every seed, and with every learning rate if "lr" is a list.
#pragma once

#include "training.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rbar_lm {

struct PlannedRun {
  std::string name, model;
  nlohmann::json config = nlohmann::json::object();  // fields of the model's config
  TrainingOptions training;                          // learning rate and seed included

  std::string folder_name() const;  // "torus-lr0.001-seed1"
};

struct SweepPlan {
  std::string text, tokenizer = "bytes";
  std::string bpe_vocabulary, bpe_merges;
  std::vector<std::uint64_t> seeds = {1};
  std::vector<PlannedRun> runs;  // in the order of the plan, then of its learning rates, then of its seeds
};

// `source` names the plan in messages. Errors, naming the key: one that is unknown (with the nearest), missing, of the
// wrong type or out of range; names that are no names of folders; a name, seed or learning rate twice.
SweepPlan parse_plan(const nlohmann::json&, const std::string& source);

// A number as short as reads back the same.
std::string short_number(double);

}  // namespace rbar_lm
