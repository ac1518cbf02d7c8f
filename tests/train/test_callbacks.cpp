#include "rbar/train/callbacks.hpp"

#include "io/temporary_folder.hpp"
#include "rbar/train/progress.hpp"
#include "support/catch.hpp"
#include "support/tiny_language_model.hpp"

#include <algorithm>
#include <fstream>
#include <sstream>

using namespace rbar;
using test::TinyConfig;
using Model = test::TinyLanguageModel<float>;

namespace {

std::vector<Token> noise(Index count, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<Token> tokens(static_cast<std::size_t>(count));
  for (Token& token : tokens) token = static_cast<Token>(rng.below(11));
  return tokens;
}

Model model_from(std::uint64_t seed) {
  Rng rng(seed);
  return Model(TinyConfig{}, rng);
}

TrainingConfig config_of(Index steps, double rate) {
  TrainingConfig config;
  config.steps = steps;
  config.batch_size = 2;
  config.window = 6;
  config.optimizer.learning_rate = rate;
  config.schedule.warmup_steps = 0;
  return config;
}

std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// What `write` prints, read back from a file without a name.
template <class Write>
std::string printed(Write&& write) {
  std::FILE* const file = std::tmpfile();
  write(file);
  std::rewind(file);
  std::string text;
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) text += static_cast<char>(c);
  std::fclose(file);
  return text;
}

StepReport report_of(Index step, Index steps) {
  StepReport report;
  report.step = step;
  report.steps = steps;
  report.tokens = 100;
  report.loss = 2.5;
  report.seconds = 0.01;
  return report;
}

}  // namespace

TEST_CASE("the best model is kept, and overfitting ends the run early") {
  const auto train = noise(20, 1), validation = noise(200, 2);  // nothing to learn but by heart
  Model model = model_from(3);
  Trainer trainer(model, config_of(2000, 0.05));
  std::vector<double> losses;
  Index saved = 0;
  PeriodicEvaluation<Model> evaluation{.tokens = validation, .every = 5, .on_best = [&](auto&) { ++saved; }};
  trainer.train(train, evaluation, EarlyStopping{40}, [&](auto&, StepReport& report) {
    CHECK(report.evaluation.has_value() == (report.step % 5 == 0));
    if (report.evaluation) losses.push_back(report.evaluation->nats);
  });
  const double best = *std::min_element(losses.begin(), losses.end());
  CHECK(trainer.state.best_nats == best);
  CHECK(losses.back() > best);
  CHECK(trainer.state.step == trainer.state.best_step + 40);
  REQUIRE(evaluation.best);
  CHECK(evaluate(*evaluation.best, validation).nats == best);
  CHECK(saved >= 1);
}

TEST_CASE("the last step is evaluated even off the beat") {
  const auto tokens = noise(50, 1);
  Model model = model_from(3);
  Trainer trainer(model, config_of(7, 0.01));
  Index evaluations = 0;
  PeriodicEvaluation<Model> evaluation{.tokens = tokens, .every = 5};
  trainer.train(tokens, evaluation, [&](auto&, StepReport& report) { evaluations += report.evaluation.has_value(); });
  CHECK(evaluations == 2);
}

TEST_CASE("the CSV log holds every step once, also after a resumed run") {
  const test::TemporaryFolder folder;
  const auto path = folder / "log.csv";
  const auto tokens = noise(50, 1);
  Model model = model_from(3);
  Trainer trainer(model, config_of(6, 0.01));
  PeriodicEvaluation<Model> evaluation{.tokens = tokens, .every = 2};
  trainer.train(tokens, evaluation, CsvLog(path));
  auto lines = lines_of(path);
  REQUIRE(lines.size() == 7);
  CHECK(lines[0] == "step,loss,gradient_norm,learning_rate,tokens_per_second,validation_nats");
  CHECK(lines[1].substr(0, 2) == "1,");
  CHECK(lines[1].back() == ',');
  CHECK(lines[2].back() != ',');

  // Back to step 3, as after a crash; the file ends in half a line.
  std::ofstream(path, std::ios::app) << "7,1.2";
  std::filesystem::create_hard_link(path, folder / "old.csv");
  trainer.state.step = 3;
  trainer.train(tokens, CsvLog(path));
  CHECK(lines_of(folder / "old.csv").size() == 8);  // never cut: who dies in between loses nothing
  CHECK(!std::filesystem::exists(folder / "log.csv.tmp"));
  const auto resumed = lines_of(path);
  REQUIRE(resumed.size() == 7);
  for (std::size_t i = 0; i <= 3; ++i) CHECK(resumed[i] == lines[i]);
  for (std::size_t i = 4; i < 7; ++i) CHECK(resumed[i].substr(0, 2) == std::to_string(i) + ",");

  // A new run begins a new file.
  trainer.state.step = 0;
  trainer.train(
      tokens, [](auto&, StepReport& report) { report.stop = true; }, CsvLog(path));
  CHECK(lines_of(path).size() == 2);
  StepReport report = report_of(1, 1);
  CHECK_THROWS_AS(CsvLog(path / "no" / "folder")(trainer, report), Error);
}

TEST_CASE("progress is plain lines away from a terminal") {
  const std::string text = printed([](std::FILE* out) {
    Progress progress(10, out);
    for (Index step = 1; step <= 25; ++step) {
      StepReport report = report_of(step, 25);
      if (step == 13) report.evaluation = Evaluation{.nats = 2.25};
      progress(progress, report);
    }
  });
  std::istringstream in(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  REQUIRE(lines.size() == 5);  // steps 1, 10, 13 (evaluated), 20, 25 (last)
  CHECK(lines[0].find("step 1/25  loss 2.5000  10000 tokens/s  ETA 0:00:00") == 0);
  CHECK(lines[2].find("step 13/25  loss 2.5000  validation 2.2500") == 0);
  CHECK(lines[4].find("step 25/25") == 0);
  CHECK(text.find('\r') == std::string::npos);
}

TEST_CASE("progress is one bar on a terminal, and its line is always ended") {
  const auto run = [](Index until) {
    return printed([until](std::FILE* out) {
      Progress progress(10, out, true);
      for (Index step = 1; step <= until; ++step) {
        StepReport report = report_of(step, 4);
        progress(progress, report);
      }
    });
  };
  CHECK(run(1).find("\r[=====>              ]  25%  step 1/4  loss 2.5000  10000 tokens/s  ETA 0:00:00\x1b[K\n") == 0);
  const std::string all = run(4);
  CHECK(all.find("\r[====================] 100%  step 4/4") != std::string::npos);
  CHECK(std::count(all.begin(), all.end(), '\n') == 1);
  CHECK(all.back() == '\n');
}
