// What people hang on a training loop. A callback is anything called as callback(trainer, report) after
// each step; these are the usual ones. Order matters: evaluation comes before those that read its result.
//   PeriodicEvaluation<Model> evaluation{.tokens = dataset.validation(), .every = 100};
//   trainer.train(dataset.train(), evaluation, EarlyStopping{500}, CsvLog("run.csv"), Progress{});
#pragma once

#include "rbar/train/trainer.hpp"

#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace rbar {

// Evaluates every `every` steps and after the last one, and keeps a copy of the best model. The best loss
// is part of the training state; the copy is not, so a run that must survive its process saves in `on_best`.
template <LanguageModel M>
struct PeriodicEvaluation {
  TokenSpan tokens;
  Index every = 100;
  EvaluationOptions options = {};
  std::function<void(Trainer<M>&)> on_best = {};
  std::optional<M> best = {};  // empty until an evaluation of this process beats all before it

  void operator()(Trainer<M>& trainer, StepReport& report) {
    if (report.step % every != 0 && !report.last()) return;
    report.evaluation = evaluate(std::as_const(trainer).model(), tokens, options);
    if (!(report.evaluation->nats < trainer.state.best_nats)) return;
    trainer.state.best_nats = report.evaluation->nats;
    trainer.state.best_step = report.step;
    best = trainer.model();
    if (on_best) on_best(trainer);
  }
};

// Ends the run when the best evaluation is at least `patience` steps old.
struct EarlyStopping {
  Index patience = 1000;

  void operator()(auto& trainer, StepReport& report) const {
    if (report.evaluation && report.step - trainer.state.best_step >= patience) report.stop = true;
  }
};

// A CSV file that a run writes as it goes, its first column the step. A resumed run goes on in the same file; lines
// after its checkpoint are dropped, so every step stands in it once.
class StepCsv {
 public:
  StepCsv(std::filesystem::path path, std::string header) : path_(std::move(path)), header_(std::move(header)) {}

  // write(file) adds the lines of this step.
  template <class Write>
  void append(Index step, Write&& write) {
    if (!file_) open(step);
    write(file_.get());
    require(std::fflush(file_.get()) == 0, "StepCsv", path_.string(), "a complete write",
            "an error (is the disk full?)");
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  using File = std::unique_ptr<std::FILE, Close>;

  static File opened(const std::filesystem::path& path, const char* mode) {
    File file(std::fopen(path.string().c_str(), mode));
    require(file != nullptr, "StepCsv", path.string(), "a file that can be written", "an error on opening");
    return file;
  }

  void open(Index first_step) {
    if (first_step > 1 && std::filesystem::is_regular_file(path_)) {
      // Whoever reads the file, or dies here, finds the old lines or the kept ones, never fewer.
      const std::filesystem::path file = std::filesystem::canonical(path_), temporary = file.string() + ".tmp";
      begin(temporary, lines_before(first_step));
      file_.reset();
      std::filesystem::rename(temporary, file);
      file_ = opened(file, "a");
    } else {
      begin(path_, "");
    }
  }

  void begin(const std::filesystem::path& path, const std::string& lines) {
    file_ = opened(path, "w");
    const bool complete = std::fputs((header_ + "\n" + lines).c_str(), file_.get()) >= 0;
    require(complete && std::fflush(file_.get()) == 0, "StepCsv", path.string(), "a complete write",
            "an error (is the disk full?)");
  }

  std::string lines_before(Index step) const {
    std::string lines, line;
    const File old(std::fopen(path_.string().c_str(), "r"));
    for (int c = old ? std::fgetc(old.get()) : EOF; c != EOF; c = std::fgetc(old.get())) {
      line += static_cast<char>(c);
      if (c != '\n') continue;  // a last line without an end was cut short
      const long long number = std::atoll(line.c_str());
      if (number > 0 && number < step) lines += line;
      line.clear();
    }
    return lines;
  }

  std::filesystem::path path_;
  std::string header_;
  File file_;
};

// One line a step: step,loss,gradient_norm,learning_rate,tokens_per_second,validation_nats (empty where nothing was
// evaluated).
class CsvLog {
 public:
  explicit CsvLog(std::filesystem::path path)
      : csv_(std::move(path), "step,loss,gradient_norm,learning_rate,tokens_per_second,validation_nats") {}

  void operator()(auto& /*trainer*/, StepReport& report) {
    csv_.append(report.step, [&](std::FILE* out) {
      std::fprintf(out, "%lld,%.9g,%.6g,%.6g,%.0f,", static_cast<long long>(report.step), report.loss,
                   report.gradient_norm, report.learning_rate, static_cast<double>(report.tokens) / report.seconds);
      if (report.evaluation) std::fprintf(out, "%.9g", report.evaluation->nats);
      std::fputc('\n', out);
    });
  }

 private:
  StepCsv csv_;
};

}  // namespace rbar
