// What `train` and `sweep` share: a text as tokens, the options of a run, and its folder.
#pragma once

#include "any_model.hpp"
#include "text.hpp"

#include "rbar/train/data.hpp"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace rbar_lm {

// Options of training under the names of the command line and of a plan.
struct TrainingOptions {
  rbar::TrainingConfig config;
  Index validate_every = 0, save_every = 0;  // steps; 0: only at the end
  Index validate_tokens = 0;                 // from the beginning of the validation part; 0: all of it

  TrainingOptions() { config.optimizer.learning_rate = 1e-3; }

  template <class V>
  void fields(V&& v) {
    v("steps", config.steps);
    v("batch", config.batch_size);
    v("accumulation", config.accumulation);
    v("context", config.window);
    v("lr", config.optimizer.learning_rate);
    v("beta1", config.optimizer.beta1);
    v("beta2", config.optimizer.beta2);
    v("weight_decay", config.optimizer.weight_decay);
    v("decay", config.optimizer.decay);
    v("schedule", config.schedule.schedule);
    v("warmup", config.schedule.warmup_steps);
    v("min_ratio", config.schedule.min_ratio);
    v("clip", config.clip_norm);
    v("products", config.products);
    v("validate_every", validate_every);
    v("save_every", save_every);
    v("validate_tokens", validate_tokens);
  }

  std::uint64_t windows() const;  // that a run draws, of valid options
  // `where` names the run in messages. Errors: values out of range; a run of more than 1e15 tokens.
  void validate(const std::string& where) const;
};

struct Corpus {
  AnyTokenizer tokenizer;
  rbar::TokenDataset data;
  double bytes_per_token = 1;  // of the validation part

  Corpus(AnyTokenizer tokenizer_, std::string_view text);
};

double bytes_per_token(const AnyTokenizer&, rbar::TokenSpan);
// What a run with these options validates on. Errors: fewer than 2 tokens, which predict nothing.
rbar::TokenSpan validation_of(const Corpus&, const TrainingOptions&);

// A model of `family` for the tokens of the corpus; its context is the window unless the settings say otherwise.
std::unique_ptr<AnyModel> fresh_model(const std::string& family, nlohmann::json settings, const Corpus&, Index window,
                                      std::uint64_t seed);

// Where a run is kept: model, tokenizer and checkpoint. Empty `folder`: nowhere.
struct RunFolder {
  std::filesystem::path folder, csv;
  bool resume = false, allow_changes = false, quiet = false;
};

// Trains, and keeps model, tokenizer and checkpoints in the folder. To resume, `model` is the folder's.
TrainingResult train(AnyModel&, const Corpus&, const TrainingOptions&, const RunFolder&);

}  // namespace rbar_lm
