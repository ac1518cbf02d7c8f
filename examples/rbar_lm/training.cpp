#include "training.hpp"

#include <algorithm>
#include <string>
#include <utility>

namespace rbar_lm {

std::uint64_t TrainingOptions::windows() const {
  return static_cast<std::uint64_t>(config.steps * config.batch_size * config.accumulation);
}

void TrainingOptions::validate(const std::string& where) const {
  config.validate();
  rbar::require(config.steps >= 1, "sweep", where + ": steps", "at least 1", config.steps);
  rbar::require(validate_every >= 0, "sweep", where + ": validate_every", "at least 0", validate_every);
  rbar::require(save_every >= 0, "sweep", where + ": save_every", "at least 0", save_every);
  rbar::require(validate_tokens >= 0, "sweep", where + ": validate_tokens", "at least 0", validate_tokens);
  constexpr Index most = 1'000'000'000'000'000;  // far beyond every text, and no count of a run overflows below it
  Index room = most;
  for (const Index factor : {config.steps, config.batch_size, config.accumulation, config.window}) {
    rbar::require(factor <= room, "sweep", where + ": steps * batch * accumulation * context", "at most 1e15 tokens",
                  "more");
    room /= factor;
  }
}

double bytes_per_token(const AnyTokenizer& tokenizer, rbar::TokenSpan tokens) {
  return tokens.empty() ? 1 : static_cast<double>(tokenizer.decode(tokens).size()) / static_cast<double>(tokens.size());
}

Corpus::Corpus(AnyTokenizer tokenizer_, std::string_view text)
    : tokenizer(std::move(tokenizer_)),
      data(tokenizer.encode(text)),
      bytes_per_token(rbar_lm::bytes_per_token(tokenizer, data.validation())) {}

rbar::TokenSpan validation_of(const Corpus& corpus, const TrainingOptions& options) {
  rbar::TokenSpan tokens = corpus.data.validation();
  if (options.validate_tokens > 0)
    tokens = tokens.first(std::min(tokens.size(), static_cast<std::size_t>(options.validate_tokens)));
  rbar::require(options.validate_tokens >= 0 && tokens.size() > 1, "training", "validate_tokens",
                "0 (all), or at least 2 of the tokens there are", options.validate_tokens);
  return tokens;
}

std::unique_ptr<AnyModel> fresh_model(const std::string& family, nlohmann::json settings, const Corpus& corpus,
                                      Index window, std::uint64_t seed) {
  settings["vocab_size"] = corpus.tokenizer.vocabulary;
  if (!settings.contains("max_seq_len")) settings["max_seq_len"] = window;
  return rbar_lm::family(family).create(settings, seed);
}

TrainingResult train(AnyModel& model, const Corpus& corpus, const TrainingOptions& options, const RunFolder& where) {
  TrainingRun run;
  run.train = corpus.data.train();
  rbar::require(static_cast<Index>(run.train.size()) > options.config.window, "training", "text",
                "more tokens to train on than a window, " + std::to_string(options.config.window), run.train.size());
  run.validation = validation_of(corpus, options);
  run.config = options.config;
  run.validate_every = options.validate_every;
  run.save_every = options.save_every;
  run.bytes_per_token = corpus.bytes_per_token;
  run.csv = where.csv;
  run.folder = where.folder;
  run.resume = where.resume;
  run.allow_changes = where.allow_changes;
  run.quiet = where.quiet;
  if (!where.folder.empty() && !where.resume) {
    std::filesystem::remove(where.folder / "checkpoint.safetensors");  // another run's: nothing to resume this one from
    model.save(where.folder);
    corpus.tokenizer.save(where.folder);
  }
  return model.train(run);
}

}  // namespace rbar_lm
